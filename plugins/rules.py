"""Width rules: from the spectrum of one feature map to its intrinsic dimension, a number of channels.

The spectrum comes in descending order, nothing in it is negative, and the first eigenvalue is positive.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from eigendet.plugins import rule

Spectrum = np.ndarray  # (C,), float64


@rule
def ratio(
    values: Spectrum,
    *,
    threshold: Annotated[float, Field(gt=0, lt=1, examples=[0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4])] = 1e-3,
) -> float:
    """Count of eigenvalues above `threshold` times the largest.

    >>> ratio(np.array([1.0, 0.1, 0.01]), threshold=0.05)
    2.0
    """
    return float(np.count_nonzero(values > threshold * values[0]))


@rule(in_units=True)
def absolute(
    values: Spectrum, *, threshold: Annotated[float, Field(gt=0, examples=[0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4])] = 1e-3
) -> float:
    """Count of eigenvalues above `threshold`, in the units of the maps squared.

    >>> absolute(np.array([1.0, 0.1, 0.01]), threshold=0.05)
    2.0
    """
    return float(np.count_nonzero(values > threshold))


@rule
def energy(
    values: Spectrum, *, share: Annotated[float, Field(gt=0, le=1, examples=[0.8, 0.9, 0.95, 0.98, 0.99, 0.999])] = 0.99
) -> float:
    """Smallest number k of leading eigenvalues whose sum is at least `share` of the trace.

    >>> energy(np.array([5.0, 3.0, 2.0]), share=0.75)
    2.0
    """
    cumulative = np.cumsum(values)
    return float(np.searchsorted(cumulative, share * cumulative[-1]) + 1)


@rule
def dof(
    values: Spectrum, *, scale: Annotated[float, Field(gt=0, examples=[3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3])] = 0.1
) -> float:
    """Degrees of freedom N(λ) = Σ μ / (μ + λ) with λ = `scale` times the mean eigenvalue (arXiv 1808.08558).

    >>> dof(np.array([3.0, 3.0, 3.0]), scale=0.5)
    2.0
    """
    return float(np.sum(values / (values + scale * values.mean())))


@rule
def effective_rank(values: Spectrum) -> float:
    """Exponential of the entropy of the eigenvalues as shares of the trace (Roy and Vetterli, EUSIPCO 2007).

    >>> round(effective_rank(np.array([3.0, 3.0, 0.0])), 12)
    2.0
    """
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


@rule
def participation(values: Spectrum) -> float:
    """Participation ratio (Σ μ)² / Σ μ².

    >>> participation(np.array([3.0, 3.0, 0.0]))
    2.0
    """
    values = values / values[0]  # squares of tiny eigenvalues would vanish
    return float(values.sum() ** 2 / np.sum(values**2))
