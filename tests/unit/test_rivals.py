"""What is read of Torch-Pruning as widths, beside a computation by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from eigendet import channels
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError
from eigendet.widths.allocation import Budget
from tests.benchmarks import rivals

IMAGE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2))


def divided() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def traced(build: Callable[[], nn.Module]) -> tuple[Channels, Widths]:
    groups = channels.trace(build, (8, 8))
    return groups, groups.widths


def by_hand(model: nn.Sequential, writing: int, reading: int, taylor: bool) -> np.ndarray:
    """The mean over both layers of what a channel's weights sum up to, in units of the mean channel's."""

    def parts(layer: int) -> torch.Tensor:
        weight = model[layer].weight
        assert isinstance(weight, torch.Tensor)
        if not taylor:
            return weight.detach() ** 2
        assert weight.grad is not None
        return (weight.detach() * weight.grad).abs()

    total = (parts(writing).flatten(1).sum(1) + parts(reading).transpose(0, 1).flatten(1).sum(1)).numpy() / 2
    return np.asarray(total / total.mean())


def only_with_torch_pruning() -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


@pytest.mark.parametrize("kind", sorted(rivals.IMPORTANCES.values()))
def test_importances_are_those_of_the_layers_that_write_and_read_a_channel(kind: str) -> None:
    only_with_torch_pruning()
    model = network()
    model(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    scores = rivals.importances(kind, model, IMAGE, *traced(network))
    taylor = kind == "GroupTaylorImportance"
    assert scores.keys() == {"0", "2"}
    np.testing.assert_allclose(scores["0"], by_hand(model, 0, 2, taylor), rtol=1e-5)
    np.testing.assert_allclose(scores["2"], by_hand(model, 2, 6, taylor), rtol=1e-5)


def test_where_a_normalization_divides_channels_the_average_over_its_divisions_is_ranked() -> None:
    only_with_torch_pruning()
    model = divided()
    (scores,) = rivals.importances("GroupMagnitudeImportance", model, IMAGE, *traced(divided)).values()
    np.testing.assert_allclose(scores, by_hand(model, 0, 3, taylor=False).reshape(2, 4).mean(0), rtol=1e-5)


def test_layers_are_named_without_the_prefix_and_others_are_left_as_they_are() -> None:
    only_with_torch_pruning()
    whole = nn.Sequential(network(), nn.Linear(2, 5), nn.Linear(5, 4))
    scores = rivals.importances("GroupMagnitudeImportance", whole, IMAGE, *traced(network), prefix="0.")
    assert {group: len(own) for group, own in scores.items()} == {"0": 8, "2": 12}


def test_what_does_not_agree_is_named() -> None:
    only_with_torch_pruning()
    groups, widths = traced(network)
    norm = "GroupMagnitudeImportance"
    with pytest.raises(UserError, match="Torch-Pruning prunes 0 together, 8 channels; these are not those of one"):
        rivals.importances(norm, network(), IMAGE, groups, widths | {"0": 9})
    with pytest.raises(UserError, match="Torch-Pruning does not prune the channel groups other; every group needs"):
        rivals.importances(norm, network(), IMAGE, groups, widths | {"other": 4})
    summed = nn.Sequential(nn.Conv2d(3, 8, 1), Summed(), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 2, 1))
    with pytest.raises(UserError, match=r"Torch-Pruning prunes (0, 1.0|1.0, 0) together, 8 channels; these are not"):
        rivals.importances(norm, summed, IMAGE, groups, widths)


class Summed(nn.Sequential):
    """A layer beside what it reads, which is another group than in the network."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 1))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = maps + self[0](maps)
        return result


def test_without_torch_pruning_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError, match=r"torch-pruning is not installed, .*; `pip install torch-pruning`, or leave"):
        rivals.importances("GroupMagnitudeImportance", network(), IMAGE, *traced(network))


def test_widths_are_what_is_kept_above_the_lowest_threshold_at_which_they_use_most_of_the_budget() -> None:
    """All thresholds one after another, each seed's own, the widths of each as large as the caps afford."""
    groups, full = traced(network)
    random = np.random.default_rng(0)
    seeds = [{"0": random.uniform(0.5, 1.5, 8), "2": random.uniform(0, 2, 12)} for _ in range(2)]
    for parameters in (0.7, 0.85):
        budget = Budget.of(groups, full, WidthSettings(macs=1.0, parameters=parameters, round_to=1))
        best, expected = 0.0, np.zeros(2)
        for pruned in range(20):
            counts = np.zeros((2, 2))
            for own, row in zip(seeds, counts, strict=True):
                lowest = sorted([*own["0"], *own["2"]])[:pruned]
                row[:] = [sum(value not in lowest for value in own[group]) for group in ("0", "2")]
            widths = budget.scaled(counts.mean(0))
            used = round(float(budget.costs(widths)[0] / budget.caps[0]), 2)
            if used > best and counts.min() > 0:
                best, expected = used, widths
        target = rivals.widths_of(seeds, full, budget)
        np.testing.assert_array_equal(target, expected)
        assert budget.use(target) == pytest.approx(1) and target[0] / target[1] > 1.05 * 8 / 12
