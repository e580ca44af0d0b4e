from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from eigendet import allocation, channels, plugins
from eigendet.allocation import Budget, Costs
from eigendet.errors import UserError
from eigendet.groups import Channels, Widths
from eigendet.sections import PluginChoice, WidthSettings
from tests.benchmarks.channels import torchvision_network


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
    derived = allocation.proportional(budget(traced, round_to=multiple), dimension)
    assert traced.macs(derived) <= traced.macs(traced.widths)
    assert all(width % multiple == 0 for width in derived.values())
    change = {group: derived[group] / traced.widths[group] for group in derived}
    assert min(change.values()) < 1 < max(change.values())
    if multiple <= 8:
        assert traced.macs(derived) > 0.95 * traced.macs(traced.widths)
    assert derived == allocation.proportional(budget(traced, round_to=multiple), dimension)


def test_dimensions_proportional_to_the_reference_give_the_reference(traced: Channels) -> None:
    dimension = {group: 0.3 * width for group, width in traced.widths.items()}
    assert allocation.proportional(budget(traced), dimension) == traced.widths


def both(traced: Channels, **settings: Any) -> list[Widths]:
    dimension = {group: width**0.5 for group, width in traced.widths.items()}
    spent = budget(traced, **settings)
    return [allocation.proportional(spent, dimension), allocation.marginal(spent, falling(traced))]


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


def test_marginal_width_goes_where_the_spectrum_is_long(traced: Channels) -> None:
    short = {
        group: np.arange(1, width + 1) ** -(3.0 if "layer4" in group else 1.1) for group, width in traced.widths.items()
    }
    widths = allocation.marginal(budget(traced), short)
    late = [widths[group] / traced.widths[group] for group in widths if "layer4" in group]
    rest = [widths[group] / traced.widths[group] for group in widths if "layer4" not in group]
    assert max(late) < 1 < np.mean(rest)
    assert widths == allocation.marginal(budget(traced), short)


def test_marginal_takes_the_best_of_all_single_steps_each_time(traced: Channels) -> None:
    """Near the end of the budget nothing that still fits is worth more for its cost than what was taken last."""
    spent = budget(traced, max_factor=1.0, macs=0.5)
    spectra = falling(traced)
    widths = allocation.marginal(spent, spectra)
    costs = spent.costs
    vector = np.array([widths[group] for group in costs.groups], float)
    worth = {}
    for position, group in enumerate(costs.groups):
        shares = spectra[group] / spectra[group].sum()
        for change in (-8, 8):
            if 8 <= widths[group] + change <= traced.widths[group]:
                other = vector.copy()
                other[position] += change
                low, high = sorted((widths[group], widths[group] + change))
                worth[group, change] = shares[low:high].sum() / abs(costs(other)[0] - costs(vector)[0])
    taken = min(value for (_, change), value in worth.items() if change < 0)
    left = max(value for (_, change), value in worth.items() if change > 0)
    assert left < 1.15 * taken  # costs moved a little while the last steps were taken


def test_a_power_law_is_recovered_and_never_sums_to_infinity() -> None:
    factor, exponent = allocation.power_law(5 * np.arange(1.0, 65) ** -1.7)
    assert factor == pytest.approx(5)
    assert exponent == pytest.approx(1.7)
    assert allocation.power_law(np.ones(16))[1] == 1.01
    assert allocation.power_law(np.zeros(8)) == (0.0, 1.01)
    noise = np.r_[np.ones(8), np.geomspace(1e-9, 1e-300, 8)]  # a spectrum that ends, and rounding errors
    assert allocation.power_law(noise) == (0.0, 1.01)


def test_what_binds_each_group_is_named(traced: Channels) -> None:
    dimension = {group: width**0.5 for group, width in traced.widths.items()} | {"conv1": 0.0, "layer4.0.conv1": 1e9}
    spent = budget(traced, max_factor=2.0, min_factor=0.25)
    widths = allocation.proportional(spent, dimension)
    bound = spent.binding(widths, allocation.targets(spent, dimension))
    assert (widths["conv1"], bound["conv1"]) == (16, "least")
    assert (widths["layer4.0.conv1"], bound["layer4.0.conv1"]) == (1024, "most")
    rest = {bound[group] for group in bound if 0.25 < widths[group] / traced.widths[group] < 2}
    assert rest <= {"macs", "target"} and "macs" in rest
    few = budget(traced, parameters=0.3, macs=5.0)
    widths = allocation.proportional(few, dict.fromkeys(dimension, 1.0))
    assert "parameters" in few.binding(widths, allocation.targets(few, dict.fromkeys(dimension, 1.0))).values()


def test_constant_feature_maps_are_refused(traced: Channels) -> None:
    with pytest.raises(UserError, match="every dimension is zero: each feature map is constant"):
        allocation.proportional(budget(traced), dict.fromkeys(traced.widths, 0.0))
