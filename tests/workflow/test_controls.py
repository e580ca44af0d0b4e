"""Every control, two rounds, and widths of the whole detector in one workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eigendet import config, runs
from tests.conftest import minimal_experiment
from tests.workflow.test_workflow import jobs, snakemake

ARMS = ("scratch", "derived", "reference", "profile", "untrained", "permuted")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("controls")
    configuration = minimal_experiment() | {"rounds": 2}
    configuration["arms"] = {arm: {} for arm in ARMS} | {"mine": {"widths": "mine.json"}}
    configuration["covariance"] = {"images": 4, "jackknife": 2, "heads": True, "points": ["act", "conv", "linear"]}
    configuration["widths"] = {"round_to": 4, "heads": True}
    network = runs.definition_for_widths(config.parse(configuration), "tiny", "rcnn", heads=True)
    _, widths = network.reference()
    (folder / "mine.json").write_text(json.dumps({"widths": widths | {"rpn.head.conv.0.0": 20}}))
    result = snakemake(folder, configuration)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, configuration


def test_every_arm_is_in_the_summary_with_accuracy_cost_and_latency(finished: tuple[Path, dict[str, Any]]) -> None:
    summary = pd.read_csv(finished[0] / "results/minimal/summary.csv").set_index("arm")
    assert list(summary.index) == ["scratch", "derived", "derived_2", *ARMS[2:], "mine"]
    for column in ("AP", "parameters", "backbone_parameters", "backbone_macs", "macs", "detector_ms", "backbone_ms"):
        assert summary[column].notna().all()
    alike = [
        column for column in summary if column not in ("seconds", "images_per_second", "detector_ms", "backbone_ms")
    ]
    assert summary.loc["reference", alike].equals(summary.loc["scratch", alike])  # NaN too, of sizes without objects
    goal = summary.loc["derived_2"]
    assert goal["macs"] <= summary.loc["scratch", "macs"]
    assert (summary.loc["profile", ["parameters", "macs"]] <= goal[["parameters", "macs"]]).all()
    assert summary.loc["mine", "parameters"] > summary.loc["scratch", "parameters"]
    assert summary.loc["mine", "backbone_macs"] == summary.loc["scratch", "backbone_macs"]


def test_widths_say_where_they_come_from(finished: tuple[Path, dict[str, Any]]) -> None:
    widths = finished[0] / "results/minimal/widths/tiny/rcnn"
    found = {file.stem: json.loads(file.read_text()) for file in widths.glob("*.json")}
    assert (found["derived"]["arm"], found["derived_2"]["arm"]) == ("scratch", "derived")
    assert found["derived"]["elsewhere"]["roi_heads.box_head.fc6"] == "linear"  # its activation is no module
    for content in found.values():
        assert content["detector"]["plugin"] == "faster_rcnn"
        assert "backbone.fpn.inner_blocks.3.0" in content["widths"]
    origin = found["permuted"]["spectrum_of"]
    assert sorted(origin) == sorted(origin.values()) == sorted(found["derived"]["widths"])
    bound = set(found["derived_2"]["bound"].values())
    assert bound <= {"macs", "target", "least"}
    for group, (low, high) in found["derived"]["dimension_intervals"].items():
        assert low <= found["derived"]["dimensions"][group] <= high
    front = pd.read_csv(widths / "front.csv")
    assert front["on_front"].any() and (front["mac_share"] <= front["cap"]).all()


def test_the_page_answers_what_moved_what_bound_it_and_whether_widths_settle(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    page = (finished[0] / "results/minimal/report.html").read_text()
    for words in (
        "settled: in the last round",
        "bound by",
        "the probe images",
        "Pareto front",
        "mine.json",
        "derived_2",
    ):
        assert words.lower() in page.lower()


def test_a_changed_file_of_widths_redoes_its_arm_alone(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, configuration = finished
    before = (folder / "mine.json").read_text()
    (folder / "mine.json").write_text(before.replace('"rpn.head.conv.0.0": 20', '"rpn.head.conv.0.0": 24'))
    plan = snakemake(folder, configuration, "--dry-run")
    found = jobs(plan.stdout + plan.stderr)
    assert (found["derive_widths"], found["retrain"], found["evaluate"]) == (1, 1, 1)
    broken = json.loads(before)
    broken["widths"]["rpn.head.conv.0.0"] = -4
    (folder / "mine.json").write_text(json.dumps(broken))
    result = snakemake(folder, configuration)
    (folder / "mine.json").write_text(before)
    log = (folder / "results/minimal/logs/derive_widths/tiny/rcnn/mine.log").read_text()
    assert result.returncode != 0
    assert "mine.json: channel group 'rpn.head.conv.0.0': width -4; expected a positive integer" in log
    assert "Traceback" not in log
