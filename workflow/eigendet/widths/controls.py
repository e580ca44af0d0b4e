"""Widths to compare derived ones with: as many parameters or operations, and less of the spectra, or nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment
from eigendet.errors import UserError
from eigendet.networks import models
from eigendet.networks.models import Definition
from eigendet.widths import dimensions
from eigendet.widths.allocation import Budget, largest, proportional, rounded
from eigendet.widths.derivation import allocate, describe
from eigendet.widths.dimensions import GroupSpectra

RATIOS = (1 / 16, 16.0)  # of a profile, from a stage to the next
FACTORS_TRIED, RATIOS_TRIED = np.linspace(0.95, 1.2, 26), np.linspace(0.9, 1.1, 21)  # around those solved for


def control(
    experiment: Experiment, network: Definition, arm: str, folders: Sequence[Path], derived: Path | None
) -> dict[str, Any]:
    """The widths file of one of an experiment's controls.

    Args:
        network: without widths.
        folders: of the spectra from which `derived` comes, and of those of the arm scratch for the arm untrained.
        derived: the widths file that the control is for.

    Raises:
        UserError: what the arm needs is missing or of another network.
    """
    settings = experiment.widths
    channels, reference = network.reference(network.size[0])

    def shown(of: str, first: bool = False) -> GroupSpectra:
        spectra = dimensions.read(experiment.name, network, of, folders, "eigenvalues")
        return dimensions.of_groups(spectra, channels, settings, first)

    more: dict[str, Any] = {}
    own = experiment.arms[arm].widths
    if own is not None:
        file = Path(own)
        widths, more["rule"] = models.read_widths(file, network), f"as {file} says"
    elif arm == "reference":
        widths, more["rule"] = reference, "the reference's"
    elif arm == "untrained":
        before = shown("scratch", first=True)
        widths, _ = allocate(Budget.of(channels, reference, settings), before, settings)
        more["elsewhere"] = before.elsewhere
        more["rule"] = "as derived, from the spectra at step 0"
    elif derived is None:
        raise UserError(f"the control {arm} is for derived widths; give --derived FILE.")
    else:
        goal = models.read_widths(derived, network)
        if arm == "permuted":
            other, more["spectrum_of"] = permuted(shown(experiment.spectra_for(arm) or ""))
            widths, _ = allocate(Budget.of(channels, reference, settings), other, settings)
            more["rule"] = "as derived, each group with the spectrum of another"
        elif arm == "profile":
            widths, factor, ratio = profile(channels, reference, goal, settings.round_to)
            more["rule"] = f"{factor:.3f} of the reference's, times {ratio:.3f} from stage to stage"
        else:
            budget = Budget.like(channels, goal, [arm.removeprefix("uniform_")], settings.round_to)
            widths = proportional(budget, reference)
            more["rule"] = "all scaled alike"
    return network.identity() | describe(channels, reference, widths) | more


def profile(channels: Channels, reference: Widths, goal: Widths, round_to: int) -> tuple[Widths, float, float]:
    """The reference scaled by a factor times a ratio to the power of the stage, to the parameters and MACs of the goal.

    Both numbers are solved for before rounding, which then exceeds neither cost, as with derived widths. Rounding moves
    narrow layers far, so of the numbers near to the solution those are taken that leave least of both costs unspent.

    Returns:
        Widths, factor, ratio.
    """
    budget = Budget.like(channels, goal, ("macs", "parameters"), round_to)
    costs = budget.costs
    usual = np.array([reference[group] for group in costs.groups], float)
    stage = stages(channels)
    power = np.array([stage[group] for group in costs.groups], float)
    macs, parameters, _ = budget.caps

    def target(factor: float, ratio: float) -> np.ndarray:
        return np.maximum(factor * ratio**power * usual, budget.least)

    def factor_of(ratio: float) -> float:
        """The factor at which this ratio has the goal's MACs."""
        return largest(lambda factor: costs(target(factor, ratio))[0] <= macs)

    low, high = RATIOS
    while high / low > 1 + 1e-6:  # parameters sit late, so that they grow with the ratio
        ratio = float(np.sqrt(low * high))
        low, high = (ratio, high) if costs(target(factor_of(ratio), ratio))[1] <= parameters else (low, ratio)
    solved = factor_of(low), low
    near = itertools.product(solved[0] * FACTORS_TRIED, solved[1] * RATIOS_TRIED)
    found = []
    for factor, ratio in [solved, *near]:
        widths = rounded(budget, target(factor, ratio))
        spent = costs(np.array([widths[group] for group in costs.groups], float))
        left = max(1 - spent[0] / macs, 1 - spent[1] / parameters)
        found.append((not (spent <= budget.caps).all(), round(left, 9), widths, float(factor), float(ratio)))
    return min(found, key=lambda one: one[:2])[2:]


def stages(channels: Channels) -> dict[str, int]:
    """Stage of every group, from 0: how many halvings of the resolution lie before the coarsest layer that writes it.

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


def permuted(shown: GroupSpectra) -> tuple[GroupSpectra, dict[str, str]]:
    """The spectra, each given to another group in a random cycle (always the same), stretched to its width.

    So a group gets the share of its width that another's spectrum uses. Also says whose spectrum each group has.
    """
    groups = list(shown.groups)
    order = np.random.default_rng(0).permutation(len(groups))
    origin = {groups[here]: groups[there] for here, there in zip(order, np.roll(order, 1), strict=True)}
    width = {group: len(next(iter(seeds.values()))[0]) for group, seeds in shown.groups.items()}
    given = {
        group: {
            seed: [stretched(values, width[group]) for values in taps] for seed, taps in shown.groups[other].items()
        }
        for group, other in ((group, origin[group]) for group in groups)
    }
    return GroupSpectra(given, {}), origin


def stretched(values: np.ndarray, width: int) -> np.ndarray:
    """A spectrum over another number of channels, (width,), with the same share of the trace by share of width."""
    held = np.concatenate([[0.0], np.cumsum(np.sort(values)[::-1])])
    return np.diff(np.interp(np.linspace(0, 1, width + 1), np.linspace(0, 1, len(held)), held))
