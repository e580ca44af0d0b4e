"""What holds and what does not, in sentences that are computed from the tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from eigendet.errors import some
from eigendet.spectra import significance

LEVEL = 0.05
NAMED = 3  # layers in a sentence


def accuracy(runs: pd.DataFrame) -> str:
    """Whether the fine-tuned detector and the one from scratch differ in average precision."""
    arms = ("finetune", "scratch")
    scores = {arm: 100 * runs.loc[runs["arm"] == arm, "AP"].astype(float) for arm in arms}
    if any(values.empty for values in scores.values()):
        return ""
    means = " and ".join(f"{values.mean():.1f} {_started(arm)}" for arm, values in scores.items())
    if min(map(len, scores.values())) < 2:
        return f"Average precision is {means}, one seed an arm: nothing says how much other seeds would differ."
    chosen = runs[runs["arm"].isin(arms)]
    test = significance.differences(chosen["AP"].to_numpy(float)[None], list(chosen["arm"]))
    return f"Average precision is {means}: {_verdict(test.overall, test.smallest, 'a difference', 'no difference')}."


def spectra(tables: dict[str, Any]) -> list[str]:
    """Whether two arms become the same network, from their spectra at the last snapshot."""
    found = tables["tests"]
    if found.empty:
        return ["Only one arm was observed, so there is nothing to compare its spectra with."]
    last = found[found["snapshot"] == found["snapshot"].max()]
    sentences = []
    for (arm, other), pair in last.groupby(["arm", "other_arm"], sort=False):
        spectra = pair[pair["measure"] == "jensen_shannon"].dropna(subset="between")
        if spectra.empty:
            continue
        sentences.append(_difference(f"{arm} and {other}", spectra))
        sentences += _ranks(str(arm), str(other), pair)
    return sentences


def _difference(arms: str, table: pd.DataFrame) -> str:
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
        names = some([_layer(row) for row in sure.itertuples()][:NAMED])
        text += f". Corrected for {len(table)} layers, {len(sure)} differ on their own, most of all {names}"
    elif smallest <= LEVEL:
        text += f". Corrected for {len(table)} layers, none differs on its own"
    return text + "."


def _ranks(arm: str, other: str, pair: pd.DataFrame) -> list[str]:
    """Where one arm uses more of its width than the other."""
    ranks = pair[pair["measure"] == "effective_rank"].dropna(subset=["mean", "other_mean"])
    if ranks.empty:
        return []
    change = (ranks["mean"] / ranks["other_mean"].clip(lower=1e-12)).to_numpy()
    more, less = int((change > 1).sum()), int((change < 1).sum())
    extreme = ranks.iloc[int(abs(pd.Series(change).map(math.log)).argmax())] if (change > 0).all() else ranks.iloc[-1]
    return [
        f"The effective rank is larger in {arm} in {more} layers and in {other} in {less}, of {len(ranks)}; they are "
        f"farthest apart in {_layer(extreme)}: {extreme['mean']:.1f} in {arm}, {extreme['other_mean']:.1f} in {other}."
    ]


def widths(entry: dict[str, Any]) -> list[str]:
    """Which layers the spectra find too wide, and which too narrow."""
    derived = entry["derived"][-1]
    change = {group: derived["widths"][group] / width for group, width in derived["reference"].items()}
    narrow = sorted((group for group, factor in change.items() if factor <= 0.5), key=change.__getitem__)
    wide = sorted((group for group, factor in change.items() if factor > 1), key=change.__getitem__, reverse=True)
    parameters, macs = (derived[cost]["result"] / derived[cost]["reference"] for cost in ("parameters", "macs"))
    return [
        f"At {macs:.2f} of the operations and {parameters:.2f} of the parameters the spectra of {derived['arm']} give "
        f"{len(narrow)} of {len(change)} channel groups half their width or less"
        + (f" (least of all {_factors(narrow, change)})" if narrow else "")
        + f", and {len(wide)} more than they had" + (f" (most of all {_factors(wide, change)})" if wide else "") + "."
    ]  # fmt: skip


def settled(derived: Sequence[dict[str, Any]]) -> str:
    """Whether widths still move from round to round; nothing for a single round."""
    if len(derived) < 2:
        return ""
    changes = []
    for before, after in itertools.pairwise(entry["widths"] for entry in derived):
        changes.append({group: abs(after[group] - before[group]) for group in after})
    moved = [
        sum(change.values()) / sum(entry["widths"].values()) for change, entry in zip(changes, derived, strict=False)
    ]
    course = ", ".join(f"{100 * share:.1f} %" for share in moved)
    last = changes[-1]
    farthest = max(last, key=last.__getitem__)
    steps = derived[-1]["multiples"]
    still = all(change <= steps[group] for group, change in last.items())
    verdict = "The widths have settled" if still else "The widths have not settled"
    return (
        f"{verdict}: in the last round {sum(map(bool, last.values()))} of {len(last)} groups changed, the farthest, "
        f"{farthest}, by {last[farthest]} channels (its steps are of {steps[farthest]}). "
        f"Share of all channels that moved, round by round: {course}."
    )


def _verdict(p: float, smallest: float, found: str, not_found: str) -> str:
    if smallest > LEVEL:
        return (
            f"with so few seeds no difference can be established (p = {p:.2g}; the smallest that they allow is "
            f"{smallest:.2g}, and {LEVEL} is asked)"
        )
    return f"{found} (permutation test over runs, p = {p:.2g})" if p <= LEVEL else f"{not_found} (p = {p:.2g})"


def _started(arm: str) -> str:
    return {"finetune": "fine-tuned", "scratch": "from scratch"}[arm]


def _layer(row: Any) -> str:
    module, call = (row[name] if isinstance(row, pd.Series) else getattr(row, name) for name in ("module", "call"))
    return f"{module}#{call}" if call else str(module)


def _factors(groups: Sequence[str], change: dict[str, float]) -> str:
    return ", ".join(f"{group} ×{change[group]:.2f}" for group in groups[:NAMED])
