"""Say what holds and what does not, in sentences that are computed from the tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from eigendet.errors import some
from eigendet.networks.widths_file import ChosenWidths
from eigendet.spectra import significance

LEVEL = 0.05
NAMED = 3  # layers in a sentence


def on_accuracy(runs: pd.DataFrame) -> str:
    """Say whether the fine-tuned detector and the one from scratch differ in average precision.

    >>> on_accuracy(pd.DataFrame({"arm": ["finetune", "scratch"], "AP": [0.4, 0.3]}))[:59]
    'Average precision is 40.0 fine-tuned and 30.0 from scratch,'
    """
    started = {"finetune": "fine-tuned", "scratch": "from scratch"}
    scores = {arm: 100 * runs.loc[runs["arm"] == arm, "AP"].astype(float) for arm in started}
    if any(values.empty for values in scores.values()):
        return ""
    means = " and ".join(f"{values.mean():.1f} {started[arm]}" for arm, values in scores.items())
    if min(map(len, scores.values())) < 2:
        return f"Average precision is {means}, one seed an arm: nothing says how much other seeds would differ."
    both = runs[runs["arm"].isin(list(started))]
    test = significance.differences(both["AP"].to_numpy(float)[None], list(both["arm"]))
    return f"Average precision is {means}: {_verdict(test.overall, test.smallest, 'a difference', 'no difference')}."


def on_spectra(tests: pd.DataFrame) -> list[str]:
    """Say whether two arms become the same network, from the tests of their spectra at the last snapshot."""
    if tests.empty:
        return ["Only one arm was observed, so there is nothing to compare its spectra with."]
    last = tests[tests["snapshot"] == tests["snapshot"].max()]
    sentences = []
    for (arm, other), of_pair in last.groupby(["arm", "other_arm"], sort=False):
        distances = of_pair[of_pair["measure"] == "jensen_shannon"].dropna(subset="between")
        ranks = of_pair[of_pair["measure"] == "effective_rank"].dropna(subset=["mean", "other_mean"])
        if not distances.empty:
            sentences.append(_difference(f"{arm} and {other}", distances))
        if not distances.empty and not ranks.empty:
            sentences.append(_ranks(arm, other, ranks))
    return sentences


def _difference(arms: str, table: pd.DataFrame) -> str:
    """Say how far apart the spectra of two arms are, and in which layers by more than those of seeds."""
    smallest, overall = table["smallest"].iloc[0], table["overall"].iloc[0]
    if math.isnan(smallest):
        between = table["between"].median()
        return (
            f"The spectra of {arms} end up {between:.3f} apart in the median layer (Jensen-Shannon distance, 0 to 1). "
            "With one seed an arm no spread can be given, so another seed might have changed as much."
        )
    ratio = (table["between"] / table["within"].clip(lower=1e-12)).median()
    farther = int((table["between"] > table["within"]).sum())
    text = (
        f"At the last snapshot the spectra of {arms} lie {ratio:.1f} times as far apart as those of two seeds of one "
        f"arm (median over layers), and farther than these in {farther} of {len(table)} layers: "
        + _verdict(overall, smallest, "the arms differ by more than their seeds", "that the arms differ is not shown")
    )  # fmt: skip
    sure = table[table["corrected"] <= LEVEL].sort_values("statistic", ascending=False)
    if len(sure):
        names = some(_layers(sure)[:NAMED])
        text += f". Corrected for {len(table)} layers, {len(sure)} differ on their own, most of all {names}"
    elif smallest <= LEVEL:
        text += f". Corrected for {len(table)} layers, none differs on its own"
    return text + "."


def _ranks(arm: str, other: str, ranks: pd.DataFrame) -> str:
    """Say where one arm uses more of its width than the other."""
    change = ranks["mean"].to_numpy() / ranks["other_mean"].clip(lower=1e-12).to_numpy()
    more, less = int((change > 1).sum()), int((change < 1).sum())
    farthest = len(ranks) - 1
    if (change > 0).all():
        distances = [abs(math.log(factor)) for factor in change]
        farthest = distances.index(max(distances))
    return (
        f"The effective rank is larger in {arm} in {more} layers and in {other} in {less}, of {len(ranks)}; they are "
        f"farthest apart in {_layers(ranks)[farthest]}: {ranks['mean'].iloc[farthest]:.1f} in {arm}, "
        f"{ranks['other_mean'].iloc[farthest]:.1f} in {other}."
    )


def on_widths(derived: ChosenWidths) -> str:
    """Say which layers the spectra find too wide, and which too narrow."""
    change = {group: derived.widths[group] / width for group, width in derived.reference.items()}
    narrow = sorted((group for group, factor in change.items() if factor <= 0.5), key=change.__getitem__)
    wide = sorted((group for group, factor in change.items() if factor > 1), key=change.__getitem__, reverse=True)
    least = f" (least of all {_factors(narrow, change)})" if narrow else ""
    most = f" (most of all {_factors(wide, change)})" if wide else ""
    return (
        f"At {derived.macs.share:.2f} of the operations and {derived.parameters.share:.2f} of the parameters the "
        f"spectra of {derived.arm} give {len(narrow)} of {len(change)} channel groups half their width or less{least}, "
        f"and {len(wide)} more than they had{most}."
    )


def settled(rounds: Sequence[ChosenWidths]) -> str:
    """Say whether derived widths still move from round to round; nothing for a single round.

    >>> from dataclasses import replace
    >>> from eigendet.networks.widths_file import Cost
    >>> first = ChosenWidths(widths={"conv1": 60}, reference={"conv1": 64}, multiples={"conv1": 8}, rule="dof",
    ...                      parameters=Cost(100, 90), macs=Cost(100, 90))
    >>> settled([first, replace(first, widths={"conv1": 64})])[:70]
    'The widths have settled: in the last round 1 of 1 groups changed, the '
    """
    if len(rounds) < 2:
        return ""
    changes: list[dict[str, int]] = []
    shares = []
    for before, after in itertools.pairwise(chosen.widths for chosen in rounds):
        changes.append({group: abs(after[group] - before[group]) for group in after})
        shares.append(sum(changes[-1].values()) / sum(before.values()))
    last, steps = changes[-1], rounds[-1].multiples or {}
    farthest = max(last, key=last.__getitem__)
    still = all(change <= steps[group] for group, change in last.items())
    changed = [group for group, change in last.items() if change > 0]
    course = ", ".join(f"{100 * share:.1f} %" for share in shares)
    return (
        f"The widths have {'settled' if still else 'not settled'}: in the last round {len(changed)} of {len(last)} "
        f"groups changed, the farthest, {farthest}, by {last[farthest]} channels (its steps are of {steps[farthest]}). "
        f"Share of all channels that moved, round by round: {course}."
    )


def _verdict(p: float, smallest: float, different: str, not_different: str) -> str:
    if smallest > LEVEL:
        return (
            f"with so few seeds no difference can be established (p = {p:.2g}; the smallest that they allow is "
            f"{smallest:.2g}, and {LEVEL} is asked)"
        )
    return f"{different} (permutation test over runs, p = {p:.2g})" if p <= LEVEL else f"{not_different} (p = {p:.2g})"


def _layers(table: pd.DataFrame) -> list[str]:
    """Return the module of each row's layer, with the number of its call from the second on."""
    calls = zip(table["module"], table["call"], strict=True)
    return [f"{module}#{call}" if call else str(module) for module, call in calls]


def _factors(groups: Sequence[str], change: dict[str, float]) -> str:
    return ", ".join(f"{group} ×{change[group]:.2f}" for group in groups[:NAMED])
