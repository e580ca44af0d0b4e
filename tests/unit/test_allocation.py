from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eigendet import channels, plugins
from eigendet.channels.groups import Channels, Layer, Widths
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.widths import allocation
from eigendet.widths.allocation import Budget, Costs
from eigendet.widths.rounding import proportional
from tests.benchmarks.channels import torchvision_network
from tests.handmade import LAYERS, MACS, NETWORK, PARAMETERS, size
from tests.optimal import flat, marginal


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def budget(traced: Channels, **settings: Any) -> Budget:
    return Budget.of(traced, traced.widths, WidthSettings(**settings))


def falling(traced: Channels, exponent: float = 1.2) -> dict[str, np.ndarray]:
    return {group: np.arange(1, width + 1) ** -exponent for group, width in traced.widths.items()}


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_costs_as_arrays_equal_those_of_the_layers(name: str) -> None:
    traced = channels.trace(*torchvision_network(name))
    costs, rng = Costs.of(traced), random.Random(0)
    widths = {group: traced.multiples[group] * rng.randint(1, 40) for group in costs.groups}
    vector = np.array([widths[group] for group in costs.groups], float)
    macs, parameters, _ = costs(vector)
    assert macs == pytest.approx(traced.macs(widths), rel=1e-12)
    assert parameters == pytest.approx(traced.parameters(widths), rel=1e-12)
    step = np.array([traced.multiples[group] for group in costs.groups], float)
    for position in range(0, len(step), 7):
        wider = vector.copy()
        wider[position] += step[position]
        difference = costs(wider) - costs(vector)
        assert np.allclose(costs.steps(costs.gradient(vector), step)[:, position], difference, rtol=1e-6)


def test_activations_are_what_convolutions_write() -> None:
    traced = channels.trace(*torchvision_network("vgg11_bn"))
    costs = Costs.of(traced)
    _, _, activations = costs(np.array([traced.widths[group] for group in costs.groups], float))
    maps = 64 * 224**2 + 128 * 112**2 + 2 * 256 * 56**2 + 2 * 512 * 28**2 + 2 * 512 * 14**2
    assert activations == maps + 4096 + 4096 + 1000


@pytest.mark.parametrize("multiple", [1, 4, 8, 32])
def test_proportional_widths_move_without_more_macs(traced: Channels, multiple: int) -> None:
    dimension = {group: width**0.5 for group, width in traced.widths.items()}
    derived = proportional(budget(traced, round_to=multiple), dimension)
    assert traced.macs(derived) <= traced.macs(traced.widths)
    assert all(width % multiple == 0 for width in derived.values())
    change = {group: derived[group] / traced.widths[group] for group in derived}
    assert min(change.values()) < 1 < max(change.values())
    if multiple <= 8:
        assert traced.macs(derived) > 0.95 * traced.macs(traced.widths)
    assert derived == proportional(budget(traced, round_to=multiple), dimension)


def test_dimensions_proportional_to_the_reference_give_the_reference(traced: Channels) -> None:
    dimension = {group: 0.3 * width for group, width in traced.widths.items()}
    assert proportional(budget(traced), dimension) == traced.widths


def both(traced: Channels, **settings: Any) -> list[Widths]:
    dimension = {group: width**0.5 for group, width in traced.widths.items()}
    spent = budget(traced, **settings)
    return [proportional(spent, dimension), marginal(spent, falling(traced))]


@pytest.mark.parametrize(
    "caps",
    [{}, {"parameters": 0.5}, {"macs": 0.4}, {"activations": 0.7}, {"macs": None, "parameters": 0.6}, {"macs": 1.7}],
)
def test_no_cap_is_exceeded_and_the_tightest_is_used_up(traced: Channels, caps: dict[str, Any]) -> None:
    costs = Costs.of(traced)
    limits = {"macs": 1.0} | caps
    for widths in both(traced, **caps):
        vectors = [np.array([w[group] for group in costs.groups], float) for w in (widths, traced.widths)]
        shares = dict(zip(allocation.COSTS, costs(vectors[0]) / costs(vectors[1]), strict=True))
        used = {name: shares[name] / limit for name, limit in limits.items() if limit is not None}
        assert max(used.values()) <= 1
        assert max(used.values()) > 0.97


def test_groups_stay_within_their_factors(traced: Channels) -> None:
    for widths in both(traced, min_factor=0.5, max_factor=1.25):
        factors = [widths[group] / width for group, width in traced.widths.items()]
        assert min(factors) >= 0.5 and max(factors) <= 1.25


def test_a_budget_that_cannot_be_met_says_what_can(traced: Channels) -> None:
    with pytest.raises(UserError, match=r"widths\.parameters is 0\.1; the narrowest network .* has 0\.2\d+ of the"):
        budget(traced, parameters=0.1, min_factor=0.5)


