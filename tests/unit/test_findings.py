"""Every sentence of the page beside data that would make it lie."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from eigendet.networks.widths_file import ChosenWidths, Cost
from eigendet.report import findings, wording
from eigendet.report.findings import settled

NAN = math.nan


def chosen(widths: dict[str, int], reference: dict[str, int], **options: Any) -> ChosenWidths:
    costs = {"parameters": Cost(1000, 999), "macs": Cost(100_000, 99_999)}
    return ChosenWidths(**{"widths": widths, "reference": reference, "rule": "dof", "arm": "scratch"} | costs | options)


def test_a_change_of_widths_is_seen_in_its_numbers() -> None:
    text = findings.on_widths(chosen({"a": 257, "b": 32, "c": 64}, {"a": 256, "b": 64, "c": 64}))
    assert text == (
        "At 0.99999 of the backbone's operations and 0.999 of its parameters the spectra of scratch give 1 of 3 "
        "channel groups half their width or less (b ×0.50), and 1 more than they had (a ×1.004)."
    )
    whole = chosen({"a": 64}, {"a": 64}, detector={"plugin": "fcos"})
    assert findings.on_widths(whole).startswith("At 0.99999 of the detector's operations and 0.999 of its parameters ")
    none = findings.on_widths(chosen({"a": 64}, {"a": 64}))
    assert "give 0 of 1 channel group half their width or less, and 0 more than they had." in none


def test_ties_of_widths_are_not_ranked() -> None:
    reference = dict.fromkeys("abcd", 64)
    assert "(among them a ×0.25, b ×0.25, c ×0.25)" in findings.on_widths(chosen(dict.fromkeys("abcd", 16), reference))
    ranked = chosen({"a": 16, "b": 8, "c": 4, "d": 32}, reference)
    assert "(least of all c ×0.06, b ×0.12, a ×0.25)" in findings.on_widths(ranked)


def test_widths_whose_interval_reaches_the_other_side_are_counted() -> None:
    ends = {"a": (16, 40), "b": (60, 72), "c": (8, 24)}
    text = findings.on_widths(chosen({"a": 32, "b": 68, "c": 16}, dict.fromkeys("abc", 64), undetermined=ends))
    assert text.endswith("More images might take 2 of these to the other side.")


def test_intervals_say_what_they_claim_or_why_there_are_none() -> None:
    widths, ends = {"a": 16, "b": 24}, {"a": (15.0, 17.0), "b": (24.0, 24.0)}
    narrow = chosen(widths, widths, undetermined={}, width_intervals=ends, dimension_intervals=ends)
    text = findings.on_intervals(narrow, parts=8)
    assert text.startswith("Every 95 % interval of a width rounds at both ends to what these images give. An interval")
    assert "that infinitely many images like the probe images would give" in text and "over 8 parts" in text
    wide = chosen(widths, widths, undetermined={"a": (8, 24)}, width_intervals=ends, dimension_intervals=ends)
    text = findings.on_intervals(wide, parts=8)
    assert "1 of 2 widths might be another: a might have 8 to 24 (95 % intervals). An interval" in text
    many = {str(number): (8, 16) for number in range(8)}
    assert "5 might have 8 to 16 and 2 more (95 %" in findings.on_intervals(
        chosen(dict.fromkeys(many, 8), dict.fromkeys(many, 8), undetermined=many), parts=8
    )
    assert findings.on_intervals(chosen(widths, widths), parts=0) == ""
    assert findings.on_intervals(chosen(widths, widths, lacking_intervals="None: it jumps."), 8) == "None: it jumps."
    partly = chosen(widths, widths, lacking_intervals="None of widths.", dimension_intervals=ends)
    assert findings.on_intervals(partly, 8).startswith("None of widths. An interval is where")


def rounds(*widths: tuple[int, int], steps: tuple[int, int] = (8, 8)) -> list[ChosenWidths]:
    named = [dict(zip("ab", pair, strict=True)) for pair in (*widths, steps)]
    return [chosen(pair, named[0], multiples=named[-1]) for pair in named[:-1]]


def test_the_page_says_whether_widths_settle() -> None:
    assert settled(rounds((60, 40))) == ""
    assert settled(rounds((60, 40), (64, 40))) == (
        "In the last round no group moved by more than its step: 1 of 2 groups changed, the farthest in steps, a, by 4 "
        "channels (its steps are of 8). Share of all channels that moved, round by round: 4.0 %."
    )
    far = settled(rounds((60, 40), (100, 40), (80, 40)))
    assert far.startswith(
        "In the last round widths still moved: 1 of 2 groups changed, the farthest in steps, a, by 20"
    )
    assert far.endswith("Share of all channels that moved, round by round: 40.0 %, 14.3 %.")


def test_widths_that_do_not_move_have_no_farthest_group_and_a_small_share_is_not_none() -> None:
    still = settled(rounds((60, 40), (60, 40)))
    assert still == "In the last round no width changed. Share of all channels that moved, round by round: 0.0 %."
    assert settled(rounds((60_000, 40_000), (60_001, 40_000))).endswith("round by round: 0.001 %.")


def test_the_farthest_group_is_the_one_that_keeps_widths_from_settling() -> None:
    """a moves by more channels, but by one of its steps."""
    text = settled(rounds((64, 8), (96, 9), (64, 10), steps=(32, 1)))
    assert "no group moved by more" in text and "farthest in steps, a, by 32 channels (its steps are of 32)" in text
    assert "widths still moved: 2 of 2 groups changed, the farthest in steps, b, by 2 channels" in settled(
        rounds((64, 8), (96, 10), steps=(32, 1))
    )


def test_a_control_that_misses_its_budget_is_not_said_to_have_it() -> None:
    def costing(parameters: int, macs: int) -> ChosenWidths:
        return chosen({"a": 8}, {"a": 8}, parameters=Cost(10_000, parameters), macs=Cost(10_000, macs))

    derived = costing(4000, 9000)
    files = {"derived": derived, "profile": costing(4000, 8999), "uniform_parameters": costing(3600, 3600)}
    assert findings.on_controls(files | {"permuted": costing(3920, 9000), "mine": costing(1, 1)}, derived) == (
        "Of what derived widths cost, uniform_parameters has 0.900 of the parameters; profile has 1.000 of the "
        "parameters and 0.9999 of the MACs; permuted has 0.980 of the parameters and 1.000 of the MACs."
    )
    assert findings.on_controls({"derived": derived}, derived) == ""


def test_the_budget_and_coarser_multiples_are_said() -> None:
    widths = chosen({"a": 8, "b": 32, "c": 8}, {"a": 8, "b": 8, "c": 8})
    assert findings.on_budget(widths) == findings.on_steps(widths) == ""
    used = replace(widths, used={"macs": 0.99996, "activations": 0.5})
    assert findings.on_budget(used) == "They use 0.99996 of the cap on MACs and 0.500 of the cap on activations."
    coarse = replace(widths, settings={"round_to": 4}, multiples={"a": 4, "b": 32, "c": 8})
    assert coarse.coarser == {"b": 32, "c": 8} and "asks for 8 in c and 32 in b." in findings.on_steps(coarse)
    assert findings.on_steps(replace(coarse, multiples={"a": 4, "b": 4, "c": 4})) == ""


# Runs, and numbers in words.


def test_arms_and_seeds_are_counted_where_they_are_not_the_same() -> None:
    runs = pd.DataFrame({"backbone": "b", "detector": "d", "arm": ["x", "x", "y"], "seed": [0, 1, 0]})
    assert findings.on_runs(runs) == "2 arms of 1 network, each with 1 to 2 seeds, not the same in all"
    assert findings.on_runs(runs.iloc[[0, 2]]) == "2 arms of 1 network, each with 1 seed (0)"
    moved = runs.assign(seed=[0, 1, 5]).iloc[[0, 2]]
    assert findings.on_runs(moved) == "2 arms of 1 network, each with 1 seed, not the same in all"


@pytest.mark.parametrize("p", [0.0504, 0.05000001, 0.0496, 0.05, 0.3, 1e-4])
def test_a_p_value_stays_on_its_side_of_the_level(p: float) -> None:
    assert (float(wording.as_p(p)) <= wording.LEVEL) == (p <= wording.LEVEL)


@pytest.mark.parametrize("value", [0.9999999, 1e-7, 1.0000001])
def test_a_share_that_is_not_all_or_nothing_does_not_look_so(value: float) -> None:
    assert float(wording.share(value)) not in (0.0, 1.0)
    assert wording.share(round(value)) in ("0.00", "1.00")
