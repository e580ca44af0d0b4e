"""What the statistic of two arms is compared with: relabelings of runs, swaps within seeds, Gaussian runs.

A reference is a set of weights of the squared distances of all runs, since what makes Welch's statistic is linear in
these: ‖Σ v_i x_i‖² = -Σ v_i v_j d² over all pairs, for factors v that sum to zero. So no coordinates are needed, and
all layers are tested by one product of matrices.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

NOISE = 1e-14  # a part that is a smaller share of the largest squared distance is nothing but rounding errors
MOST = 1e6  # of the statistic: larger ones depend on rounding errors

Partners = tuple[tuple[int, int], ...]  # places of the two runs of every seed


class Weights(NamedTuple):
    """What makes the parts of Welch's statistic of all squared distances of runs, (M, pairs) each, of M references."""

    centers: np.ndarray  # the squared distance of the arms' centers
    own: np.ndarray  # the variance of the first arm's center
    other: np.ndarray  # that of the other's
    freedom: tuple[int, int]  # degrees of freedom of either variance
    drawn: bool = False  # runs are drawn anew, so that they scatter in no more directions than those observed do

    def observed(self) -> Weights:
        """Return those of the first reference, the observed labels."""
        return self._replace(centers=self.centers[:1], own=self.own[:1], other=self.other[:1])


@functools.lru_cache(maxsize=8)  # measures and snapshots of one pair of arms have them in common
def references(first: tuple[bool, ...], partners: Partners | None, most: int, draws: int) -> list[Weights]:
    """Return the weights of every reference, those of the observed labels first.

    Args:
        first: which runs are of the first arm; either arm has two at least.
        partners: runs that change places with one another only; if None, all do, and there are Gaussian draws too.
        most: relabelings at most: all there are, or so many at random.
        draws: references by Gaussian draws, the observed runs among them.
    """
    labels = np.array(first)
    if partners is not None:
        return [_paired_weights(_swaps(labels, partners, most), partners)]
    relabeled = _welch_weights(_relabelings(labels, most))
    drawn = _gaussian_weights(labels, draws - 1)
    centers, own, other = (np.vstack(parts) for parts in zip(relabeled.observed()[:3], drawn[:3], strict=True))
    return [relabeled, Weights(centers, own, other, relabeled.freedom, drawn=True)]


def distinct(first: np.ndarray, partners: Partners | None) -> int:
    """Return in how many ways the runs can be parted; the names of arms of one size do not matter."""
    size = int(first.sum())
    ways = math.comb(len(first), size) if partners is None else 2**size
    return ways // (2 if 2 * size == len(first) else 1)


def _relabelings(first: np.ndarray, most: int) -> np.ndarray:
    """Return (M, R), bool: which runs are of the first arm; the observed labels come first."""
    if distinct(first, None) > most:
        drawn = np.random.default_rng(0).permuted(np.tile(first, (most - 1, 1)), axis=1)
        return np.vstack([first, drawn])
    # In lexicographic order the second half of equal parts mirrors the first.
    parts = itertools.islice(itertools.combinations(range(len(first)), int(first.sum())), distinct(first, None))
    places = np.argsort(~first, kind="stable")[np.array(list(parts))]
    relabeled = np.zeros((len(places), len(first)), dtype=bool)
    np.put_along_axis(relabeled, places, True, axis=1)
    return relabeled


def _swaps(first: np.ndarray, partners: Partners, most: int) -> np.ndarray:
    """Return the same where runs change places within their pair only; the first pair stays, for what mirrors it."""
    pairs = len(partners)
    if 2 ** (pairs - 1) > most:
        swapped = np.random.default_rng(0).random((most, pairs)) < 0.5
        swapped[0] = False
    else:
        swapped = np.arange(2 ** (pairs - 1))[:, None] >> np.arange(pairs)[::-1] & 1 == 1
    relabeled = np.tile(first, (len(swapped), 1))
    for pair, places in enumerate(partners):
        relabeled[:, places] ^= swapped[:, pair, None]
    return relabeled


