"""Eigenvalues and leading eigenvectors of covariances, and the folder of spectra of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from scipy.linalg import lapack

from eigendet.errors import UserError
from eigendet.observe import store
from eigendet.spectra import metrics, tables
from eigendet.spectra.tables import RUN_COLUMNS, TAP_COLUMNS, Provenance

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
GPU_CHANNELS = 1024  # below, the CPU is faster than the transfer
Row = dict[str, str | int | float]  # by the column
DIRECTIONS, SHARE = 16, 8  # leading directions: at most so many, and at most one in eight


def eigenvalues(moment: np.ndarray, device: torch.device = CPU) -> np.ndarray:
    """Return the eigenvalues of a symmetric (C, C) matrix in float64, descending, (C,): see `eigen`.

    >>> eigenvalues(np.array([[2.0, 1.0], [1.0, 2.0]])).round(12).tolist()
    [3.0, 1.0]
    """
    return eigen(moment, 0, device)[0]


def eigen(moment: np.ndarray, directions: int, device: torch.device = CPU) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of a symmetric (C, C) matrix and its first eigenvectors, (C,) and (C, directions).

    Both are in float64, descending. Where the device is a GPU it decomposes large matrices; should that fail, or miss
    the trace or the Frobenius norm, the CPU does. Negative eigenvalues, which are rounding noise of a positive
    semi-definite matrix, are returned as they are.

    Raises:
        UserError: the matrix holds NaN or infinity.

    >>> values, vectors = eigen(np.diag([1.0, 4.0, 2.0]), directions=1)
    >>> values.tolist(), abs(vectors[:, 0]).tolist()
    ([4.0, 2.0, 1.0], [0.0, 1.0, 0.0])
    """
    matrix = torch.from_numpy(np.ascontiguousarray(moment, dtype=np.float64))
    if not matrix.isfinite().all():
        raise UserError(f"a matrix of {len(matrix)} channels holds NaN or infinity, so it has no eigenvalues.")
    if device.type == "cuda" and len(matrix) >= GPU_CHANNELS:
        try:
            values, vectors = _on_gpu(matrix.to(device), directions)
            if belong(values, vectors, matrix):
                return values.numpy(), vectors.numpy()
            logger.warning("eigenvalues of %d channels from the GPU are wrong; taken from the CPU", len(matrix))
        except RuntimeError as error:  # no memory, or no convergence
            logger.warning("no eigenvalues of %d channels from the GPU (%s); taken from the CPU", len(matrix), error)
    return _on_cpu(matrix, directions)


def _on_gpu(matrix: torch.Tensor, directions: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not directions:
        return torch.linalg.eigvalsh(matrix).flip(0).cpu(), matrix[:, :0].cpu()
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0).cpu(), vectors[:, -directions:].flip(1).cpu()


