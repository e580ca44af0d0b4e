"""From spectra to a widths file: what each channel group shows of itself, and the budget spent accordingly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment
from eigendet.config.sections import WidthSettings
from eigendet.files import file_digest
from eigendet.networks.models import Definition
from eigendet.widths import dimensions
from eigendet.widths.allocation import Budget, marginal, proportional, targets
from eigendet.widths.dimensions import GroupSpectra, interval


def derive(experiment: Experiment, network: Definition, folders: Sequence[Path], arm: str) -> dict[str, Any]:
    """The widths file of a network, from the spectra of one arm.

    Args:
        network: without widths.
        folders: of the tables that `eigendet spectra` wrote, of every seed.

    Raises:
        UserError: the tables are of another arm, backbone or experiment, or lack a group; the budget cannot be met.
    """
    settings = experiment.widths
    spectra = dimensions.read(experiment.name, network, arm, folders, "eigenvalues")
    channels, reference = network.reference(network.size[0])
    shown = dimensions.of_groups(spectra, channels, settings)
    budget = Budget.of(channels, reference, settings)
    dimension = shown.dimensions(settings)
    widths, target = allocate(budget, shown, settings)
    content = network.identity() | describe(channels, reference, widths)
    content |= {
        "rule": rule_text(settings),
        "settings": settings.model_dump(mode="json"),
        "arm": arm,
        "multiples": channels.rounded_to(settings.round_to),
        "dimensions": dimension,
        "bound": budget.binding(widths, target),
        "elsewhere": shown.elsewhere,
        "spectra": {str(folder): file_digest(folder / "eigenvalues.parquet") for folder in folders},
        "image": list(network.size),
    }
    left_out = dimensions.read(experiment.name, network, arm, folders, "jackknife")
    if dimensions.complete(left_out, spectra):
        content |= intervals(left_out, channels, budget, settings, dimension, dict(zip(widths, target, strict=True)))
    return content


def allocate(budget: Budget, shown: GroupSpectra, settings: WidthSettings) -> tuple[Widths, np.ndarray]:
    """Whole widths of every group, and what they were rounded to, (groups,)."""
    if settings.allocation == "proportional":
        dimension = shown.dimensions(settings)
        return proportional(budget, dimension), targets(budget, dimension)
    widths = marginal(budget, shown.pooled(settings))
    return widths, np.array(list(widths.values()), float)


def intervals(
    left_out: pd.DataFrame,
    channels: Channels,
    budget: Budget,
    settings: WidthSettings,
    dimension: Mapping[str, float],
    target: Mapping[str, float],
) -> dict[str, Any]:
    """Intervals of dimensions and of widths before rounding, and the groups whose width they leave open.

    A width is left open where the ends of its interval round to different multiples, between which it then lies.
    """
    dimensions_without, targets_without = [], []
    for _, rest in left_out.groupby("left_out"):
        shown = dimensions.of_groups(rest, channels, settings)
        dimensions_without.append(shown.dimensions(settings))
        targets_without.append(dict(zip(channels.widths, allocate(budget, shown, settings)[1], strict=True)))
    of_dimension = {g: interval(dimension[g], [rest[g] for rest in dimensions_without]) for g in dimension}
    of_width = {g: interval(target[g], [rest[g] for rest in targets_without]) for g in dimension}
    low, high = (
        np.clip(np.round(np.array(end) / budget.multiple) * budget.multiple, budget.least, budget.most)
        for end in zip(*of_width.values(), strict=True)
    )
    ends = dict(zip(of_width, zip(low.astype(int).tolist(), high.astype(int).tolist(), strict=True), strict=True))
    return {
        "dimension_intervals": of_dimension,
        "width_intervals": of_width,
        "undetermined": {group: [least, most] for group, (least, most) in ends.items() if least != most},
    }


def describe(channels: Channels, reference: Widths, widths: Widths) -> dict[str, Any]:
    """Widths beside the reference's, with the network's parameters and MACs of both: the content of a widths file."""
    return {
        "widths": widths,
        "reference": reference,
        "parameters": {"reference": channels.parameters(reference), "result": channels.parameters(widths)},
        "macs": {"reference": channels.macs(reference), "result": channels.macs(widths)},
    }


def rule_text(settings: WidthSettings) -> str:
    """What the widths follow, in words: the rule and its options, or the marginal allocation, which has none."""
    return "marginal allocation" if settings.allocation == "marginal" else plugins.described("rule", settings.rule)
