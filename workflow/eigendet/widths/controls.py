"""Widths to compare derived ones with: as many parameters and operations, and less of the spectra, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eigendet import plugins
from eigendet.config import Experiment
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.networks.detector import regions
from eigendet.networks.widths_file import ChosenWidths, read_widths
from eigendet.widths.allocation import Budget
from eigendet.widths.derivation import NO_SOURCES, Sources, describe_widths
from eigendet.widths.dimensions import GroupSpectra, group_spectra, read_spectra_of_arm
from eigendet.widths.matching import matched
from eigendet.widths.rounding import rounded
from eigendet.widths.stages import stage_numbers
from eigendet.widths.targets import allocator_targets


def control_widths(
    experiment: Experiment,
    network: Definition,
    arm: str,
    folders: Sequence[Path],
    derived: Path | None,
    sources: Sources = NO_SOURCES,
) -> ChosenWidths:
    """Choose the widths of one of an experiment's controls.

    Those of `profile`, `untrained` and `permuted` have the MACs and the parameters of the derived widths, by a factor
    and a ratio from stage to stage; without derived widths, `untrained` has the budget that these would have.

    Args:
        experiment: whose settings say how.
        network: without widths.
        arm: the control.
        folders: of the spectra from which `derived` comes, and of those of the arm scratch for the arm untrained.
        derived: the file of the widths that the control is for.
        sources: what the allocator needs beside spectra.

    Raises:
        UserError: what the arm needs is missing or of another network.
    """
    settings = experiment.widths
    channels, reference = network.reference(network.size[0])
    described = partial(describe_widths, network, channels, reference)
    own = experiment.arms[arm].widths
    if own is not None:
        return described(read_widths(Path(own), network), f"as {Path(own)} says")
    if arm == "reference":
        return described(reference, "the reference's")
    if derived is None and arm != "untrained":
        raise UserError(f"the control {arm} is for derived widths; give --derived FILE.")
    uniform = arm.startswith("uniform_")
    costs = [arm.removeprefix("uniform_")] if uniform else ["macs", "parameters"]
    if derived is None:
        budget = Budget.of(channels, reference, settings)
    else:
        budget = Budget.like(channels, reference, read_widths(derived, network), costs, settings)
    weights = _weights(experiment, network, arm, folders, budget, sources)
    if uniform:
        target, rule = budget.scaled(weights.values), "all scaled alike"
    elif derived is None:
        target, rule = weights.values, weights.rule
    else:
        target, factor, ratio = matched(budget, weights.values, stage_numbers(channels, _regions(network)))
        rule = f"{factor:.3f} of {weights.rule}, times {ratio:.3f} from stage to stage"
    return replace(
        described(rounded(budget, target), rule, budget, target),
        settings=settings.model_dump(mode="json"),
        elsewhere=weights.elsewhere,
        spectrum_of=weights.origin,
    )


class Weights(NamedTuple):
    """Widths that a control has in proportion, (groups,), what they are in words, and what spectra they come from."""

    values: np.ndarray
    rule: str
    elsewhere: dict[str, str] | None = None  # as of derived widths
    origin: dict[str, str] | None = None  # whose spectrum each group was given


def _weights(
    experiment: Experiment, network: Definition, arm: str, folders: Sequence[Path], budget: Budget, sources: Sources
) -> Weights:
    """Return the reference's widths, or what the spectra give that a control has."""
    settings = experiment.widths
    channels, reference = network.reference(network.size[0])
    if arm not in ("untrained", "permuted"):
        return Weights(np.array([reference[group] for group in budget.costs.groups], float), "the reference's")
    first = arm == "untrained"
    source = "scratch" if first else experiment.spectra_for(arm) or ""
    table = read_spectra_of_arm(experiment.name, network, source, folders)
    spectra = group_spectra(table, channels, settings, first)
    if first:
        seen = sources.read(network, spectra, settings, first)
        target = allocator_targets(budget, channels, reference, spectra, settings, seen)
        return Weights(target, "what the spectra at step 0 give", spectra.elsewhere)
    others, origin = permuted(spectra)
    if not plugins.needs(settings.allocation):
        target = allocator_targets(budget, channels, reference, others, settings)
        return Weights(target, "what the spectra of other groups give", origin=origin)
    # Matrices cannot be stretched to another width, but what comes of them can.
    seen = sources.read(network, spectra, settings)
    target = allocator_targets(budget, channels, reference, spectra, settings, seen)
    share = {group: width / reference[group] for group, width in zip(budget.costs.groups, target, strict=True)}
    shares = np.array([share[origin[group]] * reference[group] for group in budget.costs.groups])
    return Weights(shares, "what other groups are given, by share of width", origin=origin)


def _regions(network: Definition) -> Mapping[str, int]:
    """Return how many regions of an image the parts of a detector look at whose widths are chosen."""
    if not network.heads:
        return {}
    with torch.random.fork_rng(devices=[]):
        return regions(network.build())


def permuted(spectra: GroupSpectra) -> tuple[GroupSpectra, dict[str, str]]:
    """Give each group's spectra to another group, in a random cycle (always the same), stretched to its width.

    So a group gets the share of its width that another's spectrum uses. Also says whose spectrum each group has.

    >>> spectra = GroupSpectra({"a": {0: [np.array([4.0, 0.0])]}, "b": {0: [np.array([1.0, 1.0, 1.0, 1.0])]}}, {})
    >>> permuted(spectra)[1]
    {'a': 'b', 'b': 'a'}
    """
    groups = list(spectra.groups)
    order = np.random.default_rng(0).permutation(len(groups))
    origin = {groups[here]: groups[there] for here, there in zip(order, np.roll(order, 1), strict=True)}
    permuted_groups = {}
    for group, seeds in spectra.groups.items():
        width = len(next(iter(seeds.values()))[0])
        permuted_groups[group] = {
            seed: [stretched(values, width) for values in taps] for seed, taps in spectra.groups[origin[group]].items()
        }
    return GroupSpectra(permuted_groups, {}), origin


def stretched(values: np.ndarray, width: int) -> np.ndarray:
    """Stretch a spectrum to another number of channels, (width,), with the same share of the trace by share of width.

    >>> stretched(np.array([4.0, 2.0]), 4).tolist()
    [2.0, 2.0, 1.0, 1.0]
    """
    held = np.concatenate([[0.0], np.cumsum(np.sort(values)[::-1])])
    return np.diff(np.interp(np.linspace(0, 1, width + 1), np.linspace(0, 1, len(held)), held))
