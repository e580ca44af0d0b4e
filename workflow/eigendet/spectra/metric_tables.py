"""Every number that is read from a spectrum, as a tidy table: the width rules, `metrics`, and what was counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from eigendet.errors import UserError
from eigendet.spectra import metrics
from eigendet.spectra.tables import RUN_COLUMNS, TAP_COLUMNS

logger = logging.getLogger(__name__)

Rule = Callable[[np.ndarray], float]  # from a descending spectrum, see `plugins`

COUNTED = {
    "trace": "sum of the eigenvalues: the variance of all channels",
    "largest": "the largest eigenvalue",
    "samples": "positions of all images",
    "rounding": "the most negative eigenvalue as a share of the largest: the size of rounding errors in the spectrum",
}


OWN = metrics.DESCRIPTIONS | COUNTED  # names that no rule may have


def table(eigenvalues: pd.DataFrame, rules: Mapping[str, Rule]) -> pd.DataFrame:
    """A row a number of every spectrum: columns of the run and the tap, then `metric` (see `descriptions`) and `value`.

    A map that never varies, or whose spectrum is not finite, has no metrics of the spectrum's shape.

    Args:
        eigenvalues: the table that `spectrum` writes.
        rules: width rules by name; each is a metric too.
    """
    known = dict(rules)
    rows: list[dict[str, Any]] = []
    for tap, values in eigenvalues.groupby([*RUN_COLUMNS, *TAP_COLUMNS], sort=False, dropna=False)["value"]:
        found = dict(zip([*RUN_COLUMNS, *TAP_COLUMNS], tap, strict=True))
        rows += [
            found | {"metric": metric, "value": value} for metric, value in _numbers(found, values.to_numpy(), known)
        ]
    return pd.DataFrame(rows)


def _numbers(tap: dict[str, Any], raw: np.ndarray, known: dict[str, Rule]) -> list[tuple[str, float]]:
    numbers = {"samples": float(tap["samples"]), "effective_samples": tap["effective_samples"]}
    if np.isfinite(raw).all():
        values = np.clip(raw, 0, None)
        numbers |= {"trace": float(raw.sum()), "largest": float(values[0])} | _dimensions(values, known)
        if values[0] > 0:
            numbers |= metrics.of(values, tap["effective_samples"]) | {"rounding": float(max(-raw[-1], 0) / values[0])}
    return list(numbers.items())


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


def dimensions(rules: Mapping[str, str]) -> dict[str, str]:
    """Say in a line what every metric is that counts channels, by name; `rules` says it of the width rules."""
    return {**rules, "stable_rank": metrics.DESCRIPTIONS["stable_rank"]}


def descriptions(rules: Mapping[str, str]) -> dict[str, str]:
    """Say in a line what every metric is, by name; `rules` says it of the width rules."""
    return dimensions(rules) | OWN
