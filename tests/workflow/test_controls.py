"""Controls, rounds, and widths of the whole detector in the workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eigendet.plugins.discovery import discover
from tests.conftest import minimal_experiment
from tests.workflow.conftest import ARMS, Finished
from tests.workflow.running import planned, said, snakemake

OTHERS = ("scratch", "derived", "reference", "uniform_parameters", "uniform_macs", "untrained", "permuted")
TIMES = {"seconds", "images_per_second", "detector_ms", "backbone_ms"}


def costs(results: Path) -> pd.DataFrame:
    """Parameters and operations of each arm; of the whole detector's operations only where its widths are derived."""
    table = pd.read_csv(results / "summary.csv").groupby("arm").first()
    return table[[column for column in table if column.endswith(("parameters", "macs"))]]


def test_no_arm_costs_more_than_what_it_is_compared_with(finished: Finished) -> None:
    arms = costs(finished.results)
    assert arms.loc["finetune"].equals(arms.loc["scratch"])
    for derived in ("derived", "derived_2"):
        assert arms.loc[derived, "macs"] <= arms.loc["scratch", "macs"]
    assert (arms.loc["profile", ["parameters", "macs"]] <= arms.loc["derived_2", ["parameters", "macs"]]).all()
    assert arms.loc["mine", "parameters"] > arms.loc["scratch", "parameters"]
    assert arms.loc["mine", "backbone_macs"] == arms.loc["scratch", "backbone_macs"]


def test_widths_say_where_they_come_from(finished: Finished) -> None:
    widths = finished.results / "widths/tiny/rcnn"
    found = {file.stem: json.loads(file.read_text()) for file in widths.glob("*.json")}
    assert found.keys() == set(ARMS) - {"finetune", "scratch"}
    assert (found["derived"]["arm"], found["derived_2"]["arm"]) == ("scratch", "derived")
    assert found["derived"]["elsewhere"]["roi_heads.box_head.fc6"] == "linear"  # its activation is no module
    for content in found.values():
        assert content["detector"]["plugin"] == "my_rcnn"
        assert "backbone.fpn.inner_blocks.3.0" in content["widths"]
    assert set(found["derived_2"]["bound"].values()) <= {"macs", "target", "least"}
    for group, (low, high) in found["derived"]["dimension_intervals"].items():
        assert 0 < low <= high <= found["derived"]["reference"][group]
    front = pd.read_csv(widths / "front.csv")
    assert front["on_front"].any() and (front["mac_share"] <= front["cap"]).all()


def test_readings_of_the_same_spectra_are_in_a_table_and_the_experiments_own_is_what_it_derives(
    finished: Finished,
) -> None:
    table = pd.read_csv(finished.results / "widths/tiny/rcnn/readings.csv", keep_default_na=False)
    assert len(table) == 4 * len(discover("rule")) and not table["reason"].any()
    assert not table.duplicated(["rule", "centered", "weighting"]).any() and (table["mac_share"] <= 1).all()
    (own,) = table[table["own"]].to_dict("records")
    derived = json.loads((finished.results / "widths/tiny/rcnn/derived.json").read_text())
    assert (own["rule"], own["centered"], own["weighting"]) == ("dof at scale 0.1", True, "positions")
    assert (own["parameters"], own["macs"]) == (derived["parameters"]["result"], derived["macs"]["result"])
    assert "The same spectra under each reading" in (finished.results / "report.html").read_text()
    assert not list((finished.results / "widths/tiny/rcnn").glob("*.observed"))


def test_the_page_answers_what_moved_what_bound_it_and_whether_widths_settle(finished: Finished) -> None:
    page = (finished.results / "report.html").read_text().lower()
    for words in (
        "in the last round",
        "bound by",
        "the probe images",
        "pareto front",
        "mine.json",
        "derived_2",
    ):
        assert words in page


def test_a_changed_file_of_widths_redoes_its_arm_alone(copied: Finished) -> None:
    folder, configuration = copied
    before = (folder / "mine.json").read_text()
    (folder / "mine.json").write_text(before.replace('"rpn.head.conv.0.0": 20', '"rpn.head.conv.0.0": 24'))
    found = planned(folder, configuration)
    assert (found["widths"], found["train"], found["evaluate"]) == (1, 2, 2)  # of two seeds
    broken = json.loads(before)
    broken["widths"]["rpn.head.conv.0.0"] = -4
    (folder / "mine.json").write_text(json.dumps(broken))
    assert snakemake(folder, configuration).returncode != 0
    log = (copied.results / "logs/widths/tiny/rcnn/mine.log").read_text()
    assert "mine.json: channel group 'rpn.head.conv.0.0': width -4; expected a positive integer" in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the controls that the finished experiment has not."""
    folder = tmp_path_factory.mktemp("controls")
    configuration: dict[str, Any] = minimal_experiment() | {"arms": {arm: {} for arm in OTHERS}}
    configuration["covariance"] = {"images": 4, "jackknife": 2}
    result = snakemake(folder, configuration)
    assert result.returncode == 0, said(result)
    return folder / "results/minimal"


@pytest.mark.slow
def test_the_reference_is_scratch_again(others: Path) -> None:
    summary = pd.read_csv(others / "summary.csv").set_index("arm")
    alike = [column for column in summary if column not in TIMES]
    assert summary.loc["reference", alike].equals(summary.loc["scratch", alike])  # NaN too, of sizes without objects


@pytest.mark.slow
def test_uniform_controls_have_the_derived_costs(others: Path) -> None:
    arms = costs(others)
    parameters, macs = arms["backbone_parameters"], arms["backbone_macs"]
    assert macs["derived"] <= macs["scratch"]
    assert parameters["derived"] * 0.8 <= parameters["uniform_parameters"] <= parameters["derived"]
    assert macs["derived"] * 0.8 <= macs["uniform_macs"] <= macs["derived"]


@pytest.mark.slow
def test_permuted_widths_are_those_of_other_layers(others: Path) -> None:
    derived, permuted = (
        json.loads((others / f"widths/tiny/rcnn/{arm}.json").read_text()) for arm in ("derived", "permuted")
    )
    origin = permuted["spectrum_of"]
    assert sorted(origin) == sorted(origin.values()) == sorted(derived["widths"])
    assert permuted["widths"] != derived["widths"]
