from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet import config
from eigendet.config import Experiment
from eigendet.config.sections import BackboneChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.networks import widths_file
from eigendet.networks.definition import Definition
from eigendet.networks.widths_file import Cost, read_widths
from eigendet.runs import definitions
from eigendet.widths import derivation, dimensions
from eigendet.widths.allocation import Budget, targets
from eigendet.widths.rounding import proportional
from tests.planted import planted, written

NETWORK = Definition(BackboneChoice(plugin="resnet", depth=18, norm_groups=8), [], (64, 64))


def test_the_rule_is_named_only_where_it_counts() -> None:
    assert derivation.rule_text(WidthSettings()) == "dof at scale 0.1"
    assert derivation.rule_text(WidthSettings(rule="participation")) == "participation"
    assert derivation.rule_text(WidthSettings(allocation="marginal")) == "marginal allocation"
    weighted = WidthSettings(allocation={"plugin": "loss_weighted", "power": 1})
    assert derivation.rule_text(weighted) == "loss_weighted allocation at power 1"


def test_a_widths_file_may_be_written_by_hand(tmp_path: Path) -> None:
    _, widths = NETWORK.reference()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"widths": widths | {"conv1": 48}}))
    assert read_widths(file, NETWORK) == widths | {"conv1": 48}
    by_layer = {group: width for group, width in widths.items() if group != "conv1"} | {"layer1.0.conv2": 48}
    file.write_text(json.dumps({"widths": by_layer}))
    assert read_widths(file, NETWORK)["conv1"] == 48  # a layer tied to the stem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no object 'widths'"),
        ("{", "not JSON"),
        ('{"widths": 3}', "no object 'widths'"),
        ('{"widths": {}}', "no width for the channel groups conv1, layer1"),
        ('{"widths": {"conv9": 8}}', "unknown channel group 'conv9'"),
        ('{"widths": {"conv1": 20}}', "'conv1': width 20; expected a multiple of 8"),
        ('{"widths": {"conv1": -8}}', "'conv1': width -8; expected a positive integer"),
        ('{"widths": {"conv1": 0}}', "'conv1': width 0; expected a positive integer"),
        ('{"widths": {"conv1": 16, "layer1.1.conv2": 24}}', "'conv1' is 16 and 'layer1.1.conv2' is 24; they are tied"),
        ('{"detector": {"plugin": "retinanet"}, "widths": {}}', "widths of the detector's own layers; set"),
        ('{"backbone": {"plugin": "resnet", "depth": 50}, "widths": {}}', "made for the backbone .*'depth': 50"),
    ],
)  # fmt: skip
def test_a_wrong_widths_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(UserError, match=f"mine.json: .*{message}"):
        read_widths(file, NETWORK)


def test_a_file_of_chosen_widths_is_read_again_and_another_version_of_it_is_not(tmp_path: Path) -> None:
    traced, widths = NETWORK.reference()
    chosen = replace(derivation.describe_widths(NETWORK, traced, widths, widths, "mine"), bound={"conv1": "macs"})
    file = tmp_path / "derived.json"
    widths_file.write_chosen(file, chosen)
    assert widths_file.read_chosen(file) == chosen
    assert read_widths(file, NETWORK) == widths
    content = json.loads(file.read_text())
    assert content == {"format": "eigendet widths", "version": 1} | chosen.plain()
    assert content["macs"] == {"reference": traced.macs(widths), "result": traced.macs(widths)}
    file.write_text(json.dumps(content | {"version": 9}))
    other = r"derived.json: of the format 'eigendet widths', version 9; .*: run 'eigendet widths' again"
    with pytest.raises(UserError, match=other):
        read_widths(file, NETWORK)
    file.write_text(json.dumps(chosen.plain()))
    earlier = "derived.json: of an earlier format, without a version; .*: run 'eigendet widths' again"
    for read in (widths_file.read_by_hand, widths_file.read_chosen):
        with pytest.raises(UserError, match=earlier):
            read(file)
    by_hand = {"widths": widths, "backbone": chosen.backbone, "rule": "my own"}
    file.write_text(json.dumps(by_hand | {"version": "second try"}))
    assert read_widths(file, NETWORK) == widths
    file.write_text(json.dumps(by_hand))
    assert read_widths(file, NETWORK) == widths
    with pytest.raises(UserError, match=earlier):
        widths_file.read_chosen(file)


