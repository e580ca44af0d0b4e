"""Widths to compare derived ones with: as many parameters or operations, and less of the spectra, or nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.networks.widths_file import ChosenWidths, read_widths
from eigendet.widths.allocation import Budget, largest_factor, proportional, rounded
from eigendet.widths.derivation import allocate, describe_widths
from eigendet.widths.dimensions import GroupSpectra, group_spectra, read_spectra_of_arm

RATIOS = (1 / 16, 16.0)  # of a profile, from a stage to the next
FACTORS_TRIED, RATIOS_TRIED = np.linspace(0.95, 1.2, 26), np.linspace(0.9, 1.1, 21)  # around those solved for


def control_widths(
    experiment: Experiment, network: Definition, arm: str, folders: Sequence[Path], derived: Path | None
) -> ChosenWidths:
    """Choose the widths of one of an experiment's controls.

    Args:
        experiment: whose settings say how.
        network: without widths.
        arm: the control.
        folders: of the spectra from which `derived` comes, and of those of the arm scratch for the arm untrained.
        derived: the file of the widths that the control is for.

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
    if arm == "untrained":
        table = read_spectra_of_arm(experiment.name, network, "scratch", folders)
        spectra = group_spectra(table, channels, settings, first=True)
        widths, _ = allocate(Budget.of(channels, reference, settings), spectra, settings)
        return replace(described(widths, "as derived, from the spectra at step 0"), elsewhere=spectra.elsewhere)
    if derived is None:
        raise UserError(f"the control {arm} is for derived widths; give --derived FILE.")
    goal = read_widths(derived, network)
    if arm == "permuted":
        table = read_spectra_of_arm(experiment.name, network, experiment.spectra_for(arm) or "", folders)
        spectra, origin = permuted(group_spectra(table, channels, settings))
        widths, _ = allocate(Budget.of(channels, reference, settings), spectra, settings)
        return replace(described(widths, "as derived, each group with the spectrum of another"), spectrum_of=origin)
    if arm == "profile":
        widths, factor, ratio = profile(channels, reference, goal, settings.round_to)
        return described(widths, f"{factor:.3f} of the reference's, times {ratio:.3f} from stage to stage")
    budget = Budget.like(channels, goal, [arm.removeprefix("uniform_")], settings.round_to)
    return described(proportional(budget, reference), "all scaled alike")


class Profile(NamedTuple):
    """Widths of the reference, times a factor, times a ratio to the power of the stage."""

    widths: Widths
    factor: float
    ratio: float


def profile(channels: Channels, reference: Widths, goal: Widths, round_to: int) -> Profile:
    """Scale the reference by a factor times a ratio to the power of the stage, to the parameters and MACs of the goal.

    Both numbers are solved for before rounding, which then exceeds neither cost, as with derived widths. Rounding moves
    narrow layers far, so of the numbers near to the solution those are taken that leave least of both costs unspent.
    """
    budget = Budget.like(channels, goal, ("macs", "parameters"), round_to)
    costs = budget.costs
    full = np.array([reference[group] for group in costs.groups], float)
    stage = stage_numbers(channels)
    power = np.array([stage[group] for group in costs.groups], float)
    macs, parameters, _ = budget.caps

    def target(factor: float, ratio: float) -> np.ndarray:
        return np.maximum(factor * ratio**power * full, budget.least)

    def factor_of(ratio: float) -> float:
        """Return the factor at which this ratio has the goal's MACs."""
        return largest_factor(lambda factor: costs(target(factor, ratio))[0] <= macs)

    def unspent(widths: Widths) -> tuple[bool, float]:
        """Return whether a cost is exceeded, and the larger share of both that is left: the smaller, the better."""
        spent = costs(np.array([widths[group] for group in costs.groups], float))
        left = max(1 - spent[0] / macs, 1 - spent[1] / parameters)
        return not (spent <= budget.caps).all(), round(left, 9)

    low, high = RATIOS
    while high / low > 1 + 1e-6:  # parameters sit late, so that they grow with the ratio
        ratio = float(np.sqrt(low * high))
        low, high = (ratio, high) if costs(target(factor_of(ratio), ratio))[1] <= parameters else (low, ratio)
    solved = factor_of(low), low
    near = itertools.product(solved[0] * FACTORS_TRIED, solved[1] * RATIOS_TRIED)
    tried = [
        Profile(rounded(budget, target(factor, ratio)), float(factor), float(ratio))
        for factor, ratio in [solved, *near]
    ]
    return min(tried, key=lambda one: unspent(one.widths))


def stage_numbers(channels: Channels) -> dict[str, int]:
    """Return every group's stage, from 0: how many halvings of the resolution precede its coarsest layer's output.

    Halvings between which nothing lies count as one, for example those before a classifier.
    """
    positions: dict[str, int] = {}
    for layer in channels.layers:
        for group, _ in layer.out.terms if layer.positions else ():
            positions[group] = min(positions.get(group, layer.positions), layer.positions)
    finest = max(positions.values(), default=1)
    halvings = {group: round(math.log(finest / own, 4)) for group, own in positions.items()}
    order = sorted(set(halvings.values()))
    return {group: order.index(halvings[group]) if group in halvings else 0 for group in channels.widths}


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
