"""Accumulating every tensor of interest as a model runs, each one once and by the cheapest exact way.

A tensor tapped under two names is accumulated once. One that is an affine map of another is not accumulated at all: it
is linked to the other, and its moments are computed when they are asked for. Where the other is not tapped itself but
no wider, it is accumulated in its place.

Links hold only while every pass runs the same layers with the same weights, so this is checked at every pass: changed
weights turn links into accumulators, anything else is an error.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError
from eigendet.observe.covariance import Covariance, NonFiniteError
from eigendet.observe.keys import TapKey
from eigendet.observe.padding import Canvas, canvas_in, region_paths
from eigendet.observe.points import default_channel_dim, feature_maps, own_channel_dim, point_of
from eigendet.observe.products import Workspace
from eigendet.observe.shortcuts import AMPLIFICATION_LIMIT, Affine, affine_of, amplification, state_of, strided


@dataclass(frozen=True)
class _Link:
    """A tensor whose moments follow from another's; `affine` is None where both are the same tensor."""

    source: TapKey
    affine: Affine | None = None
    module: nn.Module | None = None
    state: tuple[object, ...] = ()  # of the module when the link was made

    @property
    def is_current(self) -> bool:
        return self.module is None or state_of(self.module) == self.state


@dataclass(frozen=True)
class _Seen:
    """A tensor of the present pass whose moments are known under `key`."""

    tensor: weakref.ref[Tensor]
    version: int
    key: TapKey
    channel_dim: int