@pytest.fixture
def experiment(values: dict[str, Any]) -> Experiment:
    values["backbones"]["tiny"] = {"plugin": "resnet", "depth": 18, "norm_groups": 8}
    values["widths"] = {"round_to": 16, "rule": "ratio"}
    return config.parse(values)


def of_side(experiment: Experiment) -> Definition:
    """The network of an experiment whose images are wider than high."""
    return replace(definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False), size=(64, 96))


def test_a_widths_file_says_what_the_widths_are_and_what_they_come_from(experiment: Experiment, tmp_path: Path) -> None:
    network = of_side(experiment)
    traced, reference = network.reference(64)
    rank = {group: 3 + position for position, group in enumerate(traced.widths)}
    more = {group: value + 2 for group, value in rank.items()}
    nothing = planted(traced, rank, 0, left_out=0)[:0]
    folders = [
        written(tmp_path / str(seed), network, eigenvalues=planted(traced, own, seed), jackknife=nothing)
        for seed, own in enumerate((rank, more))
    ]
    found = derivation.derive_widths(experiment, network, folders, "scratch")
    budget = Budget.of(traced, reference, experiment.widths)
    between = {group: value + 1.0 for group, value in rank.items()}  # of both seeds
    assert found.dimensions == between
    assert found.widths == proportional(budget, between)
    assert found.reference == reference
    assert found.backbone == network.backbone.model_dump(mode="json", exclude={"pretrained"})
    assert found.multiples == dict.fromkeys(reference, 16)
    assert found.bound == budget.binding(found.widths, targets(budget, between))
    assert found.macs == Cost(traced.macs(reference), traced.macs(found.widths))
    assert found.parameters.result == traced.parameters(found.widths)
    assert (found.arm, found.image, found.elsewhere) == ("scratch", [64, 96], {})
    assert found.rule == derivation.rule_text(experiment.widths)
    assert found.settings == experiment.widths.model_dump(mode="json")
    for folder in folders:
        digest = hashlib.sha256((folder / "eigenvalues.parquet").read_bytes()).hexdigest()
        assert found.spectra is not None and found.spectra[str(folder)].endswith(digest)
    assert found.width_intervals is None and "width_intervals" not in found.plain()


def test_intervals_stand_beside_widths_where_parts_of_the_images_were_left_out(
    experiment: Experiment, tmp_path: Path
) -> None:
    network = of_side(experiment)
    traced, _ = network.reference(64)
    rank = dict.fromkeys(traced.widths, 5)
    parts = pd.concat([planted(traced, rank | {"conv1": 4 + part}, 0, left_out=part) for part in range(3)])
    folder = written(tmp_path / "0", network, eigenvalues=planted(traced, rank, 0), jackknife=parts)
    counted = derivation.derive_widths(experiment, network, [folder], "scratch")
    assert counted.dimension_intervals is None and "ratio gives whole numbers" in (counted.lacking_intervals or "")
    smooth = experiment.model_copy(update={"widths": WidthSettings(round_to=16)})
    found = derivation.derive_widths(smooth, network, [folder], "scratch").plain()
    assert found["dimension_intervals"].keys() == found["width_intervals"].keys() == rank.keys()
    low, high = found["dimension_intervals"]["conv1"]
    assert low < found["dimensions"]["conv1"] < high
    assert found["dimension_intervals"]["layer2.0.conv1"] == pytest.approx([found["dimensions"]["layer2.0.conv1"]] * 2)
    least, most = found["undetermined"]["conv1"]
    assert least < most and least % 16 == most % 16 == 0 and least <= found["widths"]["conv1"] <= most
    assert "lacking_intervals" not in found


def test_a_budget_is_spent_as_the_settings_say(experiment: Experiment) -> None:
    network = of_side(experiment)
    traced, reference = network.reference(64)
    rank = {group: 3 + position for position, group in enumerate(traced.widths)}
    shown = dimensions.group_spectra(planted(traced, rank, 0), traced, experiment.widths)
    budget = Budget.of(traced, reference, experiment.widths)
    found = derivation.spend(traced, reference, shown, experiment.widths)
    assert found.widths == proportional(budget, rank) and found.dimensions == rank
    np.testing.assert_array_equal(found.target, targets(budget, rank))
    settings = WidthSettings.model_validate(experiment.widths.model_dump() | {"allocation": "marginal"})
    other = derivation.spend(traced, reference, shown, settings)
    assert other.widths != found.widths and other.target.tolist() == list(other.widths.values())
    assert settings.allocation.plugin == "marginal"
