"""The power law of the largest eigenvalues: its fit, how good that is, and whether a log-normal law would do.

A power law can be fitted to anything, since x_min is where the fit is best, and any tail is straight if it is short
enough. Clauset, Shalizi and Newman (SIAM Review 2009) ask two things before its exponent means something: that samples
of the fitted law are often fitted as badly (p of at least 0.1), and that no other heavy tail is likelier, of which the
log-normal is the usual one. In a tail that is short enough neither has much power: of log-normal spectra with 1,024
eigenvalues, 64 % pass. So a third thing is asked, that the tail is longer than those of log-normal spectra with as many
eigenvalues. How long these are depends on nothing else, since neither mean nor variance of the logarithms matters to
the fit: 95 % of them have at most 3.6 n^(2/3) of n. Fewer than 47 eigenvalues can therefore have no exponent.

Of 100 simulated spectra of 64, 256 and 1,024 eigenvalues are given one: from a log-normal law 0, 1 and 0; from the
upper half of one 5, 5 and 1; exponential or of noise none; from a power law 50, 77 and 85, and where it holds for the
larger half of the eigenvalues 0, 9 and 74. Eigenvalues repel one another and are more even than the independent
samples of which all this speaks, so that a fit that fails here is a bad one indeed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.special

PLAUSIBLE = 0.1  # the least p of a fit that may be believed
LIKELIER = scipy.special.ndtri(PLAUSIBLE)  # the statistic below which the log-normal law is likelier
REPLICATES = 99
CANDIDATES = 64  # of x_min in the test of the fit, at most

DESCRIPTIONS = {
    "power_law_exponent": "a of the density x^-a of the largest eigenvalues (how many: power_law_tail); the smaller, "
    "the heavier. Absent where no power law is shown: its tail is no longer than those of log-normal spectra (3.6 "
    f"n^(2/3) of n eigenvalues), p below {PLAUSIBLE}, or a log-normal law likelier.",
    "power_law_distance": "Kolmogorov-Smirnov distance of the largest eigenvalues from their power law, 0 to 1.",
    "power_law_tail": "Number of the largest eigenvalues that the power law is fitted to.",
    "power_law_fit": f"p of the power law's fit: below {PLAUSIBLE} the largest eigenvalues follow none.",
    "power_law_over_log_normal": "The power law against a log-normal law in its tail, as a standard normal value: "
    f"below {LIKELIER:.2f} the log-normal is likelier.",
}


class PowerLaw(NamedTuple):
    """A power law that was fitted to the largest eigenvalues."""

    exponent: float  # a of the density x^-a
    distance: float  # of Kolmogorov and Smirnov
    smallest: float  # x_min, relative to the largest eigenvalue
    tail: int  # eigenvalues from there on


def power_law_metrics(values: np.ndarray) -> dict[str, float]:
    """Return the metrics of a spectrum that `DESCRIPTIONS` names.

    >>> few = power_law_metrics(np.array([8.0, 4.0, 2.0, 1.0, 1.0]))  # fit well, as anything would
    >>> few["power_law_tail"], few["power_law_exponent"]
    (5.0, nan)
    """
    law = power_law(values)
    fit, ratio = goodness_of_fit(values, law), over_log_normal(values, law)
    is_long = law.tail > longest_of_log_normal(int(np.count_nonzero(values)))
    follows = is_long and fit >= PLAUSIBLE and ratio >= LIKELIER
    return {
        "power_law_exponent": law.exponent if follows else math.nan,
        "power_law_distance": law.distance,
        "power_law_tail": float(law.tail) if law.tail else math.nan,
        "power_law_fit": fit,
        "power_law_over_log_normal": ratio,
    }


def power_law(values: np.ndarray) -> PowerLaw:
    """Fit the density x^-a to the largest eigenvalues.

    As Clauset, Shalizi and Newman (section 3, continuous case): each eigenvalue in turn is x_min, its
    a = 1 + n / Σ log(x / x_min) over the n eigenvalues from there on is the most likely, and the x_min is taken whose
    fit has the smallest Kolmogorov-Smirnov distance, which as in their code is measured just below each step of the
    data's distribution. The two largest are no x_min. Zeros are left out; nan, and no tail, for fewer than 4 distinct
    others.

    It is what the package `powerlaw` fits, without the upper limit of 3 that its version 2 sets to a.

    >>> quantiles = (np.arange(1000) + 0.5) / 1000
    >>> law = power_law(quantiles**-0.5)  # of the density x^-3
    >>> round(law.exponent, 1), round(law.distance, 2), law.tail
    (3.0, 0.0, 1000)
    """
    relative = values / values[0]
    distinct, counts = np.unique(relative[relative > 0], return_counts=True)  # ascending
    if len(distinct) < 4:
        return PowerLaw(math.nan, math.nan, math.nan, 0)
    logs, remaining = np.log(distinct), counts[::-1].cumsum()[::-1].astype(np.float64)
    sums = (remaining[1:] * np.diff(logs))[::-1].cumsum()[::-1]  # Σ log(x / x_min), nothing cancels
    rates = remaining[:-1] / sums
    distances = [
        np.abs(remaining[k:] / remaining[k] - np.exp(rates[k] * (logs[k] - logs[k:]))).max()
        for k in range(len(distinct) - 2)
    ]
    best = int(np.argmin(distances))
    return PowerLaw(float(1 + rates[best]), float(distances[best]), float(distinct[best]), int(remaining[best]))


def goodness_of_fit(values: np.ndarray, law: PowerLaw) -> float:
    """Return p of a fit: how often samples of the fitted law are fitted as badly as the eigenvalues are.

    The semi-parametric bootstrap of Clauset, Shalizi and Newman (section 4.1): each value of a sample is drawn from the
    law with the share that the tail has, else from the eigenvalues below it, and the law is fitted anew, its x_min too.
    Of more than 64 eigenvalues only 64 evenly spaced ones may be x_min here, in the samples as in the data. The data
    count as one of the 100 samples. Random numbers are the same in every call.

    Args:
        values: the spectrum.
        law: what `power_law` gives for it; without a tail, p is nan.

    >>> quantiles = (np.arange(200) + 0.5) / 200
    >>> falling = quantiles**-0.5
    >>> goodness_of_fit(falling, power_law(falling))
    1.0
    """
    if not law.tail:
        return math.nan
    relative = values / values[0]
    relative = np.sort(relative[relative > 0])  # of tiny ones nothing may be left
    body = relative[: len(relative) - law.tail]
    random = np.random.default_rng(0)
    shape = (REPLICATES, len(relative))
    with np.errstate(over="ignore"):  # of an exponent near 1
        drawn = np.log(law.smallest) + random.standard_exponential(shape) / (law.exponent - 1)
    if len(body):
        is_below = random.random(shape) < len(body) / len(relative)
        drawn = np.where(is_below, np.log(random.choice(body, shape)), drawn)
    distances = best_distances(np.sort(np.vstack([np.log(relative), drawn]), axis=1))
    return float(np.mean(distances >= distances[0]))


def best_distances(logs: np.ndarray) -> np.ndarray:
    """Return the distance of the best power law of each sample, (samples, n) logarithms in ascending order.

    >>> best_distances(np.log([[1.0, 1.0, 2.0, 4.0, 8.0]])).round(3)
    array([0.211])
    """
    n = logs.shape[1]
    steps = np.diff(logs, axis=1)
    places = np.arange(n)
    first = np.maximum.accumulate(np.where(np.pad(steps, ((0, 0), (1, 0)), constant_values=1) > 0, places, 0), axis=1)
    remaining = (n - first).astype(np.float64)  # values at least as large
    sums = (steps * (n - places[1:]))[:, ::-1].cumsum(1)[:, ::-1]  # Σ log(x / x_min), as above
    best = np.full(len(logs), np.inf)
    for k in np.unique(np.linspace(0, n - 3, CANDIDATES).astype(int)):
        rate = np.divide(remaining[:, k], sums[:, k], out=np.zeros(len(logs)), where=sums[:, k] > 0)[:, None]
        fitted = np.exp(rate * (logs[:, k, None] - logs[:, k:]))
        best = np.minimum(best, np.abs(remaining[:, k:] / remaining[:, k, None] - fitted).max(1))
    return best


def over_log_normal(values: np.ndarray, law: PowerLaw) -> float:
    """Return the statistic of a power law against log-normal laws in its tail, √n (s / m - 1).

    Logarithms of x / x_min are exponential under the one, with a standard deviation s as large as their mean m, and
    normal without what lies below x_min under the others, with a smaller one. Of all unbiased tests that by s / m is
    the most powerful (del Castillo & Puig 1999). Of n samples of an exponential law the statistic is about standard
    normal.

    Args:
        values: the spectrum.
        law: what `power_law` gives for it; without a tail, the statistic is nan.

    >>> quantiles = (np.arange(200) + 0.5) / 200
    >>> falling = np.exp(-scipy.special.ndtri(quantiles))  # log-normal
    >>> over_log_normal(falling, PowerLaw(exponent=2.0, distance=0.2, smallest=1e-9, tail=200)) < -5
    True
    """
    if not law.tail:
        return math.nan
    logs = np.log(values[: law.tail] / values[0]) - math.log(law.smallest)
    return float(math.sqrt(law.tail) * (logs.std() / logs.mean() - 1))


def longest_of_log_normal(eigenvalues: int) -> float:
    """Return the tail that 95 % of log-normal spectra do not exceed, of so many eigenvalues that are not zero.

    >>> round(longest_of_log_normal(256))
    145
    """
    return float(3.6 * eigenvalues ** (2 / 3))
