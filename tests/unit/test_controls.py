from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eigendet import channels, config, controls, plugins, runs
from eigendet.allocation import Budget, proportional
from eigendet.dimensions import GroupSpectra
from eigendet.errors import UserError
from eigendet.groups import Channels, Widths
from eigendet.sections import PluginChoice, WidthSettings
from tests.benchmarks.channels import torchvision_network


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def moved(traced: Channels) -> Widths:
    """Widths that grow early and shrink late, at the reference's MACs."""
    dimension = {group: width**0.5 for group, width in traced.widths.items()}
    return proportional(Budget.of(traced, traced.widths, WidthSettings()), dimension)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.73, 1.0, 1.5])
@pytest.mark.parametrize("cost", ["parameters", "macs"])
def test_the_uniform_control_has_the_cost_asked_for(
    traced: Channels, share: float, cost: str, values: dict[str, Any], tmp_path: Path
) -> None:
    values["backbones"]["tiny"] = {"plugin": "resnet", "norm": "batch"}
    values["arms"] = {"scratch": {}, "derived": {}, f"uniform_{cost}": {}}
    values["widths"] = {"round_to": 8}
    experiment = config.parse(values)
    network = runs.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    goal = {group: max(1, round(share**0.5 * width)) for group, width in traced.widths.items()}
    (tmp_path / "derived.json").write_text(json.dumps({"widths": goal}))
    found = controls.control(experiment, network, f"uniform_{cost}", [], tmp_path / "derived.json")["widths"]
    spent = getattr(traced, cost)
    assert 0.98 * spent(goal) <= spent(found) <= spent(goal)
    for group, width in traced.widths.items():
        assert abs(found[group] - share**0.5 * width) <= 8 + 0.01 * width


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "regnet_y_400mf", "densenet121"])
def test_a_profile_of_two_numbers_has_the_parameters_and_the_macs_asked_for(name: str) -> None:
    traced = channels.trace(*torchvision_network(name))
    goal = moved(traced)
    found, factor, ratio = controls.profile(traced, traced.widths, goal, 1)
    for cost in (traced.parameters, traced.macs):
        assert 0.95 * cost(goal) <= cost(found) <= cost(goal)  # RegNet's widths come in multiples of up to 55
    stage = controls.stages(traced)
    for group, width in found.items():
        assert abs(width - factor * ratio ** stage[group] * traced.widths[group]) <= traced.multiples[group]


def test_stages_are_halvings_of_the_resolution() -> None:
    inception = controls.stages(channels.trace(*torchvision_network("inception_v3")))
    first = [f"Conv2d_{name}.conv" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    assert [inception[group] for group in first] == [0, 0, 0, 1, 1]  # 149, 147, 147, 73 and 71 pixels
    vgg = controls.stages(channels.trace(*torchvision_network("vgg11_bn")))
    assert list(vgg.values()) == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("seed", range(12))
def test_no_profile_costs_more_than_its_goal_however_narrow_that_is(seed: int) -> None:
    traced = channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", depth=18, norm_groups=4)), (64, 64))
    reference = {group: max(8, width // 8) for group, width in traced.widths.items()}
    random = np.random.default_rng(seed)
    goal = {group: 4 * int(random.integers(1, 1 + width // 4)) for group, width in reference.items()}
    found, _, _ = controls.profile(traced, reference, goal, 4)
    for cost in (traced.parameters, traced.macs):
        assert cost(found) <= cost(goal)
    with pytest.raises(UserError, match=r"cost less than the narrowest network that widths.round_to .64. allows"):
        controls.profile(traced, reference, goal, 64)


def test_a_profile_is_found_again(traced: Channels) -> None:
    stage = controls.stages(traced)
    assert [stage[g] for g in ("conv1", "layer1.0.conv1", "layer2.0.conv3", "layer4.2.conv2")] == [0, 1, 2, 4]
    goal = {g: round(1.5 * 0.8 ** stage[g] * width) for g, width in traced.widths.items()}
    found, factor, ratio = controls.profile(traced, traced.widths, goal, 1)
    assert factor == pytest.approx(1.5, rel=0.01) and ratio == pytest.approx(0.8, rel=0.01)
    assert all(abs(found[g] - goal[g]) <= max(2, 0.02 * goal[g]) for g in goal)


def test_every_group_gets_the_spectrum_of_another_by_share_of_width() -> None:
    shown = GroupSpectra(
        {
            g: {0: [np.r_[np.ones(k), np.zeros(w - k)]]}
            for g, (w, k) in {"a": (8, 2), "b": (16, 16), "c": (32, 4)}.items()
        },
        {},
    )
    other, origin = controls.permuted(shown)
    assert sorted(origin) == sorted(origin.values()) == ["a", "b", "c"]
    assert all(group != whose for group, whose in origin.items())
    used = {"a": 1 / 4, "b": 1.0, "c": 1 / 8}
    settings = WidthSettings(rule=PluginChoice(plugin="ratio"))
    for group, dimension in other.dimensions(settings).items():
        assert dimension == used[origin[group]] * {"a": 8, "b": 16, "c": 32}[group]
    assert controls.permuted(shown)[1] == origin


def test_a_spectrum_is_stretched_with_its_trace() -> None:
    values = np.array([4.0, 2.0, 1.0, 1.0])
    np.testing.assert_allclose(controls.stretched(values, 8), [2, 2, 1, 1, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(controls.stretched(values, 2), [6, 2])
    np.testing.assert_allclose(controls.stretched(values, 4), values)


def test_the_reference_and_a_file_of_ones_own(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    values["arms"] = {"scratch": {}, "reference": {}, "mine": {"widths": str(file), "steps": 3}}
    experiment = config.parse(values)
    network = runs.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    reference = controls.control(experiment, network, "reference", [], None)
    assert reference["widths"] == reference["reference"]
    file.write_text(json.dumps({"widths": reference["widths"] | {"conv1": 12}}))
    mine = controls.control(experiment, network, "mine", [], None)
    assert mine["widths"]["conv1"] == 12 and mine["parameters"]["result"] > mine["parameters"]["reference"]
    assert mine["backbone"] == network.identity()["backbone"]
    assert experiment.training_of("mine").steps == 3
    file.write_text(json.dumps({"widths": {"conv1": 12}}))
    with pytest.raises(UserError, match=r"mine.json: no width for the channel groups layer"):
        controls.control(experiment, network, "mine", [], None)


def test_a_control_of_derived_widths_needs_these(values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    network = runs.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    with pytest.raises(UserError, match="the control profile is for derived widths; give --derived FILE"):
        controls.control(experiment, network, "profile", [], None)
