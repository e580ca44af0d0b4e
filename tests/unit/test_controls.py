from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet import channels, config, plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.networks.widths_file import ChosenWidths
from eigendet.runs import definitions
from eigendet.widths import controls, dimensions
from eigendet.widths.allocation import Budget
from eigendet.widths.dimensions import GroupSpectra
from eigendet.widths.matching import Matched, matched
from eigendet.widths.rounding import proportional, rounded
from eigendet.widths.stages import stage_numbers
from tests.benchmarks.channels import torchvision_network
from tests.planted import planted, written


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def moved(traced: Channels) -> Widths:
    """Widths that grow early and shrink late, at the reference's MACs."""
    dimension = {group: width**0.5 for group, width in traced.widths.items()}
    return proportional(Budget.of(traced, traced.widths, WidthSettings()), dimension)


def profiled(traced: Channels, reference: Widths, goal: Widths, **settings: Any) -> tuple[Widths, Matched]:
    """A profile of the reference at the goal's costs, rounded, and before that."""
    budget = Budget.like(traced, reference, goal, ["macs", "parameters"], WidthSettings(**settings))
    full = np.array([reference[group] for group in budget.costs.groups], float)
    found = matched(budget, full, stage_numbers(traced))
    return rounded(budget, found.target), found


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


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "regnet_y_400mf", "densenet121", "inception_v3"])
def test_a_profile_of_two_numbers_has_the_parameters_and_the_macs_asked_for(name: str) -> None:
    traced = channels.trace(*torchvision_network(name))
    goal = moved(traced)
    found, (_, factor, ratio) = profiled(traced, traced.widths, goal, round_to=1)
    for cost in (traced.parameters, traced.macs):
        assert 0.98 * cost(goal) <= cost(found) <= cost(goal)
    stage = stage_numbers(traced)
    for group, width in found.items():
        assert abs(width - factor * ratio ** stage[group] * traced.widths[group]) <= traced.multiples[group]


