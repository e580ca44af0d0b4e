"""Accumulate every tensor of interest as a model runs, each one once and by the cheapest exact way.

A tensor tapped under two names is accumulated once. One that is an affine map of another is not accumulated at all: it
is linked to the other, and its moments are computed when they are asked for. Where the other is not tapped itself but
no wider, it is accumulated in its place.

Links hold only while every pass runs the same layers with the same weights, so this is checked at every pass: changed
weights turn links into accumulators, anything else is an error.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError, some
from eigendet.moments.covariance import Covariance, NonFiniteError, merged
from eigendet.moments.products import Workspace
from eigendet.moments.weighting import Weighting
from eigendet.observe import faults
from eigendet.observe.image_sums import ImageSums
from eigendet.observe.keys import TapKey
from eigendet.observe.lineage import Lineage
from eigendet.observe.padding import Canvas, canvas_in
from eigendet.observe.points import feature_maps, point_of
from eigendet.observe.shortcuts import (
    AMPLIFICATION_BOUND,
    AMPLIFICATION_LIMIT,
    Affine,
    affine_of,
    amplification,
    amplification_by,
    is_near,
    is_still,
    state_of,
    strided,
)
from eigendet.observe.sightings import Link, Registered, Sighting

logger = logging.getLogger(__name__)
LINKABLE = (torch.float32, torch.float64)  # types of input and output that are precise enough for a link


class Observer:
    """The observer of one model: its methods `begin`, `see` and `end` are what `calls.each_call` calls.

    Args:
        model: what is observed.
        wants: `wants(path, key, channels)` says whether a tensor is to be observed; channels may be None, not known.
        shortcuts: whether to link what follows from other tensors.
        measure: accumulate nothing, only find out which tensors there are.
        tolerant: note in `faults` what is wrong with samples that are left out, instead of raising.
        weighting: what counts alike, see `tap`.
    """

    def __init__(
        self,
        model: nn.Module,
        wants: Callable[[str, TapKey, int | None], bool],
        shortcuts: bool,
        measure: bool,
        tolerant: bool = False,
        weighting: Weighting = "positions",
    ) -> None:
        self.passes, self._is_open = 0, False  # whether one has begun, and not ended
        self.faults: dict[TapKey, UserError] = {}
        self.useless: dict[str, str] = {}  # outputs that hold no samples, by the path of their module
        self.announced: Canvas | None = None  # of the next pass
        self.padding: dict[TapKey, str] = {}  # of every observed tensor, in the order of execution
        self.weighting: dict[TapKey, str] = {}  # of the same, see `tap.Tap`
        self._wants, self._shortcuts, self._weighting = wants, shortcuts, weighting
        self._measure, self._tolerant = measure, tolerant
        self._direct: dict[TapKey, Covariance] = {}
        self._links: dict[TapKey, Link] = {}
        self._ignored: set[TapKey] = set()  # what is not to be observed, and no observed tensor follows from
        self._calls: Counter[TapKey] = Counter()  # how often every key in _direct and _links was seen
        self._image_sums = ImageSums()  # of every key in _direct
        self._affine: dict[nn.Module, tuple[tuple[object, ...], Affine | None]] = {}  # and the state it belongs to
        self._updated = False  # by an optimizer, since the last pass began: some leave no trace in their weights
        self._workspace = Workspace()
        # What belongs to the present pass alone:
        self._canvas: Canvas | None = None
        self._registered: dict[tuple[int, tuple[int, ...]], Registered] = {}  # by identity of the tensor, and stride
        self._seen: set[TapKey] = set()
        self._lineage = Lineage(model)

    def begin(self) -> None:
        """Begin a pass."""
        self._end_failed()
        self._is_open = True
        self._canvas, self.announced = self.announced, None
        self._registered.clear()
        self._lineage.clear()
        if not self._links_hold():
            self._unlink()
        self._updated = False

    def note_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that an optimizer has changed its parameters; fused ones leave no trace in them."""
        changed = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        modules = (link.module for link in self._links.values() if link.module is not None)
        if any(id(parameter) in changed for module in modules for parameter in module.parameters(recurse=False)):
            self._updated = True

    def end(self) -> None:
        """End a pass.

        Raises:
            UserError: a linked tensor was seen in it, and what it is linked to was not, or the other way round.
        """
        for key, link in self._links.items():
            if self._calls[key] != self._calls[link.source]:
                raise faults.inconstant(key, link.source)
        if self.passes == 0:
            self._drop_needless_links()
        self.passes += 1
        self._is_open = False

    def see(self, path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
        """Observe the tensors in a module's output, after a call of it.

        Raises:
            UserError: one is not finite, cannot be accumulated, or does not follow from what it is linked to.
        """
        self._canvas = canvas_in(output) or self._canvas
        source = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        if next(feature_maps(output), None) is None:
            self.useless[path] = faults.described(output)
        for suffix, tensor in feature_maps(output):
            key = TapKey(path + suffix, call, point_of(module))
            try:
                kind = self._lineage.note(path, module, source, tensor, self._canvas)
                if key not in self.faults:
                    seen = Sighting(module, path, key, tensor, kind.channel_dim, kind.of_images, source=source)
                    self._observe(seen)
            except UserError:
                raise
            except Exception as error:  # a nested tensor, one inside torch.func's transforms, no more memory
                self._lose(path, key, error)

    def resolve(self, key: TapKey) -> Covariance:
        """Return the moments of an observed tensor."""
        if key in self._direct:
            return self._direct[key]
        link = self._links[key]
        source = self.resolve(link.source)
        return source if link.affine is None else source.affine(link.affine.weight, link.affine.bias)

    def end_image(self) -> None:
        """Take all passes since the last call as those of one image."""
        self._image_sums.end(self._direct)

    def image_means(self, key: TapKey) -> Tensor | None:
        """Return the mean over the positions of every image that has ended, (images, C); NaN: it has no samples."""
        means = self._image_sums.means(self.root(key)[0])
        return None if means is None else self._mapped(key, means)

    def root(self, key: TapKey) -> tuple[TapKey, int]:
        """Return the accumulator that a tensor's moments come from, and its number of channels."""
        while key in self._links:
            key = self._links[key].source
        return key, self._direct[key].channels

    def forget(self) -> None:
        """Drop all samples, but not what the first of them decided."""
        for covariance in self._direct.values():
            covariance.forget()
        self._image_sums.clear()

    def check(self) -> None:
        """Check what can only be known at the end.

        Raises:
            UserError: samples were not finite, or had no values, or weights were written to behind autograd's back.
        """
        if not self._measure:
            for key, covariance in self._direct.items():
                if fault := faults.of_samples(key, covariance):
                    self._fail(key, fault)
        self._end_failed()
        for key, link in self._links.items():
            if link.affine is None or self._measure:
                continue
            is_rough = self.passes > 1 and link.affine.is_matrix and link.affine.weight.dtype == torch.float32
            if is_rough and amplification(self.resolve(link.source), link.affine) > AMPLIFICATION_BOUND:
                self._fail(key, faults.amplified(key))
            is_unseen = link.is_current and not self._updated and not is_near(link.affine.weight)
            if is_unseen and link.module is not None and not link.affine.equals(affine_of(link.module)):
                self._fail(key, faults.rewritten(key))

    def _end_failed(self) -> None:
        """Say which taps a pass that failed has given samples to, if there was one."""
        if self._is_open and (keys := [key for key in self.padding if key in self._seen]):
            for key, link in self._links.items():
                self._calls[key] = self._calls[link.source]
            logger.warning("forward pass %d failed, but its samples stay counted in %s", self.passes, some(keys))
        self._is_open = False
        self._seen.clear()

    def _observe(self, sighting: Sighting) -> None:
        """Accumulate one tensor, or make sure that its moments follow from another's."""
        key = sighting.key
        if key in self._ignored:
            return
        is_wanted = self._wants(sighting.path, key, sighting.channels)
        if key not in self._direct and key not in self._links:
            link = self._find_link(sighting, is_wanted) if self._shortcuts else None
            if link is not None:
                self._links[key] = link
            elif is_wanted:
                self._direct[key] = self._new_accumulator(sighting)
            else:
                if not self._wants(sighting.path, key, None):  # whatever its channels
                    self._ignored.add(key)
                return
        if is_wanted and key not in self.padding:
            self.padding[key] = self._padding_of(sighting)
            by_entry = self._weighting == "images" and sighting.of_images is False
            self.weighting[key] = "entries" if by_entry else self._weighting
        if key in self._links:
            self._follow(sighting, self._links[key])
            self._register(sighting)
        else:
            self._accumulate(sighting)

    def _find_link(self, output: Sighting, is_wanted: bool) -> Link | None:
        """Return what the moments of a tensor that is new can be computed from, if there is anything."""
        same = self._find(output)
        if same is not None:
            return Link(same.key) if is_wanted else None
        if output.source is None or output.source.dtype != output.tensor.dtype or output.tensor.dtype not in LINKABLE:
            return None
        affine = self._affine_of(output.module)
        if affine is None:
            return None
        source = output.of_source(output.source, affine.stride)
        registered = self._find(source)
        if registered is None:
            key = source.key
            follows = is_wanted and self._agrees(affine, source, output) and self._accumulate_instead(source, affine)
        else:
            key = registered.key
            is_alike = registered.channel_dim == source.channel_dim and self._calls[key] == 1
            follows = is_alike and self._agrees(affine, source, output) and not self._cancels(affine, source, key)
        return Link(key, affine, output.module, state_of(output.module)) if follows else None

    def _accumulate_instead(self, source: Sighting, affine: Affine) -> bool:
        """Accumulate an input in place of its affine map, if it is no wider; return whether the moments follow."""
        if not affine.is_matrix or source.channels > affine.weight.shape[0] or source.tensor.is_inference():
            return False
        self._direct[source.key] = self._new_accumulator(source)
        self._accumulate(source)
        if not self._cancels(affine, source, source.key):
            return True
        del self._direct[source.key], self._calls[source.key], self._registered[id(source.tensor), source.stride]
        return False

    def _cancels(self, affine: Affine, source: Sighting, key: TapKey) -> bool:
        """Return whether errors of moments that are computed by an affine map would be larger than others."""
        if self._measure or source.tensor.dtype == torch.float64:
            return False
        if affine.is_matrix:
            return amplification(self.resolve(key), affine) > AMPLIFICATION_LIMIT
        of_source = source.tensor.detach().movedim(source.channel_dim, 0)
        return amplification_by(of_source, affine) > AMPLIFICATION_LIMIT

    def _follow(self, output: Sighting, link: Link) -> None:
        """Make sure that a linked tensor was made in this pass from what it was made from in the first."""
        registered = None
        if link.affine is None:
            registered = self._find(output)
        elif output.source is not None:
            source = output.of_source(output.source, link.affine.stride)
            if is_near(output.tensor) and not self._agrees(link.affine, source, output):
                raise faults.changed(output.key, self.passes)
            registered = self._find(source)
            if registered is None and link.source == source.key:
                registered = self._accumulate(source)
        if registered is None or registered.key != link.source:
            raise faults.inconstant(output.key, link.source)

    def _agrees(self, affine: Affine, source: Sighting, output: Sighting) -> bool:
        """Return whether an output is what its layer is thought to make of its input."""
        if self._measure:
            return True
        of_source = strided(source.tensor.detach(), affine.stride).movedim(source.channel_dim, 0)
        return affine.agrees(of_source, output.tensor.detach().movedim(output.channel_dim, 0))

    def _accumulate(self, sighting: Sighting) -> Registered:
        """Add the samples of one tensor to its accumulator."""
        if not self._measure:
            tensor, channel_dim = strided(sighting.tensor, sighting.stride), sighting.channel_dim
            sizes = self._sizes(sighting, tensor)
            try:
                self._direct[sighting.key].update(tensor, channel_dim, sizes, self._workspace, self._weighting)
            except NonFiniteError:
                self._fail(sighting.key, faults.not_finite(sighting.key, self.passes))
            except ValueError as error:  # another number of channels than in earlier passes
                where = f"in forward pass {self.passes} (the first is 0)"
                self._fail(sighting.key, UserError(f"{sighting.key}: {error}, {where}."))
        return self._register(sighting)

    def _lose(self, path: str, key: TapKey, error: Exception) -> None:
        """Say of a tensor, if it was to be observed, that it could not be; it may have no channels to count."""
        if self._wants(path, key, None):
            if key not in self._links:
                self._direct.setdefault(key, Covariance(0))
            self.padding.setdefault(key, "unknown")
            self.weighting.setdefault(key, self._weighting)
            self._fail(key, faults.not_accumulated(key, error))

    def _fail(self, key: TapKey, error: UserError) -> None:
        if not self._tolerant:
            raise error from None
        self.faults.setdefault(key, error)

    def _new_accumulator(self, sighting: Sighting) -> Covariance:
        return Covariance(sighting.channels, "meta" if self._measure else sighting.tensor.device)

    def _sizes(self, sighting: Sighting, feature_map: Tensor) -> list[tuple[int, int]] | None:
        """Return the rows and columns of each image that are not padding; None: all are not."""
        return self._canvas.real(feature_map, sighting.channel_dim) if self._canvas and sighting.of_images else None

    def _padding_of(self, sighting: Sighting) -> str:
        if self._canvas is None:
            return "unknown"
        return "none" if self._sizes(sighting, sighting.tensor) is None else "excluded"

    def _register(self, sighting: Sighting) -> Registered:
        """Note that the moments of this tensor are kept, so that other keys can be linked to it."""
        tensor = sighting.tensor
        version = -1 if tensor.is_inference() else tensor._version  # inference tensors count no changes
        registered = Registered(weakref.ref(tensor), version, sighting.key, sighting.channel_dim)
        self._registered[id(tensor), sighting.stride] = registered
        self._calls[sighting.key] += 1
        self._seen.add(sighting.key)
        return registered

    def _find(self, sighting: Sighting) -> Registered | None:
        """Return what was registered for this very tensor, if it has not been written to since."""
        tensor = sighting.tensor
        registered = self._registered.get((id(tensor), sighting.stride))
        if registered is None or tensor.is_inference():
            return None
        is_same = registered.tensor() is tensor and registered.version == tensor._version
        return registered if is_same else None

    def _affine_of(self, module: nn.Module) -> Affine | None:
        """Return the affine map that a module is with the weights that it has now."""
        state = state_of(module)
        if module not in self._affine or self._affine[module][0] != state:
            self._affine[module] = state, affine_of(module)
        return self._affine[module][1]

    def _links_hold(self) -> bool:
        """Return whether links are made by the weights and settings that the layers still have."""
        if self._updated:
            return False
        for link in self._links.values():
            if not link.is_current:
                return False
            if link.module is not None and link.affine is not None and not is_still(link.affine, link.module):
                return False
        return True

    def _drop_needless_links(self) -> None:
        """Forget links that lead to no observed tensor, and the weights that they hold."""
        needed = set(self.padding)
        for key, link in reversed(self._links.items()):
            if key in needed:
                needed.add(link.source)
        for key in [key for key in self._links if key not in needed]:
            del self._links[key]
            self._ignored.add(key)
        self._affine = {link.module: (link.state, link.affine) for link in self._links.values() if link.module}

    def _unlink(self) -> None:
        """Go on without links, because weights have changed: what they gave so far becomes accumulators."""
        if self._image_sums.images:
            self._image_sums.follow(self.padding, self._direct, lambda key: self.root(key)[0], self._mapped)
        self._direct = {key: merged([self.resolve(key)]) for key in self.padding}
        for covariance in self._direct.values() if self._image_sums.images else ():
            covariance.take_sum()  # which is known
        self._links.clear()
        self._affine.clear()
        self._shortcuts = False

    def _mapped(self, key: TapKey, rows: Tensor) -> Tensor:
        """Return what rows of the accumulator behind a tensor are as rows of the tensor."""
        if key not in self._links:
            return rows
        link = self._links[key]
        source = self._mapped(link.source, rows)
        return source if link.affine is None else link.affine.apply(source)
