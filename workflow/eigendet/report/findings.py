"""Say what holds and what does not, in sentences that are computed from the tables.

No sentence claims what the numbers beside it do not show: a layer without a test is named as such and counts in no
share; what is not shown to differ is not called equal; single layers are called different only where all layers
together are; and a rounded number never lies on the other side of what it is compared with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eigendet.errors import some
from eigendet.networks.widths_file import ChosenWidths
from eigendet.report.accuracy import COSTS, COSTS_OF_CONTROLS
from eigendet.report.layers import layer_names
from eigendet.report.wording import LEVEL, NAMED, as_p, counted, foremost, share, told_apart, verdict
from eigendet.spectra.tables import TAP

EQUAL = 1e-9  # relative difference of two numbers that differ by rounding alone
NOTHING_TO_COMPARE = "There are no two arms whose spectra can be compared."


def on_spectra(tests: pd.DataFrame) -> list[str]:
    """Say whether two arms become the same network, from the tests of their spectra at the last snapshot."""
    if tests.empty:
        return [NOTHING_TO_COMPARE]
    last = tests[tests["snapshot"] == tests["snapshot"].max()]
    pairs = _tested_pairs(last[last["measure"] == "jensen_shannon"])
    sentences = []
    for (arm, other), of_pair in last.groupby(["arm", "other_arm"], sort=False):
        distances = of_pair[of_pair["measure"] == "jensen_shannon"]
        compared = distances.dropna(subset="between")
        if compared.empty:
            sentences.append(f"No layer has a spectrum in every run of {arm} and {other}, so they are not compared.")
            continue
        sentences.append(_difference(f"{arm} and {other}", compared, pairs) + _left_out(distances))
        ranks = of_pair[of_pair["measure"] == "effective_rank"].merge(compared[TAP], on=TAP)
        sentences += _ranks(arm, other, ranks, is_shown=_is_shown(compared))
        sentences += _spreads(arm, other, compared)
    return sentences


def _is_shown(distances: pd.DataFrame) -> bool:
    """Return whether the test of all layers together finds that two arms differ."""
    return bool(distances["overall"].iloc[0] <= LEVEL)


def _left_out(distances: pd.DataFrame) -> str:
    absent = distances[distances["between"].isna()]
    if absent.empty:
        return ""
    return f" Left out: {some(layer_names(absent), NAMED)}, without a spectrum in some run."


def _difference(arms: str, table: pd.DataFrame, pairs: int) -> str:
    """Say how far apart the spectra of two arms are, and in which layers by more than those of seeds."""
    smallest, overall = table["smallest"].iloc[0], table["overall"].iloc[0]
    if not (table["between"] > 0).any():
        return f"The normalized spectra of {arms} are equal in every run, in {_of_layers(table)}."
    if math.isnan(smallest):
        return (
            f"The spectra of {arms} end up {table['between'].median():.3g} apart in the median layer (Jensen-Shannon "
            "distance, 0 to 1). There is no test, which takes two seeds of each arm: another seed might have changed "
            "as much."
        )
    found = verdict(
        overall, smallest, "the arms differ by more than their seeds", "that the arms differ is not shown", pairs
    )
    text = (
        f"At the last snapshot the spectra of {arms} {_times_as_far(table)}, and are farther apart than these in "
        f"{int((table['between'] > table['within']).sum())} of {_of_layers(table)}: {found}"
    )
    return f"{text}{_single_layers(table) if _is_shown(table) else ''}."


def _times_as_far(table: pd.DataFrame) -> str:
    """Compare the distance of arms with that of seeds, which may be zero."""
    apart = table[(table["between"] > 0) | (table["within"] > 0)]  # not where all runs are equal
    with np.errstate(divide="ignore"):
        ratios = apart["between"].to_numpy(float) / apart["within"].to_numpy(float)
    ratio = float(np.quantile(ratios, 0.5, method="lower"))  # infinite only where it is in more than half of them
    if math.isinf(ratio):
        return "differ (median over layers) and those of two seeds of one arm do not"
    times = f"{ratio:,.1f}" if ratio >= 1 else f"{ratio:.2g}"
    return f"lie {times} times as far apart as those of two seeds of one arm (median over layers)"


def _single_layers(table: pd.DataFrame) -> str:
    """Say which layers differ on their own; asked only where all together do."""
    sure = table[table["corrected"] <= LEVEL].sort_values("statistic", ascending=False, kind="stable")
    corrected = f". Corrected for {_of_layers(table)}, "
    if sure.empty:
        return corrected + "none differs on its own"
    one = len(sure) == 1
    differ = f"{len(sure)} differ{'s' if one else ''} on {'its' if one else 'their'} own"
    return f"{corrected}{differ}{foremost(layer_names(sure), sure['statistic'].tolist(), 'most of all')}"


def _ranks(arm: str, other: str, ranks: pd.DataFrame, is_shown: bool) -> list[str]:
    """Say where one arm uses more of its width than the other; nothing where no layer has a rank in every run."""
    ranks = ranks[(ranks["mean"] > 0) & (ranks["other_mean"] > 0)]
    if ranks.empty:
        return []
    change = np.log(ranks["mean"].to_numpy(float) / ranks["other_mean"].to_numpy(float))
    more, less = int((change > EQUAL).sum()), int((change < -EQUAL).sum())
    if not more and not less:
        return [f"The effective rank is the same in {arm} and in {other}, in {_of_layers(ranks)}."]
    farthest = int(np.abs(change).argmax())
    alike = int((np.abs(change) >= np.abs(change).max() - EQUAL).sum()) - 1
    own, others = told_apart(ranks["mean"].iloc[farthest], ranks["other_mean"].iloc[farthest], digits=1)
    as_far = f" (and as far in {alike} more)" if alike else ""
    equal = f", equal in {len(ranks) - more - less}" if more + less < len(ranks) else ""
    test = ranks["overall"].iloc[0] if is_shown else math.nan
    shown = (
        f"by more than seeds differ (p = {as_p(test)})" if test <= LEVEL else "not shown to be more than between seeds"
    )
    return [
        f"The effective rank, mean over seeds, is larger in {arm} in {more} and in {other} in {less} of "
        f"{_of_layers(ranks)}{equal}; the ratio is farthest from 1 in {layer_names(ranks)[farthest]}{as_far}: {own} in "
        f"{arm}, {others} in {other}. Over all layers this is {shown}."
    ]


def _spreads(arm: str, other: str, table: pd.DataFrame) -> list[str]:
    """Say whose seeds lie farther apart, where that is shown."""
    dispersion = table["dispersion"].iloc[0]
    if not dispersion <= LEVEL:
        return []
    wider = int((table["spread"] > table["other_spread"]).sum())
    return [
        f"The seeds of {arm} and of {other} do not scatter alike (p = {as_p(dispersion)}): those of {arm} lie farther "
        f"apart in {wider} of {_of_layers(table)}."
    ]


def _tested_pairs(tests: pd.DataFrame) -> int:
    """Return for how many pairs of arms all tests are corrected."""
    return int(tests[pd.to_numeric(tests["overall"]).notna()].groupby(["arm", "other_arm"]).ngroups)


def _of_layers(table: pd.DataFrame) -> str:
    return counted(len(table), "layer")


def on_tests(tests: pd.DataFrame) -> list[str]:
    """Say how the table of single layers is to be read: what p-values there can be, and where they count.

    Args:
        tests: a row for each layer and pair of arms, as `views.tested` returns them.
    """
    sentences = []
    for (arm, other), rows in tests.groupby(["arm", "other_arm"], sort=False):
        smallest, overall = (pd.to_numeric(rows[name]).iloc[0] for name in ("smallest", "overall"))
        if math.isnan(smallest):
            sentences.append(f"{arm} and {other}: no test, which takes two seeds of each arm.")
        elif math.isnan(overall):
            sentences.append(f"{arm} and {other}: no test, since no layer has a spectrum in every run.")
        else:
            closed = "" if overall <= LEVEL else "; so no single layer is called different"
            paired = ", runs paired by their seeds" if bool(rows["paired"].iloc[0]) else ""
            sentences.append(
                f"{arm} and {other}{paired}: no corrected p-value can be smaller than {as_p(smallest)}; over all "
                f"layers p = {as_p(overall)}{closed}."
            )
    tested = _tested_pairs(tests)
    if tested > 1:
        sentences.insert(0, f"All but the p of each layer alone are corrected for {tested} pairs of arms too.")
    if pd.to_numeric(tests["p"]).isna().any():
        sentences.append("Layers without a p were not tested.")
    return sentences


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
