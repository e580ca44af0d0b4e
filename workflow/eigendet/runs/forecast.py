"""Score initializations by what is said to forecast how well they transfer, before any of their training.

An initialization is what a run's snapshot at step 0 holds: random weights, or a backbone that was pre-trained. Scored
are the maps of its backbone on the probe images: of each resolution the last, which is what later layers are given.
Maps with a single position, such as those of squeeze-and-excitation, are none of these.

RankMe and α-ReQ are of all positions, RankMe of the raw second moment and α-ReQ of the covariance, with the weights
that `covariance.weighting` gives them. LogME is of the means of images over their positions, from which the presence of
each class is told; it is the mean over classes that some of the images have and some have not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from eigendet import plugins
from eigendet.config import Experiment, layout
from eigendet.data.datasets import Detection, open_split
from eigendet.data.presence import presence
from eigendet.errors import UserError, some
from eigendet.observe import store
from eigendet.observe.keys import TapKey
from eigendet.observe.records import TapRecord, read_key, read_tap
from eigendet.spectra import transfer
from eigendet.spectra.spectrum import eigenvalues
from eigendet.spectra.tables import RUN_COLUMNS


class MapScores(TypedDict):
    """The scores of one map of one initialization; None where there is none, and a note says why."""

    arm: str
    seed: int
    module: str
    call: int
    point: str
    channels: int
    rankme: float | None
    alpha: float | None
    logme: float | None


class Forecast(TypedDict):
    """What the JSON file of a network's initializations holds."""

    version: int
    images: int  # on which they were observed
    classes: int  # that LogME is the mean of
    constant: float | None  # LogME of one feature that is the same for all images, and tells nothing
    scores: list[MapScores]  # of every run, its maps in order of execution
    notes: list[str]


class _Initialization(NamedTuple):
    """What the covariance file of a run says of its step 0."""

    file: Path
    arm: str
    seed: int
    network: tuple[str, str]  # backbone and detector
    probe: object  # what the images are
    images: list[str]  # their identifiers; none where these are not known
    backbone: Sequence[str]  # paths of its modules
    is_resized: bool  # has other widths than the reference
    is_kept: bool  # whether there is a snapshot at step 0


class _Labels(NamedTuple):
    """Which classes are in which images."""

    images: dict[str, int]  # rows by the images' identifiers
    present: np.ndarray  # (N, K), of the classes that some images have and some have not


class _Scored(NamedTuple):
    """The scores of a map, and what notes on it are about."""

    scores: MapScores
    key: TapKey
    undersampled: bool
    has_means: bool  # of the images


def forecast(experiment: Experiment, files: Sequence[Path]) -> Forecast:
    """Return the scores of the initializations of a network's runs.

    Args:
        experiment: names the data set that the probe images are from.
        files: covariance files of runs of one network, with the widths of the reference.

    Raises:
        UserError: a file cannot be read or is of no run; files are of several networks, or two of one run.
    """
    runs = [_read(file) for file in files]
    _check_together(runs)
    usable, notes = _usable(runs)
    labels, lack = _labels(experiment, usable)
    scored = [_score(run, record, labels) for run in usable for record in _maps(run)]
    return {
        "version": layout.FORECAST_VERSION,
        "images": len(usable[0].images) if usable else 0,
        "classes": labels.present.shape[1] if labels else 0,
        "constant": _finite(float(np.mean(transfer.logme(np.ones((len(labels.present), 1)), labels.present))))
        if labels
        else None,
        "scores": [one.scores for one in scored],
        "notes": [*notes, *lack, *_notes_on_maps(scored, labels)],
    }


