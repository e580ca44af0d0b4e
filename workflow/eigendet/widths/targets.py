"""The target widths that an allocator gives, checked and within the budget."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError, kind, some, unknown
from eigendet.plugins.discovery import Plugin
from eigendet.widths.allocation import Budget
from eigendet.widths.dimensions import GroupSpectra
from eigendet.widths.views import GroupView, Seen, group_views


def allocator_targets(
    budget: Budget,
    channels: Channels,
    reference: Widths,
    spectra: GroupSpectra,
    settings: WidthSettings,
    seen: Seen | None = None,
) -> np.ndarray:
    """Return the target widths that the allocator of the settings gives, scaled down to the budget, (groups,).

    Args:
        budget: what widths may cost.
        channels: the network's groups.
        reference: the reference's width of each.
        spectra: of each.
        settings: name allocator and rule.
        seen: what the allocator needs beside eigenvalues.

    Raises:
        UserError: the allocator fails, or gives something else than a width for each group.
    """
    return targets_of(group_views(budget, channels, reference, spectra, settings, seen), budget, settings)


def targets_of(groups: Sequence[GroupView], budget: Budget, settings: WidthSettings) -> np.ndarray:
    """Return the target widths that the allocator of the settings gives to groups, as `allocator_targets` does."""
    allocate = plugins.bind("allocator", settings.allocation, "widths.allocation")
    result = allocate(list(groups), budget)
    plugin = plugins.find("allocator", settings.allocation.plugin)
    return budget.fitted(checked_targets(result, budget.costs.groups, plugin))


def checked_targets(result: Any, groups: tuple[str, ...], plugin: Plugin) -> np.ndarray:
    """Return what an allocator gave as an array in the order of the groups, (groups,).

    Raises:
        UserError: it is not a mapping of all groups, and no others, to finite numbers of which none is negative.
    """
    if not isinstance(result, Mapping):
        raise UserError(f"{plugin}: gives {kind(result)}; expected a dict with a width for each group.")
    for group, width in result.items():
        if group not in groups:
            raise UserError(f"{plugin}: gives a width of what is not there: {unknown('channel group', group, groups)}")
        is_number = isinstance(width, Real) and not isinstance(width, bool)
        if not is_number or not 0 <= width <= sys.float_info.max:
            said = f"gives {reprlib.repr(width)} for the channel group '{group}'"
            raise UserError(f"{plugin}: {said}; expected a finite width, 0 or more.")
    missing = [group for group in groups if group not in result]
    if missing:
        raise UserError(f"{plugin}: gives no width for the channel groups {some(missing)}; every group needs one.")
    return np.array([float(result[group]) for group in groups])
