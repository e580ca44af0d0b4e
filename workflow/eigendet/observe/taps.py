"""Choose tensors of a model, and accumulate the covariance of each over all forward passes in a context.

    with eigendet.tap(model, points=("act", "block")) as taps:
        for images in loader:
            model(images)
    taps["layer1.0.relu#2:act"].covariance()
    taps.save("covariance.h5")

A module may run several times in one pass (a ReLU three times in a residual block, a head on five levels); every call
is a tap of its own, and `pooled` adds them up. A tensor that is tapped twice is accumulated once, and maps that follow
from others by an affine layer (`shortcuts`) are not accumulated at all but computed when they are asked for.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from eigendet.errors import UserError, kind, some, unknown
from eigendet.moments.covariance import Covariance, merged
from eigendet.moments.weighting import Weighting
from eigendet.observe.attention import by_modules
from eigendet.observe.calls import each_call
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.observer import Observer
from eigendet.observe.padding import Canvas
from eigendet.observe.points import point_of, refuse_hookless
from eigendet.observe.tap import Tap

if TYPE_CHECKING:
    from eigendet.observe.gradients import Gradients

logger = logging.getLogger(__name__)

PRECISION = "float32 products of samples shifted by about the mean of their chunk; float64 sums"


@contextlib.contextmanager
def tap(
    model: nn.Module,
    points: Point | Collection[Point] = "act",
    *,
    modules: str | Sequence[str] = "*",
    channels: Container[int] | None = None,
    shortcuts: bool = True,
    keys: Container[TapKey] | None = None,
    measure: bool = False,
    weighting: Weighting = "positions",
) -> Iterator[Taps]:
    """Accumulate the covariance of chosen feature maps over all forward passes inside the context.

    The model's outputs and gradients stay as they are, and so does the model: it can be copied and pickled inside.
    It must be in the mode, training or evaluation, whose feature maps are asked for.

    What runs without hooks cannot be observed: functions such as `torch.relu`, and models that were compiled, scripted
    or are run by `nn.DataParallel`; a plain model may be compiled inside the context. An accumulator takes 8 C² bytes
    for C channels; `eigendet.covariances` keeps to a limit. Channels are where the layer has them, else in the last
    dimension of tokens (N, T, C) and the second of all else. Padding is left out where the model tells the sizes of
    its images (`Taps.image_sizes`).

    Args:
        model: any module; its parts are called by it or from outside.
        points: kinds of modules whose output is observed: conv, linear, norm, act, block, fpn, output (all others).
        modules: patterns of module paths, as of file names: "layer3.*", ["*.conv2", "fc"].
        channels: numbers of channels that are observed, for example `range(64, 513)`.
        shortcuts: compute what follows from other maps by an affine layer instead of accumulating it. Needs a model
            that runs the same layers in every pass, and `torch.no_grad` rather than `torch.inference_mode`.
        keys: only these taps.
        measure: accumulate nothing, only find out which taps there are.
        weighting: what counts alike: each position, or each image (or each region, in a box head) whatever its size.

    Yields:
        A mapping from tap key to accumulator that fills as the model runs, in the order of execution.

    Raises:
        UserError: an argument is wrong; nothing in the model matches; nothing that does has run; a feature map is not
            finite, or cannot be accumulated.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
        >>> with torch.no_grad(), tap(model, points=("conv", "act")) as taps:
        ...     for images in (torch.rand(4, 3, 16, 16), torch.rand(2, 3, 16, 16)):
        ...         output = model(images)
        >>> list(taps)
        ['0#0:conv', '1#0:act']
        >>> taps["1#0:act"].count, taps["1#0:act"].covariance().shape
        (1176, torch.Size([8, 8]))
    """
    refuse_hookless(model)
    patterns = patterns_of(modules)
    check_channels(channels)
    if weighting not in get_args(Weighting):
        raise UserError(f"weighting: got {weighting!r}; expected one of {', '.join(get_args(Weighting))}.")
    taps = Taps(model, select(model, points, patterns), channels, shortcuts, keys, measure, weighting=weighting)
    with taps.observing(lambda: not torch.jit._trace.is_tracing()):
        yield taps
    taps._check_ran(patterns)


@dataclass
class _Choice:
    """Which tensors are observed; apart from `Taps`, whose accumulators would else wait for the garbage collector."""

    selected: Mapping[str, Point]  # of paths of modules
    channels: Container[int] | None
    keys: Container[TapKey] | None
    ran: set[str] = field(default_factory=set)  # of the selected modules
    unwanted_channels: set[int] = field(default_factory=set)  # met in selected modules

    def wants(self, path: str, key: TapKey, channels: int | None) -> bool:
        """Return whether a tensor is to be observed, and note that its module has run."""
        if path not in self.selected:
            return False
        self.ran.add(path)
        if self.channels is not None and channels is not None and channels not in self.channels:
            self.unwanted_channels.add(channels)
            return False
        return self.keys is None or key in self.keys


class Taps(Mapping[TapKey, Covariance]):
    """Accumulators by tap key, in the order of execution. Made by `tap`.

    `list(taps)` gives the keys, which are texts: "module#call:point". `taps[...]` looks one up, by the whole text or as
    far as it says which: "module#call", and "module" where that has one tap. Where moments follow from another
    tensor's, each look-up computes them anew: keep what is used again.

    >>> import torch
    >>> act = nn.ReLU()
    >>> model = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 4), act)  # one activation, called twice
    >>> with torch.no_grad(), tap(model) as taps:
    ...     output = model(torch.rand(10, 3))
    >>> list(taps)
    ['1#0:act', '1#1:act']
    >>> taps["1#1"].count, taps.pooled("1").count
    (10, 20)
    >>> taps["1"]
    Traceback (most recent call last):
      ...
    KeyError: "'1' has several taps: 1#0:act, 1#1:act. Name one, or take `pooled`."
    """

    def __init__(
        self,
        model: nn.Module,
        selected: Mapping[str, Point],
        channels: Container[int] | None,
        shortcuts: bool,
        keys: Container[TapKey] | None = None,
        measure: bool = False,
        tolerant: bool = False,
        observer: type[Observer] = Observer,
        weighting: Weighting = "positions",
    ) -> None:
        self._network, self._model = model, type(model).__name__
        self._choice, self._tolerant = _Choice(selected, channels, keys), tolerant
        self._observer = observer(model, self._choice.wants, shortcuts, measure, tolerant, weighting)

    def __getitem__(self, key: str) -> Covariance:
        keys = self._keys_of(key)
        if not keys:
            raise KeyError(unknown("tap", key, self))
        if len(keys) > 1:
            raise KeyError(f"'{key}' has several taps: {some(keys, limit=10)}. Name one, or take `pooled`.")
        return self._observer.resolve(keys[0])

    def __contains__(self, key: object) -> bool:
        return len(self._keys_of(key)) == 1  # which, other than looking it up, computes nothing

    def _keys_of(self, name: object) -> list[TapKey]:
        """Return the tap of that name, or else those of the module, or of the call of a module, that it names."""
        return [key for key in self if key == name] or [
            key for key in self if name in (key.module, f"{key.module}#{key.call}")
        ]

    def __iter__(self) -> Iterator[TapKey]:
        return iter(self._observer.padding)

    def __len__(self) -> int:
        return len(self._observer.padding)

    @property
    def passes(self) -> int:
        """How many passes were observed."""
        return self._observer.passes

    @property
    def faults(self) -> Mapping[TapKey, UserError]:
        """What is wrong with a tap, where that is noted instead of raised."""
        return self._observer.faults

    @contextlib.contextmanager
    def observing(self, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Observe the passes inside the context, of which `counts` says whether each is one to observe.

        Raises:
            UserError: as `tap`, but not for what has never run.
        """
        observer = self._observer
        with contextlib.ExitStack() as hooks:
            hooks.callback(
                register_optimizer_step_post_hook(lambda optimizer, *_: observer.note_update(optimizer)).remove
            )
            hooks.enter_context(by_modules())
            follower = observer.see, observer.begin, observer.end, counts, not self._tolerant
            hooks.enter_context(each_call(self._network, *follower))
            yield
        observer.check()

    def pooled(self, module: str) -> Covariance:
        """Return all calls of one module as one accumulator: a shared head over all its levels.

        Raises:
            KeyError: the module has no tap.
        """
        calls = [self[key] for key in self if key.module == module]
        if not calls:
            raise KeyError(unknown("module among the taps", module, {key.module for key in self}))
        return merged(calls)

    def taps(self) -> Iterator[Tap]:
        """Yield every tap as it is stored; where moments follow from others, one at a time is computed."""
        for position, (key, padding) in enumerate(self._observer.padding.items()):
            covariance, means = self._observer.resolve(key), self._observer.image_means(key)
            yield Tap(key, position, padding, covariance, means, weighting=self._observer.weighting[key])

    def save(
        self,
        path: Path | str,
        images: Sequence[str | int] | None = None,
        *,
        single: bool = False,
        gradients: Gradients | None = None,
    ) -> None:
        """Write an HDF5 file, as `eigendet.observe.store` describes it.

        Args:
            path: the file; one that is there is replaced.
            images: which images were seen; without it the file cannot be merged with another.
            single: scatter in float32, half the size.
            gradients: those of the same maps, from `tap_gradients`.

        Raises:
            UserError: the gradient of a map was not observed.
        """
        from eigendet.observe import store  # here, since h5py is needed for nothing else

        taps = self.taps()
        if gradients is not None:
            if missing := [key for key in self if key not in gradients]:
                raise UserError(f"gradients: have no {some(missing)}; observe those of the same maps.")
            taps = (replace(one, gradient=gradients.of(one.key)) for one in taps)
        provenance = {"model": self._model, "precision": PRECISION}
        store.write_covariances(Path(path), [(0, taps)], provenance, images, single=single)

    def image_sizes(self, sizes: Sequence[Sequence[int]], canvas: Sequence[int]) -> None:
        """Say, before a pass, how large the images are in a padded batch.

        torchvision's detectors say so themselves.

        Args:
            sizes: (height, width) of each image.
            canvas: (height, width) of the batch.
        """
        self._observer.announced = Canvas.of(sizes, canvas)

    def end_image(self) -> None:
        """Say that all passes since the last call showed one image, so that the mean over it is kept by itself."""
        self._observer.end_image()

    def forget(self) -> None:
        """Drop all samples, but not what the first of them decided: which maps follow from others.

        Shards whose taps forgot the same first image merge to the taps of all images, up to the order of float64 sums.
        """
        self._observer.forget()

    def roots(self) -> dict[TapKey, tuple[int, list[TapKey]]]:
        """Return the accumulators behind the taps: the channels of each, and the taps that are computed from it."""
        roots: dict[TapKey, tuple[int, list[TapKey]]] = {}
        for key in self:
            root, channels = self._observer.root(key)
            roots.setdefault(root, (channels, []))[1].append(key)
        return roots

    @property
    def unwanted_channels(self) -> list[int]:
        """The numbers of channels that were met in selected modules and are not to be observed."""
        return sorted(self._choice.unwanted_channels)

    def _check_ran(self, patterns: Sequence[str]) -> None:
        """Raise UserError if nothing of what a pattern asks for has run; log what else has not."""
        if not self._observer.passes and not self:
            raise UserError(
                f"the model ({self._model}) did not run while it was tapped. If it ran as a compiled function, "
                "compile it inside the context."
            )
        selected, ran, useless = self._choice.selected, self._choice.ran, self._observer.useless
        missing = [path for path in selected if path not in ran and path not in useless]
        for pattern in patterns:
            chosen = [path for path in selected if fnmatchcase(path, pattern)]
            if not chosen or ran.intersection(chosen):
                continue
            if outputs := [f"{path or 'the model itself'} ({useless[path]})" for path in chosen if path in useless]:
                raise UserError(
                    f"modules: '{pattern}' chose {some(outputs)}, which gave no batch of real floating-point numbers."
                )
            raise UserError(f"modules: '{pattern}' chose {some(chosen)}, which never ran while the model was tapped.")
        if not self and self.unwanted_channels:
            numbers = ", ".join(map(str, self.unwanted_channels))
            raise UserError(
                f"channels: no feature map has a number of channels in {self._choice.channels}; there are {numbers}."
            )
        if others := [path for path in useless if selected.get(path, "output") != "output" and path not in ran]:
            logger.warning("gave no batch of real floating-point numbers: %s", some(others))
        if missing:
            logger.warning("never ran while the model was tapped: %s", some(missing))


