"""Report how far a long job is: soon after its start, then every ten seconds, and at its end.

A report is a record of the logger `eigendet.progress`, and whoever runs the job says where it goes: the command line
to the terminal (see `cli.reports`). Without anyone to say so it goes nowhere, and of several processes that work
together only the first takes records of that level.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Self

logger = logging.getLogger(__name__)

SOON, INTERVAL = 2.0, 10.0  # seconds until the first report, and from each to the next


class Reporter:
    """A context in which a job's reports are made, the last one as it is left.

    Args:
        job: what is done, in few words.
        unit: what is counted.
        total: how many of these there are.
        done: how many an earlier process has done; only later ones count for speed and time.
        clock: returns seconds.

    Examples:
        >>> seconds = iter(range(100))
        >>> with Reporter("train scratch seed 0", "step", total=4, clock=lambda: next(seconds)) as reporter:
        ...     for step in (1, 2, 3):
        ...         reporter.reach(step, images=8, loss=0.5)
        ...     print(reporter.line())
        train scratch seed 0: step 3 of 4, loss 0.5, 8 images/s, 0:01 left
    """

    def __init__(
        self, job: str, unit: str, total: int, done: float = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.job, self.unit, self.total, self.clock = job, unit, total, clock
        self.done = self.before = done
        self.images = 0
        self.losses: list[float] = []  # since the last report

    def __enter__(self) -> Self:
        self.start = self.now = self.clock()
        self.due = self.start + SOON
        return self

    def reach(self, done: float, images: int = 0, loss: float | None = None) -> None:
        """Say that so much is done, and report it if the time has come.

        Args:
            done: units done; of one that is under way, its share.
            images: how many were looked at since the last call.
            loss: of these; a report has the mean since the last report.
        """
        self.now, self.done = self.clock(), done
        self.images += images
        if loss is not None:
            self.losses.append(loss)
        if self.now >= self.due and done < self.total:
            logger.info(self.line(), extra={"last": False})
            self.due = self.now + INTERVAL
            self.losses.clear()

    def __exit__(self, *exception: object) -> None:
        self.now = self.clock()
        logger.info(self.line(ended=True), extra={"last": True})

    def line(self, ended: bool = False) -> str:
        """Return what a report says."""
        seconds, gained = self.now - self.start, self.done - self.before
        parts = [f"{self.unit} {math.ceil(self.done)} of {self.total}"]
        if self.losses:
            parts.append(f"loss {sum(self.losses) / len(self.losses):.3g}")
        if self.images and seconds > 0:
            rate = self.images / seconds
            parts.append(f"{rate:{',.0f' if rate >= 10 else '.2g'}} images/s")
        if ended:
            parts.append(f"{'took' if self.done >= self.total else 'ended after'} {clock_time(seconds)}")
        elif gained > 0:
            parts.append(f"{clock_time((self.total - self.done) * seconds / gained)} left")
        return f"{self.job}: {', '.join(parts)}"


def clock_time(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    >>> clock_time(37.2), clock_time(3600)
    ('0:37', '1:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
