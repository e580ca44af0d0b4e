"""Accumulate the moments of a loss's gradient with respect to chosen feature maps, as backward passes bring it.

    with eigendet.tap_gradients(model, points="act") as gradients:
        for image, target in samples:
            loss(model(image), target).backward()
    gradients["layer1.0.relu#2:act"].covariance(centered=False)  # the mean of g gᵀ over positions

The gradient of a map is that of its value when its module gave it, whatever is written to it afterwards, and the sum
over everything that reads it. Where it is 0 because a loss does not depend on a map, it counts as 0.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError, some
from eigendet.moments.covariance import Covariance, NonFiniteError
from eigendet.observe.faults import not_accumulated, not_finite
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.observer import Observer
from eigendet.observe.points import refuse_hookless
from eigendet.observe.shortcuts import Affine
from eigendet.observe.sightings import Registered, Sighting
from eigendet.observe.tap import Gradient
from eigendet.observe.taps import Taps, check_channels, patterns_of, select

logger = logging.getLogger(__name__)

_scales: list[Callable[..., Any]] = []  # what `GradScaler.scale` is by itself, for every context that refuses it


@contextlib.contextmanager
def tap_gradients(
    model: nn.Module,
    points: Point | Collection[Point] = "act",
    *,
    modules: str | Sequence[str] = "*",
    channels: Container[int] | None = None,
    shortcuts: bool = True,
    keys: Container[TapKey] | None = None,
    measure: bool = False,
) -> Iterator[Gradients]:
    """Accumulate the gradient of a loss at chosen feature maps over all backward passes inside the context.

    It goes along with `tap`, whose limits hold: open both to have the covariances of the same passes, and give this to
    `Taps.save` to store them together. The gradient is of what `backward` is called on, undivided: show one image at a
    time, or sum over the images of a batch, and a sample is the gradient of one image's loss; of a mean over N images
    samples are an N-th of that, and G an N²-th. Every pass takes one backward pass; one without is not counted.

    Maps that need no gradient have none: they follow from frozen layers alone, were computed under `torch.no_grad`, or
    inside a reentrant checkpoint (`use_reentrant=True`). A warning names them.

    Args:
        model: any module.
        points: kinds of modules at whose output the gradient is observed, see `tap`.
        modules: patterns of module paths, see `tap`.
        channels: numbers of channels that are observed, see `tap`.
        shortcuts: accumulate a tensor that is tapped under two names once.
        keys: only these taps.
        measure: accumulate nothing, only find out which taps there are.

    Yields:
        A mapping from tap key to the accumulator of its gradient; whole once the context has ended.

    Raises:
        UserError: as `tap`; no gradient came; a pass had a second backward pass, whose gradients are parts of a sum
            that nobody has; a `torch.amp.GradScaler` scaled a loss.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> with tap_gradients(model) as gradients:
        ...     for sample in torch.rand(5, 1, 3):
        ...         model(sample).sum().backward()
        >>> gradients["1"].count, gradients.of("1").passes
        (5, 5)
        >>> weight = model[2].weight.detach().double()
        >>> torch.allclose(gradients["1"].covariance(centered=False), weight.T @ weight)
        True
    """
    refuse_hookless(model)
    patterns = patterns_of(modules)
    check_channels(channels)
    gradients = Gradients(model, select(model, points, patterns), channels, shortcuts, keys, measure)
    try:
        with gradients.observing(), _scaling_refused():
            yield gradients
    finally:
        gradients.close()
    gradients._check_ran(patterns)


class Gradients(Taps):
    """Accumulators of gradients by tap key, in the order of execution. Made by `tap_gradients`; looked up as `Taps`."""

    _observer: GradientObserver

    def __init__(
        self,
        model: nn.Module,
        selected: Mapping[str, Point],
        channels: Container[int] | None,
        shortcuts: bool,
        keys: Container[TapKey] | None = None,
        measure: bool = False,
    ) -> None:
        super().__init__(model, selected, channels, shortcuts, keys, measure, observer=GradientObserver)
        self._measure = measure

    def of(self, key: str) -> Gradient:
        """Return the moments of a tap's gradient with the number of passes that they are of."""
        return Gradient(self[key], self._observer.backward_passes)

    def save(self, path: Path | str, images: Sequence[str | int] | None = None, **options: Any) -> None:
        """Refuse: gradients are stored with the covariances of their maps."""
        raise UserError(f"{path}: gradients are stored with their taps; call `taps.save(..., gradients=gradients)`.")

    def close(self) -> None:
        """Let backward passes that are still to come pass unseen."""
        self._observer.is_listening = False

    def _check_ran(self, patterns: Sequence[str]) -> None:
        super()._check_ran(patterns)
        if self._measure:
            return
        if not self._observer.backward_passes:
            raise UserError(
                f"no gradient came to the model's ({self._model}) feature maps; call `backward` of a loss inside the "
                "context, with gradients enabled, on a model whose parameters are not all frozen."
            )
        without = [key for key in self if not self[key].count]
        if without:
            logger.warning(
                "%s: no gradient, since frozen layers, torch.no_grad or a reentrant checkpoint gave them", some(without)
            )


