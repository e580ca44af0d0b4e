"""Eigenvalues of covariances and every number read from them, as tidy tables.

A rule turns the spectrum of one feature map into its intrinsic dimension, a number of channels between 0 (a map that
never varies) and C. Each takes eigenvalues in any order; negative ones are rounding noise of a positive semi-definite
matrix and count as zero.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eigendet import store
from eigendet.config import Rule
from eigendet.errors import UserError
from eigendet.files import replacing

logger = logging.getLogger(__name__)

RUN_COLUMNS = ["arm", "backbone", "detector", "seed"]
TAP_COLUMNS = ["step", "module", "call", "point", "channels", "undersampled", "centred"]
GPU_CHANNELS = 1024  # below, the CPU is faster than the transfer


def eigenvalues(moment: np.ndarray) -> np.ndarray:
    """Eigenvalues of a symmetric (C, C) matrix in float64, descending, (C,).

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
            values = torch.linalg.eigvalsh(matrix.cuda()).cpu()
            if belongs(values, matrix):
                return values.flip(0).numpy()
            logger.warning("eigenvalues of %d channels from the GPU are wrong; taken from the CPU", len(matrix))
        except RuntimeError as error:  # no memory, or no convergence
            logger.warning("no eigenvalues of %d channels from the GPU (%s); taken from the CPU", len(matrix), error)
    return torch.linalg.eigvalsh(matrix).flip(0).numpy()


def belongs(values: torch.Tensor, matrix: torch.Tensor) -> bool:
    """Whether these can be the eigenvalues of a symmetric matrix: they have its trace and its Frobenius norm."""
    norm = matrix.norm()
    same_trace = (values.sum() - matrix.trace()).abs() <= 1e-12 * len(matrix) * norm
    return bool(same_trace and (values.norm() - norm).abs() <= 1e-12 * len(matrix) * norm)


def ratio(values: np.ndarray, threshold: float = 1e-3) -> float:
    """Number of eigenvalues above `threshold` times the largest."""
    values = _positive(values)
    return float(np.count_nonzero(values > threshold * values.max(initial=0.0)))


def energy(values: np.ndarray, share: float = 0.99) -> float:
    """Smallest number k of leading eigenvalues whose sum is at least `share` of the trace."""
    values = np.sort(_positive(values))[::-1]
    cumulative = np.cumsum(values)
    if not cumulative.size or cumulative[-1] == 0:
        return 0.0
    return float(np.searchsorted(cumulative, share * cumulative[-1]) + 1)


def dof(values: np.ndarray, scale: float = 0.1) -> float:
    """Degrees of freedom N(λ) = Σ μ / (μ + λ) with λ = `scale` times the mean eigenvalue (arXiv 1808.08558)."""
    values = _positive(values)
    if not values.any():
        return 0.0
    return float(np.sum(values / (values + scale * values.mean())))


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues as shares of the trace (Roy and Vetterli, EUSIPCO 2007)."""
    values = _positive(values)
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def participation(values: np.ndarray) -> float:
    """Participation ratio (Σ μ)² / Σ μ²."""
    values = _positive(values)
    if not values.any():
        return 0.0
    values = values / values.max()  # squares of tiny eigenvalues would vanish
    return float(values.sum() ** 2 / np.sum(values**2))


@dataclass(frozen=True)
class RuleEntry:
    function: Callable[..., float]
    default: float | None  # of the parameter; None: the rule has none


RULES: dict[Rule, RuleEntry] = {
    "ratio": RuleEntry(ratio, 1e-3),
    "energy": RuleEntry(energy, 0.99),
    "dof": RuleEntry(dof, 0.1),
    "effective_rank": RuleEntry(effective_rank, None),
    "participation": RuleEntry(participation, None),
}


def intrinsic_dimension(values: np.ndarray, rule: Rule, parameter: float | None = None) -> float:
    """The rule's number for a spectrum; `parameter=None` takes the rule's default."""
    entry = RULES[rule]
    parameter = entry.default if parameter is None else parameter
    return entry.function(values) if parameter is None else entry.function(values, parameter)


def tables(covariance_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Eigenvalues and metrics of one run, for every step and tap, from centred and from raw moments.

    Returns:
        eigenvalues: a row an eigenvalue: the run's columns (arm, backbone, detector, seed), the tap's (step, module,
            call, point, channels, undersampled: fewer samples than channels, centred), index (0 is the largest) and
            value.
        metrics: a row a number: the same columns with metric and value. Metrics are the rules with their default
            parameters, `trace`, `largest`, `samples`, and `noise`: the most negative eigenvalue as a share of the
            largest, which is the size of the rounding errors in the spectrum.
    """
    run = store.provenance(covariance_file)["run"]
    spectra, metrics = [], []
    for record in store.read(covariance_file):
        for centred in (True, False):
            values = eigenvalues(record.moment(centred))
            tap: dict[str, Any] = {column: run[column] for column in RUN_COLUMNS} | {
                "step": record.step,
                "module": record.key.module,
                "call": record.key.call,
                "point": record.key.point,
                "channels": values.size,
                "undersampled": record.undersampled,
                "centred": centred,
            }
            numbers: dict[str, float] = {rule: intrinsic_dimension(values, rule) for rule in RULES}
            numbers |= {"trace": float(values.sum()), "largest": float(values[0]), "samples": record.count}
            numbers["noise"] = float(max(-values[-1], 0) / values[0]) if values[0] > 0 else 0.0
            spectra.append(pd.DataFrame(tap | {"index": np.arange(values.size), "value": values}))
            metrics += [tap | {"metric": metric, "value": value} for metric, value in numbers.items()]
    return pd.concat(spectra, ignore_index=True), pd.DataFrame(metrics)


def write(covariance_file: Path, eigenvalue_file: Path, metric_file: Path) -> None:
    """Write both tables of a run: eigenvalues as Parquet, metrics as CSV."""
    spectra, metrics = tables(covariance_file)
    with replacing(eigenvalue_file) as eigenvalue_part, replacing(metric_file) as metric_part:
        spectra.to_parquet(eigenvalue_part, index=False)
        metrics.to_csv(metric_part, index=False)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(values, dtype=np.float64), 0.0, None)