class Observer:
    """What `points.each_call` calls. `wants(path, key, channels)` says which tensors are to be observed."""

    def __init__(
        self, model: nn.Module, wants: Callable[[str, TapKey, int], bool], shortcuts: bool, measure: bool
    ) -> None:
        self.passes = 0
        self.announced: Canvas | None = None  # of the next pass
        self.padding: dict[TapKey, str] = {}  # of every observed tensor, in the order of execution
        self._wants, self._shortcuts, self._measure = wants, shortcuts, measure
        self._regions = region_paths(model)
        self._direct: dict[TapKey, Covariance] = {}
        self._links: dict[TapKey, _Link] = {}
        self._images = 0  # that have ended, see `end_image`
        self._sums: dict[TapKey, list[tuple[Tensor, Tensor]]] = {}  # of every key in _direct, as each image ended
        self._times: Counter[TapKey] = Counter()  # calls of every key in _direct and _links
        self._affine: dict[nn.Module, Affine | None] = {}
        self._workspaces: dict[torch.device, Workspace] = {}
        # Of the present pass:
        self._canvas: Canvas | None = None
        self._seen: dict[tuple[int, tuple[int, ...]], _Seen] = {}  # by identity of the tensor, and stride
        self._channel_dims: dict[torch.Size, int] = {}

    def begin(self) -> None:
        """A pass begins."""
        self._canvas, self.announced = self.announced, None
        self._seen.clear()
        self._channel_dims.clear()
        if not all(link.is_current for link in self._links.values()):
            self._unlink()

    def end(self) -> None:
        """A pass has come to its end."""
        for key, link in self._links.items():
            if self._times[key] != self._times[link.source]:
                raise _inconstant(key, link.source)
        self.passes += 1

    def see(self, path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module was called."""
        self._canvas = canvas_in(output) or self._canvas
        for suffix, feature_map in feature_maps(output):
            key = TapKey(path + suffix, call, point_of(module))
            self._observe(path, key, module, inputs[0] if inputs else None, feature_map)

    def resolve(self, key: TapKey) -> Covariance:
        """The moments of an observed tensor."""
        if key in self._direct:
            return self._direct[key]
        link = self._links[key]
        source = self.resolve(link.source)
        return source if link.affine is None else source.affine(link.affine.weight, link.affine.bias)

    def end_image(self) -> None:
        """All passes since the last call showed one image."""
        for key, covariance in self._direct.items():
            count, total = covariance.count_and_sum()
            sums = self._sums.setdefault(key, [(torch.zeros_like(count), torch.zeros_like(total))] * self._images)
            sums.append((count, total))
        self._images += 1

    def image_means(self, key: TapKey) -> Tensor | None:
        """Mean over the positions of every image that has ended, (images, C); NaN for one without samples."""
        if key in self._links:
            link = self._links[key]
            means = self.image_means(link.source)
            return means if means is None or link.affine is None else link.affine.apply(means)
        if len(self._sums.get(key, ())) != self._images or not self._images:
            return None
        counts, totals = (torch.stack(series) for series in zip(*self._sums[key], strict=True))
        counts = torch.diff(counts, prepend=counts.new_zeros(1))
        return torch.diff(totals, dim=0, prepend=torch.zeros_like(totals[:1])) / counts[:, None]

    def root(self, key: TapKey) -> tuple[TapKey, int]:
        """The accumulator that a tensor's moments come from, and its number of channels."""
        while key in self._links:
            key = self._links[key].source
        return key, self._direct[key].channels

    def forget(self) -> None:
        """Drop all samples, but not what the first of them decided; see `Covariance.forget`."""
        for covariance in self._direct.values():
            covariance.forget()
        self._images = 0
        self._sums.clear()

    def join(self) -> None:
        """Wait, on the current stream, for updates under way."""
        for workspace in self._workspaces.values():
            workspace.join()

    def check(self) -> None:
        """What can only be known at the end.

        Raises:
            UserError: samples on a GPU were not finite, or weights were written to behind autograd's back.
        """
        for key, covariance in {} if self._measure else self._direct.items():
            if covariance.first_rejected is not None:
                raise _not_finite(key, covariance.first_rejected)
        for key, link in self._links.items():
            if link.module is None or link.affine is None or not link.is_current:
                continue
            if not link.affine.equals(affine_of(link.module)):
                raise UserError(
                    f"{key}: the weights of its layer were changed through `.data` while it was tapped, so its moments "
                    "cannot be computed from its input's; open a context for each state of the weights, or give "
                    "shortcuts=False."
                )

    def _observe(self, path: str, key: TapKey, module: nn.Module, source: Any, feature_map: Tensor) -> None:
        """Accumulate one tensor, or make sure that its moments follow from another's."""
        channel_dim = self._channel_dim(module, feature_map)
        wanted = self._wants(path, key, feature_map.shape[channel_dim])
        if key not in self._direct and key not in self._links:
            link = self._find_link(path, key, module, source, feature_map, wanted) if self._shortcuts else None
            if link is not None:
                self._links[key] = link
            elif wanted:
                self._direct[key] = self._new(feature_map, channel_dim)
            else:
                return
        if wanted:
            self.padding.setdefault(key, self._padding_of(path, feature_map, channel_dim))
        if key in self._links:
            self._follow(path, key, self._links[key], module, source, feature_map)
        else:
            self._update(path, key, feature_map, channel_dim)
        self._times[key] += 1
        self._register(feature_map, (), key, channel_dim)

    def _channel_dim(self, module: nn.Module, feature_map: Tensor) -> int:
        """From the layer itself, else that of the latest map of this shape, else by custom."""
        dim = own_channel_dim(module, feature_map)
        if dim is None:
            dim = self._channel_dims.get(feature_map.shape, default_channel_dim(feature_map))
        self._channel_dims[feature_map.shape] = dim % feature_map.dim()
        return dim % feature_map.dim()

    def _find_link(
        self, path: str, key: TapKey, module: nn.Module, source: Any, feature_map: Tensor, wanted: bool
    ) -> _Link | None:
        """What the moments of a tensor that is new can be computed from."""
        known = self._known(feature_map, ())
        if known is not None:
            return _Link(known.key) if wanted else None
        if not isinstance(source, Tensor) or not source.dtype == feature_map.dtype in (torch.float32, torch.float64):
            return None
        affine = self._affine_of(module)
        if affine is None:
            return None
        channel_dim = (own_channel_dim(module, source) or 0) % source.dim()
        known = self._known(source, affine.stride)
        if known is None:
            narrower = affine.weight.dim() == 2 and source.shape[channel_dim] <= affine.weight.shape[0]
            if source.is_inference() or not (wanted and narrower):
                return None
            hidden = TapKey(key.module, key.call, "input")
            self._direct[hidden] = self._new(source, channel_dim)
            self._update_input(path, hidden, affine.stride, source, channel_dim)
        elif known.channel_dim != channel_dim or self._times[known.key] != 1:
            return None
        through = hidden if known is None else known.key
        dense = affine.weight.dim() == 2 and not self._measure
        if dense and amplification(self.resolve(through), affine) > AMPLIFICATION_LIMIT:
            if known is None:
                del self._direct[through], self._times[through], self._seen[id(source), affine.stride]
            return None
        return _Link(through, affine, module, state_of(module))

    def _follow(self, path: str, key: TapKey, link: _Link, module: nn.Module, source: Any, feature_map: Tensor) -> None:
        """Make sure that a linked tensor was made in this pass from what it was made from in the first."""
        if link.affine is None:
            found = self._known(feature_map, ())
        else:
            found = self._known(source, link.affine.stride)
            if found is None and link.source == TapKey(key.module, key.call, "input"):
                channel_dim = (own_channel_dim(module, source) or 0) % source.dim()
                found = self._update_input(path, link.source, link.affine.stride, source, channel_dim)
        if found is None or found.key != link.source:
            raise _inconstant(key, link.source)

    def _update_input(self, path: str, key: TapKey, stride: tuple[int, ...], source: Tensor, channel_dim: int) -> _Seen:
        self._update(path, key, strided(source, stride), channel_dim)
        self._times[key] += 1
        return self._register(source, stride, key, channel_dim)

    def _update(self, path: str, key: TapKey, feature_map: Tensor, channel_dim: int) -> None:
        if self._measure:
            return
        workspace = self._workspaces.setdefault(feature_map.device, Workspace(feature_map.device))
        try:
            self._direct[key].update(feature_map, channel_dim, self._real(path, feature_map, channel_dim), workspace)
        except NonFiniteError:
            raise _not_finite(key, self.passes) from None
        except ValueError as error:  # another number of channels than in earlier passes
            raise UserError(f"{key}: {error}, in forward pass {self.passes} (the first is 0).") from None

    def _new(self, feature_map: Tensor, channel_dim: int) -> Covariance:
        return Covariance(feature_map.shape[channel_dim], "meta" if self._measure else feature_map.device)

    def _real(self, path: str, feature_map: Tensor, channel_dim: int) -> list[tuple[int, int]] | None:
        """Rows and columns of each image that are not padding; None: all."""
        if self._canvas is None or path.startswith(self._regions):
            return None
        return self._canvas.real(feature_map, channel_dim)

    def _padding_of(self, path: str, feature_map: Tensor, channel_dim: int) -> str:
        if self._canvas is None:
            return "unknown"
        return "none" if self._real(path, feature_map, channel_dim) is None else "excluded"

    def _register(self, tensor: Tensor, stride: tuple[int, ...], key: TapKey, channel_dim: int) -> _Seen:
        version = -1 if tensor.is_inference() else tensor._version  # inference tensors count no changes
        self._seen[id(tensor), stride] = seen = _Seen(weakref.ref(tensor), version, key, channel_dim)
        return seen

    def _known(self, tensor: Tensor, stride: tuple[int, ...]) -> _Seen | None:
        """What was registered for this very tensor, if it has not been written to since."""
        seen = self._seen.get((id(tensor), stride))
        if seen is None or tensor.is_inference():
            return None
        same = seen.tensor() is tensor and seen.version == tensor._version
        return seen if same else None

    def _affine_of(self, module: nn.Module) -> Affine | None:
        if module not in self._affine:
            self._affine[module] = affine_of(module)
        return self._affine[module]

    def _unlink(self) -> None:
        """Go on without links, because weights have changed: what they gave so far becomes accumulators."""
        resolved = {key: self.resolve(key) for key in self.padding}
        self._direct = {}
        for key, covariance in resolved.items():
            self._direct[key] = Covariance(covariance.channels, covariance.device)
            self._direct[key].merge(covariance)
        self._links.clear()
        self._sums.clear()
        self._affine.clear()
        self._shortcuts = False


def _inconstant(key: TapKey, source: TapKey) -> UserError:
    return UserError(
        f"{key}: its moments were to be computed from those of {source}, but the two do not belong together in every "
        "pass: a layer was left out or repeated, or its input was changed in place. Give shortcuts=False."
    )


def _not_finite(key: TapKey, index: int) -> UserError:
    return UserError(
        f"{key}: NaN, infinity, or numbers whose squares overflow float32, in forward pass {index} (the first is 0); "
        "the taps keep what was accumulated before."
    )
