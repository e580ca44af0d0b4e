"""From spectra to widths: a dimension for each channel group, scaled by one factor to the cost of the reference.

A group's dimension is the largest (or mean) intrinsic dimension over its taps, averaged over seeds. Widths are
proportional to it, with one factor for all, so that the network takes no more multiply-accumulate operations than the
reference. So some groups grow where others shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eigendet import models
from eigendet.config import Experiment, WidthSettings
from eigendet.errors import UserError
from eigendet.files import file_digest
from eigendet.groups import Channels, Widths, scaled
from eigendet.spectrum import RULES, RUN_COLUMNS, TAP_COLUMNS, intrinsic_dimension

COLUMNS = [*RUN_COLUMNS, *TAP_COLUMNS, "index", "value"]


def from_spectra(experiment: Experiment, backbone: str, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Contents of the widths files `derived` and `uniform` for an entry of `backbones`.

    Args:
        files: eigenvalue tables of the arm `widths.arm`, a table for each seed.

    Raises:
        UserError: the tables are of another arm or backbone, or lack the chosen point.
    """
    settings = experiment.widths
    spectra = read_spectra(files)
    if len(detectors := sorted(set(spectra["detector"]))) > 1:
        raise UserError(f"the eigenvalue tables are of the detectors {', '.join(detectors)}; expected one.")
    if spectra.duplicated(COLUMNS[:-1]).any():
        raise UserError("two of the eigenvalue tables are of the same run; expected a table for each seed.")
    for column, wanted in (("arm", settings.arm), ("backbone", backbone)):
        found = sorted(set(spectra[column]))
        if found != [wanted]:
            raise UserError(f"the eigenvalue tables are of {column} {', '.join(found)}; expected {wanted} alone.")
    side = experiment.training.min_size
    channels, reference = models.reference(experiment.backbones[backbone], (side, side))
    dimension = dimensions(spectra, channels, settings)
    derived = derive(channels, reference, dimension, settings.round_to)
    control = uniform(channels, reference, channels.parameters(derived), settings.round_to)
    network = {"backbone": models.identity(experiment.backbones[backbone])}
    source = {
        "rule": rule_text(settings),
        "settings": settings.model_dump(mode="json"),
        "dimensions": dimension,
        "spectra": {str(file): file_digest(file) for file in files},
        "image": [side, side],
    }
    return {
        "derived": network | describe(channels, reference, derived) | source,
        "uniform": network
        | describe(channels, reference, control)
        | {"rule": "uniform scaling to the parameters of derived"},
    }


def dimensions(spectra: pd.DataFrame, channels: Channels, settings: WidthSettings) -> dict[str, float]:
    """Intrinsic dimension of every channel group, in channels, at the last step.

    Args:
        spectra: eigenvalue table of one or several seeds of one arm (see `eigendet.spectrum.tables`).

    Raises:
        UserError: a group has no tap at the chosen point.
    """
    last = spectra.groupby("seed")["step"].transform("max")
    chosen = spectra[
        (spectra["step"] == last) & (spectra["point"] == settings.point) & (spectra["centred"] == settings.centred)
    ]
    tie: Callable[[Any], float] = {"max": max, "mean": np.mean}[settings.tie]  # type: ignore[assignment]
    found: dict[str, dict[int, list[float]]] = {}
    for (seed, module, call), tap in chosen.groupby(["seed", "module", "call"]):
        group = channels.outputs.get((str(module), int(call)))
        if group is not None:
            dimension = intrinsic_dimension(tap["value"].to_numpy(), settings.rule, settings.parameter)
            found.setdefault(group, {}).setdefault(int(seed), []).append(dimension)
    bare = [group for group in channels.widths if group not in found]
    if bare:
        raise UserError(
            f"widths.point is '{settings.point}', and no feature map of that kind belongs to the channel groups "
            f"{', '.join(bare)}; choose another point that covariance.points holds."
        )
    return {group: float(np.mean([tie(taps) for taps in found[group].values()])) for group in channels.widths}


def derive(channels: Channels, reference: Widths, dimension: Mapping[str, float], round_to: int) -> Widths:
    """Multiples nearest to widths proportional to the dimensions, with at most the reference's MACs.

    The factor is the one at which the unrounded widths would take exactly these MACs. Widths are rounded down, then
    up to the next multiple where that still fits, in order of what rounding down took away.

    Raises:
        UserError: every dimension is zero, or the least widths, one multiple each, take more than the reference.
    """
    cap = channels.macs(reference)
    if not any(dimension.values()):
        raise UserError("every feature map is constant, so no width can be derived; train longer, or look at the loss.")
    multiples = channels.rounded_to(round_to)

    def target(factor: float) -> dict[str, float]:
        return {group: max(factor * value, multiples[group]) for group, value in dimension.items()}

    def affordable(factor: float) -> bool:
        return channels.macs(target(factor)) <= cap

    if not affordable(0.0):
        raise UserError(
            f"widths.round_to is {round_to}; the least widths, one multiple each, take more MACs than the reference."
        )
    wanted = target(_last(affordable))
    widths = {group: int(value / multiples[group] + 1e-6) * multiples[group] for group, value in wanted.items()}
    for group in sorted(widths, key=lambda group: widths[group] - wanted[group]):
        wider = widths | {group: widths[group] + multiples[group]}
        if wanted[group] > widths[group] and channels.macs(wider) <= cap:
            widths = wider
    return widths


def uniform(channels: Channels, reference: Widths, parameters: int, round_to: int) -> Widths:
    """The reference scaled by one factor to the number of parameters nearest to `parameters`."""

    multiples = channels.rounded_to(round_to)

    def below(factor: float) -> bool:
        return channels.parameters(scaled(reference, factor, multiples)) <= parameters

    factor = _last(below)
    candidates = [scaled(reference, factor, multiples), scaled(reference, factor * (1 + 1e-6), multiples)]
    return min(candidates, key=lambda widths: abs(channels.parameters(widths) - parameters))


def describe(channels: Channels, reference: Widths, widths: Widths) -> dict[str, Any]:
    """Widths beside the reference's, with the backbone's parameters and MACs of both: the content of a widths file."""
    return {
        "widths": widths,
        "reference": reference,
        "parameters": {"reference": channels.parameters(reference), "result": channels.parameters(widths)},
        "macs": {"reference": channels.macs(reference), "result": channels.macs(widths)},
    }


def read_spectra(files: Sequence[Path]) -> pd.DataFrame:
    """Eigenvalue tables of several runs as one."""
    parts = []
    for file in files:
        try:
            parts.append(pd.read_parquet(file, columns=COLUMNS))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: not an eigenvalue table ({error}); expected one that 'eigendet spectrum' wrote."
            ) from None
    return pd.concat(parts, ignore_index=True)


def rule_text(settings: WidthSettings) -> str:
    """The rule and its parameter in words."""
    parameter = RULES[settings.rule].default if settings.parameter is None else settings.parameter
    return settings.rule if parameter is None else f"{settings.rule} at {parameter:g}"


def _last(holds: Callable[[float], bool]) -> float:
    """The largest factor for which `holds`, to a relative 1e-9; it holds at 0 and fails somewhere."""
    high = 1.0
    while holds(high):
        high *= 2
    low = 0.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
