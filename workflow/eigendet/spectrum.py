"""Eigenvalues of covariances and every number read from them, as tidy tables."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eigendet import plugins, store
from eigendet.errors import UserError
from eigendet.files import replacing
from eigendet.sections import PluginChoice

logger = logging.getLogger(__name__)

RUN_COLUMNS = ["arm", "backbone", "detector", "seed"]
TAP_COLUMNS = ["step", "module", "call", "point", "channels", "undersampled", "centred"]
Rule = Callable[[np.ndarray], float]  # from a descending spectrum, see `plugins`
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


def intrinsic_dimension(values: np.ndarray, rule: Rule) -> float:
    """The rule's number of channels for eigenvalues in any order, (C,); 0 for a map that never varies.

    Negative eigenvalues, which are rounding noise of a positive semi-definite matrix, count as zero.

    Raises:
        UserError: an eigenvalue is not finite; the rule fails, or gives no number of channels.
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


def rules() -> dict[str, Rule]:
    """All width rules by name, with their default options; what cannot be used so is left out, with a warning."""
    found: dict[str, Rule] = {}
    for name in plugins.discover("rule"):
        try:
            found[name] = plugins.bind("rule", PluginChoice(plugin=name))
        except UserError as error:
            logger.warning("no metric of the rule %s: %s", name, error)
    return found


def tables(covariance_file: Path) -> dict[str, pd.DataFrame]:
    """What a dump shows, for every step and tap, from centred and from raw moments, by the tables' names.

    All have the run's columns (arm, backbone, detector, seed) and the tap's (step, module, call, point, channels,
    undersampled: fewer samples than channels, centred). Their `attrs` say what the run was: its experiment and the
    definition of its network.

    Returns:
        eigenvalues: a row an eigenvalue: index (0 is the largest) and value.
        metrics: a row a number: metric and value. Metrics are the rules with their default options, `trace`, `largest`,
            `samples`, and `noise`: the most negative eigenvalue as a share of the largest, which is the size of the
            rounding errors in the spectrum.
        jackknife: eigenvalues at the last step without one part of the images, whose number is `left_out`.
    """
    provenance = store.provenance(covariance_file)
    if "run" not in provenance:
        raise UserError(f"{covariance_file}: names no run; expected a file written by 'eigendet dump'.")
    run, known = provenance["run"], rules()
    spectra, metrics, jackknife = [], [], []
    for record in store.read(covariance_file):
        for centred in (True, False):
            tap: dict[str, Any] = {column: run[column] for column in RUN_COLUMNS} | {
                "step": record.step,
                "module": record.key.module,
                "call": record.key.call,
                "point": record.key.point,
                "channels": len(record.mean),
                "undersampled": record.undersampled,
                "centred": centred,
            }
            values = eigenvalues(record.moment(centred))
            spectra.append(_spectrum(tap, values))
            numbers = _dimensions(values, known)
            numbers |= {"trace": float(values.sum()), "largest": float(values[0]), "samples": record.count}
            numbers["noise"] = float(max(-values[-1], 0) / values[0]) if values[0] > 0 else 0.0
            metrics += [tap | {"metric": metric, "value": value} for metric, value in numbers.items()]
            for left_out, rest in enumerate(record.leaving_one_out()):
                jackknife.append(_spectrum(tap | {"left_out": left_out}, eigenvalues(rest.moment(centred))))
    empty = _spectrum(dict.fromkeys([*RUN_COLUMNS, *TAP_COLUMNS, "left_out"], 0), np.zeros(0))
    found = {
        "eigenvalues": pd.concat(spectra, ignore_index=True),
        "metrics": pd.DataFrame(metrics),
        "jackknife": pd.concat(jackknife, ignore_index=True) if jackknife else empty,
    }
    for table in found.values():
        table.attrs = {name: provenance.get(name) for name in ("experiment", "definition")}
    return found


def _dimensions(values: np.ndarray, known: dict[str, Rule]) -> dict[str, float]:
    """By every rule; one that fails is left out from then on, with a warning."""
    found = {}
    for name, rule in list(known.items()):
        try:
            found[name] = intrinsic_dimension(values, rule)
        except UserError as error:
            logger.warning("no further metric of this rule: %s", error)
            del known[name]
    return found


def _spectrum(tap: dict[str, Any], values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(tap | {"index": np.arange(values.size), "value": values})


def write(covariance_file: Path, folder: Path) -> None:
    """Write the tables of a run: eigenvalues.parquet, metrics.csv and jackknife.parquet."""
    found = tables(covariance_file)
    with replacing(folder / "metrics.csv") as part:
        found["metrics"].to_csv(part, index=False)
    for name in ("jackknife", "eigenvalues"):
        with replacing(folder / f"{name}.parquet") as part:
            found[name].to_parquet(part, index=False)
