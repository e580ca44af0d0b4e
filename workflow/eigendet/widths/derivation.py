"""From spectra to a file of widths: what each channel group shows of itself, and the budget spent accordingly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment
from eigendet.config.sections import WidthSettings
from eigendet.files import file_digest
from eigendet.networks.definition import Definition
from eigendet.networks.widths_file import ChosenWidths, Cost
from eigendet.widths.allocation import COSTS, Budget
from eigendet.widths.dimensions import GroupSpectra, group_spectra, read_spectra_of_arm
from eigendet.widths.intervals import intervals, is_complete
from eigendet.widths.rounding import rounded
from eigendet.widths.sources import read_seen
from eigendet.widths.targets import allocator_targets
from eigendet.widths.views import Seen


class Sources(NamedTuple):
    """Files that some allocators read beside spectra, of the same runs."""

    covariances: Sequence[Path] = ()
    snapshots: Mapping[int, Sequence[Path]] = MappingProxyType(
        {}
    )  # by seed, all that were kept, the first step's first

    def read(self, network: Definition, spectra: GroupSpectra, settings: WidthSettings, first: bool = False) -> Seen:
        """Read what the allocator of the settings needs, at the last step or the first.

        Raises:
            UserError: it is missing, or of other runs.
        """
        needs = plugins.needs(settings.allocation)
        return read_seen(needs, self.covariances, self.snapshots, network, spectra, settings, first)


NO_SOURCES = Sources()


def derive_widths(
    experiment: Experiment, network: Definition, folders: Sequence[Path], arm: str, sources: Sources = NO_SOURCES
) -> ChosenWidths:
    """Derive the widths of a network from the spectra of one arm.

    Args:
        experiment: whose settings say how.
        network: without widths.
        folders: of the tables that `eigendet spectra` wrote, of every seed.
        arm: whose spectra they are.
        sources: what the allocator needs beside spectra.

    Raises:
        UserError: the tables are of another arm, backbone or experiment, or lack a group; the budget cannot be met.
    """
    settings = experiment.widths
    spectra = read_spectra_of_arm(experiment.name, network, arm, folders)
    channels, reference = network.reference(network.size[0])
    of_groups = group_spectra(spectra, channels, settings)
    seen = sources.read(network, of_groups, settings)
    budget, dimension, widths, target = spend(channels, reference, of_groups, settings, seen)
    derived = replace(
        describe_widths(network, channels, reference, widths, rule_text(settings), budget, target),
        settings=settings.model_dump(mode="json"),
        arm=arm,
        dimensions=dimension,
        bound=budget.binding(widths, target),
        elsewhere=of_groups.elsewhere,
        spectra={str(folder): file_digest(folder / "eigenvalues.parquet") for folder in folders},
        image=list(network.size),
    )
    left_out = read_spectra_of_arm(experiment.name, network, arm, folders, "jackknife")
    if not is_complete(left_out, spectra):
        return derived
    before = dict(zip(widths, target, strict=True))
    sure = intervals(left_out, channels, reference, budget, settings, dimension, before, widths)
    return replace(
        derived,
        dimension_intervals=sure.dimensions,
        width_intervals=sure.widths,
        undetermined=sure.undetermined,
        lacking_intervals=sure.lacking,
    )


class Spent(NamedTuple):
    """A budget, and the widths for which it was spent."""

    budget: Budget
    dimensions: dict[str, float]
    widths: Widths
    target: np.ndarray  # before rounding, (groups,)


def spend(
    channels: Channels, reference: Widths, spectra: GroupSpectra, settings: WidthSettings, seen: Seen | None = None
) -> Spent:
    """Spend the budget that the settings give on the groups, by what their spectra show, and what else was seen.

    Raises:
        UserError: the budget cannot be met, or every dimension is zero.
    """
    budget = Budget.of(channels, reference, settings)
    target = allocator_targets(budget, channels, reference, spectra, settings, seen)
    return Spent(budget, spectra.dimensions(settings), rounded(budget, target), target)


def describe_widths(
    network: Definition,
    channels: Channels,
    reference: Widths,
    widths: Widths,
    rule: str,
    budget: Budget | None = None,
    target: np.ndarray | None = None,
) -> ChosenWidths:
    """Describe widths beside the reference's, with the network's parameters and MACs of both.

    Args:
        network: whose widths they are.
        channels: its groups.
        reference: the reference's width of each.
        widths: the width of each that was chosen.
        rule: what they follow, in words.
        budget: within which they were rounded, if they were.
        target: what was rounded to them, (groups,).
    """
    described = ChosenWidths(
        **network.identity(),
        widths=widths,
        reference=reference,
        parameters=Cost(channels.parameters(reference), channels.parameters(widths)),
        macs=Cost(channels.macs(reference), channels.macs(widths)),
        rule=rule,
    )
    if budget is None or target is None:
        return described
    spent = budget.costs(np.array([widths[group] for group in budget.costs.groups], float)) / budget.caps
    return replace(
        described,
        multiples=budget.named(budget.multiple),
        targets=dict(zip(budget.costs.groups, target.tolist(), strict=True)),
        used={name: share for name, share in zip(COSTS, spent.tolist(), strict=True) if share},
    )


def rule_text(settings: WidthSettings) -> str:
    """Say what the widths follow: the rule and its options, or an allocator that is not `proportional`, and its own."""
    if settings.allocation.plugin == "proportional":
        return plugins.described("rule", settings.rule)
    name, at, options = plugins.described("allocator", settings.allocation).partition(" at ")
    return f"{name} allocation{at}{options}"