def patterns_of(modules: str | Sequence[str]) -> list[str]:
    """Return patterns of module paths as a list.

    Raises:
        UserError: they are something else, or there are none.
    """
    patterns = [modules] if isinstance(modules, str) else modules
    if not isinstance(patterns, Iterable) or not (patterns := list(patterns)):
        raise UserError(f"modules: got {kind(modules)}; expected a pattern of module paths, or a list of them.")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"modules: {kind(pattern)} in the list; expected patterns of module paths.")
    return patterns


def check_channels(channels: Container[int] | None) -> None:
    """Raise UserError unless these are numbers of channels, or None."""
    if channels is not None and (isinstance(channels, str) or not isinstance(channels, Container)):
        raise UserError(f"channels: got {channels!r}; expected numbers of channels, such as range(64, 513).")


def select(model: nn.Module, points: Point | Collection[Point], patterns: Sequence[str]) -> dict[str, Point]:
    """Return the paths of the modules that are to be observed, with their points; for the arguments see `tap`.

    Raises:
        UserError: a point is unknown; a pattern matches no module; no module that matches has such a point.
    """
    points = [points] if isinstance(points, str) else points
    if not isinstance(points, Collection):
        raise UserError(f"points: got {kind(points)}; expected some of {', '.join(get_args(Point))}.")
    for point in points:
        if point not in get_args(Point):
            raise UserError(f"points: {unknown('point', point, get_args(Point))}")
    point_by_path = {path: point_of(module) for path, module in model.named_modules()}
    matched: set[str] = set()
    for pattern in patterns:
        matching = {path for path in point_by_path if fnmatchcase(path, pattern)}
        if not matching:
            near = get_close_matches(pattern, point_by_path, n=5, cutoff=0.3)
            raise UserError(f"modules: no module matches '{pattern}'. Near names: {', '.join(near) or 'none'}.")
        matched |= matching
    # A ModuleList, say, has no function of its own.
    matched = {path for path in matched if type(model.get_submodule(path)).forward is not nn.Module.forward}
    selected = {path: point for path, point in point_by_path.items() if path in matched and point in points}
    if not selected:
        counts = Counter(point_by_path[path] for path in matched)
        others = ", ".join(f"{point} ({counts[point]})" for point in get_args(Point) if counts[point])
        others = others or "none that can be called"
        functions = "; functions such as torch.relu are no modules, and cannot be observed" if "act" in points else ""
        raise UserError(
            f"points: none of the modules is {' or '.join(points) or 'asked for'}; there are {others}{functions}."
        )
    return selected
