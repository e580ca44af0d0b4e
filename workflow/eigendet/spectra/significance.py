"""Test whether two arms differ by more than their seeds do.

What is exchanged under the null hypothesis are whole runs, a seed each: positions, images and layers of one run are not
independent of one another. The null hypothesis is that all runs come from one distribution. Arms may thus be told apart
by their spread alone: where it differs threefold about the same mean, simulations of 5 + 5 runs and 50 layers have
`corrected` up to 0.05 somewhere in 21 % and `overall` in 12 %.

A large p-value does not show that arms are the same: with few runs little can be found, see `smallest_p`. So read it
beside the distances between and within arms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RELABELINGS = 10_000  # at most: all there are, or so many at random
TIE = 1e-9  # shares of the squared distances that are nearer than this are equal but for rounding


@dataclass(frozen=True)
class PermutationTest:
    """The test of L layers; nan for a layer with a distance that is not finite, and all without a spread of seeds."""

    statistic: np.ndarray  # (L,) pseudo-F: 1 or so without a difference, infinite where the runs of each arm are equal
    p: np.ndarray  # (L,) of each layer alone
    corrected: np.ndarray  # (L,) for as many tests as there are layers: of any false finding at all
    overall: float  # p-value of all layers at once
    relabelings: int  # compared, the observed labels among them; 0 without a test
    smallest: float  # p-value that can be had, see `smallest_p`
    between: np.ndarray  # (L,) root mean square distance of two runs of different arms
    within: np.ndarray  # (L,) the same of two runs of one arm; nan where all arms have one run


def permutation_test(distances: np.ndarray, labels: Sequence[object] | np.ndarray) -> PermutationTest:
    """Test whether two arms differ, for every layer and for all.

    The statistic is the pseudo-F of PERMANOVA (Anderson 2001), with squared distances d² of R runs:
    F = (T - W) / (W / (R - 2)), T = Σ d² / R over all pairs, W = Σ d² / (runs of the arm) over pairs of one arm.
    p-values are the share of relabelings, the observed labels included, with a statistic as large:

    - `corrected`: by the largest statistic of any layer, step-down (maxT: Westfall & Young 1993), with
      the same relabelings in all layers, which keeps how these depend on one another.
    - `overall`: by the mean of F over layers. In simulations of layers that depend on one another it finds a difference
      in all of them as often as the mean of log F, or of log(T / W), and one in few of them far more often.

    Args:
        distances: (L, R, R), symmetric; a layer in which all runs are equal has F = 0.
        labels: (R,), the arm of each run. With a single run of an arm there is no spread, and so no test.

    Raises:
        ValueError: not exactly two arms.

    >>> positions = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])  # of three runs each, in one layer
    >>> test = permutation_test(abs(positions[:, None] - positions)[None], ["a", "a", "a", "b", "b", "b"])
    >>> test.statistic.round(6).tolist(), test.p.tolist(), test.relabelings
    ([150.0], [0.1], 10)
    """
    first = _first_arm(labels)
    rows, columns = np.triu_indices(len(first), 1)
    squares = np.asarray(distances, dtype=np.float64)[:, rows, columns] ** 2
    same = first[rows] == first[columns]
    between, within = _root_mean(squares[:, ~same]), _root_mean(squares[:, same])
    statistic, p, corrected = (np.full(len(squares), np.nan) for _ in range(3))
    smallest, overall = smallest_p(labels), np.nan
    if np.isnan(smallest):
        return PermutationTest(statistic, p, corrected, overall, 0, smallest, between, within)
    drawn = _relabelings(first)
    finite = np.isfinite(squares).all(1)
    if finite.any():
        shares = _within_shares(squares[finite], drawn)
        with np.errstate(divide="ignore"):
            statistic[finite] = _f(shares[:, 0], len(first))
        p[finite] = (shares <= shares[:, :1] + TIE).mean(1)
        corrected[finite] = _step_down(shares)
        means = _f(np.maximum(shares, TIE), len(first)).mean(0)
        overall = float((means >= means[0] - TIE * (1 + abs(means[0]))).mean())
    return PermutationTest(statistic, p, corrected, overall, len(drawn), smallest, between, within)


def differences(values: np.ndarray, labels: Sequence[object] | np.ndarray) -> PermutationTest:
    """Test the same for a number of every run in every layer, (L, R): F is that of a one-way analysis of variance.

    >>> differences(np.array([[0.0, 1.0, 2.0, 10.0, 11.0, 12.0]]), ["a", "a", "a", "b", "b", "b"]).overall
    0.1
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return permutation_test(np.abs(values[:, :, None] - values[:, None, :]), labels)


