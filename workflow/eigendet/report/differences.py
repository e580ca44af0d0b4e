"""Say whether arms differ in their spectra, in sentences that are computed from the tests.

No sentence claims what the numbers beside it do not show: a layer without a test is named as such and counts in no
share; what is not shown to differ is not called equal; and single layers are called different only where all layers
together are.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from eigendet.errors import some
from eigendet.report.layers import layer_names
from eigendet.report.wording import LEVEL, NAMED, as_p, counted, foremost, told_apart, verdict
from eigendet.spectra.tables import TAP

EQUAL = 1e-9  # relative difference of two numbers that differ by rounding alone
NOTHING_TO_COMPARE = "There are no two arms whose spectra can be compared."


def on_spectra(tests: pd.DataFrame) -> list[str]:
    """Say whether two arms become the same network, from the tests of their spectra at the last snapshot."""
    if tests.empty:
        return [NOTHING_TO_COMPARE]
    last = tests[tests["snapshot"] == tests["snapshot"].max()]
    pairs = tested_pairs(last[last["measure"] == "jensen_shannon"])
    sentences = []
    for (arm, other), of_pair in last.groupby(["arm", "other_arm"], sort=False):
        distances = of_pair[of_pair["measure"] == "jensen_shannon"]
        compared = distances.dropna(subset="between")
        if compared.empty:
            sentences.append(f"No layer has a spectrum in every run of {arm} and {other}, so they are not compared.")
            continue
        sentences.append(_difference(f"{arm} and {other}", compared, pairs) + left_out(distances))
        ranks = of_pair[of_pair["measure"] == "effective_rank"].merge(compared[TAP], on=TAP)
        sentences += _ranks(arm, other, ranks, is_shown=is_shown(compared))
        sentences += _spreads(arm, other, compared)
    return sentences


def is_shown(distances: pd.DataFrame) -> bool:
    """Return whether the test of all layers together finds that two arms differ."""
    return bool(distances["overall"].iloc[0] <= LEVEL)


def left_out(distances: pd.DataFrame) -> str:
    """Name the layers that have no distance."""
    absent = distances[distances["between"].isna()]
    if absent.empty:
        return ""
    return f" Left out: {some(layer_names(absent), NAMED)}, without a spectrum in some run."


def _difference(arms: str, table: pd.DataFrame, pairs: int) -> str:
    """Say how far apart the spectra of two arms are, and in which layers by more than those of seeds."""
    smallest, overall = table["smallest"].iloc[0], table["overall"].iloc[0]
    if not (table["between"] > 0).any():
        return f"The normalized spectra of {arms} are equal in every run, in {of_layers(table)}."
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
        f"At the last snapshot the spectra of {arms} {times_as_far(table)}, and are farther apart than these in "
        f"{int((table['between'] > table['within']).sum())} of {of_layers(table)}: {found}"
    )
    return f"{text}{single_layers(table) if is_shown(table) else ''}."


def times_as_far(table: pd.DataFrame) -> str:
    """Compare the distance of arms with that of seeds, which may be zero."""
    apart = table[(table["between"] > 0) | (table["within"] > 0)]  # not where all runs are equal
    with np.errstate(divide="ignore"):
        ratios = apart["between"].to_numpy(float) / apart["within"].to_numpy(float)
    ratio = float(np.quantile(ratios, 0.5, method="lower"))  # infinite only where it is in more than half of them
    if math.isinf(ratio):
        return "differ (median over layers) and those of two seeds of one arm do not"
    times = f"{ratio:,.1f}" if ratio >= 1 else f"{ratio:.2g}"
    return f"lie {times} times as far apart as those of two seeds of one arm (median over layers)"


def single_layers(table: pd.DataFrame) -> str:
    """Say which layers differ on their own; asked only where all together do."""
    sure = table[table["corrected"] <= LEVEL].sort_values("statistic", ascending=False, kind="stable")
    corrected = f". Corrected for {of_layers(table)}, "
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
        return [f"The effective rank is the same in {arm} and in {other}, in {of_layers(ranks)}."]
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
        f"{of_layers(ranks)}{equal}; the ratio is farthest from 1 in {layer_names(ranks)[farthest]}{as_far}: {own} in "
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
        f"apart in {wider} of {of_layers(table)}."
    ]


def tested_pairs(tests: pd.DataFrame) -> int:
    """Return for how many pairs of arms all tests are corrected."""
    return int(tests[pd.to_numeric(tests["overall"]).notna()].groupby(["arm", "other_arm"]).ngroups)


def of_layers(table: pd.DataFrame) -> str:
    """Count the layers of a table."""
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
    tested = tested_pairs(tests)
    if tested > 1:
        sentences.insert(0, f"All but the p of each layer alone are corrected for {tested} pairs of arms too.")
    if pd.to_numeric(tests["p"]).isna().any():
        sentences.append("Layers without a p were not tested.")
    return sentences
