"""Measure the spectra of a network's layers every so many steps of a training loop.

    with eigendet.monitor(model, every=100, writer="spectra.csv") as monitor:
        for images, labels in loader:
            ...  # a training step as always
            monitor.step()

Between the steps that are observed there are no hooks, and `step` counts. Nothing that happens in a training step
raises here, but a writer function of the user's own: what cannot be measured is nan, with a warning.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Container, Sequence
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from eigendet import processes
from eigendet.errors import UserError, first_line, some
from eigendet.monitoring.measures import Measure, measures
from eigendet.monitoring.writers import Measurement, Writer, writer_of
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.points import refuse_hookless
from eigendet.observe.taps import Taps, check_channels, patterns_of, select
from eigendet.spectra.spectrum import eigenvalues

METRICS = ("effective_rank", "dof_share", "energy_share")

logger = logging.getLogger(__name__)


def monitor(
    model: nn.Module,
    points: Point | Collection[Point] = "act",
    *,
    writer: Any,
    every: int = 100,
    window: int = 1,
    metrics: Collection[str] = METRICS,
    modules: str | Sequence[str] = "*",
    channels: Container[int] | None = None,
    spectra: bool = False,
    training: bool = True,
    start: int = 0,
) -> Monitor:
    """Return a monitor of a model's feature maps, to be told of every training step by its `step`.

    A step is what lies between two calls of `step`: usually a batch; an epoch, if it is called once an epoch. If it is
    never called, all passes until `close` are one step. The first step is observed, and then one in `every`. The model
    and its outputs and gradients stay as they are. Among processes that work together the first one observes, its own
    share of the data.

    Args:
        model: any module, as for `eigendet.tap`.
        points: kinds of modules whose output is observed, see `eigendet.tap`.
        writer: the path of a CSV file; an object with `add_scalar`, such as TensorBoard's SummaryWriter; or a function
            that is called with the list of a window's `Measurement`s, if there are any; what it raises ends the
            training.
        every: steps from one observation to the next.
        window: steps that an observation takes; more of them give more samples, while the weights change.
        metrics: see `eigendet.monitoring.measures.measures`.
        modules: patterns of module paths, see `eigendet.tap`.
        channels: numbers of channels that are observed, for example `range(1, 1025)`.
        spectra: write the eigenvalues too: a second file `…_eigenvalues.csv`, or histograms of their logarithms.
        training: observe passes in training mode; else in evaluation mode. Those in the other one are left out.
        start: steps that were taken before, of a training that goes on. Rows of a CSV file from there on are replaced.

    Raises:
        UserError: an argument is wrong, the model cannot be observed, or another monitor that is open writes the file;
            only here, not in training.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
        >>> with monitor(model, every=2, writer=lambda window: print(window[0].step, window[0].samples)) as watched:
        ...     for _ in range(4):
        ...         output = model(torch.rand(10, 3))
        ...         watched.step()
        0 10
        2 10
    """
    schedule = Schedule.of(every, window, start)
    refuse_hookless(model)
    check_channels(channels)
    selected = select(model, points, patterns_of(modules))

    def taps() -> Taps:  # without shortcuts: they hold for weights that stay, and layers that run in every pass
        return Taps(model, selected, channels, shortcuts=False, tolerant=True)

    writing = measures(metrics), writer_of(writer, list(metrics), spectra, start)
    return Monitor(taps, lambda: model.training == training and not _is_traced(), schedule, *writing)


def _is_traced() -> bool:
    """Return whether torch notes what runs, to run it later: an observation would become part of it."""
    return bool(torch.jit._trace.is_tracing()) or torch.compiler.is_compiling()


class Schedule(NamedTuple):
    """Which steps are observed; see `monitor`."""

    every: int
    window: int
    start: int

    @classmethod
    def of(cls, every: int, window: int, start: int) -> Self:
        """Check the numbers.

        Raises:
            UserError: one is not a whole number, or too small, or the window is longer than what lies between two.
        """
        schedule = cls(_whole("every", every, 1), _whole("window", window, 1), _whole("start", start, 0))
        if schedule.window > schedule.every:
            raise UserError(f"window is {window} and every is {every}; an observation ends before the next one begins.")
        return schedule


def _whole(name: str, number: object, least: int) -> int:
    """Return a whole number of any type, numpy's too."""
    if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
        raise UserError(f"{name}: got {number!r}; expected a whole number from {least} on.")
    return int(number)


