"""What arms have in common and what sets them apart, for every feature map at every snapshot, as tidy tables.

What the tables hold is said in `tables`. Snapshots are those steps that all runs have, and the last of each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eigendet.errors import UserError, some
from eigendet.observe.keys import TapKey
from eigendet.spectra import arm_tests, matching, tables
from eigendet.spectra.matching import Curve
from eigendet.spectra.metric_table import metric_table
from eigendet.spectra.metrics import Rule
from eigendet.spectra.observed import (
    SIMILARITIES,
    FeatureMap,
    RunSpectra,
    Tap,
    as_distances,
    common_taps,
    measures_between,
    read_map,
    read_spectra_of_run,
)
from eigendet.spectra.tables import TAP, Comparison

FINETUNE = "finetune"  # the arm that starts from the pre-trained backbone


def write_comparison(
    folders: Sequence[Path], output: Path, rules: Mapping[str, Rule], curves: Sequence[Curve] = ()
) -> list[str]:
    """Compare runs by their folders of spectra, write the folder `output`, and return the notes.

    Args:
        folders: what `eigendet spectra` wrote, of each run.
        output: the folder to write.
        rules: width rules by name; each is a metric too.
        curves: accuracy over training of these runs, so that arms are also compared at equal accuracy.

    Raises:
        UserError: a folder holds no spectra; runs are of several networks, or two of them the same; a curve is of no
            run that is given, or not the only one of it.
    """
    runs = [read_spectra_of_run(folder) for folder in folders]
    _check_together(runs)
    _check_curves(curves, runs)
    compared, notes = comparable(runs)
    metrics = pd.concat([metric_table(run.eigenvalues, rules) for run in runs], ignore_index=True)
    distances = distance_table(compared)
    tests = significance_table(compared, distances, metrics)
    matched = matching.match(compared, curves, metrics)
    network = {"backbone": runs[0].backbone, "detector": runs[0].detector}
    metrics, distances, tests, at_equal, places = (
        table.assign(**network) for table in (metrics, distances, tests, matched.tests, matched.places)
    )
    Comparison(metrics, distances, tests, at_equal, places, notes, matched.unmatched).write(output)
    return [*notes, *matched.unmatched]


def _check_together(runs: Sequence[RunSpectra]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for name in ("backbone", "detector"):
            own, expected = getattr(run, name), getattr(first, name)
            if own != expected:
                raise UserError(f"{run.folder}: of the {name} '{own}'; {first.folder} is of '{expected}'.")
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise UserError(f"{run.folder}: {run.name} is given twice; each run counts once.")


def _check_curves(curves: Sequence[Curve], runs: Sequence[RunSpectra]) -> None:
    there = [(run.arm, run.backbone, run.detector, run.seed) for run in runs]
    own = [curve[:4] for curve in curves]
    for name in own:
        arm, backbone, detector, seed = name
        text = f"evaluation of {detector} on {backbone}, {arm} seed {seed}"
        if name not in there:
            raise UserError(f"{text}: spectra of that run are not given; give both, or neither.")
        if own.count(name) > 1:
            raise UserError(f"{text}: is given twice; each run counts once.")


def comparable(runs: Sequence[RunSpectra]) -> tuple[list[RunSpectra], list[str]]:
    """Return the runs whose maps may be compared, and in a sentence each what is left out or doubtful."""
    compared, notes = _observed_alike(runs)
    taps = set.intersection(*({tap for _, tap in run.spectra} for run in compared))
    for run in compared:
        notes += _notes_on_maps(run, taps)
    undersampled = {label for run in compared for label in _undersampled(run)}
    few = [label for label in _labels(iter(taps)) if label in undersampled]
    if few:
        notes.append(
            f"Maps with fewer effective samples than channels in some run: {len(few)} of {len(taps)} ({some(few)}). "
            "Their smallest eigenvalues say more of the images than of the network; more images would tell."
        )
    if len({tuple(run.steps) for run in compared}) > 1:
        steps = ", ".join(str(step) for step in _moments(compared)[:-1])
        common = (
            f"compared are those at {steps} and the last of each" if steps else "compared is the last of each alone"
        )
        notes.append(f"The runs have snapshots at different steps; {common}.")
    tuned = [run for run in compared if run.arm == FINETUNE]
    if tuned and not any(run.steps[0] == 0 and run.provenance.backbone for run in tuned):
        notes.append(
            "Nothing is compared with the pre-trained backbone: no run of finetune has a snapshot at step 0 that says "
            "which maps are of the backbone."
        )
    unnamed = [run.name for run in compared if run.images is None]
    if unnamed:
        notes.append(f"{some(unnamed)}: no CKA, since the images are not named.")
    return compared, notes


def _observed_alike(runs: Sequence[RunSpectra]) -> tuple[list[RunSpectra], list[str]]:
    """Return the runs that saw the same images, of the same moment, as most did, and a note on each other."""
    kinds = [(run.provenance.probe, run.images, run.centered) for run in runs]
    first, alike, notes = runs[kinds.index(max(kinds, key=kinds.count))], [], []
    for run in runs:
        other_images = (run.provenance.probe, run.images) != (first.provenance.probe, first.images)
        other_moment = run.centered != first.centered
        if other_images:
            notes.append(
                f"{run.name} was observed on other images than {first.name}, so it is compared with no other run."
            )
        if other_moment:
            notes.append(f"{run.name} has spectra of another moment (centered or raw), so it is compared with none.")
        if not (other_images or other_moment):
            alike.append(run)
    return alike, notes


def _notes_on_maps(run: RunSpectra, taps: set[Tap]) -> list[str]:
    """Say which maps of a run cannot be compared; `taps` are those that all runs have."""
    missing = _labels(tap for _, tap in run.spectra if tap not in taps)
    dead = _labels(tap for (_, tap), values in run.spectra.items() if not values.any())
    notes = []
    if missing:
        notes.append(f"Only {run.name} and perhaps others, not all, have the maps {some(missing)}: left out.")
    if dead:
        notes.append(
            f"{run.name} has maps that do not vary in some snapshot, so that they have no spectrum there: {some(dead)}."
        )
    return notes


def _labels(taps: Iterator[Tap]) -> list[str]:
    return sorted({str(TapKey(*tap)) for tap in taps})


def _undersampled(run: RunSpectra) -> list[str]:
    """Name maps with fewer effective samples than channels at the last step; without these, with fewer samples."""
    table = run.eigenvalues
    last = table[(table["step"] == run.steps[-1]) & (table["index"] == 0)]
    few = last[last["effective_samples"].fillna(last["samples"]) < last["channels"]]
    return [str(TapKey(*tap)) for tap in few[TAP].itertuples(index=False, name=None)]


class DistanceRow(NamedTuple):
    """A row of the table of distances."""

    module: str
    call: int
    point: str
    snapshot: int
    relation: str
    arm: str
    seed: int
    step: int
    other_arm: str
    other_seed: int
    other_step: int
    measure: str
    value: float
    chance: float
    images: float  # that the value rests on; nan where it is of spectra or directions


def distance_table(runs: Sequence[RunSpectra]) -> pd.DataFrame:
    """Return how far each map is from the same map in other runs, at its own start, and in the pre-trained backbone."""
    rows: list[DistanceRow] = []
    with contextlib.ExitStack() as stack:
        files = {run.name: stack.enter_context(tables.reading_similarity(run.folder)) for run in runs}
        for tap in common_taps(runs):
            starts = [read_map(files[run.name], run, run.steps[0], tap) for run in runs]
            for snapshot, moment in enumerate(_moments(runs)):
                maps = [read_map(files[run.name], run, _step(run, moment), tap) for run in runs]
                for relation, first, second in _pairs(maps, starts, tap):
                    rows += _distances(tap, snapshot, relation, first, second)
    return pd.DataFrame(rows, columns=DistanceRow._fields)


def _pairs(
    maps: Sequence[FeatureMap], starts: Sequence[FeatureMap], tap: Tap
) -> Iterator[tuple[str, FeatureMap, FeatureMap]]:
    """Yield the relation of two maps of one tap, and both; `starts` are those of the same runs at their first step."""
    for first, second in itertools.combinations(maps, 2):
        yield "seeds" if first.run.arm == second.run.arm else "arms", first, second
    pretrained = [start for start in starts if _is_pretrained(start, tap)]
    for own, start in zip(maps, starts, strict=True):
        yield "own start", own, start
        if pretrained:  # of other arms the first will do: with one seed of pre-training, all are the same
            yield "pre-trained", own, start if _is_pretrained(start, tap) else pretrained[0]


def _is_pretrained(start: FeatureMap, tap: Tap) -> bool:
    """Return whether a map is of the pre-trained backbone, before any detector was trained."""
    return start.step == 0 and start.run.arm == FINETUNE and start.run.is_in_backbone(tap)


def _distances(tap: Tap, snapshot: int, relation: str, first: FeatureMap, second: FeatureMap) -> Iterator[DistanceRow]:
    """Yield a row for every measure of two maps."""
    for measured in measures_between(first, second):
        yield DistanceRow(
            *tap, snapshot, relation,
            first.run.arm, first.run.seed, first.step, second.run.arm, second.run.seed, second.step,
            measured.measure, measured.value, measured.chance, measured.images,
        )  # fmt: skip


def significance_table(runs: Sequence[RunSpectra], distances: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Test every two arms against the spread of their seeds: by distances and by metrics, at every snapshot.

    Args:
        runs: those that are compared.
        distances: the table of these runs; similarities in it count as the distance √(1 - similarity).
        metrics: the table of these runs, and perhaps of others. A map that does not vary in some run has no test, as it
            has none by distances.
    """
    taps, tests, pairs = common_taps(runs), [], arm_tests.pairs_of(runs)
    own, by_metric = [[runs[place] for place in pair] for pair in pairs], arm_tests.values_by_metric(metrics)
    for snapshot, moment in enumerate(_moments(runs)):
        steps = [_step(run, moment) for run in runs]
        vary = matching.varying([[(run, step)] for run, step in zip(runs, steps, strict=True)], taps)
        at = distances[(distances["snapshot"] == snapshot) & distances["relation"].isin(["arms", "seeds"])]
        found = []
        for measure, rows in at.groupby("measure", sort=False):
            apart = _distance_matrices(rows, runs, taps)
            cut = [apart[:, pair][:, :, pair] for pair in pairs]
            for table in arm_tests.tests_by_distances(taps, list(zip(own, cut, strict=True))):
                found.append(table.assign(measure=measure))
        for metric, own_values in by_metric.items():
            values = arm_tests.values_at(own_values, runs, steps, taps)
            cut = [values[:, pair] for pair in pairs]
            for table in arm_tests.tests_by_values(taps, list(zip(own, cut, strict=True)), [vary] * len(pairs)):
                found.append(table.assign(measure=metric))
        first_steps = {run.arm: step for run, step in reversed(list(zip(runs, steps, strict=True)))}
        tests += [table.assign(snapshot=snapshot, step=first_steps[table["arm"].iloc[0]]) for table in found]
    return pd.concat(tests, ignore_index=True) if tests else pd.DataFrame(columns=tables.COLUMNS["tests"])