@pytest.mark.parametrize("seed", range(12))
def test_no_profile_costs_more_than_its_goal_however_narrow_that_is(seed: int) -> None:
    traced = channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", depth=18, norm_groups=4)), (64, 64))
    reference = {group: max(8, width // 8) for group, width in traced.widths.items()}
    random = np.random.default_rng(seed)
    goal = {group: 4 * int(random.integers(1, 1 + width // 4)) for group, width in reference.items()}
    found, _ = profiled(traced, reference, goal, round_to=4)
    for cost in (traced.parameters, traced.macs):
        assert cost(found) <= cost(goal)
    with pytest.raises(UserError, match=r"cost less than the narrowest network that widths.round_to .64. and widths"):
        profiled(traced, reference, goal, round_to=64)


def test_a_profile_is_found_again(traced: Channels) -> None:
    stage = stage_numbers(traced)
    assert [stage[g] for g in ("conv1", "layer1.0.conv1", "layer2.0.conv3", "layer4.2.conv2")] == [0, 1, 2, 4]
    goal = {g: round(1.5 * 0.8 ** stage[g] * width) for g, width in traced.widths.items()}
    found, (_, factor, ratio) = profiled(traced, traced.widths, goal, round_to=1)
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
    values["widths"] = values.get("widths", {}) | {"round_to": 16, "rule": "ratio"}
    experiment = config.parse(values)
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    return experiment, replace(network, size=(64, 96))


def chosen(
    arm: str, values: dict[str, Any], tmp_path: Path, heads: bool = False
) -> tuple[ChosenWidths, Budget, Widths, pd.DataFrame]:
    """A control of widths that move, the budget of these, the reference, and the spectra: of step 0, and later."""
    experiment, network = small(values)
    traced, reference = network.reference(64)
    rank = {group: 3 + position for position, group in enumerate(traced.widths)}
    last = {group: width // 2 for group, width in traced.widths.items()} | {"conv1": 1}
    table = pd.concat([planted(traced, rank, 0, step=0), planted(traced, last, 0)])
    folder = written(tmp_path / "0", network, eigenvalues=table)
    goal = proportional(
        Budget.of(traced, reference, experiment.widths), {group: width**0.6 for group, width in reference.items()}
    )
    file = tmp_path / "derived.json"
    file.write_text(json.dumps({"widths": goal}))
    found = controls.control_widths(experiment, network, arm, [folder], file)
    costs = [arm.removeprefix("uniform_")] if "uniform" in arm else ["macs", "parameters"]
    return found, Budget.like(traced, reference, goal, costs, experiment.widths), reference, table


def of(budget: Budget, widths: dict[str, float] | Widths) -> np.ndarray:
    return np.array([widths[group] for group in budget.costs.groups], float)


@pytest.mark.parametrize("arm", ["profile", "untrained", "permuted"])
def test_controls_cost_what_derived_widths_cost(arm: str, values: dict[str, Any], tmp_path: Path) -> None:
    found, budget, reference, _ = chosen(arm, values, tmp_path)
    assert found.targets is not None and found.used is not None and found.multiples == dict.fromkeys(reference, 16)
    assert budget.costs(of(budget, found.targets))[:2] == pytest.approx(budget.caps[:2], rel=1e-4)
    shares = budget.costs(of(budget, found.widths)) / budget.caps
    assert found.used == pytest.approx({"macs": shares[0], "parameters": shares[1]})
    assert 0.96 <= min(found.used.values()) <= max(found.used.values()) <= 1
    assert found.macs.reference / found.macs.result > 0 and found.settings is not None


def test_the_untrained_control_has_what_the_spectra_show_at_the_first_step(
    values: dict[str, Any], tmp_path: Path
) -> None:
    found, budget, _, _ = chosen("untrained", values, tmp_path)
    rank = np.arange(3.0, 3 + len(found.widths))
    assert found.targets is not None
    target, factor, ratio = matched(budget, rank, stage_numbers(small(values)[1].reference(64)[0]))
    np.testing.assert_allclose(of(budget, found.targets), target, rtol=0.02)  # of a budget spent first
    assert found.rule.endswith(f" of what the spectra at step 0 give, times {ratio:.3f} from stage to stage")
    assert found.elsewhere == {} and factor > 0


def test_without_derived_widths_the_untrained_control_has_their_budget(values: dict[str, Any], tmp_path: Path) -> None:
    experiment, network = small(values)
    traced, reference = network.reference(64)
    before = {group: 3 + position for position, group in enumerate(traced.widths)}
    tables = [planted(traced, before, 0, step=0), planted(traced, dict.fromkeys(before, 8), 0)]
    folder = written(tmp_path / "0", network, eigenvalues=pd.concat(tables))
    found = controls.control_widths(experiment, network, "untrained", [folder], None)
    assert found.widths == proportional(Budget.of(traced, reference, experiment.widths), before)
    assert found.rule == "what the spectra at step 0 give" and found.elsewhere == {}
    assert found.macs.reference == traced.macs(reference)
    assert found.backbone == network.identity()["backbone"]


def test_the_permuted_control_has_what_the_last_spectra_of_other_groups_show(
    values: dict[str, Any], tmp_path: Path
) -> None:
    found, _, _, table = chosen("permuted", values, tmp_path)
    experiment, network = small(values)
    traced, _ = network.reference(64)
    _, origin = controls.permuted(dimensions.group_spectra(table, traced, experiment.widths))
    assert found.spectrum_of == origin and " of what the spectra of other groups give, times " in found.rule
    assert found.targets is not None
    share = {group: found.targets[group] / width for group, width in found.reference.items()}
    stage = stage_numbers(traced)
    narrow = next(group for group, whose in origin.items() if whose == "conv1")
    beside = [group for group in share if stage[group] == stage[narrow] and group != narrow]
    assert beside and share[narrow] < min(share[group] for group in beside)


def test_the_profile_control_says_its_two_numbers(values: dict[str, Any], tmp_path: Path) -> None:
    found, budget, reference, _ = chosen("profile", values, tmp_path)
    traced, _ = small(values)[1].reference(64)
    target, factor, ratio = matched(budget, of(budget, reference), stage_numbers(traced))
    assert found.widths == rounded(budget, target)
    assert found.rule == f"{factor:.3f} of the reference's, times {ratio:.3f} from stage to stage"


@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_the_uniform_controls_are_all_scaled_alike(cost: str, values: dict[str, Any], tmp_path: Path) -> None:
    found, budget, reference, _ = chosen(f"uniform_{cost}", values, tmp_path)
    assert found.widths == proportional(budget, reference) and found.rule == "all scaled alike"
    assert found.used is not None and list(found.used) == [cost]


@pytest.mark.parametrize("arm", ["profile", "uniform_macs", "untrained", "permuted"])
def test_every_control_stays_within_the_factors_of_the_settings(
    arm: str, values: dict[str, Any], tmp_path: Path
) -> None:
    experiment, _ = small(values)
    values["widths"] |= {"min_factor": 0.5, "max_factor": 1.25}
    found, _, reference, _ = chosen(arm, values, tmp_path)
    factors = [found.widths[group] / width for group, width in reference.items()]
    assert experiment.widths.max_factor == 4 and min(factors) >= 0.5 and max(factors) <= 1.25


def test_spectra_keep_their_seeds_and_taps_when_they_are_permuted() -> None:
    ones = np.ones
    groups = {"a": {0: [ones(4), np.arange(4.0)], 7: [ones(4)]}, "b": {0: [ones(2)], 7: [np.zeros(2)]}}
    other, origin = controls.permuted(GroupSpectra(groups, {"a": "conv"}))
    assert origin == {"a": "b", "b": "a"} and other.elsewhere == {}
    lengths = {g: {seed: list(map(len, taps)) for seed, taps in seeds.items()} for g, seeds in other.groups.items()}
    assert lengths == {"a": {0: [4], 7: [4]}, "b": {0: [2, 2], 7: [2]}}
    np.testing.assert_allclose(other.groups["b"][0][1], [5, 1])
    np.testing.assert_allclose(other.groups["a"][0][0], [0.5, 0.5, 0.5, 0.5])
