"""What a check yields, and how its errors and times are taken."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        name: what it is, in words; those of one check differ.
        value: in `unit`; a check that is either right or not has the number of mistakes.
        unit: "" for ratios, counts and relative errors.
        limit: the figure fails beyond it; None: it is only told.
        at_least: whether the figure fails below its limit rather than above.
        note: what a reader needs besides.
    """

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the limit is kept, which NaN never does; None: there is none."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def error(measured: Tensor, exact: Tensor) -> float:
    """Return the relative Frobenius error of a matrix; infinite if it holds what is not finite."""
    exact = exact.double()
    apart = float((measured.double().to(exact.device) - exact).norm() / exact.norm())
    return apart if math.isfinite(apart) else math.inf


def exact_covariance(rows: Tensor) -> Tensor:
    """Return the population covariance of samples (N, C) in float64, on the CPU."""
    rows = rows.detach().double().cpu()
    centered = rows - rows.mean(0)
    return centered.T @ centered / len(rows)


def guarded(what: str, figures: Iterator[Figure]) -> Iterator[Figure]:
    """Yield these figures; should they end in an exception, one more that says so and fails, so that others go on."""
    try:
        yield from figures
    except Exception as exception:
        traceback.print_exc()
        yield Figure(f"{what}: did not end", 1, limit=0, note=f"{type(exception).__name__}: {exception}"[:300])


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, function: Callable[..., Any], *arguments: Any) -> float:
    """Return how long a call takes, until the device is done with it."""
    synchronize(device)
    start = time.perf_counter()
    function(*arguments)
    synchronize(device)
    return time.perf_counter() - start


def in_turns(
    device: torch.device,
    contenders: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    work: Callable[[], Any],
    rounds: int,
) -> dict[str, float]:
    """Return the median seconds of `work` within each contender's context, all taking turns, each warmed up first."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, context in contenders.items():
            with context():
                work()
                times[name].append(seconds(device, work))
    return {name: statistics.median(values) for name, values in times.items()}