class GradientObserver(Observer):
    """Adds to each accumulator, in place of a tensor's values, the gradient that comes to it later."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_listening = True
        self._passes: list[_Pass] = []

    @property
    def backward_passes(self) -> int:
        """The number of passes to which gradients came."""
        return sum(one.reached for one in self._passes)

    def begin(self) -> None:
        """Begin a pass."""
        super().begin()
        self._passes.append(_Pass(self.passes))

    def check(self) -> None:
        """Count maps that losses do not depend on, whose gradient is 0, and check as any observer."""
        for one in self._passes:
            for key, positions in one.waiting.items() if one.reached else ():
                covariance = self._direct[key]
                zeros = torch.zeros(covariance.channels, covariance.channels, device=covariance.device)
                covariance.merge(Covariance.from_moments(positions, zeros.sum(0), zeros))
            one.waiting.clear()
        super().check()

    def _affine_of(self, module: nn.Module) -> Affine | None:
        """Return that there is none: what follows from a map's values does not from its gradient."""
        return None

    def _accumulate(self, sighting: Sighting) -> Registered:
        """Wait for the gradient of a tensor, if it has any."""
        key, tensor, dim, present = sighting.key, sighting.tensor, sighting.channel_dim, self._passes[-1]
        if not (self._measure or tensor.is_leaf):  # what needs no gradient is a leaf too
            sizes = self._sizes(sighting, tensor)
            each_image = [math.prod(size) for size in sizes or ()]
            present.waiting[key] = sum(each_image) if sizes else tensor.numel() // sighting.channels
            # The hook must not hold the tensor, which holds the hook.
            tensor.register_hook(lambda gradient: self._take(key, gradient, dim, sizes, present))
        return self._register(sighting)

    def _take(
        self, key: TapKey, gradient: Tensor, channel_dim: int, sizes: list[tuple[int, int]] | None, present: _Pass
    ) -> None:
        """Add a gradient that has come to a tensor of a pass."""
        if not self.is_listening:
            return
        if present.waiting.pop(key, None) is None:
            raise UserError(
                f"{key}: a second backward pass came to forward pass {present.index} (the first is 0), so each has a "
                "part of the gradient; add the losses, and call `backward` once."
            )
        present.reached = True
        named = TapKey(f"the gradient at {key.module}", key.call, key.point)
        try:
            self._direct[key].update(gradient, channel_dim, sizes, self._workspace)
        except NonFiniteError:
            self._fail(key, not_finite(named, present.index))
        except Exception as error:  # another number of channels than in earlier passes, no more memory
            self._fail(key, not_accumulated(named, error))


@dataclass
class _Pass:
    """A pass: the tensors to which no gradient has come yet, with their positions, and whether one has come to any."""

    index: int
    waiting: dict[TapKey, int] = field(default_factory=dict)
    reached: bool = False


@contextlib.contextmanager
def _scaling_refused() -> Iterator[None]:
    """Refuse to scale losses, which leaves no trace in gradients and squares in their moments.

    Scaling is the process's, so the last context to end gives it back, in whichever order they end.
    """
    _scales.append(_scales[0] if _scales else torch.amp.GradScaler.scale)
    scale = _scales[0]

    def refuse(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
        if not scaler.is_enabled():
            return scale(scaler, outputs)
        raise UserError(
            "a GradScaler scales the loss whose gradients are observed, and G by the square of its scale; call "
            "`backward` on the loss itself while they are, in float32 or bfloat16."
        )

    torch.amp.GradScaler.scale = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _scales.pop()
        if not _scales:
            torch.amp.GradScaler.scale = scale  # type: ignore[method-assign]