def test_what_binds_each_group_is_named(traced: Channels) -> None:
    dimension = {group: width**0.5 for group, width in traced.widths.items()} | {"conv1": 0.0, "layer4.0.conv1": 1e9}
    spent = budget(traced, max_factor=2.0, min_factor=0.25)
    widths = proportional(spent, dimension)
    bound = spent.binding(widths, allocation.targets(spent, dimension))
    assert (widths["conv1"], bound["conv1"]) == (16, "least")
    assert (widths["layer4.0.conv1"], bound["layer4.0.conv1"]) == (1024, "most")
    rest = {bound[group] for group in bound if 0.25 < widths[group] / traced.widths[group] < 2}
    assert rest <= {"macs", "target"}
    few = budget(traced, parameters=0.3, macs=5.0)
    widths = proportional(few, dict.fromkeys(dimension, 1.0))
    assert "parameters" in few.binding(widths, allocation.targets(few, dict.fromkeys(dimension, 1.0))).values()


def test_constant_feature_maps_are_refused(traced: Channels) -> None:
    with pytest.raises(UserError, match="every dimension is zero: each feature map is constant"):
        proportional(budget(traced), dict.fromkeys(traced.widths, 0.0))


# By hand, on two groups.


@pytest.mark.parametrize(("a", "b"), [(8, 6), (4, 9), (12, 3)])
def test_costs_as_arrays_are_those_in_closed_form(a: int, b: int) -> None:
    costs = Costs.of(NETWORK)
    assert costs.groups == ("a", "b")
    macs, parameters, activations = costs(np.array([a, b], float))
    assert macs == sum(cost(a, b) for cost in MACS.values())
    assert parameters == 1000 + sum(cost(a, b) for cost in PARAMETERS.values())
    written = {
        layer.module: layer.out({"a": a, "b": b}) * layer.positions for layer in LAYERS if layer.kind != "product"
    }
    assert activations == sum(written.values())
    for position, group in enumerate("ab"):
        step = np.array([4.0, 3.0])
        wider = np.array([a, b], float)
        wider[position] += step[position]
        added = costs.steps(costs.gradient(np.array([a, b], float)), step)[:, position]
        np.testing.assert_allclose(added, costs(wider) - costs(np.array([a, b], float)), rtol=1e-12, err_msg=group)


def test_a_normalization_writes_nothing_that_counts_as_an_activation() -> None:
    norms = tuple(replace(layer, positions=7) if layer.kind in ("norm", "parameter") else layer for layer in LAYERS)
    widths = np.array([8.0, 6.0])
    assert Costs.of(replace(NETWORK, layers=norms))(widths).tolist() == Costs.of(NETWORK)(widths).tolist()


FREE = [np.inf, np.inf]


def test_ranges_are_multiples_within_the_factors_that_rounding_does_not_move() -> None:
    wide = {"a": 100, "b": 30}
    network = replace(NETWORK, widths=wide, multiples={"a": 1, "b": 1})
    found = Budget.of(network, wide, WidthSettings(round_to=1, min_factor=0.1, max_factor=0.29, macs=9.0))
    assert (found.least.tolist(), found.most.tolist()) == ([10, 3], [29, 8])  # 0.1 * 30 > 3 and 0.29 * 100 < 29
    found = Budget.of(NETWORK, NETWORK.widths, WidthSettings(round_to=1, min_factor=0.6, max_factor=2.2))
    assert (found.least.tolist(), found.most.tolist()) == ([8, 6], [16, 12])
    assert found.multiple.tolist() == [4, 3]
    found = Budget.of(NETWORK, NETWORK.widths, WidthSettings(round_to=16, max_factor=0.5, macs=99.0))
    assert (found.least.tolist(), found.most.tolist()) == ([16, 48], [16, 48])  # at least one multiple
    found = Budget.of(NETWORK, NETWORK.widths, WidthSettings(round_to=1, max_factor=None))
    assert found.least.tolist() == [4, 3] and found.most.tolist() == [np.inf, np.inf]


def test_caps_are_shares_of_what_the_reference_costs() -> None:
    settings = WidthSettings(round_to=1, macs=None, parameters=0.9, activations=2.0)
    found = Budget.of(NETWORK, NETWORK.widths, settings)
    spent = Costs.of(NETWORK)(np.array([8.0, 6.0]))
    np.testing.assert_allclose(found.caps, [np.inf, 0.9 * spent[1], 2 * spent[2]])


def test_the_narrowest_network_may_cost_all_of_a_cap() -> None:
    least = Costs.of(NETWORK)(np.array([4.0, 3.0]))
    share = float(least[0] / Costs.of(NETWORK)(np.array([8.0, 6.0]))[0])
    found = Budget.of(NETWORK, NETWORK.widths, WidthSettings(round_to=1, macs=share * (1 + 1e-9)))
    assert found.affords(found.least) and not found.affords(found.least + found.multiple)
    with pytest.raises(
        UserError, match=rf"widths\.macs is .*; the narrowest .* has {share + 5e-5:.4f} of the reference's"
    ):
        Budget.of(NETWORK, NETWORK.widths, WidthSettings(round_to=1, macs=share * 0.99))


