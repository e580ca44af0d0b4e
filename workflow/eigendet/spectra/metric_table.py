"""Every metric of every spectrum as a tidy table: those of the width rules, of `metrics`, and what was counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd

from eigendet.errors import UserError
from eigendet.spectra import metrics
from eigendet.spectra.metrics import Rule, intrinsic_dimension
from eigendet.spectra.tables import RUN_COLUMNS, TAP_COLUMNS

logger = logging.getLogger(__name__)

COUNTED = {
    "trace": "sum of the eigenvalues: the variance of all channels",
    "largest": "the largest eigenvalue",
    "samples": "positions of all images",
    "rounding": "the most negative eigenvalue as a share of the largest: the size of rounding errors in the spectrum",
}
OWN_METRICS = metrics.DESCRIPTIONS | COUNTED  # names that no rule may have


def metric_table(eigenvalues: pd.DataFrame, rules: Mapping[str, Rule]) -> pd.DataFrame:
    """Return a row a metric of every spectrum: columns of the run and the map, then `metric` and `value`.

    `metric_descriptions` says what each is. A map that never varies, or whose spectrum is not finite, has no metrics of
    the spectrum's shape.

    Args:
        eigenvalues: the table of `tables`.
        rules: width rules by name; the dimension of each is a metric too. One that fails is left out from then on, with
            a warning.
    """
    columns, usable = [*RUN_COLUMNS, *TAP_COLUMNS], dict(rules)
    rows: list[tuple[object, ...]] = []
    for tap, spectrum in eigenvalues.groupby(columns, sort=False, dropna=False)["value"]:
        samples, effective = (float(tap[columns.index(name)]) for name in ("samples", "effective_samples"))
        measured = _metrics(spectrum.to_numpy(), samples, effective, usable)
        rows += [(*tap, metric, value) for metric, value in measured.items()]
    return pd.DataFrame(rows, columns=[*columns, "metric", "value"])


def _metrics(raw: np.ndarray, samples: float, effective_samples: float, rules: dict[str, Rule]) -> dict[str, float]:
    measured = {"samples": samples, "effective_samples": effective_samples}
    if not np.isfinite(raw).all():
        return measured
    values = np.clip(raw, 0, None)
    measured |= {"trace": float(raw.sum()), "largest": float(values[0])} | _dimensions(values, rules)
    if values[0] > 0:
        measured |= metrics.all_metrics(values, effective_samples) | {"rounding": float(max(-raw[-1], 0) / values[0])}
    return measured


def _dimensions(values: np.ndarray, rules: dict[str, Rule]) -> dict[str, float]:
    """Return the dimension by every rule; one that fails is taken out of `rules`, with a warning."""
    dimensions = {}
    for name, rule in list(rules.items()):
        try:
            dimensions[name] = intrinsic_dimension(values, rule)
        except UserError as error:
            logger.warning("no further metric of this rule: %s", error)
            del rules[name]
    return dimensions


def dimension_descriptions(rules: Mapping[str, str]) -> dict[str, str]:
    """Say in a line what every dimension is, by name; `rules` says it of the width rules.

    >>> list(dimension_descriptions({"ratio": "Count eigenvalues above a share of the largest."}))
    ['ratio', 'stable_rank']
    """
    return {**rules, "stable_rank": metrics.DESCRIPTIONS["stable_rank"]}


def metric_descriptions(rules: Mapping[str, str]) -> dict[str, str]:
    """Say in a line what every metric is, by name; `rules` says it of the width rules.

    >>> metric_descriptions({})["largest"]
    'the largest eigenvalue'
    """
    return dimension_descriptions(rules) | OWN_METRICS
