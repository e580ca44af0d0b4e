"""Test whether two arms differ by more than their seeds do.

What is exchanged under the null hypothesis are whole runs, a seed each: positions, images and layers of one run are not
independent of one another. The null hypothesis is that the arms have one center; their spread may differ, in any way.
Three things keep the level of 5 % then, which the pseudo-F of PERMANOVA does not where an arm has fewer runs or
another spread (`make benchmark NAME=power` counts false findings):

- the statistic weighs each arm's spread by its own number of runs (Welch's, for distances: Alekseyenko 2016);
- where arms share their seeds, and there are enough of them, runs change places within a seed only, which is exact
  for runs that scatter symmetrically, however much in either arm; otherwise two references have to agree:
  relabelings of runs, exact where the arms have one distribution, and Gaussian runs that scatter as those of each arm;
- all layers at once come first, and a layer's corrected p-value is never smaller than theirs.

A large p-value does not show that arms are the same: with few runs little can be found, see `smallest_p`. So read it
beside the distances between and within arms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eigendet.spectra.references import (
    Partners,
    Weights,
    distinct,
    normal_scores,
    parts_of_statistic,
    references,
    welch,
)

RELABELINGS = 10_000  # at most: all there are, or so many at random
PAIRS = 6  # fewer allow no p-value of 0.05 where runs change places within their seed only
TIE = 1e-9  # statistics that are nearer than this are equal but for rounding
DRAWS = 2_000  # Gaussian references; a quarter as many of the spread

Labels = Sequence[object] | np.ndarray


@dataclass(frozen=True)
class PermutationTest:
    """The test of L layers; nan for a layer with a distance that is not finite, and all without a spread of seeds."""

    statistic: np.ndarray  # (L,) Welch's: 1 or so without a difference, infinite where the runs of each arm are equal
    p: np.ndarray  # (L,) of each layer alone
    corrected: np.ndarray  # (L,) for as many tests as there are layers: of any false finding at all; at least `overall`
    overall: float  # p-value of all layers at once
    dispersion: float  # p-value of all layers at once: do runs of one arm scatter more; nan with fewer than three runs
    relabelings: int  # compared, the observed labels among them; 0 without a test
    paired: bool  # runs changed places within their seed only
    smallest: float  # p-value that can be had, see `smallest_p`
    between: np.ndarray  # (L,) root mean square distance of two runs of different arms
    within: np.ndarray  # (L,) the same of two runs of one arm; nan where all arms have one run
    spread: np.ndarray  # (L, 2) the same of two runs of the first arm, and of the other; nan for an arm of one run


def permutation_test(distances: np.ndarray, labels: Labels, seeds: Labels | None = None) -> PermutationTest:
    """Test whether two arms differ, for every layer and for all.

    The statistic is Welch's for distances (Alekseyenko 2016): the squared distance of the arms' centers over its
    variance, Σ d² / (n² (n - 1)) over the pairs of an arm of n runs, of both arms together; of arms paired by seeds,
    over the variance of the mean difference within a seed. p-values are the share of relabelings, the observed labels
    included, with a statistic as large; of unpaired arms, or the share of Gaussian draws if that is larger. Since the
    statistic's degrees of freedom differ between relabelings, they are compared by the normal score z of each:

    - `corrected`: by the largest z² of any layer, step-down (maxT: Westfall & Young 1993), with the same relabelings
      in all layers, which keeps how these depend on one another. Gaussian draws are those of each layer by itself, as
      if layers were independent, which errs on the safe side (Šidák 1967): few runs show more dependence than there is.
    - `overall`: by the mean of z⁴ over layers. In simulations of layers that depend on one another it finds a
      difference in all of them about as often as the mean of z², and one in few of them far more often.

    Args:
        distances: (L, R, R), symmetric; a layer in which all runs are equal has a statistic of 0.
        labels: (R,), the arm of each run. With a single run of an arm there is no spread, and so no test.
        seeds: (R,), the seed of each run: arms are paired by it if both have the same, six or more.

    Raises:
        ValueError: not exactly two arms; as many seeds as runs are needed.

    >>> positions = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])  # of three runs each, in one layer
    >>> test = permutation_test(abs(positions[:, None] - positions)[None], ["a", "a", "a", "b", "b", "b"])
    >>> test.statistic.round(6).tolist(), test.p.tolist(), test.relabelings
    ([150.0], [0.1], 10)
    """
    first = _first_arm(labels)
    partners = _partners(first, seeds)
    rows, columns = np.triu_indices(len(first), 1)
    distances, unit = _in_units(np.asarray(distances, dtype=np.float64))
    squares = distances[:, rows, columns] ** 2
    own, same = first[rows] & first[columns], first[rows] == first[columns]
    between, within = unit * _root_mean(squares[:, ~same]), unit * _root_mean(squares[:, same])
    spread = unit[:, None] * np.stack([_root_mean(squares[:, own]), _root_mean(squares[:, same & ~own])], axis=1)
    statistic, p, corrected = (np.full(len(squares), np.nan) for _ in range(3))
    smallest, overall, dispersion, relabelings = smallest_p(labels, seeds), np.nan, np.nan, 0
    finite = np.isfinite(squares).all(1)
    if not np.isnan(smallest):
        compared = references(tuple(first.tolist()), partners, RELABELINGS, DRAWS)
        relabelings = len(compared[0].centers)
        if finite.any():
            statistic[finite] = _statistics(squares[finite], compared[0].observed())[0][:, 0]
            p[finite], corrected[finite], overall = _p_values(squares[finite], compared)
            p, corrected, overall = np.maximum(p, smallest), np.maximum(corrected, smallest), max(overall, smallest)
            dispersion = _dispersion(distances[finite], first)
    return PermutationTest(
        statistic, p, corrected, overall, dispersion, relabelings, partners is not None, smallest,
        between, within, spread,
    )  # fmt: skip


def differences(values: np.ndarray, labels: Labels, seeds: Labels | None = None) -> PermutationTest:
    """Test the same for a number of every run in every layer, (L, R): the statistic is the square of Welch's t.

    >>> differences(np.array([[0.0, 1.0, 2.0, 10.0, 11.0, 12.0]]), ["a", "a", "a", "b", "b", "b"]).overall
    0.1
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return permutation_test(np.abs(values[:, :, None] - values[:, None, :]), labels, seeds)