def _on_cpu(matrix: torch.Tensor, directions: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce to tridiagonal form once for all eigenvalues and few eigenvectors: half the time of all of both."""
    if not directions:
        return torch.linalg.eigvalsh(matrix).flip(0).numpy(), np.zeros((len(matrix), 0))
    size = len(matrix)
    if size < 3:
        values, vectors = (part.numpy() for part in torch.linalg.eigh(matrix))
        return values[::-1], vectors[:, ::-1][:, :directions]
    work = int(lapack.dsytrd_lwork(size, lower=1)[0])
    reflectors, diagonal, beside, factors, _ = lapack.dsytrd(matrix.numpy(), lower=1, lwork=work)
    values = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside)
    chosen = (size - directions, size - 1)
    _, vectors = scipy.linalg.eigh_tridiagonal(diagonal, beside, select="i", select_range=chosen)
    # The reflectors leave the first coordinate alone; below the diagonal they are stored as those of a QR are.
    vectors[1:] = lapack.dormqr("L", "N", np.asfortranarray(reflectors[1:, :-1]), factors, vectors[1:], 64 * size)[0]
    return values[::-1], vectors[:, ::-1]


def belong(values: torch.Tensor, vectors: torch.Tensor, matrix: torch.Tensor) -> bool:
    """Return whether these can be the eigenvalues and first eigenvectors of a symmetric matrix.

    They have its trace and its Frobenius norm, and the vectors are mapped to multiples of themselves.
    """
    norm, small = matrix.norm(), 1e-12 * len(matrix) * matrix.norm()
    same_trace = (values.sum() - matrix.trace()).abs() <= small
    mapped = matrix @ vectors - vectors * values[: vectors.shape[1]]
    return bool(same_trace and (values.norm() - norm).abs() <= small and (mapped.abs() <= small).all())


def leading(channels: int) -> int:
    """Return how many leading directions of a map are kept: few, so that those of unrelated maps seldom overlap.

    >>> leading(64), leading(2048)
    (8, 16)
    """
    return max(1, min(DIRECTIONS, channels // SHARE))


def write_spectra(covariance_file: Path, folder: Path, centered: bool = True, device: torch.device = CPU) -> None:
    """Write a run's folder of spectra, see `tables`, from its covariance file.

    Args:
        covariance_file: what `eigendet covariance` wrote.
        folder: where the files go.
        centered: read the covariance; else the raw second moment.
        device: decomposes matrices, see `eigen`.

    Raises:
        UserError: the file is not one of a run's covariances, or holds what is not finite.
    """
    content = store.provenance(covariance_file)
    if "run" not in content:
        raise UserError(f"{covariance_file}: names no run; expected a file written by 'eigendet covariance'.")
    run: Row = {column: content["run"][column] for column in RUN_COLUMNS}
    provenance, images = Provenance.of(content), store.images(covariance_file)
    spectra: list[pd.DataFrame] = []
    jackknife: list[pd.DataFrame] = []
    with tables.writing_similarity(folder, provenance, images) as similarity:
        for record, values, directions, left_out, effective in _decomposed(covariance_file, centered, device):
            tap = run | _tap(record, centered, effective)
            spectra.append(_rows(tap, values))
            jackknife += [_rows(tap | {"left_out": number}, rest) for number, rest in enumerate(left_out)]
            features = None if record.image_means is None else compact(record.image_means)
            tables.write_map(similarity, record.step, record.key, directions, features)
    if not jackknife:  # the columns alone
        jackknife = [_rows(dict.fromkeys([*RUN_COLUMNS, *TAP_COLUMNS, "left_out"], 0), np.zeros(0))]
    tables.write_run(folder, provenance, tables.joined(spectra), tables.joined(jackknife))


class _Decomposed(NamedTuple):
    record: store.TapRecord
    values: np.ndarray  # (C,)
    directions: np.ndarray  # (C, k)
    left_out: list[np.ndarray]  # eigenvalues without each part of the images in turn
    effective: float  # samples, see `metrics`; nan where no parts of the images were kept


def _decomposed(covariance_file: Path, centered: bool, device: torch.device) -> Iterator[_Decomposed]:
    """Decompose every map; one tensor under several names, which follow one another, is decomposed once."""
    last: _Decomposed | None = None
    for record in store.read(covariance_file):
        if last is not None and record.equals(last.record):
            last = last._replace(record=record)
        else:
            values, directions = eigen(record.moment(centered), leading(len(record.mean)), device)
            left_out = [eigenvalues(rest.moment(centered), device) for rest in record.leaving_one_out()]
            last = _Decomposed(record, values, directions, left_out, _effective_samples(record))
        yield last


def compact(means: np.ndarray) -> np.ndarray:
    """Return features (N, at most N or C) with the same inner products as the centered rows of (N, C).

    >>> compact(np.array([[5.0, 0.0, 1.0], [3.0, 0.0, 1.0]])).shape
    (2, 2)
    """
    finite = np.isfinite(means).all(1)
    rows = means[finite].astype(np.float64)
    if len(rows):
        rows -= rows.mean(0)
    if len(means) < means.shape[1]:
        rows = np.asarray(np.linalg.qr(rows.T, mode="r")).T  # rows = R.T Q.T, and Q has orthonormal columns
    features = np.full((len(means), rows.shape[1]), np.nan)
    features[finite] = rows
    return features


def _effective_samples(record: store.TapRecord) -> float:
    """Return how many samples a map's covariance is worth, at most those there are: parts may chance to be alike."""
    without = (rest.moment(centered=True) for rest in record.leaving_one_out())
    return float(np.minimum(metrics.effective_samples(record.moment(centered=True), without), record.count))


def _tap(record: store.TapRecord, centered: bool, effective: float) -> Row:
    return {
        "step": record.step,
        "module": record.key.module,
        "call": record.key.call,
        "point": record.key.point,
        "channels": len(record.mean),
        "samples": record.count,
        "effective_samples": effective,
        "centered": centered,
    }


def _rows(tap: Row, values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({**tap, "index": np.arange(values.size), "value": values})
