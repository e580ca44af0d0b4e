"""Scores of features before a network is trained further, by which others have forecast how well they transfer.

None of them trains anything. RankMe and α-ReQ read a spectrum alone; LogME also reads the labels of images.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import scipy.special

FIRST, LAST = 11, 50  # eigenvalues, counted from 1, to which α is fitted
FEWEST = 10  # of these, below which there is no α
ROUNDING = float(np.finfo(np.float32).eps)  # singular values of features in float32, as shares of the largest
EXPLAINED = 1e-12  # share of the labels' squares beside the features that is rounding
GRID = 0.25  # between the logarithms at which evidence is computed before it is refined


def rankme(moments: np.ndarray) -> float:
    """Return RankMe, an effective rank: exp(-Σ p log p) of the singular values as shares p of their sum.

    Garrido et al. (ICML 2023, arXiv 2210.02885, eq. 1): the more, the better features are said to transfer. The
    singular values of a matrix of N features in rows are the roots of N times the eigenvalues of their raw second
    moment. The paper adds 1e-7 to every p, so that single precision's zeros have a logarithm; here 0 log 0 is 0
    instead, which of 2,048 channels changes 0.4 % at most.

    Args:
        moments: eigenvalues of the raw second moment, not of the covariance, (C,), in any order and unit; see
            `above_rounding`.

    Returns:
        1 if a single one is not zero, C if all are equal; nan for features that are all zero, or not finite.

    >>> round(rankme(np.array([9.0, 9.0, 9.0, 0.0])), 6)
    3.0
    >>> round(rankme(np.array([9.0, 4.0, 1.0])), 3)  # of the singular values 3, 2 and 1
    2.749
    """
    values = above_rounding(moments)
    if not len(values):
        return math.nan
    singular = np.sqrt(values / values[0])
    return float(np.exp(scipy.special.entr(singular / singular.sum()).sum()))


def alpha_req(values: np.ndarray) -> float:
    """Return α of eigenvalues of the covariance that fall as n^-α, from the 11th to the 50th.

    Agrawal et al. (NeurIPS 2022, "α-ReQ"): features are said to transfer the better the nearer α is to 1. The line
    through log μ over log n is fitted by least squares with the weights 1/n, so that every interval of log n counts
    alike. Where it is fitted is a choice: without the first ten, as by Stringer et al. (Nature 2019), and up to the
    50th, which few widths lack.

    It is another exponent than `tails.power_law`'s: that is a of the density μ^-a of the eigenvalues themselves, over
    the range where it holds best; of eigenvalues that fall as n^-α everywhere, a is 1 + 1/α.

    Args:
        values: eigenvalues of the covariance, (C,), in any order and unit; see `above_rounding`.

    Returns:
        The exponent; nan where fewer than ten of these eigenvalues are there, or one is not finite.

    >>> round(alpha_req(np.arange(1.0, 101.0) ** -1.5), 6)
    1.5
    """
    used = above_rounding(values)[FIRST - 1 : LAST]
    if len(used) < FEWEST:
        return math.nan
    places = np.arange(FIRST, FIRST + len(used))
    slope, _ = np.polyfit(np.log(places), np.log(used / used[0]), 1, w=places**-0.5)  # w multiplies residuals
    return float(-slope)


def above_rounding(values: np.ndarray) -> np.ndarray:
    """Return those eigenvalues of a positive semi-definite matrix that are more than rounding errors, descending.

    Errors of zeros lie on both sides of zero, so that what is below shows their size: up to twice that an eigenvalue
    is none. It matters: a hundred eigenvalues of 1e-8 are a hundred singular values of 1e-4.

    Args:
        values: eigenvalues, (C,), in any order.

    Returns:
        At most (C,); none if one is not finite.

    >>> above_rounding(np.array([1e-9, 4.0, -1e-9, 1.0, -2e-9])).tolist()
    [4.0, 1.0]
    """
    descending = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    if not len(descending) or not np.isfinite(descending).all():
        return descending[:0]
    errors = max(-2 * descending[-1], len(descending) * np.finfo(np.float64).eps * descending[0], 0.0)
    return descending[descending > errors]


def logme(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return LogME of each class: the log evidence, for an image, of a linear model from features to its labels.

    You et al. (ICML 2021, arXiv 2102.11005): labels y, 0 or 1, are F w with noise of precision β and weights w of
    precision α, both normal, and α and β are the most likely. The more, the better features are said to transfer; no
    intercept, and features as they are, as in the paper.

    With the singular values s of F and t = α/β, y has the covariance (I + F Fᵀ/t) / β. For a ratio t the most likely β
    is n / Q, Q = yᵀ (I + F Fᵀ/t)⁻¹ y, so that evidence is a function of t alone,
    (log n/Q - log 2π - 1 - Σ log(1 + s²/t) / n) / 2. Its largest value over all t is taken; the paper's fixed point,
    where it finds the best α and β, is the same.

    Args:
        features: (N, D), a row an image. Rows with NaN are left out.
        labels: (N, K), whether an image has an object of each class.

    Returns:
        (K,): nan for a class that all or none of the images have; inf where fewer features than images give the labels
        without error.

    Raises:
        ValueError: other numbers of rows.

    >>> random = np.random.default_rng(0)
    >>> features = random.normal(size=(200, 5))
    >>> seen, unseen = features[:, 0] > 0, random.normal(size=200) > 0
    >>> logme(features, np.stack([seen, unseen, seen | True], 1)).round(1).tolist()
    [-0.9, -1.1, nan]
    """
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} rows of features and {len(labels)} of labels; expected as many of both.")
    finite = np.isfinite(features).all(1)
    rows, targets = features[finite].astype(np.float64), labels[finite].astype(np.float64)
    n = len(rows)
    evidence = np.full(labels.shape[1], math.nan)
    varied = (targets.sum(0) > 0) & (targets.sum(0) < n)
    largest = np.abs(rows).max(initial=0.0)
    if not varied.any() or not largest:
        return evidence
    left, singular, _ = np.linalg.svd(rows / largest, full_matrices=False)
    kept = singular > ROUNDING * singular[0]
    left, squares = left[:, kept], singular[kept] ** 2
    for k in np.flatnonzero(varied):
        own = left.T @ targets[:, k]
        rest = float(np.sum((targets[:, k] - left @ own) ** 2)) if len(squares) < n else 0.0
        evidence[k] = _evidence(squares, own**2, rest, n)
    return evidence


def _evidence(squares: np.ndarray, parts: np.ndarray, rest: float, n: int) -> float:
    """Return the largest evidence over the ratio t of precisions, for a sample.

    Args:
        squares: those of the features' singular values, (r,).
        parts: the label's squared components along the features' left singular vectors, (r,).
        rest: the squared norm of what is orthogonal to these.
        n: the number of samples.
    """
    if len(squares) < n and rest <= EXPLAINED * parts.sum():
        return math.inf

    def negative(log_t: float | np.ndarray) -> np.ndarray:
        ratio = squares / np.exp(np.asarray(log_t, dtype=np.float64))[..., None]
        misfit = rest + (parts / (1 + ratio)).sum(-1)
        return (np.log(misfit / n) + np.log1p(ratio).sum(-1) / n + math.log(2 * math.pi) + 1) / 2

    low, high = math.log(squares.min()) - 20, math.log(squares.max() * n) + 20
    grid = np.arange(low, high, GRID)
    best = grid[int(np.argmin(negative(grid)))]
    found = scipy.optimize.minimize_scalar(negative, bounds=(best - GRID, best + GRID), method="bounded")
    return float(-min(found.fun, negative(low), negative(high)))