def _read(file: Path) -> _Initialization:
    """Read what a file says of itself."""
    content = store.provenance(file)
    run, definition = content.get("run"), content.get("definition")
    if not isinstance(run, dict) or not run.keys() >= set(RUN_COLUMNS) or not isinstance(run["seed"], int):
        raise UserError(f"{file}: names no run; expected a file written by 'eigendet covariance'.")
    with store.open_checked(file) as opened:
        is_kept = 0 in map(store.step_number, store.steps(opened))
    return _Initialization(
        file=file,
        arm=str(run["arm"]),
        seed=run["seed"],
        network=(str(run["backbone"]), str(run["detector"])),
        probe=content.get("probe"),
        images=store.images(file) or [],
        backbone=content.get("backbone") or [],
        is_resized=isinstance(definition, dict) and definition.get("widths") is not None,
        is_kept=is_kept,
    )


def _maps(run: _Initialization) -> list[TapRecord]:
    """Read the maps of a run that are scored."""
    with store.open_checked(run.file) as file:
        start = next(step for step in store.steps(file) if store.step_number(step) == 0)
        records = (read_tap(tap, 0) for tap in store.taps(start) if read_key(tap).module in run.backbone)
        return last_of_each_resolution(records, len(run.images))


def last_of_each_resolution(records: Iterable[TapRecord], images: int) -> list[TapRecord]:
    """Return the last map of each number of positions, in order of execution, but for those with one an image.

    Args:
        records: maps in order of execution.
        images: how many they are of; 0: not known.

    >>> def record(module, count):
    ...     return TapRecord(0, TapKey(module, 0, "act"), "none", count, np.zeros(1), np.zeros((1, 1)))
    >>> from eigendet.observe.keys import TapKey
    >>> records = [record("1.0", 800), record("1.1", 800), record("2.0", 200), record("2.se", 2), record("2.1", 200)]
    >>> [record.key.module for record in last_of_each_resolution(records, images=2)]
    ['1.1', '2.1']
    """
    last: dict[int, TapRecord] = {}
    for record in records:
        if record.count > images:
            last.pop(record.count, None)
            last[record.count] = record
    return list(last.values())


def _check_together(runs: Sequence[_Initialization]) -> None:
    """Raise UserError unless runs are of one network, each another."""
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if run.network != runs[0].network:
            names = [" under ".join(which) for which in (run.network, runs[0].network)]
            raise UserError(f"{run.file}: of {names[0]}; {runs[0].file} is of {names[1]}.")
        other = seen.get((run.arm, run.seed))
        if other is not None:
            raise UserError(f"{run.file}: of {run.arm} seed {run.seed}, as {other} is; each run counts once.")
        seen[run.arm, run.seed] = run.file


def _usable(runs: Sequence[_Initialization]) -> tuple[list[_Initialization], list[str]]:
    """Return the runs that are scored: kept, of the reference's widths, on the same images; and why others are not."""
    notes = []
    if resized := _arms(run for run in runs if run.is_resized):
        notes.append(f"Not scored, since RankMe counts channels and widths are not the reference's: {resized}.")
    runs = [run for run in runs if not run.is_resized]
    if lost := _arms(run for run in runs if not run.is_kept):
        notes.append(f"No forecast without a snapshot at step 0, which 0 in training.snapshots keeps: {lost}.")
    runs = [run for run in runs if run.is_kept]
    if mapless := _arms(run for run in runs if not run.backbone):
        notes.append(f"No forecast where the file does not say which maps are of the backbone: {mapless}.")
    runs = [run for run in runs if run.backbone]
    kinds = [(run.probe, sorted(run.images)) for run in runs]
    usual = max(kinds, key=kinds.count, default=None)
    if others := _arms(run for run, kind in zip(runs, kinds, strict=True) if kind != usual):
        notes.append(f"Not scored, since observed on other images than the rest: {others}.")
    return [run for run, kind in zip(runs, kinds, strict=True) if kind == usual], notes