class Monitor:
    """What `monitor` returns: observes as it is told of steps, from its making until it is closed.

    As a context manager it is closed at the end; after an exception, without writing the window that is open.
    """

    def __init__(
        self,
        taps: Callable[[], Taps],
        counts: Callable[[], bool],
        schedule: Schedule,
        measures: dict[str, Measure],
        write: Writer,
    ) -> None:
        self._new_taps, self._counts, self._measures = taps, counts, measures
        self._write: Writer | None = write  # None: closed
        self._schedule, self.steps = schedule, schedule.start
        self._taps: Taps | None = None
        self._hooks = contextlib.ExitStack()
        self._began = 0
        self._warned: set[TapKey] = set()
        self._has_run = self._has_warned_of_nothing = False
        if self.steps % self._schedule.every == 0:
            self._begin()

    def step(self, steps: int | None = None) -> None:
        """Say that a training step has ended.

        Args:
            steps: how many have been taken by now, where they are counted elsewhere; None: one more.
        """
        before, self.steps = self.steps, self.steps + 1 if steps is None else steps
        if self._write is None:
            return
        if self._taps is not None and self.steps - self._began >= self._schedule.window:
            self._finish()
        if self._taps is None and self.steps // self._schedule.every > before // self._schedule.every:
            self._begin()

    def close(self) -> None:
        """Write the window that is open, if anything ran in it, and observe nothing from now on."""
        self._hooks.close()  # which ends the pass that is under way
        if self._taps is not None and (self._taps.passes or not self._has_run):
            self._finish()
        self.discard()

    def discard(self) -> None:
        """Observe nothing from now on, without writing the window that is open."""
        self._hooks.close()
        self._taps = self._write = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _begin(self) -> None:
        self._began = self.steps
        if processes.rank() == 0:
            self._taps = self._new_taps()
            self._hooks.enter_context(self._taps.observing(self._counts))

    def _finish(self) -> None:
        """Remove the hooks, and write what was observed."""
        assert self._taps is not None and self._write is not None
        taps, self._taps = self._taps, None
        self._hooks.close()
        self._has_run = self._has_run or taps.passes > 0
        measurements = [self._measured(taps, key) for key in taps]
        if not measurements:
            self._warn_of_nothing(taps)
            return
        self._warn(taps)
        try:
            self._write(measurements)
        except (OSError, UserError) as error:  # a full disk
            logger.warning("step %d is not written: %s", self._began, error)

    def _warn_of_nothing(self, taps: Taps) -> None:
        """Say, once, why a window has no tap."""
        if self._has_warned_of_nothing:
            return
        self._has_warned_of_nothing = True
        if not taps.passes:
            why = "the model did not run in the mode that is observed, or as a compiled function, which drops hooks"
        elif taps.unwanted_channels:
            numbers = [str(number) for number in taps.unwanted_channels]
            why = f"`channels` asks for other numbers of channels than the layers have, {some(numbers, limit=20)}"
        else:
            why = "the model ran, but none of the chosen modules did, or none gave a tensor of numbers"
        logger.warning("nothing to measure at step %d: %s", self._began, why)

    def _measured(self, taps: Taps, key: TapKey) -> Measurement:
        covariance = taps[key]
        tap = self._began, key, covariance.channels
        if key in taps.faults or not covariance.count:
            return Measurement(*tap, 0, dict.fromkeys(self._measures, np.nan), np.zeros(0))
        values = np.clip(eigenvalues(covariance.covariance().cpu().numpy(), covariance.device), 0, None)
        return Measurement(
            *tap, covariance.count, {name: self._value(name, values, key) for name in self._measures}, values
        )

    def _value(self, name: str, values: np.ndarray, key: TapKey) -> float:
        try:
            return self._measures[name](values)
        except Exception as error:  # a width rule of the user's own
            logger.warning("step %d: %s: %s", self._began, key, first_line(error))
            return np.nan

    def _warn(self, taps: Taps) -> None:
        """Say which taps had a fault for the first time."""
        new = {key: error for key, error in taps.faults.items() if key not in self._warned}
        if new:
            self._warned.update(new)
            first, *others = new
            logger.warning(
                "step %d: %s Its metrics are nan%s; training goes on", self._began, new[first],
                f", and so are those of {some([str(key) for key in others])}" if others else "",
            )  # fmt: skip
