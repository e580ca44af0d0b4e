"""Test every two of several arms against the spread of their seeds, map by map, corrected for the number of pairs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from eigendet.spectra import significance
from eigendet.spectra.observed import RunSpectra, Tap
from eigendet.spectra.tables import TAP

Key = tuple[str, int, str, str, int, int]  # module, call, point, arm, seed, step

COLUMNS = (
    "between", "within", "statistic", "p", "corrected", "overall", "dispersion", "smallest", "relabelings", "paired"
)  # fmt: skip


def pairs_of(runs: Sequence[RunSpectra]) -> list[list[int]]:
    """Return the places of the runs of every two arms."""
    arms = dict.fromkeys(run.arm for run in runs)
    return [
        [place for place, run in enumerate(runs) if run.arm in pair] for pair in itertools.combinations(arms, 2)
    ]  # fmt: skip


def tests_by_distances(
    taps: Sequence[Tap], pairs: Sequence[tuple[Sequence[RunSpectra], np.ndarray]]
) -> Iterator[pd.DataFrame]:
    """Yield the tests of every two arms by one measure: a row a map, with `arm`, `other_arm`, and `COLUMNS`.

    Args:
        taps: the maps.
        pairs: the runs of each two arms, and their distances (taps, runs, runs).
    """
    labels = [[run.arm for run in runs] for runs, _ in pairs]
    tests = [
        significance.permutation_test(distances, arms, [run.seed for run in runs])
        for arms, (runs, distances) in zip(labels, pairs, strict=True)
    ]
    for arms, test in zip(labels, significance.over_pairs(tests), strict=True):
        first, second = dict.fromkeys(arms)
        maps = {column: [tap[place] for tap in taps] for place, column in enumerate(TAP)}
        found = {column: getattr(test, column) for column in COLUMNS}
        spread = {"spread": test.spread[:, 0], "other_spread": test.spread[:, 1]}
        yield pd.DataFrame(maps | {"arm": first, "other_arm": second} | found | spread)


def tests_by_values(
    taps: Sequence[Tap], pairs: Sequence[tuple[Sequence[RunSpectra], np.ndarray]], vary: Sequence[np.ndarray]
) -> Iterator[pd.DataFrame]:
    """Yield the same by a number of every map in every run, with the `mean` and `other_mean` of it.

    Args:
        taps: the maps.
        pairs: the runs of each two arms, and their numbers (taps, runs).
        vary: of each two arms, (taps,), which maps vary in all runs; others have no test, as they have no distances.
    """
    with np.errstate(invalid="ignore"):
        apart = [(runs, np.abs(values[:, :, None] - values[:, None, :])) for runs, values in pairs]
    for (_, distances), is_there in zip(apart, vary, strict=True):
        distances[~is_there] = np.nan
    for (runs, values), table in zip(pairs, tests_by_distances(taps, apart), strict=True):
        own = np.array([run.arm == table["arm"].iloc[0] for run in runs])
        yield table.assign(mean=values[:, own].mean(1), other_mean=values[:, ~own].mean(1))


def values_by_metric(metrics: pd.DataFrame) -> dict[str, dict[Key, float]]:
    """Return the values of the table of metrics: by metric, then by map, arm, seed and step."""
    keys = metrics[[*TAP, "arm", "seed", "step"]].itertuples(index=False, name=None)
    values: dict[str, dict[Key, float]] = defaultdict(dict)
    for metric, key, value in zip(metrics["metric"], keys, metrics["value"], strict=True):
        values[metric][key] = value
    return values


def values_at(
    values: Mapping[Key, float], runs: Sequence[RunSpectra], steps: Sequence[int], taps: Sequence[Tap]
) -> np.ndarray:
    """Return the values of one metric at each run's step, (taps, runs); nan where there is none."""
    places = list(zip(runs, steps, strict=True))
    return np.array([[values.get((*tap, run.arm, run.seed, step), np.nan) for run, step in places] for tap in taps])
