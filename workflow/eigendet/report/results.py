"""What an experiment's folder holds, read back as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from eigendet import config as configuration
from eigendet.config import Experiment, layout
from eigendet.config.layout import Run
from eigendet.errors import UserError
from eigendet.files import read_json
from eigendet.spectra.tables import joined, read_table

COMPARISONS = ("metrics", "distances", "tests")


class Spectra(NamedTuple):
    """The tables of all runs of an experiment; columns as in `spectrum` and `comparison`."""

    eigenvalues: pd.DataFrame
    metrics: pd.DataFrame
    distances: pd.DataFrame
    tests: pd.DataFrame


def read_spectra(folder: Path | str) -> Spectra:
    """The spectra of an experiment and what was read from them.

    Args:
        folder: results/EXPERIMENT; what is not there yet is left out.

    Raises:
        UserError: there are no spectra in the folder.
    """
    folder = Path(folder)
    experiment = configuration.load([folder / layout.CONFIGURATION])
    files = [folder / path for path in layout.run_paths(experiment, layout.EIGENVALUES, experiment.observed)]
    found = [read_table(file) for file in files if file.is_file()]
    if not found:
        raise UserError(f"{folder / 'spectra'}: holds no spectra of this experiment; run 'eigendet spectra' first.")
    comparisons = [comparison(folder, *network) for network in experiment.networks]
    tables = {name: [tables[name] for tables in comparisons if name in tables] for name in COMPARISONS}
    return Spectra(*(joined(tables_of_kind) for tables_of_kind in [found, *tables.values()]))


def comparison(folder: Path, backbone: str, detector: str) -> dict[str, Any]:
    """Tables of the comparison of a network's runs, and its notes; nothing if it was not made."""
    place = layout.path(folder, layout.COMPARISON, backbone=backbone, detector=detector)
    if not (place / "notes.json").is_file():
        return {}
    tables: dict[str, Any] = {name: read_table(place / f"{name}.parquet") for name in COMPARISONS}
    return tables | {"notes": read_json(place / "notes.json", "notes")}


def summary(folder: Path, experiment: Experiment) -> pd.DataFrame:
    """A row a run: arm, backbone, detector, seed; AP; parameters; multiply-accumulates; latency; time of training.

    Raises:
        UserError: no run has been evaluated.
    """
    rows = []
    for run in layout.runs(experiment, experiment.all_arms):
        file = layout.path(folder, layout.EVALUATION, **run._asdict())
        if not file.is_file():
            continue
        scores = read_json(file, "an evaluation")
        record = read_json(layout.path(folder, layout.RUN_RECORD, **run._asdict()), "the record of a run")
        row = {**scores["run"]}
        for kind, prefix in (("boxes", ""), ("masks", "mask_")):
            row |= {prefix + name: value for name, value in scores.get(kind, {}).items()}
        row |= record["costs"] | {key: record[key] for key in ("seconds", "images_per_second", "device")}
        rows.append(row | _latency(folder, run))
    if not rows:
        raise UserError(
            f"{folder / 'evaluation'}: holds no evaluation of this experiment; run 'eigendet evaluate' first."
        )
    table = pd.DataFrame(rows)
    table["arm"] = pd.Categorical(table["arm"], experiment.all_arms, ordered=True)
    return table.sort_values(["backbone", "detector", "arm", "seed"], ignore_index=True).astype({"arm": str})


def _latency(folder: Path, run: Run) -> dict[str, float]:
    """Milliseconds for an image, of an arm's first seed: its other seeds have the same network."""
    file = layout.path(folder, layout.LATENCY, backbone=run.backbone, detector=run.detector)
    for entry in read_json(file, "latencies")["runs"] if file.is_file() else ():
        if entry["arm"] == run.arm:
            return {f"{part}_ms": entry[part]["median"] for part in ("detector", "backbone")}
    return {}


def averages(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each arm: mean and standard deviation over seeds, costs relative to the arm scratch."""
    rows = []
    for (backbone, detector), group in runs.groupby(["backbone", "detector"], sort=False):
        usual = group[group["arm"].isin(["scratch", "finetune"])]
        for arm, seeds in group.groupby("arm", sort=False):
            row: dict[str, Any] = {"backbone": backbone, "detector": detector, "arm": arm, "seeds": len(seeds)}
            for score in [name for name in ("AP", "AP50", "AP75", "mask_AP") if name in seeds]:
                values = 100 * seeds[score].astype(float)
                spread = f" ± {values.std():.1f}" if len(seeds) > 1 else ""
                row[score] = f"{values.mean():.1f}{spread}" if values.notna().all() else ""
            for cost in [c for c in ("parameters", "backbone_parameters", "backbone_macs", "macs") if c in seeds]:
                row[cost] = int(seeds[cost].iloc[0])
                row[f"{cost}_ratio"] = row[cost] / int(usual[cost].iloc[0]) if len(usual) else None
            for time in [name for name in ("detector_ms", "backbone_ms") if name in seeds]:
                row[time] = float(seeds[time].iloc[0])
                row[f"{time}_ratio"] = row[time] / float(usual[time].iloc[0]) if len(usual) else None
            rows.append(row)
    return rows


def widths(folder: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """Contents of the widths files, a dict for each backbone and detector: of every arm, and the front."""
    found = []
    for backbone, detector in experiment.networks:
        network = {"backbone": backbone, "detector": detector}
        files = [layout.path(folder, layout.WIDTHS, arm=arm, **network) for arm in experiment.all_arms]
        contents = {file.stem: read_json(file, "widths") for file in files if file.is_file()}
        derived = [contents[arm] for arm in experiment.derived if arm in contents]
        if derived:
            front_file = layout.path(folder, layout.FRONT, **network)
            front = pd.read_csv(front_file) if front_file.is_file() else None
            found.append(
                {"backbone": backbone, "detector": detector, "files": contents, "derived": derived, "front": front}
            )
    return found


def missing(folder: Path, experiment: Experiment) -> list[str]:
    """What the experiment asks for and its folder does not hold yet, in sentences."""
    sentences = []
    for stage, arms, pattern in (
        ("evaluated", experiment.all_arms, layout.EVALUATION),
        ("observed", experiment.observed, layout.EIGENVALUES),
    ):
        runs = layout.runs(experiment, arms)
        absent = [run for run in runs if not layout.path(folder, pattern, **run._asdict()).is_file()]
        if absent:
            sentences.append(f"Not {stage} yet, and so not on this page: {', '.join(map(str, absent))}.")
    for backbone, detector in experiment.networks:
        if experiment.observed and not comparison(folder, backbone, detector):
            sentences.append(f"The spectra of {detector} on {backbone} have not been compared yet.")
    return sentences
