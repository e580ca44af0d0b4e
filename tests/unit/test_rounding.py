"""Target widths rounded, beside every other rounding."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eigendet import channels, plugins
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.widths.allocation import Budget, targets
from eigendet.widths.rounding import nearest, rounded
from tests.benchmarks.channels import torchvision_network
from tests.optimal import flat

FREE = [np.inf, np.inf]


def vector(spent: Budget, target: np.ndarray) -> np.ndarray:
    widths = rounded(spent, target)
    return np.array([widths[group] for group in spent.costs.groups], float)


def distance(widths: np.ndarray, target: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.log(widths / target) ** 2)))


@pytest.mark.parametrize(
    ("target", "caps", "most", "wanted"),
    [
        ([7.9, 12.4], [20, 99, 999], FREE, (8, 12)),
        ([7.9, 12.4], [19, 99, 999], FREE, (8, 8)),  # nearer in ratio than 4 and 12
        ([7.9, 12.4], [99, 99, 999], FREE, (8, 12)),  # however much is left
        ([17.3, 20.6], [99, 99, 999], FREE, (16, 20)),
        ([7.9, 12.4], [99, 99, 150], FREE, (8, 12)),
        ([8.0, 12.0], [99, 99, 999], FREE, (8, 12)),
        ([7.9, 12.4], [99, 99, 999], [4, 16], (4, 12)),
        ([7.9, 12.4], [99, 99, 999], [8, 12], (8, 12)),
        ([1.0, 2.0], [99, 99, 999], FREE, (4, 4)),
        ([7.9999999, 12.0], [20, 99, 999], FREE, (8, 12)),  # what a search left below a multiple is one
        ([7.99999999, 11.9999999], [19.9999999, 99, 999], FREE, (8, 8)),  # unless that costs too much
    ],
)
def test_targets_are_rounded_to_what_is_nearest_and_fits(
    target: list[float], caps: list[float], most: list[float], wanted: tuple[int, int]
) -> None:
    found = rounded(flat(caps, [4, 4], most), np.array(target))
    assert (found["a"], found["b"]) == wanted


def demo(seed: int, **settings: Any) -> tuple[Budget, np.ndarray]:
    """A small ResNet-18 in multiples of 8, and targets of random dimensions."""
    build = plugins.bind("backbone", PluginChoice(plugin="resnet", depth=18, norm="group", norm_groups=8))
    traced = channels.trace(build, (64, 64))
    reference = {group: max(8, width // 4) for group, width in traced.widths.items()}
    spent = Budget.of(traced, reference, WidthSettings(**settings))
    random = np.random.default_rng(seed)
    dimension = {group: width**0.7 * np.exp(random.normal(0, 0.35)) for group, width in reference.items()}
    return spent, targets(spent, dimension)


def every_rounding(spent: Budget, target: np.ndarray) -> np.ndarray:
    """All choices among the multiples beside the targets that cost no more than the caps, (choices, groups)."""
    below = np.clip(np.floor(target / spent.multiple + 1e-6) * spent.multiple, spent.least, spent.most)
    above = np.clip(np.ceil(target / spent.multiple - 1e-6) * spent.multiple, spent.least, spent.most)
    choices = itertools.product(*({low, high} for low, high in zip(below, above, strict=True)))
    return np.array([widths for widths in choices if spent.affords(np.array(widths))])


def is_in_order(widths: np.ndarray, target: np.ndarray, multiple: np.ndarray) -> bool:
    smaller = (multiple[:, None] == multiple) & (target[:, None] < target * (1 - 1e-9))
    return not (smaller & (widths[:, None] > widths)).any()


@pytest.mark.parametrize("caps", [{}, {"parameters": 0.4}, {"macs": 0.5}])
@pytest.mark.parametrize("seed", range(4))
def test_no_rounding_that_uses_the_budget_is_much_nearer(seed: int, caps: dict[str, Any]) -> None:
    spent, target = demo(seed, **caps)
    widths = vector(spent, target)
    every = every_rounding(spent, target)
    use = np.array([spent.use(other) for other in every])
    in_order = np.array([is_in_order(other, target, spent.multiple) for other in every])
    assert any((widths == other).all() for other in every)
    wanted = in_order & (use >= 0.98)
    if wanted.any():
        assert is_in_order(widths, target, spent.multiple)
    else:
        wanted = use >= min(0.98, use.max())
    assert spent.use(widths) >= min(0.98, use.max() - 0.01)
    assert distance(widths, target) <= 1.25 * min(distance(other, target) for other in every[wanted])


@pytest.mark.parametrize("seed", range(6))
def test_no_rounding_of_a_small_network_comes_nearer_to_both_caps(seed: int) -> None:
    """In multiples of 16, where few roundings use 98 % of MACs and of parameters, the best is found."""
    spent, target = demo(seed, round_to=16, parameters=0.6)
    caps = spent.costs(target)
    spent = replace(spent, caps=np.array([caps[0], caps[1], np.inf]))  # as of a control
    every = every_rounding(spent, target)
    used = np.array([(spent.costs(other) / spent.caps)[:2].min() for other in every])
    found = (spent.costs(vector(spent, target)) / spent.caps)[:2].min()
    assert found >= min(0.98, used.max()) - 1e-9


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg11_bn", "regnet_y_400mf"]
)
@pytest.mark.parametrize("caps", [{}, {"parameters": 0.4}, {"macs": 0.5}])
def test_rounding_spends_the_budget_to_within_two_percent(name: str, caps: dict[str, Any]) -> None:
    traced = channels.trace(*torchvision_network(name))
    spent = Budget.of(traced, traced.widths, WidthSettings(**caps))
    random = np.random.default_rng(0)
    dimension = {group: width**0.7 * np.exp(random.normal(0, 0.35)) for group, width in traced.widths.items()}
    target = targets(spent, dimension)
    widths = vector(spent, target)
    assert 0.98 <= spent.use(widths) <= 1 + 1e-12
    assert (np.abs(widths - target) < spent.multiple * (1 + 1e-5)).all()
    assert is_in_order(widths, target, spent.multiple)
    assert (vector(spent, target) == widths).all()


def test_targets_that_leave_budget_are_not_filled_up() -> None:
    spent = flat([99, 99, 999], [4, 4], FREE)
    assert rounded(spent, np.array([9.0, 21.0])) == {"a": 8, "b": 20}


def test_targets_beyond_the_budget_all_give_way_alike() -> None:
    spent = flat([30, 99, 999], [1, 1], FREE, multiple=1.0)
    assert rounded(spent, np.array([20.0, 40.0])) == {"a": 10, "b": 20}


def test_the_nearest_in_ratio_is_below_the_middle() -> None:
    spent = flat([99, 99, 999], [4, 4], [8, 400])
    assert nearest(spent, np.array([5.6, 5.7])).tolist() == [4, 8]
    assert nearest(spent, np.array([1.0, 1.0])).tolist() == [4, 4] and nearest(spent, np.array([99, 99]))[0] == 8
