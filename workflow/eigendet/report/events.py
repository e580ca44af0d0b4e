"""Write losses of training and metrics of every layer as TensorBoard's scalars: while training, or afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from eigendet.config import layout
from eigendet.errors import UserError
from eigendet.observe.keys import TapKey
from eigendet.report import results

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Scalar = tuple[str, float, int]  # name, value, step
Row = dict[str, float]  # of a run's log, by the column


def writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """Return a context that writes an event file in a folder.

    Args:
        folder: is made if it is missing.
        purge_step: from which step on TensorBoard shows nothing that earlier event files of the folder hold.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed; the command line says which extra brings it.
    """
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def write(to: SummaryWriter, scalars: Iterable[Scalar]) -> None:
    """Write scalars, so that they can be seen at once."""
    for name, value, step in scalars:
        to.add_scalar(name, value, step)
    to.flush()


def of_row(row: Row) -> list[Scalar]:
    """Return the scalars of a row of a run's log.

    >>> of_row({"step": 20, "loss": 1.5, "learning_rate": 0.1})
    [('training/loss', 1.5, 20), ('training/learning_rate', 0.1, 20)]
    """
    return [(f"training/{name}", value, int(row["step"])) for name, value in row.items() if name != "step"]


def write_events(folder: Path, output: Path) -> str:
    """Write event files, one folder for each run, of what an experiment's folder holds; returns a line that says what.

    Args:
        folder: results/EXPERIMENT.
        output: the folder for the files; event files that it holds are removed.

    Raises:
        UserError: there is nothing to write; the output folder holds other files.
        ModuleNotFoundError: TensorBoard is not installed.
    """
    _clear(output)
    experiment = results.read_experiment(folder)
    comparisons = {network: results.read_comparison(folder, *network) for network in experiment.networks}
    written = 0
    for run in layout.runs(experiment, experiment.all_arms):
        log = layout.path(folder, layout.RUN_LOG, **run._asdict())
        scalars = _losses(log) if log.is_file() else []
        compared = comparisons[run.backbone, run.detector]
        if compared:
            of_run = (compared.metrics["arm"] == run.arm) & (compared.metrics["seed"] == run.seed)
            scalars += _metrics(compared.metrics[of_run])
        if scalars:
            with writer(output / str(run)) as opened:
                write(opened, scalars)
            written += 1
    if not written:
        raise UserError(f"{folder}: holds neither logs of training nor metrics of this experiment.")
    return f"{output}: {written} runs"


def _losses(log: Path) -> list[Scalar]:
    rows = pd.read_csv(log).to_dict("records")
    return [scalar for row in rows for scalar in of_row({str(name): value for name, value in row.items()})]


def _metrics(metrics: pd.DataFrame) -> list[Scalar]:
    """Name scalars so that layers are TensorBoard's sections, and the metrics of one stand together."""
    columns = ["metric", "module", "call", "point", "step", "value"]
    return [
        (f"{TapKey(module, call, point)}/{metric}", value, step)
        for metric, module, call, point, step, value in metrics[columns].itertuples(index=False)
        if pd.notna(value)
    ]


def _clear(output: Path) -> None:
    """Remove the event files of an earlier time, which would be shown beside the new ones."""
    files = [path for path in output.rglob("*") if path.is_file()] if output.exists() else []
    for path in files:
        if not path.name.startswith("events.out.tfevents"):
            raise UserError(
                f"{output}: holds {path.relative_to(output)}, which is not an event file; give a folder of its own."
            )
    for path in files:
        path.unlink()