def test_a_budget_like_that_of_other_widths_has_the_costs_that_are_named() -> None:
    goal = {"a": 12, "b": 9}
    spent = Costs.of(NETWORK)(np.array([12.0, 9.0]))
    found = Budget.like(NETWORK, NETWORK.widths, goal, ["macs", "activations"], WidthSettings(round_to=2))
    assert found.caps.tolist() == [spent[0], np.inf, spent[2]]
    assert found.multiple.tolist() == found.least.tolist() == [4, 6]
    assert found.most.tolist() == [32, 24]  # four times the reference's
    assert Budget.like(NETWORK, NETWORK.widths, {"a": 4, "b": 3}, ["macs"], WidthSettings(round_to=1)).affords(
        np.array([4.0, 3.0])
    )
    with pytest.raises(UserError, match=r"cost less than the narrowest network that widths.round_to \(2\) and"):
        Budget.like(NETWORK, NETWORK.widths, {"a": 4, "b": 3}, ["macs"], WidthSettings(round_to=2))


def test_a_budget_is_afforded_up_to_the_last_unit_but_for_rounding() -> None:
    spent = flat([20, 100, 1000], [4, 4], FREE)
    assert spent.affords(np.array([8.0, 12.0])) and spent.affords(np.array([8, 12 + 1e-12]))
    assert not spent.affords(np.array([8, 12 + 1e-9]))
    assert not flat([np.inf, 15, np.inf], [4, 4], FREE).affords(np.array([8.0, 4.0]))


@pytest.mark.parametrize(
    ("dimension", "least", "most", "wanted"),
    [
        ((1, 3), [1, 1], FREE, (5, 15)),
        ((1, 3), [8, 1], FREE, (8, 12)),
        ((1, 3), [1, 1], [99, 10], (10, 10)),
        ((0, 3), [4, 4], FREE, (4, 16)),
        ((1, 1), [1, 1], [3, 4], (3, 4)),  # more budget than the ranges can use
    ],
)
def test_targets_are_proportional_within_their_ranges_and_use_up_the_budget(
    dimension: tuple[int, int], least: list[float], most: list[float], wanted: tuple[int, int]
) -> None:
    found = allocation.targets(flat([20, np.inf, np.inf], least, most), dict(zip("ab", dimension, strict=True)))
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


@pytest.mark.parametrize(
    ("widths", "target", "caps", "wanted"),
    [
        ((8, 12), (9, 13), [20, 99, 999], ("macs", "macs")),
        ((8, 12), (9, 13), [24, 99, 999], ("target", "target")),  # one more multiple fits
        ((8, 12), (9, 13), [23, 20, 999], ("parameters", "macs")),  # the tightest of those that do not
        ((8, 12), (9, 13), [99, 99, 150], ("target", "activations")),
        ((4, 16), (3, 17), [99, 99, 999], ("least", "most")),
        ((4, 16), (4, 16), [99, 99, 999], ("least", "most")),
        ((4, 16), (5, 15), [99, 99, 999], ("target", "target")),
    ],
)
def test_what_keeps_a_width_from_growing(
    widths: tuple[int, int], target: tuple[int, int], caps: list[float], wanted: tuple[str, str]
) -> None:
    spent = flat(caps, [4, 4], [16, 16])
    found = spent.binding(dict(zip("ab", widths, strict=True)), np.array(target, float))
    assert (found["a"], found["b"]) == wanted


@pytest.mark.parametrize("edge", [0.0, 1e-5, 0.3, 1.0, 3.7, 1000.0])
def test_the_largest_factor_is_found_to_nine_digits(edge: float) -> None:
    found = allocation.largest_factor(lambda factor: factor <= edge)
    assert found <= edge and found == pytest.approx(edge, rel=2e-9, abs=1e-300)


def test_a_factor_without_an_edge_ends_at_two_to_the_forty() -> None:
    assert allocation.largest_factor(lambda factor: True) == pytest.approx(2.0**40)


def test_a_group_that_a_layer_reads_and_writes_costs_its_square() -> None:
    """By one layer of a x a, 3 positions: 3 (a + s)² - 3 a² = 6 a s + 3 s²."""
    layer = Layer("square", "conv", size(a=1), size(a=1), positions=3)
    costs = Costs.of(replace(NETWORK, layers=(layer,)))
    widths, step = np.array([8.0, 6.0]), np.array([4.0, 3.0])
    assert costs(widths)[0] == 3 * 8**2 and costs.gradient(widths)[0].tolist() == [6 * 8, 0]
    assert costs.steps(costs.gradient(widths), step)[0].tolist() == [6 * 8 * 4 + 3 * 4**2, 0]
