"""Arms at equal accuracy: what differs by training alone, what differs beyond it, and what cannot be matched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eigendet
from eigendet import files, plugins
from eigendet.errors import UserError
from eigendet.observe.keys import TapKey
from eigendet.report import equal_accuracy
from eigendet.report.page import write_page
from eigendet.report.results import read_curve
from eigendet.spectra import comparison, matching, similarity, tables
from eigendet.spectra.matching import Curve, Place
from eigendet.spectra.tables import Comparison
from tests.simulated import compare, simulate

STEPS = (0, 1, 4, 16)
# Both arms come by the same way, one of them sooner.
SOONER = {"finetune": [0.0, 0.24, 0.36, 0.4], "scratch": [0.0, 0.08, 0.2, 0.3]}


def compared(folder: Path) -> Comparison:
    compare(folder)
    return Comparison.read(folder / "comparison/tiny/rcnn")


def rescored(folder: Path, run: str, scores: Sequence[float | None]) -> None:
    """Put other accuracies into the evaluation of a run."""
    file = folder / f"evaluation/{run}.json"
    content = files.read_json(file, "an evaluation")
    content["snapshots"] = [
        {"step": step, "boxes": {"AP": score}} for step, score in zip(STEPS, scores, strict=False)
    ]  # fmt: skip
    files.write_json(file, content)


def overall(table: Any, **values: object) -> float:
    """The p-value of all layers together, of the Jensen-Shannon distance."""
    own = table[table["measure"] == "jensen_shannon"]
    for name, value in values.items():
        own = own[own[name] == value]
    assert len(set(own["overall"])) == 1
    return float(own["overall"].iloc[0])


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms whose spectra are the same function of accuracy."""
    folder = tmp_path_factory.mktemp("ahead")
    simulate(folder, seeds=range(4), steps=STEPS, progress=SOONER)
    return folder


def test_an_arm_that_is_only_ahead_differs_at_equal_steps_and_not_at_equal_accuracy(ahead: Path) -> None:
    tables_ = compared(ahead)
    assert overall(tables_.tests, snapshot=1) <= 0.05  # at step 1: 0.24 beside 0.08
    assert overall(tables_.matched, level=4) > 0.05
    assert tables_.matched["score"].groupby(tables_.matched["level"]).first().tolist() == pytest.approx(
        [0.075, 0.15, 0.225, 0.3]
    )
    sentence = equal_accuracy.on_equal_accuracy(tables_)[0]
    assert sentence.startswith(
        "Spectra of finetune and scratch at equal accuracy: that they differ is not shown (p = "
    )  # fmt: skip
    assert "At an average precision of 30, which finetune reaches after 2 steps and scratch after 16 steps" in sentence


def test_a_difference_beyond_accuracy_is_found(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=range(4), steps=STEPS, progress=SOONER, effect=3.0)
    tables_ = compared(tmp_path)
    assert overall(tables_.matched, level=4) <= 0.05
    sentence = equal_accuracy.on_equal_accuracy(tables_)[0]
    assert "they differ by more than between seeds (test over runs, p = 0.029)" in sentence
    rows = equal_accuracy.layers_at_equal_accuracy(tables_)
    assert len(rows) == 4 and (rows["rank"] < rows["other_rank"]).all()  # the steeper, the fewer


def test_what_lies_between_snapshots_is_interpolated_in_accuracy(ahead: Path) -> None:
    """Beside brute force: every measure of the four pairs of snapshots, weighted by how near their accuracies are."""
    tables_, score = compared(ahead), 0.225
    # finetune reaches it between 0 and 0.24 at steps 0 and 1, scratch between 0.2 and 0.3 at steps 4 and 16.
    ends = {"finetune": [(0, 0.0625), (1, 0.9375)], "scratch": [(4, 0.75), (16, 0.25)]}
    spectra = {
        (arm, seed, step): rows["value"].to_numpy()
        for (arm, seed, step), rows in eigendet.read_spectra(ahead)
        .eigenvalues.query("module == 'layer2.relu'")
        .groupby(["arm", "seed", "step"])
    }
    directions = {}
    for arm, seed in itertools.product(ends, range(4)):
        with tables.reading_similarity(ahead / f"spectra/{arm}/tiny/rcnn/seed_{seed}") as file:
            for step, _ in ends[arm]:
                directions[arm, seed, step] = tables.read_map(file, step, TapKey("layer2.relu", 0, "act"), 16)[0]

    def root_mean(measure: Any) -> float:
        values = [
            sum(
                weight * its_weight * measure(("finetune", seed, step), ("scratch", other, its_step))
                for (step, weight), (its_step, its_weight) in itertools.product(ends["finetune"], ends["scratch"])
            )
            for seed, other in itertools.product(range(4), range(4))
        ]
        return float(np.sqrt(np.mean(np.square(values))))

    rows = tables_.matched.query("module == 'layer2.relu' and level == 3").set_index("measure")
    assert rows.loc["jensen_shannon", "score"] == pytest.approx(score)
    apart = root_mean(lambda one, other: similarity.jensen_shannon(spectra[one], spectra[other]))
    assert rows.loc["jensen_shannon", "between"] == pytest.approx(apart)
    # Of a similarity the distance's square is linear: so is what is interpolated.
    overlaps = [
        sum(
            weight
            * its_weight
            * similarity.subspace_overlap(
                directions["finetune", seed, step], directions["scratch", other, its_step]
            )
            for (step, weight), (its_step, its_weight) in itertools.product(ends["finetune"], ends["scratch"])
        )
        for seed, other in itertools.product(range(4), range(4))
    ]  # fmt: skip
    assert 1 - rows.loc["overlap", "between"] ** 2 == pytest.approx(np.mean(overlaps))
    ranks = tables_.metrics.query("module == 'layer2.relu' and metric == 'effective_rank' and arm == 'scratch'")
    at = ranks.groupby("step")["value"].mean()
    assert rows.loc["effective_rank", "other_mean"] == pytest.approx(0.75 * at[4] + 0.25 * at[16])


