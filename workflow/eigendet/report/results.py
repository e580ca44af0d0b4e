"""Read what an experiment's folder holds, as tables and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from eigendet import config as configuration
from eigendet.config import Experiment, layout
from eigendet.config.layout import Run
from eigendet.errors import UserError
from eigendet.networks import widths_file
from eigendet.networks.widths_file import ChosenWidths
from eigendet.report import curves, records
from eigendet.report.records import Checked, Evaluation, Forecast, Latency, Pretrained, Trained
from eigendet.report.wording import told_apart
from eigendet.spectra.matching import Curve
from eigendet.spectra.tables import Comparison, joined, read_run

# Columns of the summary that `averages` reads; those of masks, whole detectors and times need not be there.
SCORES = ("AP", "AP50", "AP75", "mask_AP")
COSTS = ("parameters", "backbone_parameters", "backbone_macs", "macs")
TIMES = ("detector_ms", "backbone_ms")


class Network(NamedTuple):
    """A detector over a backbone, by their names. As text it is a heading of the page.

    >>> str(Network("resnet18", "faster_rcnn"))
    'faster_rcnn on resnet18'
    """

    backbone: str
    detector: str

    def __str__(self) -> str:
        return f"{self.detector} on {self.backbone}"


class Spectra(NamedTuple):
    """The tables of all runs of an experiment; see `eigendet.spectra.tables`."""

    eigenvalues: pd.DataFrame
    metrics: pd.DataFrame
    distances: pd.DataFrame
    tests: pd.DataFrame
    matched: pd.DataFrame
    places: pd.DataFrame


@dataclass(frozen=True)
class NetworkWidths:
    """The widths files of one network.

    Attributes:
        files: the content of each file, by arm.
        derived: those of the derived arms, one a round; never empty.
        front: the table of the front, if it was made.
    """

    network: Network
    files: dict[str, ChosenWidths]
    derived: list[ChosenWidths]
    front: pd.DataFrame | None


@dataclass(frozen=True)
class Average:
    """What the runs of one arm of a network have in common.

    Attributes:
        scores: mean and standard deviation over seeds in percent, like "38.1 ± 0.4"; empty where a run has no score.
        costs: parameters and multiply-accumulates.
        times: milliseconds for an image.
        ratios: each cost and time over that of the reference widths; empty if no arm has these.
    """

    network: Network
    arm: str
    scores: dict[str, str]
    costs: dict[str, int]
    times: dict[str, float]
    ratios: dict[str, float]


@dataclass(frozen=True)
class Results:
    """What the page shows of an experiment: the summary, what there is of each network, and curves (see `curves`)."""

    folder: Path
    experiment: Experiment
    runs: pd.DataFrame
    comparisons: dict[Network, Comparison]
    widths: list[NetworkWidths]
    losses: curves.Losses
    precision: pd.DataFrame


def read_experiment(folder: Path) -> Experiment:
    """Read the configuration that a folder's results were made with.

    Raises:
        UserError: it is missing, or of an earlier version.
    """
    try:
        return configuration.load([folder / layout.CONFIGURATION])
    except UserError as error:
        first, *more = error.lines
        others = f", and {len(more)} more faults" if more else ""
        raise UserError(
            f"{first.rstrip('.')}{others}. If {folder} is of another version, 'snakemake' makes it anew."
        ) from None


def read_results(folder: Path) -> Results:
    """Read an experiment's folder; whatever is not there yet is left out.

    Raises:
        UserError: no run has been evaluated; a file cannot be read.
    """
    experiment = read_experiment(folder)
    runs = summary(folder, experiment)
    comparisons = {}
    for network in map(Network._make, experiment.networks):
        compared = read_comparison(folder, *network)
        if compared:
            comparisons[network] = compared
    widths, losses = read_widths_files(folder, experiment), curves.losses(folder, experiment)
    return Results(folder, experiment, runs, comparisons, widths, losses, curves.precision(folder, experiment))


def read_spectra(folder: Path | str) -> Spectra:
    """Read the spectra of an experiment and what was computed from them.

    Args:
        folder: results/EXPERIMENT; whatever is not there yet is left out.

    Raises:
        UserError: there are no spectra in the folder.
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    tables = [table for network in experiment.networks for table in read_eigenvalues(folder, experiment, *network)]
    if not tables:
        raise UserError(f"{folder}: holds no spectra of this experiment; run 'eigendet spectra' first.")
    comparisons = [compared for network in experiment.networks if (compared := read_comparison(folder, *network))]
    return Spectra(
        joined(tables),
        joined([compared.metrics for compared in comparisons]),
        joined([compared.distances for compared in comparisons]),
        joined([compared.tests for compared in comparisons]),
        joined([compared.matched for compared in comparisons]),
        joined([compared.places for compared in comparisons]),
    )


