"""Every path below results/ comes from one place, which the stages and what reads them agree on."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.config import layout
from eigendet.config.layout import Run
from tests.simulated import compare, simulate

WILDCARDS = {"task", "split", "digest", "arm", "backbone", "detector", "seed", "shard", "shards"}
PATTERNS = {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}


def test_a_run_is_its_path_and_its_path_is_of_one_run() -> None:
    run = Run("scratch", "tiny", "rcnn", 3)
    assert str(run) == "scratch/tiny/rcnn/seed_3"
    assert layout.path("results/x", layout.RUNS, **run._asdict()) == Path("results/x/runs", str(run))
    assert layout.path("results/x", layout.EVALUATION, **run._asdict()) == Path(f"results/x/evaluation/{run}.json")


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_has_the_rules_wildcards_and_stays_below_the_folder(name: str) -> None:
    fields = {field for _, field, _, _ in string.Formatter().parse(PATTERNS[name]) if field}
    assert fields <= WILDCARDS
    filled = layout.path("results/x", PATTERNS[name], **dict.fromkeys(fields, "a"))
    assert filled.is_relative_to("results/x") and "{" not in str(filled)


def test_no_two_patterns_are_one_path() -> None:
    assert len(set(PATTERNS.values())) == len(PATTERNS)


def test_runs_go_network_by_network_arm_by_arm_seed_by_seed(values: dict[str, Any]) -> None:
    values |= {"seeds": [0, 1], "backbones": dict.fromkeys(("a", "b"), values["backbones"]["tiny"])}
    runs = list(layout.runs(config.parse(values), ["scratch", "derived"]))
    assert len(set(runs)) == len(runs) == 8
    assert [str(run) for run in runs[:5]] == [
        "scratch/a/rcnn/seed_0", "scratch/a/rcnn/seed_1", "derived/a/rcnn/seed_0", "derived/a/rcnn/seed_1",
        "scratch/b/rcnn/seed_0",
    ]  # fmt: skip


def test_a_data_sets_summary_is_named_after_its_settings(values: dict[str, Any]) -> None:
    before = {split: layout.data_check(config.parse(values), "detection", split) for split in ("train", "val")}
    assert all(path.startswith(f"data/detection_{split}_") for split, path in before.items())
    values["data"]["detection"]["train"]["images"] += 1
    experiment = config.parse(values)
    assert layout.data_check(experiment, "detection", "train") != before["train"]
    assert layout.data_check(experiment, "detection", "val") == before["val"]


def test_results_lie_where_the_layout_says(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, seeds=(0,))
    compare(tmp_path)
    of_runs = [layout.RUN_RECORD, layout.RUN_LOG, layout.COVARIANCE, layout.EVALUATION, layout.EIGENVALUES]
    expected = {tmp_path / layout.CONFIGURATION}
    for run in layout.runs(experiment, experiment.observed):
        patterns = [*of_runs, layout.JACKKNIFE, layout.SIMILARITY]
        expected |= {layout.path(tmp_path, pattern, **run._asdict()) for pattern in patterns}
    for backbone, detector in experiment.networks:
        expected |= {layout.path(tmp_path, file, backbone=backbone, detector=detector)
                     for file in layout.COMPARISON_FILES}  # fmt: skip
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".sha256"} == expected
