"""Every sentence on differences of arms beside data that would make it lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet.report import differences

NAN = math.nan


def layer(name: str, **values: Any) -> dict[str, Any]:
    """A layer of a table of tests: found different, unless `values` say otherwise."""
    return {"module": name, "call": 0, "between": 0.4, "within": 0.1, "statistic": 30.0, "p": 0.01, "corrected": 0.02,
            "mean": 8.0, "other_mean": 4.0, "spread": 0.1, "other_spread": 0.1} | values  # fmt: skip


def untested(name: str, **values: Any) -> dict[str, Any]:
    """A layer that is dead in some run."""
    return layer(name, **dict.fromkeys(["between", "within", "statistic", "p", "corrected"], NAN) | values)


def table(
    *layers: dict[str, Any],
    overall: float = 0.01,
    smallest: float = 0.008,
    of_ranks: float = 0.01,
    dispersion: float = 0.5,
    paired: bool = False,
    **pair: str,
) -> pd.DataFrame:
    """The tests of two arms at one snapshot, by distances and by the effective rank."""
    common = {"arm": "tuned", "other_arm": "scratch", "snapshot": 3, "point": "act", "smallest": smallest} | pair
    common |= {"dispersion": dispersion, "paired": paired}
    rows = [row | common | {"measure": "jensen_shannon", "overall": overall} for row in layers]
    return pd.DataFrame(rows + [row | common | {"measure": "effective_rank", "overall": of_ranks} for row in layers])


def said(*layers: dict[str, Any], **options: Any) -> str:
    return " ".join(differences.on_spectra(table(*layers, **options)))


# The spectra of two arms.


def test_a_dead_layer_is_neither_counted_nor_the_farthest_apart() -> None:
    text = said(
        layer("a", mean=9.0, other_mean=3.0), layer("b"), untested("dead", mean=5.0, other_mean=0.0),
        untested("dead in one seed", mean=90.0, other_mean=1.0),
        untested("nan", mean=NAN, other_mean=NAN),
    )  # fmt: skip
    assert "in 2 of 2 layers: the arms differ" in text and "Corrected for 2 layers, 2 differ on their own: a, b" in text
    assert "Left out: dead, dead in one seed, nan, without a spectrum in some run." in text
    assert "larger in tuned in 2 and in scratch in 0 of 2 layers" in text
    assert "farthest from 1 in a: 9.0 in tuned, 3.0 in scratch" in text


def test_a_rank_of_zero_is_no_ratio() -> None:
    text = said(layer("a", mean=2.0, other_mean=4.0), layer("zero", mean=0.0), layer("last", mean=5.0))
    assert "farthest from 1 in a: 2.0 in tuned, 4.0 in scratch" in text and "of 2 layers" in text


@pytest.mark.parametrize("smallest", [0.008, NAN])
def test_where_all_layers_are_dead_nothing_is_compared(smallest: float) -> None:
    text = said(untested("a"), untested("b"), overall=NAN, smallest=smallest)
    assert text == "No layer has a spectrum in every run of tuned and scratch, so they are not compared."


def test_without_two_arms_nothing_is_said_of_how_many_were_observed() -> None:
    assert differences.on_spectra(pd.DataFrame()) == [differences.NOTHING_TO_COMPARE]


def test_no_single_layer_differs_where_all_together_do_not() -> None:
    text = said(layer("a"), layer("b"), overall=0.2)
    assert "that the arms differ is not shown (p = 0.2)." in text
    assert "on its own" not in text and "on their own" not in text and "corrected" not in text.lower()
    assert "Over all layers this is not shown to be more than between seeds." in text


def test_ranks_differ_only_by_their_own_test() -> None:
    assert "this is by more than seeds differ (p = 0.01)" in said(layer("a"))
    assert "this is not shown to be more than between seeds" in said(layer("a"), of_ranks=0.3)
    assert "this is not shown to be more than between seeds" in said(layer("a"), of_ranks=NAN)


@pytest.mark.parametrize("within", [NAN, 0.3])  # one arm may have several runs
def test_an_arm_with_a_single_run_has_no_test(within: float) -> None:
    one = layer("a", within=within, statistic=NAN, p=NAN, corrected=NAN, between=0.0004)
    text = said(one, one | {"module": "b"}, overall=NAN, smallest=NAN, of_ranks=NAN)
    assert "end up 0.0004 apart in the median layer" in text
    assert "There is no test, which takes two seeds of each arm" in text
    assert "p =" not in text and "layers differ" not in text and "more than between seeds" in text


def test_few_runs_establish_nothing() -> None:
    text = said(layer("a", p=0.1, corrected=0.1), overall=0.1, smallest=0.1)
    assert "with so few seeds no difference can be established (p = 0.1; the smallest that they allow is 0.1" in text
    assert "on its own" not in text


def test_where_pairs_of_arms_are_what_makes_seeds_few_it_is_said() -> None:
    """Four seeds an arm would allow 0.029 for a single pair."""
    pairs = [
        table(layer("a"), overall=0.086, smallest=3 / 35, other_arm=other) for other in ("scratch", "mine", "third")
    ]
    text = differences.on_spectra(pd.concat(pairs))[0]
    assert "with so few seeds for 3 pairs of arms no difference can be established (p = 0.086" in text
    untested_pair = table(layer("a", p=NAN), overall=NAN, smallest=NAN, other_arm="single")
    alone = differences.on_spectra(pd.concat([table(layer("a"), overall=0.1, smallest=0.1), untested_pair]))[0]
    assert "with so few seeds no difference can be established (p = 0.1" in alone


def test_equal_runs_are_no_multiple_of_anything() -> None:
    same = layer("a", between=0.0, within=0.0, statistic=0.0, p=1.0, corrected=1.0, mean=4.0)
    text = said(same, overall=1.0, of_ranks=1.0)
    assert text == (
        "The normalized spectra of tuned and scratch are equal in every run, in 1 layer. "
        "The effective rank is the same in tuned and in scratch, in 1 layer."
    )
    apart = said(layer("a", within=0.0, statistic=np.inf), same | {"module": "b"})
    assert "differ (median over layers) and those of two seeds of one arm do not" in apart
    assert "in 1 of 2 layers" in apart and "Corrected for 2 layers, 1 differs on its own: a." in apart
    half = said(layer("a", within=0.0, statistic=np.inf), layer("b", between=0.2))
    assert "lie 2.0 times as far apart as those of two seeds" in half and "do not" not in half  # seeds differ in b
    nearer = said(layer("a", between=0.001, within=0.1, p=1.0, corrected=1.0), overall=1.0)
    assert "lie 0.01 times as far apart" in nearer and "in 0 of 1 layer:" in nearer


def test_numbers_of_ranks_are_told_apart_and_ties_are_said() -> None:
    near = said(layer("a", mean=5.04, other_mean=5.01))
    assert "5.04 in tuned, 5.01 in scratch" in near
    tied = said(layer("a", mean=2.0, other_mean=1.0), layer("b", mean=5.0, other_mean=10.0), layer("c", mean=4.0))
    assert "farthest from 1 in a (and as far in 1 more): 2.0 in tuned, 1.0 in scratch" in tied
    assert ", equal in 1; the ratio" in tied and "in tuned in 1 and in scratch in 1 of 3 layers" in tied


def test_the_strongest_layers_are_named_only_where_no_tie_says_otherwise() -> None:
    many = [
        layer(name, statistic=statistic) for name, statistic in zip("abcde", [1.0, 5.0, 4.0, 3.0, 2.0], strict=True)
    ]
    assert "5 differ on their own, most of all b, c, d." in said(*many)
    assert "among them a, b, c." in said(*(layer(name, statistic=np.inf) for name in "abcd"))
    assert "Corrected for 1 layer, none differs on its own." in said(layer("a", corrected=0.06))


def test_each_pair_of_arms_is_said_by_itself_and_at_the_last_snapshot() -> None:
    tests = pd.concat(
        [table(layer("a")), table(layer("a"), overall=0.5, other_arm="derived"), table(layer("a")).assign(snapshot=1)]
    )
    first, _, second, _ = differences.on_spectra(tests)
    assert "tuned and scratch" in first and "the arms differ by more than" in first
    assert "tuned and derived" in second and "not shown (p = 0.5)" in second


def test_a_wider_spread_is_said_only_where_it_is_shown_and_of_the_arm_that_has_it() -> None:
    wide = [layer("a", spread=0.3), layer("b", spread=0.2), layer("c", other_spread=0.2)]
    text = said(*wide, dispersion=0.02, overall=0.4)
    assert (
        "The seeds of tuned and of scratch do not scatter alike (p = 0.02): those of tuned lie farther apart in 2 of 3"
        in text
    )
    assert "differ is not shown" in text  # of their centers
    for dispersion in (0.0504, NAN):
        assert "scatter" not in said(*wide, dispersion=dispersion)


def test_the_table_of_single_layers_says_of_each_pair_what_p_can_be() -> None:
    tests = pd.concat(
        [
            table(layer("a"), overall=0.2, smallest=0.1), table(layer("a"), untested("b"), other_arm="other"),
            table(layer("a", p=NAN), overall=NAN, smallest=NAN, other_arm="single"),
            table(untested("a"), overall=NAN, other_arm="dead"), table(layer("a"), paired=True, other_arm="same seeds"),
        ]
    ).query("measure == 'jensen_shannon'")  # fmt: skip
    assert differences.on_tests(tests.astype(object).where(tests.notna(), None)) == [
        "All but the p of each layer alone are corrected for 3 pairs of arms too.",
        "tuned and scratch: no corrected p-value can be smaller than 0.1; over all layers p = 0.2; so no single "
        "layer is called different.",
        "tuned and other: no corrected p-value can be smaller than 0.008; over all layers p = 0.01.",
        "tuned and single: no test, which takes two seeds of each arm.",
        "tuned and dead: no test, since no layer has a spectrum in every run.",
        "tuned and same seeds, runs paired by their seeds: no corrected p-value can be smaller than 0.008; over all "
        "layers p = 0.01.",
        "Layers without a p were not tested.",
    ]
    assert "Layers without a p were not tested." not in differences.on_tests(table(layer("a")))


# Widths.