def _distance_matrices(rows: pd.DataFrame, runs: Sequence[RunSpectra], taps: Sequence[Tap]) -> np.ndarray:
    """Return the distances by one measure, (taps, runs, runs), symmetric."""
    measure = rows["measure"].iloc[0]
    run_index = {(run.arm, run.seed): index for index, run in enumerate(runs)}
    tap_index = {tap: index for index, tap in enumerate(taps)}
    matrices = np.full((len(taps), len(runs), len(runs)), np.nan)
    matrices[:, range(len(runs)), range(len(runs))] = float(measure in SIMILARITIES)  # of a map with itself
    columns = [*TAP, "arm", "seed", "other_arm", "other_seed", "value"]
    for module, call, point, arm, seed, other_arm, other_seed, value in rows[columns].itertuples(index=False):
        first, second = run_index.get((arm, seed)), run_index.get((other_arm, other_seed))
        if first is not None and second is not None:
            matrices[tap_index[module, call, point], [first, second], [second, first]] = value
    return as_distances(measure, matrices)


def _moments(runs: Sequence[RunSpectra]) -> list[int | None]:
    """Return the steps that all runs have, and then the last of each, None."""
    common = set.intersection(*(set(run.steps[:-1]) for run in runs))
    return [*sorted(common), None]


def _step(run: RunSpectra, moment: int | None) -> int:
    return run.steps[-1] if moment is None else moment
