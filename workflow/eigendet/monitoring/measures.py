"""Metrics of a spectrum by name: those of the width rules and of `spectra.metrics`, and dimensions as shares."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from eigendet import plugins
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError, unknown
from eigendet.spectra import metrics, tails
from eigendet.spectra.metrics import intrinsic_dimension

Measure = Callable[[np.ndarray], float]  # of a descending spectrum, (C,), without negative values; not empty
SHARE = "_share"  # ends the name of a dimension that is divided by the number of channels
SHAPES: dict[str, Measure] = {
    "entropy": metrics.entropy,
    "enrichment": metrics.enrichment,
    "power_law_exponent": lambda values: tails.power_law_metrics(values)["power_law_exponent"],
    "power_law_distance": lambda values: tails.power_law(values).distance,
}
SIZES: dict[str, Measure] = {"trace": lambda values: float(values.sum()), "largest": lambda values: float(values[0])}


def measures(names: Collection[str]) -> dict[str, Measure]:
    """Return functions of a spectrum by name.

    A dimension (`stable_rank`, or a width rule such as `dof`, `energy`, `effective_rank`, `participation`) is a number
    of channels, 0 for a map that never varies; with `_share` at its end, it is divided by the channels there are.
    `entropy`, `enrichment`, `power_law_exponent` and `power_law_distance` are nan for such a map, the exponent also
    where no power law fits (see `spectra.tails`); `trace` and `largest` are in the squared unit of the features.

    Raises:
        UserError: there is no such metric, or none is named.

    >>> shares = measures(["energy", "energy_share"])  # energy: how many eigenvalues hold 99 % of the trace
    >>> {name: measure(np.array([5.0, 4.0, 1.0, 0.0])) for name, measure in shares.items()}
    {'energy': 3.0, 'energy_share': 0.75}
    """
    dimensions = ["stable_rank", *plugins.discover("rule")]
    choices = [*dimensions, *(name + SHARE for name in dimensions), *SHAPES, *SIZES]
    if isinstance(names, str) or not isinstance(names, Collection) or not names:
        raise UserError(f"metrics: got {names!r}; expected a list with some of {', '.join(choices)}.")
    for name in names:
        if name not in choices:
            raise UserError(f"metrics: {unknown('metric', name, choices)}")
    return {name: _measure(name) for name in names}


def _measure(name: str) -> Measure:
    if name in SIZES:
        return SIZES[name]
    if name in SHAPES:
        return lambda values: SHAPES[name](values) if values[0] > 0 else float("nan")
    dimension = name.removesuffix(SHARE)
    rule = metrics.stable_rank if dimension == "stable_rank" else plugins.bind("rule", PluginChoice(plugin=dimension))
    if name == dimension:
        return lambda values: intrinsic_dimension(values, rule)
    return lambda values: intrinsic_dimension(values, rule) / len(values)
