"""Scores of snapshots over training, and where they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eigendet import config, files
from eigendet.config.sections import EvaluationSettings
from eigendet.errors import UserError
from eigendet.report import figures, results
from eigendet.report.page import write_page
from eigendet.runs import stages
from tests.simulated import simulate


@pytest.mark.parametrize(
    ("count", "steps", "chosen"),
    [
        (None, [0, 1, 4, 9], [0, 1, 4, 9]),
        (9, [0, 1, 4, 9], [0, 1, 4, 9]),
        (3, [0, 1, 4, 9, 20], [0, 4, 20]),
        (2, [0, 1, 4, 9], [0, 9]),
        (1, [0, 1, 4, 9], [9]),
        (1, [9], [9]),
        (None, [9], [9]),
    ],
)
def test_snapshots_are_evenly_spread_with_the_last_among_them(count: Any, steps: list[int], chosen: list[int]) -> None:
    assert EvaluationSettings(snapshots=count).chosen(steps) == chosen


@pytest.mark.parametrize(("count", "expected"), [(None, [0, 1, 4]), (2, [0, 4])])
def test_snapshots_of_observed_runs_are_scored_and_of_others_the_last(
    values: dict[str, Any], tmp_path: Path, count: int | None, expected: list[int]
) -> None:
    values |= {"arms": {"scratch": {}, "finetune": {}}, "covariance": {"images": 3, "arms": ["scratch"]}}
    experiment = config.parse(values | {"evaluation": {"snapshots": count}})
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, tmp_path / "run")
    found = stages.evaluate(experiment, tmp_path / "run")
    assert [scored["step"] for scored in found["snapshots"]] == expected
    assert found["step"] == 4 and found["boxes"] == found["snapshots"][-1]["boxes"]
    means = {name: sum(curve) / 101 for name, curve in found["curves"]["boxes"].items()}
    assert means == {name: pytest.approx(found["boxes"][name], abs=5e-5) for name in ("AP", "AP50", "AP75")}
    assert [example["index"] for example in found["examples"]] == [0, 1, 2, 3]
    other = config.parse(values | {"covariance": {"images": 3, "arms": ["finetune"]}})
    alone = stages.evaluate(other, tmp_path / "run")
    assert [scored["step"] for scored in alone["snapshots"]] == [4] and alone["boxes"] == found["boxes"]


def test_the_page_has_a_table_of_classes(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, ("scratch", "mine"), seeds=(0, 1), layers=1, channels=4)
    for file in (tmp_path / "evaluation").rglob("*.json"):
        content = json.loads(file.read_text())
        base = 0.1 * content["run"]["seed"] + (0.5 if content["run"]["arm"] == "mine" else 0.2)
        files.write_json(file, content | {"classes": {"a <b> cat": base, "dog": None}})
    (network,) = results.accuracy_of_classes(tmp_path, experiment).values()
    assert network == {"a <b> cat": {"scratch": "25.0 ± 7.1", "mine": "55.0 ± 7.1"}, "dog": {"scratch": "", "mine": ""}}
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    row = (
        '<tr><td class="name">a &lt;b&gt; cat</td><td data-value="25.0">25.0 ± 7.1</td><td data-value="55.0">55.0 ± 7.1'
    )
    assert row in page and "Average precision of each class" in page


def test_the_page_draws_them(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, ("scratch", "mine"), seeds=(0, 1), layers=1, channels=4)
    for file in (tmp_path / "evaluation").rglob("*.json"):
        files.write_json(file, json.loads(file.read_text()) | {"snapshots": []})
    assert results.accuracy_over_training(tmp_path, experiment).empty
    write_page(tmp_path)
    assert 'id="accuracy-steps"' not in (tmp_path / "report.html").read_text()
    for file in (tmp_path / "evaluation/scratch").rglob("*.json"):
        content = json.loads(file.read_text())
        snapshots = [{"step": step, "boxes": {"AP": step / 10, "AP50": None}} for step in (0, 1, 4)]
        files.write_json(file, content | {"snapshots": snapshots})
    table = results.accuracy_over_training(tmp_path, experiment)
    assert list(zip(table["arm"], table["seed"], table["step"], table["AP"], strict=True)) == [
        ("scratch", seed, step, step / 10) for seed in (0, 1) for step in (0, 1, 4)
    ]
    drawn = figures.specification(figures.draw_accuracy(table, figures.colors(experiment)))
    assert {row["AP"] for row in drawn["data"]["values"]} == {0.0, 10.0, 40.0}
    assert [layer["mark"]["type"] for layer in drawn["layer"]] == ["errorband", "line", "line"]
    alone = figures.specification(figures.draw_accuracy(table[table["seed"] == 1], figures.colors(experiment)))
    assert [layer["mark"]["type"] for layer in alone["layer"]] == ["line"]
    write_page(tmp_path)
    assert 'id="accuracy-steps"' in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures/accuracy-over-training.svg").is_file()


def test_a_snapshot_that_is_missing_is_left_out_and_said(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values |= {"arms": {"scratch": {}}, "covariance": {"images": 3, "arms": ["scratch"]}}
    experiment = config.parse(values)
    run = tmp_path / "runs/scratch/tiny/rcnn/seed_0"
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, run)
    (run / "checkpoints/step_0000001.pt").unlink()
    scores = stages.evaluate(experiment, run)
    assert [scored["step"] for scored in scores["snapshots"]] == [0, 4]
    assert "step_0000001.pt: no such file, so step 1 is not scored" in caplog.text
    files.write_json(tmp_path / "evaluation/scratch/tiny/rcnn/seed_0.json", dict(scores))
    text = "Not scored, since the snapshot was missing: scratch/tiny/rcnn/seed_0 at 1."
    assert text in results.missing(tmp_path, experiment)
    (run / "checkpoints/step_0000004.pt").unlink()
    with pytest.raises(UserError, match=r"step_0000004\.pt: no such file"):
        stages.evaluate(experiment, run)
