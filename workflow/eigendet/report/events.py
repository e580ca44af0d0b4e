"""Write losses of training and metrics of every layer as TensorBoard's scalars."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from eigendet.config import layout
from eigendet.errors import UserError
from eigendet.observe.keys import TapKey
from eigendet.report import results

Scalar = tuple[str, float, int]  # name, value, step


def write_events(folder: Path, output: Path) -> str:
    """Write event files, one folder for each run, of what an experiment's folder holds; returns a line that says what.

    Args:
        folder: results/EXPERIMENT.
        output: the folder for the files; event files that it holds are removed.

    Raises:
        UserError: TensorBoard is not installed; there is nothing to write; the output folder holds other files.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("the package tensorboard is not installed; 'pip install tensorboard' brings it.") from None
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
            with SummaryWriter(str(output / str(run))) as writer:
                for name, value, step in scalars:
                    writer.add_scalar(name, value, step)
            written += 1
    if not written:
        raise UserError(f"{folder}: holds neither logs of training nor metrics of this experiment.")
    return f"{output}: {written} runs"


def _losses(log: Path) -> list[Scalar]:
    table = pd.read_csv(log)
    return [
        (f"training/{name}", float(value), int(row["step"]))
        for row in table.to_dict("records")
        for name, value in row.items()
        if name != "step" and pd.notna(value)
    ]


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
