"""How sure dimensions and widths are: 95 % intervals from leaving out one part of the probe images at a time.

An interval is where, with 95 % confidence, the value lies that infinitely many images like the probe images would give.
It says nothing of other seeds. How often that is true was measured: `make benchmark NAME=intervals`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.special

from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import WidthSettings
from eigendet.errors import some
from eigendet.networks.widths_file import Interval
from eigendet.widths.allocation import Budget, targets
from eigendet.widths.dimensions import group_spectra
from eigendet.widths.rounding import nearest

CONFIDENCE = 0.95
MOST_CHANNELS = 8.0  # to an effective sample: beyond, coverage was not measured
JUMPS = "and what jumps from one number to the next has no interval that the jackknife gets right."
TOO_FEW = (
    "No intervals for {groups}: these have more than {most:g} channels for each effective sample, so more images are "
    "needed; nor for any width, since all share one budget."
)
OTHERS = (
    "No intervals of widths: they are worked out for widths in proportion to dimensions, and {allocator} allocation "
    "gives others."
)

logger = logging.getLogger(__name__)


class Intervals(NamedTuple):
    """Of dimensions and of widths before rounding, the groups whose width they leave open, and why some are lacking."""

    dimensions: dict[str, Interval] | None = None
    widths: dict[str, Interval] | None = None
    undetermined: dict[str, tuple[int, int]] | None = None
    lacking: str | None = None


def is_complete(left_out: pd.DataFrame, spectra: pd.DataFrame) -> bool:
    """Return whether a jackknife table leaves out each of several parts in every seed."""
    seeds = left_out.groupby("left_out")["seed"].nunique()
    if len(seeds) > 1 and (seeds == spectra["seed"].nunique()).all():
        return True
    if not left_out.empty:
        logger.warning("no intervals: the seeds have different parts of the images left out, or one alone")
    return False


def intervals(
    left_out: pd.DataFrame,
    channels: Channels,
    reference: Widths,
    budget: Budget,
    settings: WidthSettings,
    dimension: Mapping[str, float],
    target: Mapping[str, float],
    widths: Widths,
) -> Intervals:
    """Return intervals of dimensions and of widths before rounding, and the groups whose width they leave open.

    There are none of what jumps from one whole number to another: of a rule that counts, and of widths by the marginal
    allocation; none of widths by any allocator but `proportional`; none of a group with too few images, or whose maps
    do not vary without one of the parts; and none of widths where a group that varies has none, since all share one
    budget. A width is left open where an end of its interval, which may lie beside it, rounds to another multiple.

    Args:
        left_out: the table of the jackknife.
        channels: the network's groups.
        reference: the widths of the network whose spectra they are.
        budget: as for the widths themselves.
        settings: likewise.
        dimension: of every group, from all images.
        target: the width of every group before rounding, from all images.
        widths: those that were chosen, which may be beside the nearest multiple, so that no cap is exceeded.
    """
    parts = [group_spectra(rest, channels, settings) for _, rest in left_out.groupby("left_out")]
    of_seeds = [part.dimensions_of_seeds(settings) for part in parts]
    if all(value.is_integer() for groups in of_seeds for seeds in groups.values() for value in seeds):
        return Intervals(lacking=f"No intervals: {settings.rule.plugin} gives whole numbers alone, {JUMPS}")
    without = {group: [float(np.mean(groups[group])) for groups in of_seeds] for group in dimension}
    varying = {group: rest for group, rest in without.items() if min(dimension[group], *rest) > 0}
    shortage = channels_per_sample(left_out, channels)
    few = [group for group in varying if not shortage[group] <= MOST_CHANNELS]
    enough = {group: rest for group, rest in varying.items() if group not in few}
    of_dimension = dimension_intervals(dimension, enough, shortage, reference)
    if few:
        return Intervals(of_dimension, lacking=TOO_FEW.format(groups=some(few), most=MOST_CHANNELS))
    if settings.allocation.plugin == "marginal":
        return Intervals(of_dimension, lacking=f"No intervals of widths: marginal allocation has steps, {JUMPS}")
    if settings.allocation.plugin != "proportional":
        return Intervals(of_dimension, lacking=OTHERS.format(allocator=settings.allocation.plugin))
    of_width = width_intervals(dimension, without, target, shortage, budget)
    return Intervals(of_dimension, of_width, _left_open(of_width, widths, budget))


def dimension_intervals(
    dimension: Mapping[str, float],
    without: Mapping[str, Sequence[float]],
    shortage: Mapping[str, float],
    widths: Mapping[str, int],
) -> dict[str, Interval]:
    """Return the interval of the dimension of every group in `without`.

    Args:
        dimension: from all images.
        without: the same without each part of the images in turn; all positive.
        shortage: channels for each effective sample.
        widths: channels, which no dimension exceeds.
    """
    return {
        group: _within(
            jackknife_interval(dimension[group], rest, shortage[group] * abs(bias(dimension[group], rest))),
            0,
            widths[group],
        )
        for group, rest in without.items()
    }


def width_intervals(
    dimension: Mapping[str, float],
    without: Mapping[str, Sequence[float]],
    target: Mapping[str, float],
    shortage: Mapping[str, float],
    budget: Budget,
) -> dict[str, Interval]:
    """Return the interval of every width before rounding, `target` from all images, as `dimension_intervals` does.

    What is left of the bias may move a width as far as it does if it is in the dimensions of all groups at once. What
    they have in common moves none, since the budget multiplies all by one factor.
    """
    parts = [dict(zip(without, rest, strict=True)) for rest in zip(*without.values(), strict=True)]
    spent = [targets(budget, rest) for rest in parts]
    left = {
        group: shortage[group] * bias(dimension[group], rest)
        for group, rest in without.items()
        if min(dimension[group], *rest) > 0
    }
    moved = targets(budget, {group: dimension[group] * math.exp(-left.get(group, 0.0)) for group in without})
    of_width = {}
    for place, group in enumerate(budget.costs.groups):
        as_far = math.log(moved[place] / target[group])
        interval = jackknife_interval(target[group], [float(rest[place]) for rest in spent], as_far)
        of_width[group] = _within(interval, budget.least[place], budget.most[place])
    return of_width


def _within(interval: Interval, least: float, most: float) -> Interval:
    low, high = np.clip(interval, least, most).tolist()
    return low, high


def _left_open(of_width: Mapping[str, Interval], widths: Widths, budget: Budget) -> dict[str, tuple[int, int]]:
    """Return the least and the most of widths and of what the ends of their intervals round to, where these differ."""
    left_open = {}
    ends = np.array([nearest(budget, end) for end in np.array([of_width[group] for group in budget.costs.groups]).T])
    for group, own in zip(budget.costs.groups, ends.T, strict=True):
        possible = {widths[group], *own}
        if len(possible) > 1:
            left_open[group] = int(min(possible)), int(max(possible))
    return left_open


def channels_per_sample(spectra: pd.DataFrame, channels: Channels) -> dict[str, float]:
    """Return how many channels every group has for each effective sample: the most of its maps, nan where not known."""
    maps = spectra[spectra["index"] == 0]
    group = [
        channels.outputs.get((str(module), int(call)))
        for module, call in zip(maps["module"], maps["call"], strict=True)
    ]
    most = (maps["channels"] / maps["effective_samples"]).groupby(np.array(group, object)).max()
    return {group: float(most.get(group, math.nan)) for group in channels.widths}


def bias(estimate: float, without: Sequence[float]) -> float:
    """Return the bias of the logarithm of an estimate of so many images: (K - 1) (mean of log θ₍ₖ₎ - log θ).

    Args:
        estimate: θ, from all images.
        without: θ₍ₖ₎, the same without each of K parts of the images in turn; all positive.

    >>> round(bias(90.0, [80.0, 80.0]), 3), round(bias(90.0, [80.0] * 8), 3)  # of a half less, and of an eighth
    (-0.118, -0.824)
    """
    return (len(without) - 1) * float(np.mean(np.log(np.array(without) / estimate)))


def jackknife_interval(estimate: float, without: Sequence[float], left: float = 0.0) -> Interval:
    """Return where, with 95 % confidence, the value lies that infinitely many images like these would give.

    Few images show too few dimensions. The jackknife takes this bias away where it falls with the number of images
    (Quenouille 1956), and its standard error √((K - 1) / K · Σ (θ₍ₖ₎ - mean)²) is taken times Student's t of K - 1
    degrees of freedom (Tukey 1958), all of logarithms. So the interval may lie beside the estimate. What falls with the
    square of the number of images is `left` in it. For C eigenvalues of n samples it is about C/n of the bias, as the
    expansion of random matrices is one in C/n; by this the interval is widened.

    Args:
        estimate: from all images.
        without: the same without each of K parts of the images in turn, θ₍ₖ₎; all positive.
        left: how far off the corrected logarithm may be.

    >>> jackknife_interval(5.0, [5.0, 5.0, 5.0])
    (5.0, 5.0)
    >>> low, high = jackknife_interval(5.0, [4.8, 4.9, 5.0])
    >>> round(low, 2), round(high, 2)
    (4.71, 5.76)
    """
    parts = len(without)
    error = math.sqrt((parts - 1) * float(np.var(np.log(np.array(without) / estimate))))
    half = math.hypot(float(scipy.special.stdtrit(parts - 1, (1 + CONFIDENCE) / 2)) * error, left)  # of Student's t
    less = bias(estimate, without)
    return estimate * math.exp(-less - half), estimate * math.exp(-less + half)