def test_places_say_where_each_run_reaches_each_level(ahead: Path) -> None:
    rescored(ahead, "scratch/tiny/rcnn/seed_2", [0.0, 0.1, 0.05, 0.5])  # falls, and ends higher
    try:
        places = compared(ahead).places
    finally:
        rescored(ahead, "scratch/tiny/rcnn/seed_2", SOONER["scratch"])
    own = places.query("arm == 'scratch' and seed == 2").set_index("level")
    assert own.loc[4, ["before", "after"]].tolist() == [4, 16]
    assert own.loc[4, "reached"] == pytest.approx(4 + 12 * (0.3 - 0.05) / 0.45)
    assert own.loc[1, "reached"] == pytest.approx(0.75)  # before it falls
    assert set(places["other_arm"]) == {"finetune", "scratch"} and len(places) == 8 * 4


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.0, 0.0, 0.0, 0.0], "finetune seed 0 has an average precision of 0 at its first scored snapshot, and scratch"
                               " seed 1 reaches 0 at most."),
        ([None, None, None, None], "scratch seed 1 has no average precision, since the data has nothing to score."),
        ([0.3], "one snapshot alone was scored of scratch seed 1; `evaluation.snapshots` says how many are."),
        ([0.5, 0.6, 0.7, 0.7], "scratch seed 1 has an average precision of 50 at its first scored snapshot, and "
                               "scratch seed 0 reaches 30 at most."),
    ],
)  # fmt: skip
def test_curves_that_do_not_overlap_are_named(tmp_path: Path, scores: list[float | None], reason: str) -> None:
    simulate(tmp_path, seeds=(0, 1), steps=STEPS, layers=1, progress=SOONER)
    rescored(tmp_path, "scratch/tiny/rcnn/seed_1", scores)
    text = f"finetune and scratch cannot be compared at equal accuracy: {reason}"
    assert compare(tmp_path) == [text]
    tables_ = Comparison.read(tmp_path / "comparison/tiny/rcnn")
    assert tables_.matched.empty and tables_.places.empty and not tables_.tests.empty
    assert equal_accuracy.on_equal_accuracy(tables_) == [text]
    assert equal_accuracy.level_rows(tables_) == [] and equal_accuracy.distances_by_accuracy(tables_).empty
    assert equal_accuracy.layers_at_equal_accuracy(tables_).empty


def test_detectors_that_detect_nothing_cannot_be_matched(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,), steps=STEPS, layers=1, progress=dict.fromkeys(SOONER, [0.0] * 4))
    assert compare(tmp_path) == ["finetune and scratch cannot be compared at equal accuracy: no run detects anything."]


def test_a_run_that_was_not_evaluated_is_left_out(tmp_path: Path) -> None:
    simulate(tmp_path, arms=("finetune", "scratch", "mine"), seeds=(0, 1), steps=STEPS, layers=1,
             progress=SOONER | {"mine": SOONER["scratch"]})  # fmt: skip
    rescored(tmp_path, "mine/tiny/rcnn/seed_0", [])
    notes = compare(tmp_path)
    assert notes == ["Not evaluated where observed, and so left out at equal accuracy: mine seed 0."]
    tables_ = Comparison.read(tmp_path / "comparison/tiny/rcnn")
    runs = tables_.places.query("level == 4").groupby(["arm", "other_arm"]).size().to_dict()
    assert runs["scratch", "finetune"] == 2 and runs["mine", "finetune"] == 1
    sentences = equal_accuracy.on_equal_accuracy(tables_)
    assert sentences[0].startswith("Spectra of finetune and scratch") and "they differ" not in sentences[0]
    assert "there is no test, which takes two seeds of each arm" in sentences[1]