def read_eigenvalues(folder: Path, experiment: Experiment, backbone: str, detector: str) -> list[pd.DataFrame]:
    """Read the spectra of a network's runs, a table for each run that has them."""
    files = [
        layout.path(folder, layout.EIGENVALUES, **run._asdict())
        for run in layout.runs(experiment, experiment.observed)
        if (run.backbone, run.detector) == (backbone, detector)
    ]
    return [read_run(file.parent, "eigenvalues")[0] for file in files if file.is_file()]


def read_comparison(folder: Path, backbone: str, detector: str) -> Comparison | None:
    """Read the comparison of a network's runs, if it was made."""
    notes = layout.path(folder, layout.COMPARISON_NOTES, backbone=backbone, detector=detector)
    return Comparison.read(notes.parent) if notes.is_file() else None


def summary(folder: Path, experiment: Experiment) -> pd.DataFrame:
    """Return a row for each run: arm, backbone, detector, seed; AP; costs; latency; time of training.

    Raises:
        UserError: no run has been evaluated.
    """
    rows = []
    for run in layout.runs(experiment, experiment.all_arms):
        file = layout.path(folder, layout.EVALUATION, **run._asdict())
        if file.is_file():
            rows.append(_summary_row(folder, run, records.read_evaluation(file, run)))
    if not rows:
        raise UserError(f"{folder}: holds no evaluation of this experiment; run 'eigendet evaluate' first.")
    table = pd.DataFrame(rows)
    table["arm"] = pd.Categorical(table["arm"], experiment.all_arms, ordered=True)
    return table.sort_values(["backbone", "detector", "arm", "seed"], ignore_index=True).astype({"arm": str})


def accuracy_over_training(folder: Path, experiment: Experiment) -> pd.DataFrame:
    """Return a row for each snapshot that was scored: arm, backbone, detector, seed, step, AP and the other scores."""
    rows = []
    for run in layout.runs(experiment, experiment.observed):
        file = layout.path(folder, layout.EVALUATION, **run._asdict())
        for scored in records.read_evaluation(file, run).snapshots if file.is_file() else ():
            masks = {f"mask_{name}": value for name, value in scored.masks.items()}
            rows.append({**run._asdict(), "step": scored.step, **scored.boxes, **masks})
    return pd.DataFrame(rows)


def read_curve(file: Path) -> Curve:
    """Read the box AP of one run over training, at the snapshots that were scored.

    Raises:
        UserError: the file cannot be read.
    """
    evaluation = records.read(Evaluation, file)
    scored = sorted(evaluation.snapshots, key=lambda scores: scores.step)
    scores = [own.boxes.get("AP") for own in scored]
    return Curve(**evaluation.run.model_dump(), steps=[own.step for own in scored], scores=scores)


def accuracy_of_classes(folder: Path, experiment: Experiment) -> dict[Network, dict[str, dict[str, str]]]:
    """Return AP of each class alone in each arm of each network: mean and standard deviation over seeds, in percent."""
    scores: dict[Network, dict[str, dict[str, list[float | None]]]] = {}
    for run in layout.runs(experiment, experiment.all_arms):
        file = layout.path(folder, layout.EVALUATION, **run._asdict())
        for name, score in records.read_evaluation(file, run).classes.items() if file.is_file() else ():
            of_network = scores.setdefault(Network(run.backbone, run.detector), {})
            of_network.setdefault(name, {}).setdefault(run.arm, []).append(score)
    return {
        network: {
            name: {arm: _mean_and_spread(100 * pd.Series(values, dtype=float)) for arm, values in of_class.items()}
            for name, of_class in classes.items()
        }
        for network, classes in scores.items()
    }