def _welch_weights(relabeled: np.ndarray) -> Weights:
    runs = relabeled.shape[1]
    rows, columns = np.triu_indices(runs, 1)
    size = int(relabeled[0].sum())
    rest = runs - size
    both, neither = relabeled[:, rows] & relabeled[:, columns], ~(relabeled[:, rows] | relabeled[:, columns])
    centers = ~(both | neither) / (size * rest) - both / size**2 - neither / rest**2
    own, other = both / (size**2 * (size - 1)), neither / (rest**2 * (rest - 1))
    return Weights(centers, own, other, (size - 1, rest - 1))


def _paired_weights(relabeled: np.ndarray, partners: Partners) -> Weights:
    """Return the same where the one variance is that of the mean difference of two partners."""
    rows, columns = np.triu_indices(relabeled.shape[1], 1)
    ordered = {tuple(sorted(places)) for places in partners}
    paired = np.array([places in ordered for places in zip(rows.tolist(), columns.tolist(), strict=True)])
    centers, number = _welch_weights(relabeled).centers, len(partners)
    variance = (paired / number - centers) / (number - 1)
    return Weights(centers, variance, np.zeros_like(variance), (number - 1, number - 1))


def _gaussian_weights(first: np.ndarray, draws: int) -> Weights:
    """Return the same for runs that are drawn anew, with both arms' center in one place.

    A draw has as many runs of each arm as there are, from the Gaussian distribution with the covariance, over
    all layers together, of the arm's observed runs: a run is a sum of their deviations from their center with random
    factors (a parametric bootstrap, Krishnamoorthy & Lu 2010). With factors v that sum to zero in each arm,
    ‖Σ v_i x_i‖² = -Σ v_i v_j d² over all pairs, so that no coordinates are needed.
    """
    rows, columns = np.triu_indices(len(first), 1)
    random = np.random.default_rng(0)
    means, variances = np.zeros((draws, len(first))), []
    for arm, sign in ((first, 1.0), (~first, -1.0)):
        size = int(arm.sum())
        factors = np.zeros((draws, size, len(first)))  # of draws, new runs, and observed ones
        normal = random.normal(size=(draws, size, size)) / math.sqrt(size - 1)
        factors[:, :, arm] = normal - normal.mean(2, keepdims=True)
        means += sign * factors.mean(1)
        factors -= factors.mean(1, keepdims=True)
        products = np.matmul(factors.transpose(0, 2, 1), factors)[:, rows, columns]
        variances.append(-products / (size * (size - 1)))
    freedom = int(first.sum()) - 1, int((~first).sum()) - 1
    return Weights(-means[:, rows] * means[:, columns], variances[0], variances[1], freedom)


def parts_of_statistic(squares: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the squared distance of the arms' centers, and the variances of both, of squared distances (L, pairs)."""
    apart, own, other = (squares @ parts.T for parts in weights[:3])
    noise = NOISE * squares.max(1, keepdims=True)
    return np.where(apart > noise, apart, 0.0), np.where(own > noise, own, 0.0), np.where(other > noise, other, 0.0)


def welch(
    apart: np.ndarray, own: np.ndarray, other: np.ndarray, freedom: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return Welch's statistic and its degrees of freedom (Welch 1938), 0 and most where all runs are equal.

    >>> welch(np.array(6.0), np.array(1.0), np.array(1.0), (4, 4))
    (array(3.), array(8.))
    """
    variance = own + other
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(apart > 0, apart / variance, 0.0)
        own_freedom = 1 / ((own / variance) ** 2 / freedom[0] + (other / variance) ** 2 / freedom[1])
    return statistic, np.where(variance > 0, own_freedom, sum(freedom))


def normal_scores(statistic: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Return z², for z about as unlikely as the root of the statistic, Student's t (Wallace 1959).

    >>> normal_scores(np.array([2.776, 1.960]) ** 2, np.array([4.0, 1e6])).round(1).tolist()  # 5 % of either lie beyond
    [3.8, 3.8]
    """
    correction = (8 * freedom + 1) / (8 * freedom + 3)
    return np.asarray(freedom * np.log1p(np.minimum(statistic, MOST) / freedom) * correction**2)
