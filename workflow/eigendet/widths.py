"""From spectra to widths: what each channel group shows of itself, and the budget spent accordingly (`allocation`).

A group's dimension is the largest (or mean) intrinsic dimension over its taps, averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eigendet import models, plugins
from eigendet.allocation import Budget, marginal, proportional, uniform
from eigendet.config import Experiment, WidthSettings
from eigendet.errors import UserError
from eigendet.files import file_digest
from eigendet.groups import Channels, Widths
from eigendet.spectrum import RUN_COLUMNS, TAP_COLUMNS, intrinsic_dimension

TIES: dict[str, Callable[..., Any]] = {"max": np.max, "mean": np.mean}
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
    budget = Budget.of(channels, reference, settings)
    if settings.allocation == "proportional":
        derived = proportional(budget, dimension)
    else:
        derived = marginal(budget, pooled_spectra(spectra, channels, settings))
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
    tie, rule = TIES[settings.tie], plugins.bind("rule", settings.rule, "widths.rule")
    return {
        group: float(np.mean([tie([intrinsic_dimension(v, rule) for v in taps]) for taps in seeds.values()]))
        for group, seeds in taps_of_groups(spectra, channels, settings).items()
    }


def pooled_spectra(spectra: pd.DataFrame, channels: Channels, settings: WidthSettings) -> dict[str, np.ndarray]:
    """One descending spectrum for every channel group: shares of the trace, tied over its taps, averaged over seeds."""
    tie = TIES[settings.tie]
    found = {}
    for group, seeds in taps_of_groups(spectra, channels, settings).items():
        shares = [[np.sort(values)[::-1] / (values.sum() or 1.0) for values in taps] for taps in seeds.values()]
        found[group] = np.mean([tie(taps, axis=0) for taps in shares], axis=0)
    return found


def taps_of_groups(
    spectra: pd.DataFrame, channels: Channels, settings: WidthSettings
) -> dict[str, dict[int, list[np.ndarray]]]:
    """Eigenvalues at the last step and the chosen point: group -> seed -> a spectrum for each tap, negative ones zero.

    Raises:
        UserError: a group has no tap at the chosen point.
    """
    last = spectra.groupby("seed")["step"].transform("max")
    chosen = spectra[
        (spectra["step"] == last) & (spectra["point"] == settings.point) & (spectra["centred"] == settings.centred)
    ]
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for (seed, module, call), tap in chosen.groupby(["seed", "module", "call"]):
        group = channels.outputs.get((str(module), int(call)))
        if group is not None:
            values = np.clip(tap["value"].to_numpy(), 0.0, None)
            found.setdefault(group, {}).setdefault(int(seed), []).append(values)
    bare = [group for group in channels.widths if group not in found]
    if bare:
        raise UserError(
            f"widths.point is '{settings.point}', and no feature map of that kind belongs to the channel groups "
            f"{', '.join(bare)}; choose another point that covariance.points holds."
        )
    return {group: found[group] for group in channels.widths}


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
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file}: not an eigenvalue table ({reason}); expected one that 'eigendet spectrum' wrote."
            ) from None
    return pd.concat(parts, ignore_index=True)


def rule_text(settings: WidthSettings) -> str:
    """What the widths follow, in words: the rule and its parameter, or the marginal allocation, which has none."""
    if settings.allocation == "marginal":
        return "marginal allocation"
    return plugins.described("rule", settings.rule)
