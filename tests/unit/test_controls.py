from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet import channels, config, plugins
from eigendet.channels.groups import Channels, Layer, Widths
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.runs import definitions
from eigendet.widths import controls, derivation, dimensions
from eigendet.widths.allocation import Budget, proportional
from eigendet.widths.dimensions import GroupSpectra
from tests.benchmarks.channels import torchvision_network
from tests.handmade import NETWORK, size
from tests.planted import planted, written


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
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    goal = {group: max(1, round(share**0.5 * width)) for group, width in traced.widths.items()}
    (tmp_path / "derived.json").write_text(json.dumps({"widths": goal}))
    found = controls.control_widths(experiment, network, f"uniform_{cost}", [], tmp_path / "derived.json").widths
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
    stage = controls.stage_numbers(traced)
    for group, width in found.items():
        assert abs(width - factor * ratio ** stage[group] * traced.widths[group]) <= traced.multiples[group]


def test_stages_are_halvings_of_the_resolution() -> None:
    inception = controls.stage_numbers(channels.trace(*torchvision_network("inception_v3")))
    first = [f"Conv2d_{name}.conv" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    assert [inception[group] for group in first] == [0, 0, 0, 1, 1]  # 149, 147, 147, 73 and 71 pixels
    vgg = controls.stage_numbers(channels.trace(*torchvision_network("vgg11_bn")))
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
    stage = controls.stage_numbers(traced)
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
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    reference = controls.control_widths(experiment, network, "reference", [], None)
    assert reference.widths == reference.reference
    file.write_text(json.dumps({"widths": reference.widths | {"conv1": 12}}))
    mine = controls.control_widths(experiment, network, "mine", [], None)
    assert mine.widths["conv1"] == 12 and mine.parameters.result > mine.parameters.reference
    assert mine.backbone == network.identity()["backbone"]
    assert experiment.training_of("mine").steps == 3
    file.write_text(json.dumps({"widths": {"conv1": 12}}))
    with pytest.raises(UserError, match=r"mine.json: no width for the channel groups layer"):
        controls.control_widths(experiment, network, "mine", [], None)


def test_a_control_of_derived_widths_needs_these(values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    with pytest.raises(UserError, match="the control profile is for derived widths; give --derived FILE"):
        controls.control_widths(experiment, network, "profile", [], None)


def small(values: dict[str, Any]) -> tuple[config.Experiment, Definition]:
    """An experiment with every control, and its network, whose images are wider than high."""
    values["backbones"]["tiny"] = {"plugin": "resnet", "depth": 18, "norm_groups": 8}
    arms = ("scratch", "derived", "untrained", "permuted", "profile", "uniform_macs", "uniform_parameters")
    values["arms"] = {arm: {} for arm in arms}
    values["widths"] = {"round_to": 16, "rule": "ratio"}
    experiment = config.parse(values)
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    return experiment, replace(network, size=(64, 96))


def test_the_untrained_control_is_derived_from_the_spectra_at_the_first_step(
    values: dict[str, Any], tmp_path: Path
) -> None:
    experiment, network = small(values)
    traced, reference = network.reference(64)
    before = {group: 3 + position for position, group in enumerate(traced.widths)}
    tables = [planted(traced, before, 0, step=0), planted(traced, dict.fromkeys(before, 8), 0)]
    folder = written(tmp_path / "0", network, eigenvalues=pd.concat(tables))
    found = controls.control_widths(experiment, network, "untrained", [folder], None)
    assert found.widths == proportional(Budget.of(traced, reference, experiment.widths), before)
    assert found.rule == "as derived, from the spectra at step 0" and found.elsewhere == {}
    assert found.macs.reference == traced.macs(reference)
    assert found.backbone == network.identity()["backbone"]


def test_the_permuted_control_is_derived_from_the_last_spectra_of_other_groups(
    values: dict[str, Any], tmp_path: Path
) -> None:
    experiment, network = small(values)
    traced, reference = network.reference(64)
    rank = {group: 3 + position for position, group in enumerate(traced.widths)}
    table = pd.concat([planted(traced, dict.fromkeys(rank, 8), 0, step=0), planted(traced, rank, 0)])
    folder = written(tmp_path / "0", network, eigenvalues=table)
    file = tmp_path / "derived.json"
    file.write_text(json.dumps({"widths": reference}))
    found = controls.control_widths(experiment, network, "permuted", [folder], file)
    spectra = dimensions.group_spectra(table, traced, experiment.widths)
    other, origin = controls.permuted(spectra)
    assert found.spectrum_of == origin and found.rule == "as derived, each group with the spectrum of another"
    budget = Budget.of(traced, reference, experiment.widths)
    assert found.widths == derivation.allocate(budget, other, experiment.widths)[0]


def test_the_profile_control_says_its_two_numbers(values: dict[str, Any], tmp_path: Path) -> None:
    experiment, network = small(values)
    traced, reference = network.reference(64)
    goal = {group: 8 * round(width / 16) for group, width in reference.items()}
    file = tmp_path / "derived.json"
    file.write_text(json.dumps({"widths": goal}))
    found = controls.control_widths(experiment, network, "profile", [], file)
    wanted, factor, ratio = controls.profile(traced, reference, goal, 16)
    assert found.widths == wanted
    assert found.rule == f"{factor:.3f} of the reference's, times {ratio:.3f} from stage to stage"
    for cost in ("macs", "parameters"):
        found = controls.control_widths(experiment, network, f"uniform_{cost}", [], file)
        assert found.widths == proportional(Budget.like(traced, goal, [cost], 16), reference)
        assert found.rule == "all scaled alike"


def positioned(positions: dict[str, int]) -> Channels:
    """A network whose groups are written at so many positions, and a product that counts none."""
    layers = [Layer(name, "conv", None, size(**{name[0]: 1}), positions=number) for name, number in positions.items()]
    return replace(NETWORK, widths=dict.fromkeys("abcde", 8), layers=(*layers, Layer("n", "norm", None, size(e=1))))


def test_a_stage_is_a_halving_of_the_sides_below_the_finest_and_those_without_a_group_do_not_count() -> None:
    found = controls.stage_numbers(positioned({"a": 1024, "b": 256, "c": 260, "d": 1}))
    assert found == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0}  # halvings: 0, 1, 1 and 5; and what only a norm writes
    assert controls.stage_numbers(positioned({"a": 1024, "a2": 64, "b": 256})) == {
        "a": 1,
        "b": 0,
        "c": 0,
        "d": 0,
        "e": 0,
    }
    assert set(controls.stage_numbers(replace(NETWORK, layers=())).values()) == {0}


def test_spectra_keep_their_seeds_and_taps_when_they_are_permuted() -> None:
    ones = np.ones
    groups = {"a": {0: [ones(4), np.arange(4.0)], 7: [ones(4)]}, "b": {0: [ones(2)], 7: [np.zeros(2)]}}
    other, origin = controls.permuted(GroupSpectra(groups, {"a": "conv"}))
    assert origin == {"a": "b", "b": "a"} and other.elsewhere == {}
    lengths = {g: {seed: list(map(len, taps)) for seed, taps in seeds.items()} for g, seeds in other.groups.items()}
    assert lengths == {"a": {0: [4], 7: [4]}, "b": {0: [2, 2], 7: [2]}}
    np.testing.assert_allclose(other.groups["b"][0][1], [5, 1])
    np.testing.assert_allclose(other.groups["a"][0][0], [0.5, 0.5, 0.5, 0.5])
