"""What is said of accuracy is what the runs show."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from eigendet.report.accuracy import on_accuracy

NAN = float("nan")


def scores(tuned: list[float], scratch: list[float]) -> pd.DataFrame:
    arms = ["finetune"] * len(tuned) + ["scratch"] * len(scratch)
    return pd.DataFrame({"arm": arms, "seed": [*range(len(tuned)), *range(len(scratch))], "AP": tuned + scratch})


def test_a_difference_of_accuracy_is_seen_in_its_numbers() -> None:
    tuned = [0.40041, 0.40042, 0.40043, 0.40044]
    (text,) = on_accuracy(scores(tuned, [value - 0.0003 for value in tuned]))
    assert text.startswith("Average precision is 40.04 fine-tuned and 40.01 from scratch: a difference (")


def test_what_is_not_found_is_not_called_equal() -> None:
    (text,) = on_accuracy(scores([0.40, 0.42, 0.44, 0.46], [0.41, 0.43, 0.45, 0.44]))
    assert "a difference is not shown (p = " in text and "no difference" not in text


@pytest.mark.parametrize(("tuned", "scratch"), [([0.4], [0.3]), ([0.4], [0.3, 0.31, 0.32]), ([0.4, 0.5], [0.3])])
def test_accuracy_of_single_runs_has_no_test(tuned: list[float], scratch: list[float]) -> None:
    (text,) = on_accuracy(scores(tuned, scratch))
    assert "There is no test, which takes two seeds of each" in text and "p =" not in text


def test_runs_without_a_score_are_not_averaged() -> None:
    assert "not compared" in on_accuracy(scores([0.4, NAN], [0.3, 0.2]))[0]
    assert on_accuracy(scores([], [0.3])) == []


def widths(seeds: int = 5, **means: float) -> pd.DataFrame:
    """Return runs of arms whose scores differ from seed to seed by a percent."""
    rows = [(arm, seed, mean + 0.01 * seed) for arm, mean in means.items() for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "AP"])


def test_derived_widths_are_compared_with_each_control_of_their_cost() -> None:
    runs = widths(derived=0.3, profile=0.3002, uniform_macs=0.1, mine=0.7)
    (text,) = on_accuracy(runs, "derived")
    clauses = text.removeprefix("Average precision with the widths of derived is ").split("; it is ")
    assert clauses[0].startswith("32.0 beside 12.0 of uniform_macs, which has its MACs: a difference (test over runs")
    assert clauses[1].startswith(
        "32.00 beside 32.02 of profile, which has its parameters and MACs: a difference is not"
    )
    assert "mine" not in text and on_accuracy(runs, None) == [] == on_accuracy(widths(derived=0.3), "derived")


def test_tests_of_controls_are_corrected_for_their_number() -> None:
    def p(*controls: str) -> float:
        means = {"derived": 0.3} | dict.fromkeys(controls, 0.27)
        (text,) = on_accuracy(widths(5, **means), "derived")
        return float(re.findall(r"p = ([\d.]+)", text)[0])

    assert p("profile", "uniform_macs", "permuted") == pytest.approx(3 * p("profile"), rel=0.05)


def test_masks_are_said_where_there_are_any() -> None:
    runs = widths(finetune=0.4, scratch=0.3)
    boxes, masks = on_accuracy(runs.assign(mask_AP=runs["AP"] / 2))
    assert boxes.startswith("Average precision is 42.0 fine-tuned and 32.0 from scratch: ")
    assert masks.startswith("Average precision of masks is 21.0 fine-tuned and 16.0 from scratch: ")


def test_controls_of_single_runs_have_no_test_and_missing_scores_are_said() -> None:
    (text,) = on_accuracy(widths(seeds=1, derived=0.3, profile=0.2), "derived")
    assert text.endswith("parameters and MACs. There is no test, which takes two seeds of each.") and "p =" not in text
    runs = widths(derived=0.3, profile=0.2)
    runs.loc[0, "AP"] = NAN
    assert on_accuracy(runs, "derived") == [
        "Not every run has an average precision, so derived and its controls are not compared."
    ]


def test_arms_with_several_starts_are_compared_with_one_another() -> None:
    runs = widths(finetune=0.3, dino=0.3001, scratch=0.1)
    (text,) = on_accuracy(runs, starts=["dino"])
    means, clauses = text.split(". ", 1)
    assert means == "Average precision is 32.00 of finetune, 32.01 of dino and 12.00 of scratch"
    pairs = [clause.split(": ")[0] for clause in clauses.split("; ")]
    assert pairs == ["finetune and dino", "finetune and scratch", "dino and scratch"]
    assert "finetune and dino: a difference is not shown" in text
    assert "finetune and scratch: a difference (test over runs, p = 0.024)" in text  # 3 times 1 / 126


def test_an_arm_that_was_pre_trained_with_derived_widths_is_compared_with_those_that_were_not() -> None:
    runs = widths(derived=0.3, derived_finetune=0.4, finetune=0.41, scratch=0.3)
    text = on_accuracy(runs, "derived")[-1]
    assert text.startswith("Average precision is 42.0 of derived_finetune, 32.0 of derived and 43.0 of finetune.")
    single = on_accuracy(widths(seeds=1, derived=0.3, derived_finetune=0.4), "derived")[-1]
    assert "There is no test, which takes two seeds of each" in single


def test_that_seeds_are_too_few_is_said_once() -> None:
    (text,) = on_accuracy(widths(seeds=2, finetune=0.3, dino=0.4, scratch=0.1), starts=["dino"])
    assert text.endswith(
        "and 10.5 of scratch: with so few seeds for 3 pairs of arms no difference can be established (the smallest p "
        "that they allow is 1, and 0.05 is asked)."
    )
