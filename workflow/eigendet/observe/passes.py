"""Tap under a memory limit: run the data through the model as often as it takes, some taps at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError
from eigendet.moments.weighting import Weighting
from eigendet.observe.gradients import tap_gradients
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.tap import Gradient, Tap
from eigendet.observe.taps import Taps, tap

BYTES = 8  # of an entry of an accumulator


def covariances(
    model: nn.Module,
    batches: Iterable[Any],
    points: Point | Collection[Point],
    *,
    modules: str | Sequence[str] = "*",
    keys: Container[TapKey] | None = None,
    memory: float | None = None,
    calibration: Any = None,
    image_means: bool = False,
    call: Callable[[Any], object] | None = None,
    weighting: Weighting = "positions",
) -> Iterator[Tap]:
    """Yield every tap of a model over all batches, in evaluation mode and without gradients.

    The limits of `tap` hold. Each pass over the data costs a run of the whole model; under a limit of memory the first
    batch is run once more.

    Args:
        model: any module; it is left in the mode, training or evaluation, that it was in.
        batches: what the model is called with, one by one; it must be possible to go through them several times if
            the memory does not suffice for all taps at once.
        points: kinds of modules whose output is observed, see `tap`.
        modules: patterns of module paths, see `tap`.
        keys: only these taps.
        memory: bytes that accumulators may take at a time; None: no limit.
        calibration: a batch that decides which maps follow from others, and which is not counted. The moments of parts
            of a data set that had the same one merge to those of the whole, up to the order of float64 sums.
        image_means: every batch is one image; keep the mean of each, `Tap.image_means`, as well.
        call: runs the model on a batch; None: `model(batch)`.
        weighting: see `tap`.

    Raises:
        UserError: a tap needs more than `memory`; `batches` can be gone through only once; what `tap` raises.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
        >>> batches = [torch.rand(2, 3, 16, 16) for _ in range(3)]
        >>> for tap in covariances(model, batches, points="act", memory=8 * 16**2):  # bytes: one tap at a time
        ...     print(tap.key, tap.position, tap.covariance.count, tuple(tap.covariance.covariance().shape))
        1#0:act 0 1176 (8, 8)
        3#0:act 1 864 (16, 16)
    """
    run, mode = call or model, model.training
    tapped = partial(tap, model, points, modules=modules, weighting=weighting)
    model.eval()
    try:
        order, groups = _plan(tapped, batches, keys, memory, run)
        for group in groups:
            # Gradients are off for the passes alone, not for whoever takes the taps.
            with torch.no_grad(), tapped(keys=group) as taps:
                if calibration is not None:
                    run(calibration)
                    taps.forget()
                _run(taps, run, batches, image_means)
            # As an expression, so that no name keeps an accumulator of this group through the passes of the next.
            yield from (replace(one, position=order[one.key]) if order else one for one in taps.taps())
    finally:
        model.train(mode)


def _run(taps: Taps, run: Callable[[Any], object], batches: Iterable[Any], image_means: bool) -> None:
    for batch in batches:
        run(batch)
        if image_means:
            taps.end_image()


def gradients(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor],
    points: Point | Collection[Point],
    *,
    modules: str | Sequence[str] = "*",
    keys: Container[TapKey] | None = None,
    memory: float | None = None,
) -> Iterator[tuple[TapKey, Gradient]]:
    """Yield the moments of a loss's gradient at every tap of a model over all batches, in the mode that it is in.

    What `tap_gradients` says of them holds. The gradients of parameters are left as they are.

    Args:
        model: any module.
        batches: what the loss is of, one by one, each a pass; it must be possible to go through them several times if
            the memory does not suffice for all taps at once.
        loss: runs the model on a batch, and returns its loss, (); the same at every call with a batch.
        points: kinds of modules at whose output the gradient is observed, see `tap`.
        modules: patterns of module paths, see `tap`.
        keys: only these taps.
        memory: bytes that accumulators may take at a time; None: no limit.

    Raises:
        UserError: as `covariances` and `tap_gradients`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> for key, gradient in gradients(model, torch.rand(4, 1, 3), lambda batch: model(batch).sum(), "act"):
        ...     print(key, gradient.passes, gradient.positions, gradient.second_moment.shape)
        1#0:act 4 1.0 (2, 2)
    """
    tapped = partial(tap_gradients, model, points, modules=modules)
    _, groups = _plan(tapped, batches, keys, memory, loss)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for group in groups:
        with torch.enable_grad(), tapped(keys=group) as taps:
            for batch in batches:
                torch.autograd.grad(loss(batch), parameters, allow_unused=True)
        yield from ((key, taps.of(key)) for key in taps)


def _plan(
    tapped: Callable[..., AbstractContextManager[Taps]],
    batches: Iterable[Any],
    keys: Container[TapKey] | None,
    memory: float | None,
    run: Callable[[Any], object],
) -> tuple[dict[TapKey, int], list[Container[TapKey] | None]]:
    """Plan the passes over the data.

    Args:
        tapped: opens the taps, with their `keys` and whether only to `measure`.
        batches: the first is run.
        keys: of all taps that are to be observed.
        memory: bytes that accumulators may take at a time.
        run: what a batch is run by.

    Returns:
        The place of every tap in the order of execution, and the taps of each pass; without a limit of memory no
        places, and one pass with all taps.
    """
    if memory is None:
        return {}, [keys]
    with torch.no_grad(), tapped(keys=keys, measure=True) as taps:
        run(next(iter(batches)))
    groups: list[list[TapKey]] = [[]]
    free = memory
    for root, (channels, own) in taps.roots().items():
        needed = BYTES * channels**2
        if needed > memory:
            raise UserError(
                f"memory: {memory / 2**30:.3g} GiB, but {root} alone has {channels} channels and takes "
                f"{needed / 2**30:.3g} GiB."
            )
        if needed > free and groups[-1]:
            groups.append([])
            free = memory
        groups[-1] += own
        free -= needed
    if len(groups) > 1 and iter(batches) is batches:
        raise UserError(
            f"memory: {memory / 2**30:.3g} GiB takes {len(groups)} passes over the data, but `batches` is an iterator, "
            "which can be gone through once; give a list or a DataLoader."
        )
    return {key: place for place, key in enumerate(taps)}, list(groups)