def _summary_row(folder: Path, run: Run, evaluation: Evaluation) -> dict[str, object]:
    record = run_record(folder, run)
    row: dict[str, object] = dict(run._asdict())
    for scores, prefix in ((evaluation.boxes, ""), (evaluation.masks, "mask_")):
        row |= {prefix + name: value for name, value in scores.items()}
    row |= record.costs
    row |= {"seconds": record.seconds, "images_per_second": record.images_per_second, "device": record.device}
    return row | _times(folder, run)


def _times(folder: Path, run: Run) -> dict[str, float]:
    """Return the milliseconds for an image of an arm's first seed: its other seeds have the same network."""
    latency = _latency(folder, run.backbone, run.detector)
    for entry in latency.runs if latency else ():
        if entry.arm == run.arm:
            return {"detector_ms": entry.detector.median, "backbone_ms": entry.backbone.median}
    return {}


def _latency(folder: Path, backbone: str, detector: str) -> Latency | None:
    file = layout.path(folder, layout.LATENCY, backbone=backbone, detector=detector)
    return records.read(Latency, file) if file.is_file() else None


def forecasts(folder: Path, experiment: Experiment) -> dict[Network, Forecast]:
    """Read the scores of the initializations of every network that has them."""
    networks = map(Network._make, experiment.networks)
    files = {network: layout.path(folder, layout.FORECAST, **network._asdict()) for network in networks}
    return {network: records.read(Forecast, file) for network, file in files.items() if file.is_file()}


def averages(runs: pd.DataFrame, references: Sequence[str] = ("finetune", "scratch")) -> list[Average]:
    """Average over the seeds of each arm of each network, and relate costs to those of the reference widths.

    Args:
        runs: the summary.
        references: arms with the reference widths.

    >>> runs = pd.DataFrame({"arm": ["scratch", "derived"], "backbone": "b", "detector": "d", "AP": [0.3, 0.4],
    ...                      "parameters": [200, 100]})
    >>> derived = averages(runs)[1]
    >>> derived.scores, derived.costs, derived.ratios
    ({'AP': '40.0'}, {'parameters': 100}, {'parameters': 0.5})
    """
    return [
        _average(Network(backbone, detector), arm, seeds, of_network[of_network["arm"].isin(references)])
        for (backbone, detector), of_network in runs.groupby(["backbone", "detector"], sort=False)
        for arm, seeds in of_network.groupby("arm", sort=False)
    ]


def _average(network: Network, arm: str, seeds: pd.DataFrame, reference: pd.DataFrame) -> Average:
    scores = {}
    for name in SCORES:
        if name in seeds:
            values = 100 * seeds[name].astype(float)
            scores[name] = _mean_and_spread(values)
    costs = {name: int(seeds[name].iloc[0]) for name in COSTS if name in seeds}
    times = {name: float(seeds[name].iloc[0]) for name in TIMES if name in seeds}
    ratios = {}
    if not reference.empty:
        ratios = {name: value / float(reference[name].iloc[0]) for name, value in (costs | times).items()}
    return Average(network, arm, scores, costs, times, ratios)


def _mean_and_spread(values: pd.Series) -> str:
    """Return the mean and standard deviation with one decimal, more where the latter would look like none."""
    if values.isna().any():
        return ""
    if len(values) < 2:
        return f"{values.mean():.1f}"
    _, spread = told_apart(0.0, float(values.std()), digits=1)
    decimals = len(spread.partition(".")[2])
    return f"{values.mean():.{decimals}f} ± {spread}"


def read_widths_files(folder: Path, experiment: Experiment) -> list[NetworkWidths]:
    """Read the widths files of every network that has derived widths."""
    networks = []
    for network in map(Network._make, experiment.networks):
        paths = {arm: layout.path(folder, layout.WIDTHS, arm=arm, **network._asdict()) for arm in experiment.all_arms}
        files = {arm: widths_file.read_chosen(path) for arm, path in paths.items() if path.is_file()}
        derived = [files[arm] for arm in experiment.derived if arm in files]
        if derived:
            front = layout.path(folder, layout.FRONT, **network._asdict())
            networks.append(NetworkWidths(network, files, derived, pd.read_csv(front) if front.is_file() else None))
    return networks


