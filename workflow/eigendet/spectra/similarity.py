"""How alike two feature maps are: by their spectra, their leading directions, and what they do with the same images."""

from __future__ import annotations

import numpy as np
from scipy.special import xlog1py

IMAGES = 4  # fewer have no unbiased estimate of HSIC
ROUNDING = 1e-12  # a Gram matrix that keeps no larger share of its norm had nothing but rounding errors


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon distance of two spectra, 0 (same shape) to 1 (no index in common).

    The eigenvalues in descending order, as shares of their trace, are taken for distributions p and q over the index:
    √(½ Σ p log₂(p / m) + ½ Σ q log₂(q / m)), m = (p + q) / 2 (Lin 1991). The root makes it a metric (Endres &
    Schindelin 2003).

    Args:
        first, second: eigenvalues, (C,) and (D,), in any order and scale. The shorter one ends in zeros. Negative ones,
            which are rounding noise, count as zero.

    Returns:
        The distance; nan if a spectrum is all zero or not finite.
    """
    width = max(len(first), len(second))
    padded = [np.pad(_shares(values), (0, width - len(values))) for values in (first, second)]
    return float(_distance(padded[0], padded[1]))


def distances(spectra: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance of every two of R spectra, (R, C) -> (R, R): see `jensen_shannon`."""
    shares = _shares(spectra)
    return _distance(shares[:, None], shares[None])


def _shares(spectra: np.ndarray) -> np.ndarray:
    """Descending shares of the trace, (..., C); nan for a spectrum without one."""
    values = np.sort(np.clip(np.asarray(spectra, dtype=np.float64), 0.0, None))[..., ::-1]
    with np.errstate(invalid="ignore"):
        return values / values.sum(-1, keepdims=True)


def _distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """With p = m (1 + d) and q = m (1 - d), so that nearly equal spectra lose no digits: ½ Σ m (g(d) + g(-d))."""
    total = p + q
    d = np.divide(p - q, total, out=np.zeros_like(total), where=total != 0)
    divergence = (total * (xlog1py(1 + d, d) + xlog1py(1 - d, -d))).sum(-1) / (4 * np.log(2))
    return np.sqrt(np.clip(divergence, 0.0, 1.0))


def subspace_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared cosine of the principal angles of two subspaces, ‖UᵀV‖²_F / k (Björck & Golub 1973).

    Args:
        first, second: their orthonormal bases in columns, (C, k).

    Returns:
        1 for the same subspace, 0 for orthogonal ones; unrelated ones, drawn at random, have k / C on average. nan if
        the shapes differ: networks of other widths have no directions in common.
    """
    if first.shape != second.shape:
        return float("nan")
    return float(np.sum((first.T @ second) ** 2) / first.shape[1])


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centered kernel alignment of two maps over the same images (Kornblith et al. 2019).

    HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of their Gram matrices, with the unbiased estimator of HSIC (Song et al. 2012,
    eq. 5), as by Nguyen, Raghu & Kornblith (2021): the biased one nears 1 where there are fewer images than channels.

    Args:
        first, second: features, (N, C) and (N, D), a row an image. Rows with NaN in either are left out.

    Returns:
        At most 1: the same up to rotation, scale and shift. Unrelated maps scatter around 0, on both sides. nan with
        fewer than four images, or where no two images are more alike than others.

    Raises:
        ValueError: other numbers of rows.
    """
    return cka_of_grams(gram(first), gram(second))


def gram(features: np.ndarray) -> np.ndarray:
    """What `cka_of_grams` needs of a map: its Gram matrix over N images, U-centered, of norm 1.

    Args:
        features: (N, C), a row an image.

    Returns:
        (N, N), float64; rows and columns of images with NaN are NaN, and all are where `cka` is nan with any map.
    """
    known = np.isfinite(features).all(1)
    rows = features[known].astype(np.float64)
    if known.any():
        rows -= rows.mean(0)  # changes nothing but the rounding errors, where features are far from zero
    found = np.full((len(features), len(features)), np.nan)
    found[np.ix_(known, known)] = _u_centered(rows @ rows.T)
    return found


def cka_of_grams(first: np.ndarray, second: np.ndarray) -> float:
    """The same as `cka`, from two results of `gram` over the same images, (N, N)."""
    known = np.isfinite(np.diag(first)) & np.isfinite(np.diag(second))
    if not known.any():
        return float("nan")
    if not known.all():  # centering anew undoes what the images left out had contributed
        first, second = (_u_centered(one[np.ix_(known, known)]) for one in (first, second))
    return float(np.vdot(first, second))


def _u_centered(matrix: np.ndarray) -> np.ndarray:
    """A symmetric (n, n) matrix U-centered (Székely & Rizzo 2014), divided by its Frobenius norm; nan without variance.

    Its projection onto matrices of which the diagonal and the sums of rows are zero. The inner product of two of them,
    over n (n - 3), is the unbiased estimator of HSIC.
    """
    n = len(matrix)
    if n < IMAGES:
        return np.full_like(matrix, np.nan)
    found = matrix - np.diag(np.diag(matrix))
    sums = found.sum(1)
    found -= (sums[:, None] + sums) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(found, 0.0)
    norm = np.linalg.norm(found)
    return found / norm if norm > ROUNDING * np.linalg.norm(matrix) else np.full_like(matrix, np.nan)