def over_pairs(tests: Sequence[PermutationTest]) -> list[PermutationTest]:
    """Correct the tests of several pairs of arms for their number: of any false finding in any pair.

    `overall`, `dispersion` and `smallest` by Holm's method, which needs no assumption on how pairs with an arm in
    common depend on one another; `corrected` times the number of pairs. The `p` of each layer alone stays.

    >>> apart = differences(np.array([[0.0, 1.0, 2.0, 10.0, 11.0, 12.0]]), ["a", "a", "a", "b", "b", "b"])
    >>> [round(test.overall, 6) for test in over_pairs([apart, apart, apart])]
    [0.3, 0.3, 0.3]
    """
    untested = [math.isnan(test.overall) for test in tests]
    number = untested.count(False)
    overall, dispersion = _holm([test.overall for test in tests]), _holm([test.dispersion for test in tests])
    smallest = _holm([math.nan if lacks else test.smallest for lacks, test in zip(untested, tests, strict=True)])
    return [
        replace(
            test,
            overall=overall[index],
            dispersion=dispersion[index],
            corrected=np.maximum(np.minimum(1.0, number * test.corrected), overall[index]),
            smallest=test.smallest if untested[index] else smallest[index],
        )
        for index, test in enumerate(tests)
    ]


def smallest_p(labels: Labels, seeds: Labels | None = None) -> float:
    """Return the smallest p-value that so many runs can give: 1 over the distinct relabelings that are compared.

    Or 1 over the Gaussian draws, of unpaired arms, if these are fewer. Arms of 2, 3, 4 and 5 runs: 1/3, 1/10, 1/35 and
    1/126. Arms paired by 6, 7 and 8 seeds: 1/32, 1/64 and 1/128, of n seeds 2 / 2^n. An arm of two runs allows no more
    than two beside two do, however many the other has: two that chance to lie near one another tell nothing of their
    spread (beside 20 that scatter a third as much, 15 % of tests would find another center). nan if an arm has one run,
    and so no spread.

    Raises:
        ValueError: not exactly two arms; as many seeds as runs are needed.

    >>> smallest_p(["a", "a", "a", "b", "b", "b"])
    0.1
    >>> smallest_p(["a"] * 6 + ["b"] * 6), smallest_p(["a"] * 6 + ["b"] * 6, [0, 1, 2, 3, 4, 5] * 2)
    (0.0021645021645021645, 0.03125)
    """
    first = _first_arm(labels)
    fewest = min(first.sum(), (~first).sum())
    if fewest < 3:
        return 1 / 3 if fewest == 2 else math.nan
    partners = _partners(first, seeds)
    return 1 / min(distinct(first, partners), RELABELINGS if partners else DRAWS)


