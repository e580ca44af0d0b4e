"""Say what widths were found and what is to be read of them, in sentences that are computed from the tables.

A rounded number never lies on the other side of what it is compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from eigendet.errors import some
from eigendet.networks.widths_file import ChosenWidths
from eigendet.report.accuracy import COSTS, COSTS_OF_CONTROLS
from eigendet.report.wording import counted, foremost, share, told_apart


def on_widths(derived: ChosenWidths) -> str:
    """Say which layers the spectra find too wide, and which too narrow."""
    change = {group: derived.widths[group] / width for group, width in derived.reference.items()}
    narrow = sorted((group for group, factor in change.items() if factor <= 0.5), key=change.__getitem__)
    wide = sorted((group for group, factor in change.items() if factor > 1), key=change.__getitem__, reverse=True)
    listed = [
        foremost([_factor(group, change) for group in groups], [change[group] for group in groups], extreme, "()")
        for groups, extreme in ((narrow, "least of all"), (wide, "most of all"))
    ]
    ends = derived.undetermined or {}
    unsure = [group for group in narrow if group in ends and 2 * ends[group][1] > derived.reference[group]]
    unsure += [group for group in wide if group in ends and ends[group][0] <= derived.reference[group]]
    doubt = f" More images might take {len(unsure)} of these to the other side." if unsure else ""
    whose = "detector" if derived.detector else "backbone"
    return (
        f"At {share(derived.macs.share)} of the {whose}'s operations and {share(derived.parameters.share)} of its "
        f"parameters the spectra of {derived.arm} give {len(narrow)} of {counted(len(change), 'channel group')} half "
        f"their width or less{listed[0]}, and {len(wide)} more than they had{listed[1]}.{doubt}"
    )


def _factor(group: str, change: dict[str, float]) -> str:
    return f"{group} ×{told_apart(change[group], 1, digits=2)[0]}"


def on_steps(chosen: ChosenWidths) -> str:
    """Say where the network asks for coarser multiples than `round_to`.

    >>> from eigendet.networks.widths_file import Cost
    >>> cost = Cost(100, 90)
    >>> on_steps(ChosenWidths(widths={"a": 8}, reference={"a": 8}, rule="dof", multiples={"a": 8}, parameters=cost,
    ...                       macs=cost, settings={"round_to": 4}))
    'widths.round_to is 4; what divides widths in the network (GroupNorm, groups) asks for 8 in every group.'
    """
    if not chosen.coarser or chosen.settings is None:
        return ""
    groups: dict[int, list[str]] = {}
    for group, step in chosen.coarser.items():
        groups.setdefault(step, []).append(group)
    every = len(groups) == 1 and len(chosen.coarser) == len(chosen.widths)
    asked = [f"{step} in {'every group' if every else some(own)}" for step, own in sorted(groups.items())]
    return (
        f"widths.round_to is {chosen.settings['round_to']}; what divides widths in the network (GroupNorm, "
        f"groups) asks for {' and '.join(asked)}."
    )


def on_intervals(derived: ChosenWidths, parts: int) -> str:
    """Say which widths more images might change, and what an interval claims or why there is none.

    Args:
        derived: the widths.
        parts: of the images, each of which was left out in turn.
    """
    sentences = []
    if derived.undetermined:
        ends = [f"{group} might have {low} to {high}" for group, (low, high) in derived.undetermined.items()]
        sentences.append(
            f"With ever more images like the probe images {len(ends)} of {counted(len(derived.widths), 'width')} might "
            f"be another: {some(ends, 6)} (95 % intervals)."
        )
    elif derived.undetermined is not None:
        sentences.append("Every 95 % interval of a width rounds at both ends to what these images give.")
    if derived.lacking_intervals:
        sentences.append(derived.lacking_intervals)
    if derived.dimension_intervals:
        sentences.append(
            "An interval is where, with 95 % confidence, the value lies that infinitely many images like the probe "
            f"images would give (the jackknife's, over {parts} parts of them). These few show less, so it may lie "
            "beside what they give; it says nothing of other seeds."
        )
    return " ".join(sentences)


def settled(rounds: Sequence[ChosenWidths]) -> str:
    """Say whether derived widths still move from round to round; nothing for a single round.

    >>> from dataclasses import replace
    >>> from eigendet.networks.widths_file import Cost
    >>> first = ChosenWidths(widths={"conv1": 60}, reference={"conv1": 64}, multiples={"conv1": 8}, rule="dof",
    ...                      parameters=Cost(100, 90), macs=Cost(100, 90))
    >>> settled([first, replace(first, widths={"conv1": 64})])[:56]
    'In the last round no group moved by more than its step: '
    """
    if len(rounds) < 2:
        return ""
    moves = [
        {group: abs(after.widths[group] - before.widths[group]) for group in after.widths}
        for before, after in itertools.pairwise(rounds)
    ]
    shares = [sum(move.values()) / sum(before.widths.values()) for move, before in zip(moves, rounds, strict=False)]
    course = ", ".join(f"{told_apart(100 * moved, 0, digits=1)[0]} %" for moved in shares)
    course = f" Share of all channels that moved, round by round: {course}."
    last, steps = moves[-1], rounds[-1].multiples or dict.fromkeys(moves[-1], 1)
    changed = sum(change > 0 for change in last.values())
    if not changed:
        return f"In the last round no width changed.{course}"
    farthest = max(last, key=lambda group: last[group] / steps[group])
    still = last[farthest] <= steps[farthest]
    return (
        f"In the last round {'no group moved by more than its step' if still else 'widths still moved'}: {changed} of "
        f"{counted(len(last), 'group')} changed, the farthest in steps, {farthest}, by "
        f"{counted(last[farthest], 'channel')} (its steps are of {steps[farthest]}).{course}"
    )


def on_budget(chosen: ChosenWidths) -> str:
    """Say what widths use of the caps that they were rounded under.

    >>> from eigendet.networks.widths_file import Cost
    >>> cost = Cost(100, 90)
    >>> on_budget(ChosenWidths(widths={}, reference={}, rule="dof", parameters=cost, macs=cost, used={"macs": 0.9912}))
    'They use 0.991 of the cap on MACs.'
    """
    if not chosen.used:
        return ""
    return (
        "They use "
        + " and ".join(f"{share(of, 3)} of the cap on {COSTS[cost]}" for cost, of in chosen.used.items())
        + "."
    )


def on_controls(files: Mapping[str, ChosenWidths], derived: ChosenWidths) -> str:
    """Say how near the controls come to the costs of the derived widths that they are made for.

    >>> from eigendet.networks.widths_file import Cost
    >>> def widths(macs: int) -> ChosenWidths:
    ...     cost = Cost(1000, macs)
    ...     return ChosenWidths(widths={}, reference={}, parameters=cost, macs=cost, rule="")
    >>> on_controls({"derived": widths(800), "uniform_macs": widths(700)}, widths(800))
    'Of what derived widths cost, uniform_macs has 0.875 of the MACs.'
    """
    parts = []
    for arm, costs in COSTS_OF_CONTROLS.items():
        if arm in files:
            shares = {cost: getattr(files[arm], cost).result / getattr(derived, cost).result for cost in costs}
            parts.append(
                f"{arm} has " + " and ".join(f"{share(of, 3)} of the {COSTS[cost]}" for cost, of in shares.items())
            )
    return f"Of what derived widths cost, {'; '.join(parts)}." if parts else ""


def on_runs(runs: pd.DataFrame) -> str:
    """Say how many arms there are, and with how many seeds.

    >>> on_runs(pd.DataFrame({"backbone": "b", "detector": "d", "arm": ["scratch", "scratch"], "seed": [0, 3]}))
    '1 arm of 1 network, with 2 seeds (0, 3)'
    """
    seeds = [tuple(sorted(of_arm)) for _, of_arm in runs.groupby(["backbone", "detector", "arm"])["seed"]]
    networks = runs.groupby(["backbone", "detector"]).ngroups
    text = f"{counted(len(seeds), 'arm')} of {counted(networks, 'network')}, {'each ' if len(seeds) > 1 else ''}with "
    if len(set(seeds)) == 1:
        return f"{text}{counted(len(seeds[0]), 'seed')} ({', '.join(map(str, seeds[0]))})"
    fewest, most = min(map(len, seeds)), max(map(len, seeds))
    if fewest == most:
        return f"{text}{counted(most, 'seed')}, not the same in all"
    return f"{text}{fewest} to {counted(most, 'seed')}, not the same in all"
