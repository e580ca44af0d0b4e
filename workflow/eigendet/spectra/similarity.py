"""Distances and similarities of two feature maps: of spectra, of leading directions, of what both do with one image."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import xlog1py

IMAGES = 4  # fewer have no unbiased estimate of HSIC
ROUNDING = 1e-12  # a Gram matrix that keeps no larger share of its norm had nothing but rounding errors


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Jensen-Shannon distance of two spectra, 0 (same shape) to 1 (no index in common).

    The eigenvalues in descending order, as shares of their trace, are taken for distributions p and q over the index:
    √(½ Σ p log₂(p / m) + ½ Σ q log₂(q / m)), m = (p + q) / 2 (Lin 1991). The root makes it a metric (Endres &
    Schindelin 2003).

    Args:
        first: eigenvalues, (C,), in any order and scale. Negative ones, which are rounding noise, count as zero.
        second: the same, (D,). The shorter one ends in zeros.

    Returns:
        The distance; nan if a spectrum is all zero or not finite.

    >>> jensen_shannon(np.array([4.0, 2.0]), np.array([20.0, 10.0, 0.0]))
    0.0
    >>> round(jensen_shannon(np.array([1.0, 0.0]), np.array([1.0, 1.0])), 3)
    0.558
    """
    width = max(len(first), len(second))
    padded = [np.pad(_shares(values), (0, width - len(values))) for values in (first, second)]
    return float(_distance(padded[0], padded[1]))


def jensen_shannon_matrix(spectra: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon distance of every two of R spectra, (R, C) -> (R, R): see `jensen_shannon`.

    >>> jensen_shannon_matrix(np.array([[1.0, 0.0], [1.0, 1.0]])).round(3).tolist()
    [[0.0, 0.558], [0.558, 0.0]]
    """
    shares = _shares(spectra)
    return _distance(shares[:, None], shares[None])


def _shares(spectra: np.ndarray) -> np.ndarray:
    """Return descending shares of the trace, (..., C); nan for a spectrum without one."""
    values = np.sort(np.clip(np.asarray(spectra, dtype=np.float64), 0.0, None))[..., ::-1]
    with np.errstate(invalid="ignore"):
        relative = values / values[..., :1]  # the trace of huge eigenvalues would overflow
        return relative / relative.sum(-1, keepdims=True)


def _distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the distance of p and q; with p = m (1 + d) and q = m (1 - d), nearly equal spectra lose no digits.

    The divergence is ½ Σ m (g(d) + g(-d)), g(d) = (1 + d) log₂(1 + d).
    """
    total = p + q
    d = np.divide(p - q, total, out=np.zeros_like(total), where=total != 0)
    divergence = (total * (xlog1py(1 + d, d) + xlog1py(1 - d, -d))).sum(-1) / (4 * np.log(2))
    return np.sqrt(np.clip(divergence, 0.0, 1.0))


def subspace_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean squared cosine of the principal angles of two subspaces, ‖UᵀV‖²_F / k (Björck & Golub 1973).

    k is ‖UᵀU‖_F ‖VᵀV‖_F, so that what rounding leaves of the bases' norms does not count.

    Args:
        first: an orthonormal basis in columns, (C, k).
        second: that of the other subspace, (C, k).

    Returns:
        1 for the same subspace, 0 for orthogonal ones; unrelated ones, drawn at random, have k / C on average. nan if
        the shapes differ: networks of other widths have no directions in common.

    >>> axes = np.eye(3)
    >>> subspace_overlap(axes[:, :2], axes[:, 1:])
    0.5
    """
    if first.shape != second.shape:
        return float("nan")
    both, own, other = (float(np.sum((a.T @ b) ** 2)) for a, b in ((first, second), (first, first), (second, second)))
    return both / math.sqrt(own * other)


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Return the linear centered kernel alignment of two maps over the same images (Kornblith et al. 2019).

    HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of their Gram matrices, with the unbiased estimator of HSIC (Song et al. 2012,
    eq. 5), as by Nguyen, Raghu & Kornblith (2021): the biased one nears 1 where there are fewer images than channels.

    Args:
        first: features, (N, C), a row an image. Images with NaN in either map are left out.
        second: those of the other map, (N, D).

    Returns:
        At most 1: the same up to rotation, scale and shift. Unrelated maps scatter around 0, on both sides. nan with
        fewer than four images, or where no two images are more alike than others.

    Raises:
        ValueError: other numbers of rows.

    >>> features = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(cka(features, 5 - 2 * features[:, ::-1]), 6)
    1.0
    >>> abs(cka(features, np.random.default_rng(1).normal(size=(50, 4)))) < 0.1
    True
    """
    return cka_of_grams(gram_of_images(first), gram_of_images(second))


def gram_of_images(features: np.ndarray) -> np.ndarray:
    """Return what `cka_of_grams` needs of a map: its Gram matrix over N images, U-centered, of norm 1.

    Args:
        features: (N, C), a row an image.

    Returns:
        (N, N), float64; rows and columns of images with NaN are NaN, and all are where `cka` is nan with any map.

    >>> gram = gram_of_images(np.random.default_rng(0).normal(size=(5, 3)))
    >>> gram.shape, round(float(np.linalg.norm(gram)), 6)
    ((5, 5), 1.0)
    """
    finite = np.isfinite(features).all(1)
    rows = features[finite].astype(np.float64)
    if finite.any():
        rows -= rows.mean(0)  # changes nothing but the rounding errors, where features are far from zero
    gram = np.full((len(features), len(features)), np.nan)
    gram[np.ix_(finite, finite)] = _u_centered(rows @ rows.T)
    return gram


def cka_of_grams(first: np.ndarray, second: np.ndarray) -> float:
    """Return `cka` from two results of `gram_of_images` over the same images, (N, N).

    >>> features = np.random.default_rng(0).normal(size=(5, 3))
    >>> cka_of_grams(gram_of_images(features), gram_of_images(features[:, :2])) == cka(features, features[:, :2])
    True
    """
    finite = np.isfinite(np.diag(first)) & np.isfinite(np.diag(second))
    if not finite.any():
        return float("nan")
    if not finite.all():  # centering anew undoes what the images left out had contributed
        first, second = (_u_centered(one[np.ix_(finite, finite)]) for one in (first, second))
    return float(np.vdot(first, second))


def _u_centered(matrix: np.ndarray) -> np.ndarray:
    """U-center a symmetric (n, n) matrix (Székely & Rizzo 2014) and divide it by its norm; nan without variance.

    It is the projection onto matrices of which the diagonal and the sums of rows are zero. The inner product of two of
    these, over n (n - 3), is the unbiased estimator of HSIC.
    """
    n = len(matrix)
    if n < IMAGES:
        return np.full_like(matrix, np.nan)
    centered = matrix - np.diag(np.diag(matrix))
    sums = centered.sum(1)
    centered -= (sums[:, None] + sums) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centered, 0.0)
    norm = np.linalg.norm(centered)
    return centered / norm if norm > ROUNDING * np.linalg.norm(matrix) else np.full_like(matrix, np.nan)