def _arms(runs: Iterable[_Initialization]) -> str:
    """Name runs by their arms, with the seeds of each; nothing for none."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.arm, []).append(str(run.seed))
    return "; ".join(f"{arm} (seed {', '.join(own)})" for arm, own in seeds.items())


def _labels(experiment: Experiment, runs: Sequence[_Initialization]) -> tuple[_Labels | None, list[str]]:
    """Return the labels of the images that were observed, and notes on what these lack."""
    if not runs:
        return None, []
    split = experiment.covariance.split
    name = f"data.detection.{split}"
    dataset = open_split(experiment, "detection", split)
    probe, images = runs[0].probe, runs[0].images
    if not images or not all(image.isdecimal() and int(image) < len(dataset) for image in images):
        return None, [f"No LogME: the images that were observed are not named by their numbers in {name}."]
    if not isinstance(probe, dict) or (probe.get("split"), probe.get("data")) != (split, dataset.digest):
        return None, [f"No LogME: the images that were observed are not those of {name} as it is now."]
    present = _present(dataset, list(map(int, images)), experiment)
    varied = np.asarray(present.any(0) & ~present.all(0))
    notes = []
    if not varied.any():
        notes.append(f"No LogME: each class is in all of the {len(images)} images or in none.")
    elif not varied.all():
        constant = [dataset.classes[k] for k in np.flatnonzero(~varied)]
        notes.append(
            f"LogME is without the classes that all or none of the {len(images)} images have: {len(constant)} of "
            f"{len(varied)} ({some(constant)})."
        )
    labels = _Labels({image: row for row, image in enumerate(images)}, present[:, varied])
    return (labels if varied.any() else None), notes


def _present(dataset: Detection, indices: Sequence[int], experiment: Experiment) -> np.ndarray:
    """Return the presence of classes in images; what fails is named after the data set's plugin."""
    splits = experiment.data.detection
    with plugins.failures_named(plugins.find("dataset", getattr(splits, experiment.covariance.split).plugin)):
        return presence(dataset, indices)


def _score(run: _Initialization, record: TapRecord, labels: _Labels | None) -> _Scored:
    """Score a map."""
    evidence = math.nan
    if labels is not None and record.image_means is not None:
        rows = [labels.images[image] for image in run.images]
        evidence = float(np.mean(transfer.logme(record.image_means, labels.present[rows])))
    scores: MapScores = {
        "arm": run.arm,
        "seed": run.seed,
        "module": record.key.module,
        "call": record.key.call,
        "point": record.key.point,
        "channels": len(record.mean),
        "rankme": _finite(transfer.rankme(eigenvalues(record.moment(centered=False)))),
        "alpha": _finite(transfer.alpha_req(eigenvalues(record.moment(centered=True)))),
        "logme": _finite(evidence),
    }
    return _Scored(scores, record.key, record.undersampled, record.image_means is not None)


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _notes_on_maps(scored: Sequence[_Scored], labels: _Labels | None) -> Iterator[str]:
    """Say which maps have no score, and why, and of which a score says little."""

    def named(which: Callable[[_Scored], bool]) -> str:
        return some(list(dict.fromkeys(str(one.key) for one in scored if which(one))))

    if dead := named(lambda one: one.scores["rankme"] is None):
        yield f"No RankMe where a map is zero everywhere: {dead}."
    if few := named(lambda one: one.scores["alpha"] is None):
        least = transfer.FIRST + transfer.FEWEST - 1
        yield f"No α where fewer than {least} eigenvalues are above zero: {few}."
    if under := named(lambda one: one.undersampled):
        yield f"RankMe is at most the number of positions, fewer than there are channels, of {under}."
    if labels is None:
        return
    if unkept := named(lambda one: not one.has_means):
        yield f"No LogME where means of images were not kept: {unkept}."
    if lost := named(lambda one: one.has_means and one.scores["logme"] is None):
        yield (
            "No LogME where features give the presence of a class without error, or where no two images that have "
            f"samples differ in it: {lost}."
        )
    images = len(labels.present)
    if wide := named(lambda one: one.scores["logme"] is not None and one.scores["channels"] >= images):
        yield f"LogME rests on {images} images, no more than there are channels (covariance.images sets it), of {wide}."
