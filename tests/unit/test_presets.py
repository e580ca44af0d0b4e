"""Presets: settings that belong together, which nothing else in a configuration may contradict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from eigendet import config, plugins
from eigendet.config.presets import READINGS
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.report.page import write_page
from tests.conftest import minimal_experiment
from tests.simulated import simulate


def paper(**widths: Any) -> config.Experiment:
    return config.parse(minimal_experiment() | {"preset": "paper", "widths": {"round_to": 4, **widths}})


def test_it_sets_what_the_authors_have_stated_and_nothing_else() -> None:
    plain, own = config.parse(minimal_experiment()).model_dump(), paper().model_dump()
    assert (own["preset"], own["covariance"].pop("weighting"), own["widths"].pop("centered")) == (
        "paper",
        "images",
        False,
    )
    assert own["widths"].pop("rule") == {"plugin": "absolute", "threshold": 1e-3}
    for values in (plain, own):
        del values["preset"]
    assert {key: plain[key] for key in own if key not in ("covariance", "widths")} == {
        key: own[key] for key in own if key not in ("covariance", "widths")
    }
    for section in ("covariance", "widths"):
        assert own[section].items() <= plain[section].items()


def test_it_is_the_same_as_it_is_written_out() -> None:
    assert config.parse(yaml.safe_load(config.dump_yaml(paper()))) == paper()


@pytest.mark.parametrize("rule", ["ratio", "absolute", {"plugin": "ratio"}, *READINGS.values()])
def test_either_reading_of_the_threshold_may_be_chosen(rule: Any) -> None:
    chosen = paper(rule=rule).widths.rule
    assert plugins.described("rule", chosen) == f"{chosen.plugin} at threshold 0.001"


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"rule": "dof"}, "widths.rule is dof; the preset 'paper' sets it to"),
        ({"rule": {"plugin": "ratio", "threshold": 0.01}}, "'threshold': 0.01}; the preset 'paper' sets it to"),
        ({"centered": True}, "widths.centered is True; the preset 'paper' sets it to False: leave it out"),
    ],
)
def test_what_contradicts_it_is_refused(widths: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        paper(**widths)


@pytest.mark.parametrize("preset", ["papr", 3, ["paper"], {}])
def test_another_name_is_refused(preset: Any) -> None:
    with pytest.raises(UserError, match=r"preset: got .*; input should be 'paper'"):
        config.parse(minimal_experiment() | {"preset": preset})


def test_a_rule_in_units_is_marked_and_may_find_no_dimension() -> None:
    assert [name for name in plugins.discover("rule") if plugins.in_units(PluginChoice(plugin=name))] == ["absolute"]


@pytest.mark.parametrize(("rule", "reading"), [("absolute", "absolute"), ("ratio", "relative")])
def test_the_page_says_what_is_the_authors(rule: str, reading: str, tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,), layers=1, channels=4)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    write_page(tmp_path)
    assert "Set by the preset" not in (tmp_path / "report.html").read_text().partition("<script")[0]
    changed = values["widths"] | {"rule": rule, "centered": False}
    values |= {"preset": "paper", "widths": changed, "covariance": values["covariance"] | {"weighting": "images"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    write_page(tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().partition("<script")[0].split())
    assert "stated by the paper's authors: raw second moments, in which every image counts alike" in page
    assert f"they do not say; here it is {reading}. Layers, images, allocation, rounding" in page
