"""Eigenvalues and leading eigenvectors of covariances, as tidy tables.

A run's folder of spectra holds

    eigenvalues.parquet   a row an eigenvalue, at every snapshot
    jackknife.parquet     the same at the last one without one part of the images, whose number is `left_out`
    similarity.h5         what comparisons with other maps need, at every snapshot: step_0000000/<module#call:point>/
        directions        float32 (C, k): eigenvectors of the k largest eigenvalues, see `leading`
        images            float32 (N, at most N or C): features of the N images, whose products with one another are
                          those of the means over positions, centered; NaN for an image without samples
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.linalg
import torch
from scipy.linalg import lapack

from eigendet.errors import UserError
from eigendet.files import replacing
from eigendet.observe import store
from eigendet.observe.keys import node_name, step_name
from eigendet.spectra import metrics
from eigendet.spectra.tables import RUN_COLUMNS, TAP_COLUMNS

logger = logging.getLogger(__name__)

GPU_CHANNELS = 1024  # below, the CPU is faster than the transfer
DIRECTIONS, SHARE = 16, 8  # leading directions: at most so many, and at most one in eight


def eigenvalues(moment: np.ndarray) -> np.ndarray:
    """Eigenvalues of a symmetric (C, C) matrix in float64, descending, (C,): see `eigen`."""
    return eigen(moment, 0)[0]


def eigen(moment: np.ndarray, directions: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a symmetric (C, C) matrix in float64, descending, (C,), and first eigenvectors, (C, directions).

    Large ones are found on a GPU where there is one; should that fail, or miss the trace or the Frobenius norm, on the
    CPU. Negative ones, which are rounding noise of a positive semi-definite matrix, are returned as they are.

    Raises:
        UserError: the matrix holds NaN or infinity.
    """
    matrix = torch.from_numpy(np.ascontiguousarray(moment, dtype=np.float64))
    if not matrix.isfinite().all():
        raise UserError(f"a matrix of {len(matrix)} channels holds NaN or infinity, so it has no eigenvalues.")
    if torch.cuda.is_available() and len(matrix) >= GPU_CHANNELS:
        try:
            values, vectors = _on_gpu(matrix.cuda(), directions)
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
    """One reduction to tridiagonal form serves all eigenvalues and few eigenvectors: half the time of all of both."""
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
    """Whether these can be the eigenvalues and first eigenvectors of a symmetric matrix.

    They have its trace and its Frobenius norm, and the vectors are mapped to multiples of themselves.
    """
    norm, small = matrix.norm(), 1e-12 * len(matrix) * matrix.norm()
    same_trace = (values.sum() - matrix.trace()).abs() <= small
    mapped = matrix @ vectors - vectors * values[: vectors.shape[1]]
    return bool(same_trace and (values.norm() - norm).abs() <= small and (mapped.abs() <= small).all())


def leading(channels: int) -> int:
    """How many leading directions of a map are kept: few, so that those of unrelated maps seldom overlap."""
    return max(1, min(DIRECTIONS, channels // SHARE))


def write_spectra(covariance_file: Path, folder: Path, centered: bool = True) -> None:
    """Write a run's folder of spectra, see above, from a dump.

    The tables have the run's columns (arm, backbone, detector, seed), the tap's (step, module, call, point, channels,
    samples, effective_samples: see `metrics`, centered: of the covariance or of the raw second moment), index (0 is the
    largest) and value. Their `attrs` say what the run was: its experiment, the definition of its network, its probe
    images.

    Raises:
        UserError: the file is no dump, or holds what is not finite.
    """
    provenance = store.provenance(covariance_file)
    if "run" not in provenance:
        raise UserError(f"{covariance_file}: names no run; expected a file written by 'eigendet covariance'.")
    run, images = provenance["run"], store.images(covariance_file)
    about = {name: provenance.get(name) for name in ("experiment", "definition", "probe")}
    spectra: list[pd.DataFrame] = []
    jackknife = [_rows(dict.fromkeys([*RUN_COLUMNS, *TAP_COLUMNS, "left_out"], 0), np.zeros(0))]
    with replacing(folder / "similarity.h5") as part, h5py.File(part, "w") as similarity:
        similarity.attrs["about"] = json.dumps(about | {"images": images}, sort_keys=True)
        before: store.Record | None = None
        for record in store.read(covariance_file):
            tap = {column: run[column] for column in RUN_COLUMNS} | _tap(record, centered)
            if not record.equals(before):
                values, directions = eigen(record.moment(centered), leading(len(record.mean)))
                without = [eigenvalues(rest.moment(centered)) for rest in record.leaving_one_out()]
            before = record
            spectra.append(_rows(tap, values))
            jackknife += [_rows(tap | {"left_out": number}, rest) for number, rest in enumerate(without)]
            node = similarity.create_group(f"{step_name(record.step)}/{node_name(record.key)}")
            node["directions"] = directions.astype(np.float32)
            if record.image_means is not None:
                node["images"] = compact(record.image_means).astype(np.float32)
    tables = {"jackknife": jackknife[1:] or jackknife, "eigenvalues": spectra}
    for name, tables_of_taps in tables.items():
        table = pd.concat(tables_of_taps, ignore_index=True)
        table.attrs = about
        with replacing(folder / f"{name}.parquet") as part:
            table.to_parquet(part, index=False)


def compact(means: np.ndarray) -> np.ndarray:
    """Features (N, at most N or C) with the same inner products as the centered rows of (N, C)."""
    known = np.isfinite(means).all(1)
    rows = means[known].astype(np.float64)
    rows -= rows.mean(0) if len(rows) else 0.0
    if len(means) < means.shape[1]:
        rows = np.asarray(np.linalg.qr(rows.T, mode="r")).T  # rows = R.T Q.T, and Q has orthonormal columns
    found = np.full((len(means), rows.shape[1]), np.nan)
    found[known] = rows
    return found


def _tap(record: store.Record, centered: bool) -> dict[str, Any]:
    effective = np.nan
    if record.image_means is not None:
        effective = metrics.effective_samples(float(np.trace(record.moment(centered=True))), record.image_means)
        effective = float(np.minimum(effective, record.count))  # what varies within images more than between them
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


def _rows(tap: dict[str, Any], values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(tap | {"index": np.arange(values.size), "value": values})