def test_pairs_of_arms_are_corrected_for_their_number(tmp_path: Path) -> None:
    simulate(tmp_path, arms=("finetune", "scratch", "mine"), seeds=range(4), steps=STEPS, layers=2, effect=3.0,
             progress=SOONER | {"mine": SOONER["scratch"]})  # fmt: skip
    tables_ = compared(tmp_path)
    assert overall(tables_.matched, level=4, arm="finetune", other_arm="scratch") == pytest.approx(3 / 35)
    assert overall(tables_.matched, level=4, arm="finetune", other_arm="mine") == pytest.approx(3 / 35)


def test_without_accuracies_nothing_is_said(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,), layers=1)
    spectra = sorted(path.parent for path in (tmp_path / "spectra").rglob("eigenvalues.parquet"))
    assert comparison.write_comparison(spectra, tmp_path / "out", {}) == []
    tables_ = Comparison.read(tmp_path / "out")
    assert tables_.matched.empty and tables_.unmatched == [] and equal_accuracy.on_equal_accuracy(tables_) == []


def test_accuracies_belong_to_the_runs_that_are_compared(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,), layers=1)
    spectra = [tmp_path / "spectra/scratch/tiny/rcnn/seed_0"]
    own = read_curve(tmp_path / "evaluation/scratch/tiny/rcnn/seed_0.json")
    for curves, message in (
        ([own._replace(seed=3)], "scratch seed 3: spectra of that run are not given"),
        ([own._replace(detector="other")], "evaluation of other on tiny, scratch seed 0: spectra of that run are not"),
        ([own, own], "scratch seed 0: is given twice"),
    ):
        with pytest.raises(UserError, match=message):
            comparison.write_comparison(spectra, tmp_path / "out", plugins.rules(), curves)


def test_a_map_that_dies_between_two_snapshots_has_no_test() -> None:
    dead, alive = np.zeros(3), np.ones(3)
    tap = ("relu", 0, "act")

    class Run:
        spectra = {(0, tap): alive, (4, tap): dead}  # noqa: RUF012

    assert matching.varying([[(Run, 0)]], [tap]).tolist() == [True]  # type: ignore[list-item]
    assert matching.varying([[(Run, 0), (Run, 4)]], [tap]).tolist() == [False]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("scores", "score", "place"),
    [
        ([0.0, 0.2, 0.4], 0.2, Place(0, 1, 1.0)),  # at a snapshot that alone counts
        ([0.0, 0.2, 0.4], 0.4, Place(1, 4, 1.0)),
        ([0.1, 0.0, 0.4], 0.2, Place(1, 4, 0.5)),
        ([0.0, 0.4, 0.1], 0.1, Place(0, 1, 0.25)),  # the first time
    ],
)
def test_the_place_of_an_accuracy_is_the_first(scores: list[float], score: float, place: Place) -> None:
    found = matching.place_of(Curve("a", "b", "d", 0, [0, 1, 4], scores), score)
    assert found == place and math.isclose(sum(found.weights.values()), 1)


@pytest.mark.parametrize("score", [0.1, 0.5])
def test_an_accuracy_that_is_not_reached_from_below_has_no_place(score: float) -> None:
    with pytest.raises(ValueError, match="from below"):
        matching.place_of(Curve("a", "b", "d", 0, [0, 1], [0.1, 0.3]), score)


def test_of_many_arms_the_page_unfolds_what_is_not_read_at_once(tmp_path: Path) -> None:
    arms = ("finetune", "scratch", "a", "b", "c")
    simulate(tmp_path, arms, seeds=(0,), steps=STEPS, layers=1, progress=dict.fromkeys(arms, SOONER["scratch"]))
    compare(tmp_path)
    write_page(tmp_path)
    findings = (tmp_path / "report.html").read_text().split('<section class="findings"')[1].split("</section>")[0]
    at_once, unfolded = findings.split("<details>")
    assert at_once.count("<li>") == 12 and f"<summary>{unfolded.count('<li>')} more sentences</summary>" in unfolded
    first, second = (f"Spectra of {arms} at equal accuracy" for arms in ("finetune and scratch", "a and b"))
    assert at_once.index(first) < at_once.index(second)
    assert "at 4 levels of the range" in (tmp_path / "report.html").read_text()
    few = tmp_path / "few"
    simulate(few, seeds=(0,), layers=1)
    compare(few)
    write_page(few)
    assert "more sentence" not in (few / "report.html").read_text()
