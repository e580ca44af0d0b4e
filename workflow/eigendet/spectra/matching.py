"""Compare arms where they are equally accurate, rather than equally long trained.

An arm that starts from pre-trained weights is ahead of one from scratch, so that at equal steps what differs may be no
more than how far each has come. Here every run is taken where it first reaches the same accuracy: at several levels
between the best start of any run and the least that every run reaches, evenly spaced, each two arms by themselves. A
level lies between two snapshots of a run; whatever is measured there is interpolated linearly in accuracy between what
both have, of two runs between the four pairs of theirs. Where the curves do not overlap there is no such level, and
that is said instead. Tests are those of whole runs, as at equal steps (see `significance`), corrected for the pairs of
arms but not for the levels: the last one is the one to quote.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from eigendet.errors import some
from eigendet.spectra import arm_tests, tables
from eigendet.spectra.arm_tests import Key
from eigendet.spectra.observed import (
    FeatureMap,
    RunSpectra,
    Tap,
    as_distances,
    common_taps,
    measures_between,
    read_map,
)

LEVELS = 4


class Curve(NamedTuple):
    """The accuracy of one run over training, from 0 to 1; None where there is no such number."""

    arm: str
    backbone: str
    detector: str
    seed: int
    steps: Sequence[int]  # ascending
    scores: Sequence[float | None]


class Place(NamedTuple):
    """Where a run first reaches an accuracy: between two of its snapshots, at a share of the way in accuracy."""

    before: int
    after: int
    share: float

    @property
    def step(self) -> float:
        """The step, interpolated linearly too."""
        return self.before + self.share * (self.after - self.before)

    @property
    def weights(self) -> dict[int, float]:
        """Return by how much each of the two snapshots counts; one that does not is left out."""
        return {step: weight for step, weight in ((self.before, 1 - self.share), (self.after, self.share)) if weight}


@dataclass(frozen=True)
class Level:
    """Two arms at one accuracy.

    Attributes:
        number: of the level, from 1 on; the last is the highest.
        score: the accuracy.
        runs: of both arms, those of the first before those of the other.
        places: where each run reaches it.
    """

    number: int
    score: float
    runs: list[RunSpectra]
    places: list[Place]


class Matched(NamedTuple):
    """What is to be said of arms at equal accuracy; tables as `tables` describes them."""

    tests: pd.DataFrame
    places: pd.DataFrame
    unmatched: list[str]  # in a sentence each


def match(runs: Sequence[RunSpectra], curves: Sequence[Curve], metrics: pd.DataFrame) -> Matched:
    """Compare every two arms at equal accuracy.

    Args:
        runs: those that may be compared, see `comparison.comparable`.
        curves: accuracy of these runs; without any there is nothing to match, and nothing to say.
        metrics: the table of these runs.
    """
    levels, unmatched = _levels(runs, curves) if curves else ([], [])
    tests = list(_tests(levels, common_taps(runs), arm_tests.values_by_metric(metrics))) if levels else []
    places = [
        (run.arm, run.seed, level.runs[-1 if run.arm == level.runs[0].arm else 0].arm, level.number, level.score,
         place.before, place.after, place.step)
        for level in levels
        for run, place in zip(level.runs, level.places, strict=True)
    ]  # fmt: skip
    columns = ["arm", "seed", "other_arm", "level", "score", "before", "after", "reached"]
    return Matched(
        pd.concat(tests, ignore_index=True) if tests else pd.DataFrame(columns=tables.COLUMNS["matched"]),
        pd.DataFrame(places, columns=columns),
        unmatched,
    )


def place_of(curve: Curve, score: float) -> Place:
    """Return where a curve first reaches a score above that of its first snapshot.

    Raises:
        ValueError: it starts there, or does not reach it.

    >>> place_of(Curve("scratch", "resnet18", "rcnn", 0, [0, 10, 20, 40], [0.0, 0.1, 0.05, 0.3]), 0.2)
    Place(before=20, after=40, share=0.6)
    """
    scores = [math.nan if value is None else value for value in curve.scores]
    if scores[0] < score:
        for number, (low, high) in enumerate(itertools.pairwise(scores)):
            if low < score <= high:
                return Place(curve.steps[number], curve.steps[number + 1], round((score - low) / (high - low), 12))
    raise ValueError(f"{curve} does not come to {score} from below")


def levels_of(curves: Sequence[Curve]) -> list[float]:
    """Return the scores, ascending, at which all of these runs can be compared; none where their curves do not overlap.

    >>> scratch = Curve("scratch", "resnet18", "rcnn", 0, [0, 9], [0.0, 0.2])
    >>> [round(level, 3) for level in levels_of([scratch, scratch._replace(arm="finetune", scores=[0.1, 0.5])])]
    [0.125, 0.15, 0.175, 0.2]
    >>> levels_of([scratch, scratch._replace(arm="finetune", scores=[0.2, 0.5])])
    []
    """
    start = max(_defined(curve)[0] for curve in curves)
    least = min(max(_defined(curve)) for curve in curves)
    if not start < least:
        return []
    return [start + (least - start) * number / LEVELS for number in range(1, LEVELS)] + [least]


def _levels(runs: Sequence[RunSpectra], curves: Sequence[Curve]) -> tuple[list[Level], list[str]]:
    """Return all levels of every two arms, and why there are none of others."""
    own = {(curve.arm, curve.seed): _at(curve, run.steps) for run in runs for curve in curves if _is_of(curve, run)}
    levels, unmatched = [], []
    lacking = [run.name for run in runs if not own.get((run.arm, run.seed)) or not own[run.arm, run.seed].steps]
    if lacking:
        unmatched.append(f"Not evaluated where observed, and so left out at equal accuracy: {some(lacking)}.")
    usable = [run for run in runs if run.name not in lacking]
    for pair in arm_tests.pairs_of(usable):
        both = [usable[place] for place in pair]
        of_both = [own[run.arm, run.seed] for run in both]
        scores = [] if any(None in curve.scores for curve in of_both) else levels_of(of_both)
        levels += [
            Level(number, score, both, [place_of(curve, score) for curve in of_both])
            for number, score in enumerate(scores, start=1)
        ]
        if not scores:
            unmatched.append(_why_not(of_both))
    return levels, unmatched


def _is_of(curve: Curve, run: RunSpectra) -> bool:
    return (curve.arm, curve.seed) == (run.arm, run.seed)


def _at(curve: Curve, steps: Sequence[int]) -> Curve:
    """Return a curve at those of its steps that were observed."""
    kept = [(step, score) for step, score in zip(curve.steps, curve.scores, strict=True) if step in steps]
    return curve._replace(steps=[step for step, _ in kept], scores=[score for _, score in kept])


def _defined(curve: Curve) -> list[float]:
    return [score for score in curve.scores if score is not None]


def _why_not(curves: Sequence[Curve]) -> str:
    """Say why two arms cannot be compared at equal accuracy."""
    first, other = dict.fromkeys(curve.arm for curve in curves)
    text = f"{first} and {other} cannot be compared at equal accuracy: "
    undefined = [f"{curve.arm} seed {curve.seed}" for curve in curves if None in curve.scores]
    if undefined:
        return f"{text}{some(undefined)} has no average precision, since the data has nothing to score."
    if not any(max(_defined(curve)) > 0 for curve in curves):
        return f"{text}no run detects anything."
    single = [f"{curve.arm} seed {curve.seed}" for curve in curves if len(curve.steps) == 1]
    if single:
        return f"{text}one snapshot alone was scored of {some(single)}; `evaluation.snapshots` says how many are."
    ahead = max(curves, key=lambda curve: _defined(curve)[0])
    behind = min(curves, key=lambda curve: max(_defined(curve)))
    return (
        f"{text}{ahead.arm} seed {ahead.seed} has an average precision of {100 * _defined(ahead)[0]:.3g} at its first "
        f"scored snapshot, and {behind.arm} seed {behind.seed} reaches {100 * max(_defined(behind)):.3g} at most."
    )


def _tests(
    levels: Sequence[Level], taps: Sequence[Tap], metrics: Mapping[str, Mapping[Key, float]]
) -> Iterator[pd.DataFrame]:
    """Yield the tests of each two arms at each level, corrected for the pairs that have one of that number."""
    by_measure = _distances(levels, taps)
    for number in range(1, LEVELS + 1):
        places = [place for place, level in enumerate(levels) if level.number == number]
        own = [levels[place] for place in places]
        for measure, distances in by_measure.items():
            pairs = [(levels[place].runs, distances[place]) for place in places]
            for level, table in zip(own, arm_tests.tests_by_distances(taps, pairs), strict=True):
                yield table.assign(level=number, score=level.score, measure=measure)
        vary = [
            varying([_maps(run, place) for run, place in zip(level.runs, level.places, strict=True)], taps)
            for level in own
        ]
        for metric, values in metrics.items():
            pairs = [(level.runs, _metric(values, level, taps)) for level in own]
            for level, table in zip(own, arm_tests.tests_by_values(taps, pairs, vary), strict=True):
                yield table.assign(level=number, score=level.score, measure=metric)


def _maps(run: RunSpectra, place: Place) -> list[tuple[RunSpectra, int]]:
    return [(run, step) for step in place.weights]


def varying(maps: Sequence[Sequence[tuple[RunSpectra, int]]], taps: Sequence[Tap]) -> np.ndarray:
    """Return which maps vary in every run at each of the steps that are given for it, (taps,)."""
    spectra = [[run.spectra[step, tap] for of_run in maps for run, step in of_run] for tap in taps]
    return np.array([all(values.any() and np.isfinite(values).all() for values in of_tap) for of_tap in spectra], bool)


def _metric(values: Mapping[Key, float], level: Level, taps: Sequence[Tap]) -> np.ndarray:
    """Return one metric of every run at a level, (taps, runs)."""
    ends = [
        arm_tests.values_at(values, level.runs, [getattr(place, end) for place in level.places], taps)
        for end in ("before", "after")
    ]
    shares = np.array([place.share for place in level.places])
    # What counts for nothing must not make a number of it, if it is none.
    return np.where(shares == 0, ends[0], np.where(shares == 1, ends[1], (1 - shares) * ends[0] + shares * ends[1]))


def _distances(levels: Sequence[Level], taps: Sequence[Tap]) -> Mapping[str, list[np.ndarray]]:
    """Return the distances of the runs of each level by every measure, (taps, runs, runs)."""
    shapes = [(len(taps), len(level.runs), len(level.runs)) for level in levels]
    found: dict[str, list[np.ndarray]] = defaultdict(lambda: [np.zeros(shape) for shape in shapes])
    runs = {run.name: run for level in levels for run in level.runs}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(tables.reading_similarity(run.folder)) for name, run in runs.items()}
        for number, tap in enumerate(taps):
            between = _Between(files, tap)
            for place, level in enumerate(levels):
                for (i, run), (j, other) in itertools.combinations(enumerate(level.runs), 2):
                    values = between.interpolated(run, level.places[i], other, level.places[j])
                    for measure, value in values.items():
                        distance = as_distances(measure, np.array(value))
                        found[measure][place][number, [i, j], [j, i]] = distance
    return found


class _Between:
    """What is measured between maps of one tap; each map is read once, and each two measured once."""

    def __init__(self, files: Mapping[str, h5py.File], tap: Tap) -> None:
        self.files, self.tap = files, tap
        self.maps: dict[tuple[str, int], FeatureMap] = {}
        self.measured: dict[tuple[str, int, str, int], dict[str, float]] = {}

    def interpolated(self, run: RunSpectra, place: Place, other: RunSpectra, its_place: Place) -> dict[str, float]:
        """Return every measure of two runs, each between two of its snapshots."""
        values: dict[str, float] = defaultdict(float)
        for (step, weight), (its_step, its_weight) in itertools.product(
            place.weights.items(), its_place.weights.items()
        ):
            for measure, value in self._at(run, step, other, its_step).items():
                values[measure] += weight * its_weight * value
        return values

    def _at(self, run: RunSpectra, step: int, other: RunSpectra, its_step: int) -> dict[str, float]:
        key = (run.name, step, other.name, its_step)
        if key not in self.measured:
            both = self._map(run, step), self._map(other, its_step)
            self.measured[key] = {measured.measure: measured.value for measured in measures_between(*both)}
        return self.measured[key]

    def _map(self, run: RunSpectra, step: int) -> FeatureMap:
        if (run.name, step) not in self.maps:
            self.maps[run.name, step] = read_map(self.files[run.name], run, step, self.tap)
        return self.maps[run.name, step]
