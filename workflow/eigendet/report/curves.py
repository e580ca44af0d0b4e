"""What is drawn over the steps of training and over recall, as tables: losses of every arm, and its precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eigendet.config import Experiment, layout
from eigendet.config.layout import Run
from eigendet.errors import first_line, some
from eigendet.report import records

POINTS = 200  # at most, of the course of a loss
ROWS = 8000  # at most, of all courses together, so that many arms make no heavy page
TERMS = 8  # at most, the total aside
LARGEST, MOST_STEPS = 1e100, 1e12  # that sums and spans of steps can be computed of
NOT_LOSSES = ("step", "learning_rate", "images_per_second")
OVERLAPS = {"AP": "mean over overlaps of 0.50 to 0.95", "AP50": "overlap of 0.50", "AP75": "overlap of 0.75"}


class Losses(NamedTuple):
    """The courses of losses, by term the total first, and sentences on what is not among them.

    Columns of `table`: arm, backbone, detector, term, step (the last of those that a mean is of), loss (mean over
    seeds), low and high (a standard deviation from it, missing of one seed), seeds.
    """

    table: pd.DataFrame
    notes: list[str]


def losses(folder: Path, experiment: Experiment) -> Losses:
    """Read the logs of all runs of an experiment's folder; those that are missing or broken are left out, and named."""
    logs: dict[Run, pd.DataFrame] = {}
    missing: list[str] = []
    notes: list[str] = []
    remedy = "to have them, delete the run's folder and train it again."
    for run in layout.runs(experiment, experiment.all_arms):
        file = layout.path(folder, layout.RUN_LOG, **run._asdict())
        if file.is_file():
            try:
                logs[run] = read_log(file)
            except ValueError as error:
                notes.append(f"{file}: {error}, so its losses are left out; {remedy}")
        elif layout.path(folder, layout.RUN_RECORD, **run._asdict()).is_file():
            missing.append(str(run))
    if missing:
        notes.append(f"Without {Path(layout.RUN_LOG).name}, and so without losses: {some(missing)}; {remedy}")
    if not logs:
        return Losses(pd.DataFrame(), notes)
    terms = _terms(logs.values())
    if len(terms) > TERMS + 1:
        notes.append(f"Of {len(terms) - 1} terms the {TERMS} that are largest on average are drawn.")
        terms = terms[: TERMS + 1]
    groups: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    for run, log in logs.items():
        groups.setdefault(run[:3], []).append(log)
    points = max(2, min(POINTS, ROWS // (len(groups) * len(terms))))
    tables = [
        _mean(seeds, terms, points).assign(**dict(zip(Run._fields, names, strict=False)))
        for names, seeds in groups.items()
    ]
    return Losses(pd.concat(tables, ignore_index=True), notes)


def read_log(file: Path) -> pd.DataFrame:
    """Return a run's log with rows in order of their steps, each step once: columns step, loss, and its terms.

    Raises:
        ValueError: it is not a log; says why.
    """
    try:
        table = pd.read_csv(file)
    except (ValueError, OSError) as error:  # what pandas raises on bad text is among these
        raise ValueError(f"not a table ({first_line(error)[:80]})") from None
    for name in ("step", "loss"):
        if name not in table:
            raise ValueError(f"has no column '{name}'")
    table = table[[name for name in table if name not in NOT_LOSSES or name == "step"]]
    others = [str(name) for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if others or not len(table):
        raise ValueError(f"holds what is not a number, in column '{others[0]}'" if others else "has no rows")
    if not (table.abs() < LARGEST).to_numpy().all():  # nor is NaN
        raise ValueError("holds what is not finite, or no loss can be")
    if not table["step"].between(0, MOST_STEPS).all():
        raise ValueError(f"has a step that is not between 0 and {MOST_STEPS:.0e}")
    return table.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def _terms(logs: Iterable[pd.DataFrame]) -> list[str]:
    """Return the total, then the terms of all logs, the largest on average first."""
    means = pd.concat(logs).mean().drop(["step", "loss"]).sort_values(ascending=False, kind="stable")
    return ["loss", *map(str, means.index)]


def _mean(seeds: list[pd.DataFrame], terms: list[str], points: int) -> pd.DataFrame:
    """Return the means of an arm's logs over seeds, at so many points at most, where all seeds have one."""
    last = max(int(log["step"].max()) for log in seeds)
    width = 1 if all(len(log) <= points for log in seeds) else math.ceil(last / points)
    thinned = pd.concat([thin(log, width) for log in seeds])
    rows = []
    for term in [term for term in terms if all(term in log for log in seeds)]:
        of_seeds = thinned.groupby("step")[term].agg(["mean", "std", "count"]).reset_index()
        of_seeds = of_seeds[of_seeds["count"] == len(seeds)]
        rows.append(
            pd.DataFrame({"term": term, "step": of_seeds["step"], "loss": of_seeds["mean"],
                          "low": of_seeds["mean"] - of_seeds["std"], "high": of_seeds["mean"] + of_seeds["std"],
                          "seeds": len(seeds)})
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def thin(log: pd.DataFrame, width: int) -> pd.DataFrame:
    """Return a log with a row for each so many steps: the mean over these steps, named by the last of them.

    A row of a log is itself the mean over the steps since the one before.

    >>> log = pd.DataFrame({"step": [20, 40, 50], "loss": [4.0, 3.0, 1.0]})
    >>> thin(log, 60).to_dict("list")
    {'step': [50], 'loss': [3.0]}
    """
    if width == 1:
        return log
    steps = log["step"].diff().fillna(log["step"].iloc[0]).clip(lower=1)
    place = np.ceil(log["step"] / width).astype(int)
    means = log.drop(columns="step").mul(steps, axis=0).groupby(place).sum().div(steps.groupby(place).sum(), axis=0)
    means.insert(0, "step", np.minimum(means.index * width, log["step"].max()).astype(int))
    return means.reset_index(drop=True)


def precision(folder: Path, experiment: Experiment) -> pd.DataFrame:
    """Return precision over recall of every arm: columns arm, backbone, detector, kind, overlap, recall, precision.

    The mean over the seeds that have it; `kind` is boxes or masks, `overlap` a key of `OVERLAPS`.
    """
    rows = pd.DataFrame(_curves(folder, experiment))
    if rows.empty:
        return rows
    names = [name for name in rows if name not in ("seed", "precision")]
    return rows.groupby(names, sort=False)["precision"].mean().reset_index()


def _curves(folder: Path, experiment: Experiment) -> Iterator[dict[str, object]]:
    for run in layout.runs(experiment, experiment.all_arms):
        file = layout.path(folder, layout.EVALUATION, **run._asdict())
        for kind, curves in records.read_evaluation(file, run).curves.items() if file.is_file() else ():
            for overlap, curve in curves.model_dump().items():
                for recall, value in zip(np.linspace(0, 1, len(curve)).round(4).tolist(), curve, strict=True):
                    yield {**run._asdict(), "kind": kind, "overlap": overlap, "recall": recall, "precision": value}