def smallest_p(labels: Sequence[object] | np.ndarray) -> float:
    """Return the smallest p-value that so many runs can give: 1 over the distinct relabelings that are compared.

    Arms of 2, 3, 4 and 5 runs: 1/3, 1/10, 1/35 and 1/126. nan if an arm has one run, and so no spread.

    Raises:
        ValueError: not exactly two arms.

    >>> smallest_p(["a", "a", "a", "b", "b", "b"])
    0.1
    """
    first = _first_arm(labels)
    if min(first.sum(), (~first).sum()) < 2:
        return float("nan")
    return 1 / min(_distinct(first), RELABELINGS)


def _first_arm(labels: Sequence[object] | np.ndarray) -> np.ndarray:
    """Return (R,), bool: which runs are of the arm that is named first."""
    arms = list(dict.fromkeys(labels))
    if len(arms) != 2:
        raise ValueError(f"{len(arms)} arms, {arms}; expected two")
    return np.array([label == arms[0] for label in labels])


def _distinct(first: np.ndarray) -> int:
    """Return in how many ways the runs can be parted; the names of arms of one size do not matter."""
    size = int(first.sum())
    return math.comb(len(first), size) // (2 if 2 * size == len(first) else 1)


def _relabelings(first: np.ndarray) -> np.ndarray:
    """Return (M, R), bool: which runs are of the first arm; the observed labels come first."""
    if _distinct(first) > RELABELINGS:
        drawn = np.random.default_rng(0).permuted(np.tile(first, (RELABELINGS - 1, 1)), axis=1)
        return np.vstack([first, drawn])
    # In lexicographic order the second half of equal parts mirrors the first.
    parts = itertools.islice(itertools.combinations(range(len(first)), int(first.sum())), _distinct(first))
    places = np.argsort(~first, kind="stable")[np.array(list(parts))]
    relabeled = np.zeros((len(places), len(first)), dtype=bool)
    np.put_along_axis(relabeled, places, True, axis=1)
    return relabeled


def _within_shares(squares: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return W / T of every layer and relabeling, (L, M), of squared distances (L, pairs); 1 where all runs are equal.

    F falls as it rises, in all layers alike, and it is finite.
    """
    runs = drawn.shape[1]
    rows, columns = np.triu_indices(runs, 1)
    size = int(drawn[0].sum())
    both, neither = drawn[:, rows] & drawn[:, columns], ~(drawn[:, rows] | drawn[:, columns])
    within = squares @ (both / size + neither / (runs - size)).T
    total = squares.sum(1, keepdims=True) / runs
    return np.divide(within, total, out=np.ones_like(within), where=total > 0)


def _f(shares: np.ndarray, runs: int) -> np.ndarray:
    return (runs - 2) * (1 / shares - 1)


def _step_down(shares: np.ndarray) -> np.ndarray:
    order = np.argsort(shares[:, 0], kind="stable")
    ranked = shares[order]
    least = np.minimum.accumulate(ranked[::-1])[::-1]  # of this layer and those with a smaller statistic
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate((least <= ranked[:, :1] + TIE).mean(1))
    return corrected


def _root_mean(squares: np.ndarray) -> np.ndarray:
    """Return root means over pairs, (L, pairs) -> (L,); nan without pairs."""
    return np.sqrt(squares.mean(1)) if squares.shape[1] else np.full(len(squares), np.nan)
