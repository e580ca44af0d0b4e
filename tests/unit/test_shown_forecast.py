from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from eigendet.report import forecast
from eigendet.report.records import Forecast, MapScores

Scores = dict[str, list[tuple[float | None, ...]]]

SCORES: Scores = {
    "finetune": [(30.0, 1.2, -0.5), (32.0, 1.2, -0.5)],
    "scratch": [(10.0, 2.5, -0.4), (10.0, 2.5, -0.4)],
}
ONE_PAIR = "Two initializations are one pair, of which a score that knows nothing is right in one of two cases."


def scored(scores: Scores, notes: tuple[str, ...] = ()) -> Forecast:
    """Each seed with an earlier map of fixed scores, then the deepest."""
    maps = [
        MapScores(arm=arm, seed=seed, module=module, call=1, channels=64, rankme=own[0], alpha=own[1], logme=own[2])
        for arm, seeds in scores.items()
        for seed, last in enumerate(seeds)
        for module, own in (("layer1", (1.0, 1.0, 1.0)), ("layer4", last))
    ]
    return Forecast(images=100, classes=4, constant=-0.6, scores=maps, notes=list(notes))


def runs(**precision: list[float]) -> pd.DataFrame:
    return pd.DataFrame([{"arm": arm, "AP": value} for arm, values in precision.items() for value in values])


def test_rows_are_of_the_deepest_map_and_of_all() -> None:
    shown = forecast.shown(scored(SCORES), runs(finetune=[0.4, 0.42], scratch=[0.3, 0.31]))
    assert [(row.arm, row.layer, row.scores) for row in shown.deepest] == [
        ("finetune", "layer4#1", {"rankme": "31.0 ± 1.4", "alpha": "1.20 ± 0.00", "logme": "-0.5000 ± 0.0000"}),
        ("scratch", "layer4#1", {"rankme": "10.0 ± 0.0", "alpha": "2.50 ± 0.00", "logme": "-0.4000 ± 0.0000"}),
    ]
    assert [row.layer for row in shown.rows] == ["layer1#1", "layer4#1"] * 2


def test_what_each_score_prefers_is_said_and_whether_it_came_so() -> None:
    """Near 1 is what α promises most by, and above is no better than below."""
    sentences = forecast.shown(scored(SCORES), runs(finetune=[0.4, 0.42], scratch=[0.3, 0.31])).sentences
    assert sentences == [
        "Before training more was promised of finetune by RankMe (31.0 beside 10.0), of finetune by α (1.20 beside "
        "2.50), of scratch by LogME (-0.4000 beside -0.5000).",
        "After training finetune is ahead in AP (41.0 beside 30.5), as forecast by RankMe and α, against LogME. "
        + ONE_PAIR,
    ]
    below: Scores = {"finetune": [(1.0, 0.2, 1.0)], "scratch": [(1.0, 1.5, 1.0)]}
    first, last = forecast.shown(scored(below), runs(finetune=[0.1], scratch=[0.2])).sentences
    assert first == (
        "Before training more was promised of neither by RankMe (1.0 beside 1.0), of scratch by α (1.50 beside 0.20), "
        "of neither by LogME (1.0000 beside 1.0000)."
    )
    assert last == (
        f"After training scratch is ahead in AP (20.0 beside 10.0), as forecast by α. {ONE_PAIR} Each has a single "
        "seed, so that the difference may be chance."
    )


def test_where_seeds_overlap_nothing_came_of_it() -> None:
    sentences = forecast.shown(scored(SCORES), runs(finetune=[0.4, 0.2], scratch=[0.25, 0.25])).sentences
    assert sentences[1] == (
        "After training neither is beyond the other's seeds in AP (finetune 30.0, scratch 25.0), so that nothing came "
        "of it."
    )


@pytest.mark.parametrize(
    "precision", [{"finetune": [0.4]}, {"finetune": [0.4], "scratch": [math.nan]}, {}], ids=["lacking", "nan", "none"]
)
def test_without_precision_no_score_is_judged(precision: dict[str, list[float]]) -> None:
    table = runs(**precision) if precision else pd.DataFrame({"arm": [], "AP": []})
    assert forecast.shown(scored(SCORES), table).sentences[1] == "Without the AP of every run no score is judged."
    three = scored(SCORES | {"dino": SCORES["scratch"]})
    assert forecast.shown(three, table).sentences == ["Without the AP of every run no score is judged."]


def test_of_three_initializations_kendalls_tau_is_given_with_what_chance_gives() -> None:
    scores: Any = {"finetune": [(3.0, 1.1, 5.0)], "dino": [(2.0, 0.7, 5.0)], "scratch": [(1.0, 1.0, 5.0)]}
    (sentence,) = forecast.shown(scored(scores), runs(finetune=[0.3], dino=[0.2], scratch=[0.1])).sentences
    assert sentence == (
        "Kendall's τ of what was promised with AP, over 3 initializations: 1.00 by RankMe, -0.33 by α, not defined by "
        "LogME. It is 1 where both orders are the same, which of 3 comes about by chance once in 6 times; seeds are "
        "averaged, and nothing is tested."
    )


def test_a_score_that_a_seed_lacks_is_neither_averaged_nor_judged() -> None:
    scores: Any = {"finetune": [(3.0, None, 5.0), (3.0, 1.0, 5.0)], "scratch": [(1.0, 1.0, None)]}
    shown = forecast.shown(scored(scores), runs(finetune=[0.3], scratch=[0.1]))
    assert shown.deepest[0].scores["alpha"] == shown.deepest[1].scores["logme"] == ""
    assert shown.sentences[0] == "Before training more was promised of finetune by RankMe (3.0 beside 1.0)."
    nothing: Any = {"finetune": [(None, None, None)], "scratch": [(None, None, None)]}
    assert forecast.shown(scored(nothing), runs(finetune=[0.3], scratch=[0.1])).sentences == [
        "No score is there for every initialization, so that none is ahead before training."
    ]


def test_one_initialization_is_compared_with_none_and_none_has_only_notes() -> None:
    one = forecast.shown(scored({"scratch": SCORES["scratch"]}), runs(scratch=[0.1]))
    assert one.sentences == ["Scores compare initializations, and there is one alone."]
    none = forecast.shown(scored({}, notes=("No forecast.",)), runs(scratch=[0.1]))
    assert not (none.sentences or none.rows or none.deepest) and none.forecast.notes == ["No forecast."]
