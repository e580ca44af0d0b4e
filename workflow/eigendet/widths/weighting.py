"""The spectrum of a map weighted by what reads it: eigenvalues of a product of two matrices."""

from __future__ import annotations

import numpy as np
import scipy.linalg.lapack


def root(matrix: np.ndarray) -> np.ndarray:
    """Return R, (C, rank), for which R Rᵀ is a matrix without negative eigenvalues, by Cholesky's method with pivots.

    >>> factor = root(np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> factor.shape, (factor @ factor.T).tolist()
    ((3, 1), [[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    """
    factor, order, rank, _ = scipy.linalg.lapack.dpstrf(matrix, lower=1)
    result = np.zeros((len(matrix), rank))
    result[order - 1] = np.tril(factor)[:, :rank]
    return result


def product_eigenvalues(factor: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of Rᵀ M R, those of Σ^½ M Σ^½ for Σ = R Rᵀ, (C,), descending, none negative.

    >>> product_eigenvalues(np.diag([2.0, 1.0])[:, :1], np.array([[1.0, 1.0], [1.0, 1.0]])).round(6).tolist()
    [4.0, 0.0]
    """
    values = np.zeros(len(factor))
    values[: factor.shape[1]] = np.linalg.eigvalsh(factor.T @ matrix @ factor)[::-1].clip(0.0)
    return values