def run_record(folder: Path, run: Run) -> Trained:
    """Read the record of a run: how it was trained, what it costs, and by what it was made."""
    return records.read(Trained, layout.path(folder, layout.RUN_RECORD, **run._asdict()))


def pretraining_records(folder: Path, experiment: Experiment) -> dict[str, Pretrained]:
    """Read the records of the backbones to start from that are there, by their folders."""
    files = {start: folder / start / layout.START_RECORD for start in layout.starts(experiment)}
    return {start: records.read(Pretrained, file) for start, file in files.items() if file.is_file()}


def data_summaries(folder: Path, experiment: Experiment) -> dict[str, Checked]:
    """Read the summaries of the experiment's data sets that were checked, by task and split."""
    summaries = {}
    for task, splits in (("classification", experiment.data.classification), ("detection", experiment.data.detection)):
        for split in ("train", "val") if splits else ():
            file = folder / layout.data_check(experiment, task, split)
            if file.is_file():
                summaries[f"{task} {split}"] = records.read(Checked, file)
    return summaries


def latency_devices(folder: Path, experiment: Experiment) -> list[str]:
    """Return the devices on which times of this experiment's networks were measured."""
    measured = [_latency(folder, *network) for network in experiment.networks]
    return list(dict.fromkeys(latency.device for latency in measured if latency and latency.device))


def _not_compared(folder: Path, experiment: Experiment, network: Network, compared: Comparison) -> list[Run]:
    """Return the runs that have spectra and are not in the comparison."""
    there = set(compared.metrics[["arm", "seed"]].itertuples(index=False, name=None))
    return [
        run
        for run in layout.runs(experiment, experiment.observed)
        if (run.backbone, run.detector) == network
        and (run.arm, run.seed) not in there
        and layout.path(folder, layout.EIGENVALUES, **run._asdict()).is_file()
    ]


def _unscored(folder: Path, experiment: Experiment, run: Run) -> str:
    """Name the steps of an evaluated run at which it should have scores and has none."""
    file = layout.path(folder, layout.EVALUATION, **run._asdict())
    scored = {own.step for own in records.read_evaluation(file, run).snapshots} if file.is_file() else set()
    expected = experiment.evaluation.chosen(run_record(folder, run).snapshots) if scored else []
    steps = [str(step) for step in expected if step not in scored]
    return f"{run} at {' and '.join(steps)}" if steps else ""


def missing(folder: Path, experiment: Experiment) -> list[str]:
    """Say in sentences what the experiment asks for and its folder does not hold yet."""
    sentences, scored = [], forecasts(folder, experiment)
    for lack, arms, pattern in (
        ("Not evaluated yet, and so without a score", experiment.all_arms, layout.EVALUATION),
        ("Not observed yet, and so without spectra", experiment.observed, layout.EIGENVALUES),
    ):
        runs = layout.runs(experiment, arms)
        absent = [run for run in runs if not layout.path(folder, pattern, **run._asdict()).is_file()]
        if absent:
            sentences.append(f"{lack}: {', '.join(map(str, absent))}.")
    lost = [
        text for run in layout.runs(experiment, experiment.observed) if (text := _unscored(folder, experiment, run))
    ]
    if lost:
        sentences.append(f"Not scored, since the snapshot was missing: {', '.join(lost)}.")
    if any(arm in experiment.with_reference_widths for arm in experiment.observed):
        unscored = [network for network in map(Network._make, experiment.networks) if network not in scored]
        sentences += [f"The initializations of {network} have not been scored yet." for network in unscored]
    for network in map(Network._make, experiment.networks):
        compared = read_comparison(folder, *network)
        if experiment.observed and compared is None:
            sentences.append(f"The spectra of {network} have not been compared yet.")
        elif compared is not None and (later := _not_compared(folder, experiment, network, compared)):
            sentences.append(f"The comparison of {network} was made without {', '.join(map(str, later))}.")
    return sentences
