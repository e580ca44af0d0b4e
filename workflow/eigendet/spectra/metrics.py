"""Metrics of one eigenspectrum: how it is shaped, how steep its tail is, how much of it is noise.

Spectra are as in `plugins/rules.py`: float64, (C,), descending, nothing in them negative, the first positive. No metric
depends on their unit, and none of their functions raises for such a spectrum. A metric that counts channels is a
*dimension*: that of a width rule, or the stable rank. What is measured of two spectra is a distance, see `similarity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from eigendet.errors import UserError
from eigendet.spectra import tails

Rule = Callable[[np.ndarray], float]  # from a descending spectrum to a number of channels, see `plugins/rules.py`

DESCRIPTIONS = {
    "stable_rank": "Trace over the largest eigenvalue: 1 if a single one is not zero, C if all are equal.",
    "entropy": "Shannon entropy of the shares of the trace, in nats: 0 for a single one, log C if all are equal.",
    "enrichment": "How much the first eigenvalues hold beyond an equal share: 0 if all are equal, 1 for a single one.",
    **tails.DESCRIPTIONS,
    "effective_samples": "Number of independent samples whose covariance would vary as much as that over the images.",
    "noise_share": "Share of the eigenvalues that so many samples of white noise could have given, 0 to 1.",
}


def all_metrics(values: np.ndarray, samples: float) -> dict[str, float]:
    """Return every metric here of a spectrum of `samples` effective samples, by the names of `DESCRIPTIONS`.

    >>> for name, value in all_metrics(np.array([8.0, 4.0, 2.0, 1.0, 1.0]), samples=100).items():
    ...     print(f"{name} {value:.3f}")
    stable_rank 2.000
    entropy 1.300
    enrichment 0.531
    power_law_exponent nan
    power_law_distance 0.211
    power_law_tail 5.000
    power_law_fit 0.520
    power_law_over_log_normal -0.063
    noise_share 0.600
    """
    return {
        "stable_rank": stable_rank(values),
        "entropy": entropy(values),
        "enrichment": enrichment(values),
        **tails.power_law_metrics(values),
        "noise_share": noise_share(values, samples),
    }


def stable_rank(values: np.ndarray) -> float:
    """Return Σ μ / μ₁, of the matrix whose squared singular values these are (Rudelson and Vershynin, J. ACM 2007).

    >>> stable_rank(np.array([4.0, 2.0, 2.0]))
    2.0
    """
    return float(np.sum(values / values[0]))


def entropy(values: np.ndarray) -> float:
    """Return Shannon's entropy -Σ p log p of the eigenvalues as shares p of the trace, in nats.

    Zeros contribute nothing.

    >>> entropy(np.array([3.0, 3.0, 0.0])) == math.log(2)
    True
    """
    relative = values / values[0]  # the trace of huge eigenvalues would overflow
    return float(np.sum(scipy.special.entr(relative / relative.sum())))


def enrichment(values: np.ndarray) -> float:
    """Return the eigenvalue early enrichment, 0..1, after NerVE (arXiv 2603.06922).

    It is the area between the curve of cumulated shares S(k) = (μ₁ + ... + μₖ) / Σ μ and the diagonal k/C of equal
    eigenvalues, over the area for a single non-zero one, which is the largest: 2 / (C - 1) Σₖ (S(k) - k/C). S mirrors
    the Lorenz curve, so this is C / (C - 1) times the Gini coefficient of the eigenvalues. 0 if C = 1.

    >>> enrichment(np.array([3.0, 3.0, 3.0])), enrichment(np.array([3.0, 0.0, 0.0]))
    (0.0, 1.0)
    """
    if len(values) == 1:
        return 0.0
    relative = values / values[0]
    weights = np.arange(len(values) - 1, -len(values), -2)  # the sum above, by eigenvalues: Σₖ (C + 1 - 2k) μₖ
    differences = relative - relative[::-1]  # has the signs of the weights, so rounding gives no negative area
    return float(weights @ differences / (2 * (len(values) - 1) * relative.sum()))


def effective_samples(moment: np.ndarray, without: Iterable[np.ndarray]) -> float:
    """Return how many independent normal samples would have a covariance that varies as much as that of all images.

    Neighboring positions of an image are alike, and some images are stronger than others, so that n positions are worth
    fewer; what counts for eigenvalues is how second moments vary, not means. The covariance S of n independent normal
    samples has E‖S - Σ‖² = (tr(Σ)² + tr(Σ²)) / n, in the Frobenius norm (the second moments of Wishart's
    distribution). That of all images varies by V = (K - 1) / K Σₖ ‖S₍ₖ₎ - S‖², as the jackknife estimates it. Both
    are equal for n = (tr(S)² + tr(S²)) / V - 1; the last 1 because S, which varies too, is larger than Σ in these.

    Args:
        moment: S, covariance over all samples, (C, C).
        without: S₍ₖ₎, the same without each of K parts of the images in turn.

    Returns:
        Their number; nan for fewer than 2 parts, and where nothing varies, over all samples or between the parts.

    >>> images = np.random.default_rng(0).normal(size=(400, 1, 20)).repeat(25, axis=1)  # 25 equal positions each
    >>> parts = [np.delete(images, np.s_[k::8], axis=0).reshape(-1, 20) for k in range(8)]
    >>> samples = images.reshape(-1, 20)
    >>> 350 < effective_samples(np.cov(samples.T), [np.cov(rest.T) for rest in parts]) < 450
    True
    """
    unit = float(np.trace(moment))
    apart = [float(np.sum(((rest - moment) / unit) ** 2)) for rest in without] if unit > 0 else []
    if len(apart) < 2 or not any(apart):
        return math.nan
    variation = (len(apart) - 1) * float(np.mean(apart))
    return (1 + float(np.sum((moment / unit) ** 2))) / variation - 1


def noise_share(values: np.ndarray, samples: float) -> float:
    """Return the share of the eigenvalues, 0..1, that could be white noise's: at or below the Marchenko-Pastur edge.

    The eigenvalues of n samples of white noise of variance σ² reach up to σ² (1 + √(C/n))². σ² is the median non-zero
    eigenvalue over the median of the law for σ² = 1, as Gavish and Donoho (IEEE Trans. Inf. Theory 2014) estimate it;
    the more of the eigenvalues are signal, the more it is too large. At most n eigenvalues of n samples are non-zero,
    so it is the median of the n largest: positions that are worth n samples are more than n, and the eigenvalues after
    these, that need not be zero, have no place in the law. They and zeros count as noise.

    Args:
        values: the spectrum.
        samples: n, effective ones, see `effective_samples`; nan gives nan.

    >>> round(noise_share(np.array([50.0, 1.2, 1.1, 1.0, 0.9, 0.8]), samples=1000), 3)  # all but the first
    0.833
    """
    if not 0 < samples < math.inf:
        return math.nan
    relative, ratio = values / values[0], len(values) / samples
    nonzero = relative[: max(1, round(samples))]
    nonzero = nonzero[nonzero > len(values) * np.finfo(np.float64).eps]  # below, it is rounding of a zero
    variance = np.median(nonzero) / marchenko_pastur_median(ratio)
    return float(np.mean(relative <= variance * (1 + math.sqrt(ratio)) ** 2))


@lru_cache(maxsize=1024)
def marchenko_pastur_median(ratio: float) -> float:
    """Return the median of the non-zero part of the Marchenko-Pastur law for σ² = 1 and `ratio` γ = C/n > 0.

    It is exact to 1e-13 of itself.

    For γ <= 1, let s = √γ and x = 1 + s² + 2s cos t with t from 0 at the upper edge to π at the lower one. Then the
    density √((b - x)(x - a)) / (2π γ x) dx is 2/π sin² t / (1 + s² + 2s cos t) dt, whose integral from 0 to t, the mass
    above x, is

        (t - sin t / s + (1 - s²) / s² arg(1 + s exp(it))) / π.

    For γ > 1, the n non-zero eigenvalues of XᵀX / n are those of XXᵀ / n = γ XXᵀ / C, that is, γ times ones that follow
    the law of C samples of n channels, whose ratio is 1/γ.

    >>> round(marchenko_pastur_median(1.0), 4)
    0.6528
    """
    s = max(math.sqrt(min(ratio, 1 / ratio)), 1e-9)  # from there on the median is 1, and the terms cancel out

    def mass_above(t: float) -> float:
        angle = math.atan2(s * math.sin(t), 1 + s * math.cos(t))
        return (t - math.sin(t) / s + (1 - s * s) / (s * s) * angle) / math.pi

    t = scipy.optimize.brentq(lambda t: mass_above(t) - 0.5, 0, math.pi, xtol=1e-14)
    return max(ratio, 1.0) * (1 + s * s + 2 * s * math.cos(t))


def intrinsic_dimension(values: np.ndarray, rule: Rule) -> float:
    """Return a rule's number of channels for eigenvalues in any order, (C,); 0 for a map that never varies.

    Negative eigenvalues, which are rounding noise of a positive semi-definite matrix, count as zero.

    Raises:
        UserError: an eigenvalue is not finite; the rule fails, or gives no number of channels.

    >>> intrinsic_dimension(np.array([1.0, 0.0, 4.0, -1e-17]), stable_rank)
    1.25
    """
    values = np.sort(np.clip(np.asarray(values, dtype=np.float64), 0.0, None))[::-1]
    if not np.isfinite(values).all():
        raise UserError(f"one of {values.size} eigenvalues is NaN or infinite, so they have no dimension.")
    if not values.any():
        return 0.0
    name = getattr(rule, "__name__", "a width rule")
    try:
        dimension: Any = rule(values)
    except Exception as error:  # whatever a plugin's own code raises
        raise UserError(f"{name}: fails for {values.size} eigenvalues ({type(error).__name__}: {error}).") from None
    if not isinstance(dimension, int | float | np.number) or not 0 <= dimension < np.inf:
        raise UserError(f"{name}: gave {dimension!r} for {values.size} eigenvalues; expected a number of channels.")
    return float(dimension)