def _first_arm(labels: Labels) -> np.ndarray:
    """Return (R,), bool: which runs are of the arm that is named first."""
    arms = list(dict.fromkeys(labels))
    if len(arms) != 2:
        raise ValueError(f"{len(arms)} arms, {arms}; expected two")
    return np.array([label == arms[0] for label in labels])


def _partners(first: np.ndarray, seeds: Labels | None) -> Partners | None:
    """Return the places of the two runs of every seed, or None if the arms do not share all seeds, or too few."""
    if seeds is None:
        return None
    if len(seeds) != len(first):
        raise ValueError(f"{len(seeds)} seeds of {len(first)} runs")
    own = {seed: place for place, seed in enumerate(seeds) if first[place]}
    other = {seed: place for place, seed in enumerate(seeds) if not first[place]}
    if own.keys() != other.keys() or 2 * len(own) != len(first) or len(own) < PAIRS:
        return None
    return tuple((place, other[seed]) for seed, place in own.items())


def _p_values(squares: np.ndarray, compared: Sequence[Weights]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return p-values of L layers, the same corrected, and that of all together; the largest of all references."""
    p, corrected, overall = np.zeros(len(squares)), np.zeros(len(squares)), 0.0
    for weights in compared:
        scores = normal_scores(*_statistics(squares, weights))
        p = np.maximum(p, _share_as_large(scores))
        corrected = np.maximum(corrected, _step_down(_independently(scores) if weights.drawn else scores))
        overall = max(overall, float(_share_as_large((scores**2).mean(0))))
    return p, np.maximum(corrected, overall), overall


def _statistics(squares: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    return welch(*parts_of_statistic(squares, weights), weights.freedom)


def _share_as_large(scores: np.ndarray) -> np.ndarray:
    """Return the share of references with a score as large as the first, over the last dimension."""
    least = scores[..., :1] - TIE * (1 + scores[..., :1])
    return np.asarray((scores >= least).mean(-1))


def _independently(scores: np.ndarray) -> np.ndarray:
    """Shuffle the references of each layer, all but the first, so that layers are independent of one another."""
    return np.hstack([scores[:, :1], np.random.default_rng(0).permuted(scores[:, 1:], axis=1)])


def _step_down(scores: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores[:, 0], kind="stable")
    ranked = scores[order]
    largest = np.maximum.accumulate(ranked[::-1])[::-1]  # of this layer and those with a smaller statistic
    least = ranked[:, :1] - TIE * (1 + ranked[:, :1])
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate((largest >= least).mean(1))
    return corrected


def distances_to_center(distances: np.ndarray, labels: Labels) -> np.ndarray:
    """Return how far each run is from the center of its arm, (L, R, R) -> (L, R): what PERMDISP compares.

    As of Anderson (2006); times √(n / (n - 1)) in an arm of n runs, which are nearer to their own center than to
    that of all runs there could be (Stier et al. 2013). nan for an arm of one run.

    >>> positions = np.array([0.0, 1.0, 2.0, 10.0, 12.0, 14.0])
    >>> distances_to_center(abs(positions[:, None] - positions)[None], [0, 0, 0, 1, 1, 1])[0].round(3).tolist()
    [1.225, 0.0, 1.225, 2.449, 0.0, 2.449]
    """
    squares = np.asarray(distances, dtype=np.float64) ** 2
    far = np.full(squares.shape[:2], np.nan)
    arms = np.array([list(dict.fromkeys(labels)).index(label) for label in labels])
    for arm in np.unique(arms):
        own = np.flatnonzero(arms == arm)
        if len(own) > 1:
            means = squares[:, own][:, :, own].mean(2)
            central = np.maximum(means - means.mean(1, keepdims=True) / 2, 0.0)
            far[:, own] = np.sqrt(central * len(own) / (len(own) - 1))
    return far


def _dispersion(distances: np.ndarray, first: np.ndarray) -> float:
    """Return the p-value of a difference in how far runs are from their arm's center, of all layers at once.

    It is that of relabeled distances to the center (PERMDISP: Anderson 2006), or of runs from one Gaussian
    distribution, if that is larger: with few runs, such distances depend on one another.
    """
    if min(first.sum(), (~first).sum()) < 3:
        return float("nan")
    far = distances_to_center(distances, first)
    rows, columns = np.triu_indices(len(first), 1)
    relabeled = references(tuple(first.tolist()), None, RELABELINGS, DRAWS)[0]
    p = _p_values((far[:, rows] - far[:, columns]) ** 2, [relabeled])[2]
    drawn = np.concatenate([far[:, None], _gaussian_distances(distances, first)], axis=1)  # (L, M, R)
    arms = [drawn[..., arm] for arm in (first, ~first)]
    apart = (arms[0].mean(-1) - arms[1].mean(-1)) ** 2
    own, other = (arm.var(-1, ddof=1) / arm.shape[-1] for arm in arms)
    scores = normal_scores(*welch(apart, own, other, relabeled.freedom))
    return max(p, float(_share_as_large((scores**2).mean(0))))


def _gaussian_distances(distances: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return distances to their arm's center of runs that are drawn anew, all with the spread of both arms together.

    (L, R, R) -> (L, M, R).
    """
    runs = len(first)
    factors = np.random.default_rng(0).normal(size=(DRAWS // 4 - 1, runs, runs)) / math.sqrt(
        runs - 2
    )  # of new and old runs
    for arm in (first, ~first):
        factors[:, :, arm] -= factors[:, :, arm].mean(2, keepdims=True)
        factors[:, arm] -= factors[:, arm].mean(1, keepdims=True)
        factors[:, arm] *= math.sqrt(arm.sum() / (arm.sum() - 1))
    squares = np.stack([np.einsum("mij,mij->mi", factors @ layer**2, factors) / -2 for layer in distances])
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _holm(p: Sequence[float]) -> list[float]:
    """Return p-values for any false finding among them (Holm 1979); nan stays, and does not count."""
    adjusted, floor = list(p), 0.0
    tested = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=lambda index: p[index])
    for rank, index in enumerate(tested):
        floor = max(floor, min(1.0, (len(tested) - rank) * p[index]))
        adjusted[index] = floor
    return adjusted


def _in_units(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distances in units of the largest of each layer, and these: squares of tiny or huge ones would be lost."""
    largest = distances.max((1, 2), initial=0.0)
    unit = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
    return distances / unit[:, None, None], unit


def _root_mean(squares: np.ndarray) -> np.ndarray:
    """Return root means over pairs, (L, pairs) -> (L,); nan without pairs."""
    return np.sqrt(squares.mean(1)) if squares.shape[1] else np.full(len(squares), np.nan)
