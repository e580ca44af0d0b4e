"""Which tensors of a model are observed, and the covariance of each over all forward passes in a context.

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
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

from torch import nn

from eigendet.errors import UserError, some, unknown
from eigendet.observe.covariance import Covariance, Tap
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.observer import Observer
from eigendet.observe.padding import Canvas
from eigendet.observe.points import each_call, point_of, refuse_hookless

logger = logging.getLogger(__name__)

PRECISION = "float32 products of samples shifted by the mean of the first; float64 sums"


@contextlib.contextmanager
def tap(
    model: nn.Module,
    points: Point | Collection[Point] = "act",
    *,
    modules: str | Sequence[str] = "*",
    channels: Container[int] | None = None,
    shortcuts: bool = True,
    keys: Collection[TapKey] | None = None,
    measure: bool = False,
) -> Iterator[Taps]:
    """Accumulate the covariance of chosen feature maps over all forward passes inside the context.

    The model's outputs and gradients stay as they are, and so does the model: it can be copied and pickled inside.

    Args:
        points: kinds of modules whose output is observed: conv, linear, norm, act, block, fpn, output (all others).
        modules: patterns of module paths, as of file names: "layer3.*", ["*.conv2", "fc"].
        channels: numbers of channels that are observed, for example `range(64, 513)`.
        shortcuts: compute what follows from other maps by an affine layer instead of accumulating it. Needs a model
            that runs the same layers in every pass, and `torch.no_grad` rather than `torch.inference_mode`.
        keys: only these taps.
        measure: accumulate nothing, only find out which taps there are.

    Yields:
        A mapping from tap key to accumulator that fills as the model runs, in the order of execution.

    Raises:
        UserError: nothing in the model matches; nothing that does has run; a feature map is not finite.
    """
    refuse_hookless(model)
    patterns = [modules] if isinstance(modules, str) else list(modules)
    selected = _select(model, [points] if isinstance(points, str) else points, patterns)
    taps = Taps(model, selected, channels, shortcuts, keys, measure)
    observer = taps._observer
    try:
        with each_call(model, observer.see, observer.begin, observer.end):
            yield taps
    finally:
        observer.join()
    observer.check()
    taps._check_ran(patterns)


class Taps(Mapping[TapKey, Covariance]):
    """Accumulators by tap key, in the order of execution; a key's text does as well. Made by `tap`."""

    def __init__(
        self,
        model: nn.Module,
        selected: Collection[str],
        channels: Container[int] | None,
        shortcuts: bool,
        keys: Collection[TapKey] | None,
        measure: bool,
    ) -> None:
        self._model = type(model).__name__
        self._selected, self._channels, self._keys = selected, channels, keys
        self._ran: set[str] = set()  # of the selected modules
        self._unwanted_channels: set[int] = set()  # met in selected modules
        self._observer = Observer(model, self._wants, shortcuts, measure)

    def __getitem__(self, key: TapKey | str) -> Covariance:
        for known in self:
            if key in (known, str(known)):
                return self._observer.resolve(known)
        raise KeyError(unknown("tap", key, map(str, self)))

    def __iter__(self) -> Iterator[TapKey]:
        return iter(self._observer.padding)

    def __len__(self) -> int:
        return len(self._observer.padding)

    def pooled(self, module: str) -> Covariance:
        """All calls of one module as one accumulator: a shared head over all its levels."""
        calls = [self[key] for key in self if key.module == module]
        if not calls:
            raise KeyError(unknown("module among the taps", module, {key.module for key in self}))
        total = Covariance(calls[0].channels, calls[0].device)
        for covariance in calls:
            total.merge(covariance)
        return total

    def taps(self) -> Iterator[Tap]:
        """Every tap with what is known of it, one resolved at a time."""
        for position, (key, padding) in enumerate(self._observer.padding.items()):
            yield Tap(key, position, padding, self._observer.resolve(key), self._observer.image_means(key))

    def save(
        self,
        path: Path | str,
        images: Sequence[str | int] | None = None,
        *,
        single: bool = False,
    ) -> None:
        """Write an HDF5 file, as `eigendet.observe.store` describes it.

        Args:
            images: which samples were seen; without it the file cannot be merged with another.
            single: scatter in float32, half the size.
        """
        from eigendet.observe import store

        provenance = {"model": self._model, "precision": PRECISION}
        store.write_covariances(Path(path), [(0, self.taps())], provenance, images, single=single)

    def image_sizes(self, sizes: Sequence[Sequence[int]], canvas: Sequence[int]) -> None:
        """Say, before a pass, how large the images are, (height, width) each, in a batch padded to `canvas`.

        torchvision's detectors say so themselves.
        """
        self._observer.announced = Canvas.of(sizes, canvas)

    def end_image(self) -> None:
        """Say that all passes since the last call showed one image, so that its mean is kept by itself."""
        self._observer.end_image()

    def forget(self) -> None:
        """Drop all samples, but not what the first of them decided: shifts and shortcuts.

        Shards whose taps forgot the same first image merge to the taps of all images, up to the order of float64 sums.
        """
        self._observer.forget()

    def roots(self) -> dict[TapKey, tuple[int, list[TapKey]]]:
        """The accumulators behind the taps: of each the number of channels, and the taps that are computed from it."""
        roots: dict[TapKey, tuple[int, list[TapKey]]] = {}
        for key in self:
            root, channels = self._observer.root(key)
            roots.setdefault(root, (channels, []))[1].append(key)
        return roots

    def _wants(self, path: str, key: TapKey, channels: int) -> bool:
        if path not in self._selected:
            return False
        self._ran.add(path)
        if self._channels is not None and channels not in self._channels:
            self._unwanted_channels.add(channels)
            return False
        return self._keys is None or key in self._keys

    def _check_ran(self, patterns: Sequence[str]) -> None:
        """Raise UserError if nothing of what a pattern asks for has run; log what else has not."""
        if not self._observer.passes:
            raise UserError(
                f"the model ({self._model}) did not run while it was tapped. If it ran as a compiled function, "
                "compile it inside the context."
            )
        missing = [path for path in self._selected if path not in self._ran]
        for pattern in patterns:
            asked = [path for path in self._selected if fnmatchcase(path, pattern)]
            if asked and not self._ran.intersection(asked):
                raise UserError(
                    f"modules: '{pattern}' chose {some(asked)}, which never ran while the model was tapped."
                )
        if not self and self._unwanted_channels:
            found = ", ".join(map(str, sorted(self._unwanted_channels)))
            raise UserError(
                f"channels: no feature map has a number of channels in {self._channels}; there are {found}."
            )
        if missing:
            logger.warning("never ran while the model was tapped: %s", some(missing))


def _select(model: nn.Module, points: Collection[str], patterns: Sequence[str]) -> dict[str, Point]:
    """Paths of the modules that are to be observed, with their points."""
    for point in points:
        if point not in get_args(Point):
            raise UserError(f"points: {unknown('point', point, get_args(Point))}")
    there = {path: point_of(module) for path, module in model.named_modules()}
    matched: set[str] = set()
    for pattern in patterns:
        matching = {path for path in there if fnmatchcase(path, pattern)}
        if not matching:
            near = get_close_matches(pattern, there, n=5, cutoff=0.3)
            raise UserError(f"modules: no module matches '{pattern}'. Near names: {', '.join(near) or 'none'}.")
        matched |= matching
    selected = {path: point for path, point in there.items() if path in matched and point in points}
    if not selected:
        counts = {point: sum(there[path] == point for path in matched) for point in get_args(Point)}
        found = ", ".join(f"{point} ({count})" for point, count in counts.items() if count)
        raise UserError(f"points: none of the modules is {' or '.join(points) or 'asked for'}; there are {found}.")
    return selected
