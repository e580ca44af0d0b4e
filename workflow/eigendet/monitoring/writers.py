"""Where a monitor's measurements go: tables as CSV, TensorBoard's scalars, or a function."""

from __future__ import annotations

import csv
import io
import math
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eigendet.errors import UserError, kind
from eigendet.files import write_text
from eigendet.observe.keys import TapKey


class Measurement(NamedTuple):
    """What was measured of one tap in one window.

    Attributes:
        step: the first of the window.
        key: the tap.
        channels: of the feature map; 0 where they cannot be told, as of a nested tensor.
        samples: positions of all images in the window.
        metrics: by name; nan if the samples were not finite, could not be accumulated, or there were none.
        eigenvalues: (C,), descending, negative ones zero; (0,) where there are no samples.
    """

    step: int
    key: TapKey
    channels: int
    samples: int
    metrics: dict[str, float]
    eigenvalues: np.ndarray

    def scalars(self) -> dict[str, float]:
        """Return the metrics that are numbers, by the names that `eigendet tensorboard` gives them.

        >>> Measurement(0, TapKey("relu", 0, "act"), 8, 99, {"dof": 3.5}, np.ones(8)).scalars()
        {'relu#0:act/dof': 3.5}
        """
        return {f"{self.key}/{name}": value for name, value in self.metrics.items() if not math.isnan(value)}


Writer = Callable[[list[Measurement]], object]
_OPEN: weakref.WeakValueDictionary[Path, _Table] = weakref.WeakValueDictionary()  # of monitors, by their files
TAP_COLUMNS = ("step", "module", "call", "point", "channels", "samples")


def writer_of(target: Any, names: Sequence[str], spectra: bool, start: int) -> Writer:
    """Return a function that writes the measurements of a window.

    Args:
        target: the path of a CSV file, an object with `add_scalar`, or such a function.
        names: the metrics.
        spectra: whether eigenvalues are written too.
        start: the step from which on rows are written.

    Raises:
        UserError: the target is something else, or a file that is not a monitor's, or is another open monitor's.
    """
    if isinstance(target, str | os.PathLike):
        return _csv_writer(Path(target), names, spectra, start)
    if hasattr(target, "add_scalar"):
        if spectra and not hasattr(target, "add_histogram"):
            raise UserError(f"writer: {kind(target)} has no add_histogram, which spectra=True needs.")
        return _scalar_writer(target, spectra)
    if callable(target):
        return target
    raise UserError(
        f"writer: got {kind(target)}; expected the path of a CSV file, an object with add_scalar such as TensorBoard's "
        "SummaryWriter, or a function of a list of measurements."
    )


def _csv_writer(path: Path, names: Sequence[str], spectra: bool, start: int) -> Writer:
    metrics = _Table(path, (*TAP_COLUMNS, *names), start)
    beside = path.with_name(f"{path.stem}_eigenvalues{path.suffix}")
    eigenvalues = _Table(beside, (*TAP_COLUMNS, "index", "value"), start) if spectra else None
    tables = [metrics] if eigenvalues is None else [metrics, eigenvalues]
    for table in tables:
        if table.path in _OPEN:
            raise UserError(
                f"writer: '{table.path}' is written by another monitor, which is still open; close that first, or give "
                "another path."
            )
    _OPEN.update({table.path: table for table in tables})  # until the monitor, closed or forgotten, lets them go

    def write(measurements: list[Measurement]) -> None:
        metrics.append([*_tap(one), *(f"{one.metrics[name]:.8g}" for name in names)] for one in measurements)
        if eigenvalues is not None:
            eigenvalues.append(
                [*_tap(one), index, f"{value:.8g}"]
                for one in measurements
                for index, value in enumerate(one.eigenvalues)
            )

    return write


def _scalar_writer(target: Any, spectra: bool) -> Writer:
    def write(measurements: list[Measurement]) -> None:
        for one in measurements:
            for name, value in one.scalars().items():
                target.add_scalar(name, value, one.step)
            positive = one.eigenvalues[one.eigenvalues > 0]
            if spectra and positive.size:
                target.add_histogram(f"{one.key}/log10_eigenvalues", np.log10(positive), one.step)

    return write


def _tap(one: Measurement) -> list[object]:
    return [one.step, one.key.module, one.key.call, one.key.point, one.channels, one.samples]


class _Table:
    """A CSV file that grows; it is begun with its first rows, so that a monitor that never writes touches nothing.

    Rows of earlier steps than `start` that it holds already are kept; others are replaced.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], start: int) -> None:
        self._path, self._kept = path, [list(columns)]
        self._is_begun = False
        if path.is_dir():
            raise UserError(f"writer: '{path}' is a folder; expected the path of a CSV file.")
        if path.exists():
            self._kept += self._earlier(list(columns), start)
        self._path = path.absolute()  # the training may change its folder

    @property
    def path(self) -> Path:
        """The file, by the same path whatever it was called."""
        return self._path.resolve()

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows if self._is_begun else [*self._kept, *rows])
        if self._is_begun:
            with self._path.open("a") as file:
                file.write(text.getvalue())
        else:
            write_text(self._path, text.getvalue())
            self._is_begun = True

    def _earlier(self, columns: list[str], start: int) -> list[list[str]]:
        try:
            with self._path.open(newline="") as file:
                rows = list(csv.reader(file))
        except (UnicodeDecodeError, csv.Error):
            rows = [["?"]]
        if not rows:
            return []
        if rows[0][: len(TAP_COLUMNS)] != list(TAP_COLUMNS):
            raise UserError(
                f"writer: '{self._path}' is not a monitor's file, and would be replaced; give another path."
            )
        if start and rows[0] != columns:
            raise UserError(
                f"writer: '{self._path}' has the columns {', '.join(rows[0])}; now they are {', '.join(columns)}. Give "
                "another path, or the metrics that it has."
            )
        return [row for row in rows[1:] if len(row) == len(columns) and row[0].isdecimal() and int(row[0]) < start]
