"""What builds a network is refused if it does not build one anew, and widths that no network has are, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eigendet import channels
from eigendet.channels.groups import ChannelError


def shared() -> nn.Module:
    return SHARED


SHARED = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))


@pytest.mark.parametrize("trace", [channels.trace, channels.trace_detector])
@pytest.mark.parametrize("build", [shared, lambda: nn.Sequential(nn.Conv2d(3, 3, 1), SHARED)])
def test_a_function_that_gives_what_exists_is_refused_and_what_exists_is_left(
    trace: Callable[..., Any], build: Callable[[], nn.Module]
) -> None:
    before = dict(SHARED.named_parameters())
    with pytest.raises(ChannelError, match=r"^Sequential: the function gives (its module '1.*'|the network) again"):
        trace(build, size=(16, 16))
    after = dict(SHARED.named_parameters())
    assert all(after[name] is before[name] and not after[name].is_meta for name in before) and SHARED.training


def test_rebuilding_needs_a_function_that_builds_anew() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))

    traced = channels.trace(build, (16, 16))
    network = build()
    with pytest.raises(ChannelError, match=r"^Sequential: the function did not build 0, 2; expected one that"):
        channels.rebuild(lambda: network, traced, {"0": 4, "2": 16}, meta=True)
    assert not any(parameter.is_meta for parameter in network.parameters())


def test_rebuilding_refuses_another_network_whose_layers_have_the_same_names() -> None:
    def build(kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, kernel), nn.ReLU(), nn.Conv2d(8, 16, 3))

    traced = channels.trace(partial(build, 3), (16, 16))
    message = r"^Sequential: is built with 896 parameters where 704 are predicted; expected the function that builds"
    with pytest.raises(ChannelError, match=message):
        channels.rebuild(partial(build, 5), traced, {"0": 4, "2": 16})


class Numbered(nn.Module):
    """Refuses to be built over numbers of channels other than some."""

    def __init__(self, numbers: range) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        if self.stem.out_channels not in numbers:
            raise ValueError(f"channels are of {numbers},\nnot {self.stem.out_channels}")
        self.head = nn.Conv2d(8, 6, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self.head(self.stem(images))}


def test_what_a_constructor_refuses_is_kept_with_the_reason_in_a_line() -> None:
    traced = channels.trace(partial(Numbered, range(8, 9)), (16, 16))
    assert traced.widths == {"head": 6}
    assert traced.fixed == {"stem": "the network is not built with other widths (channels are of range(8, 9),)"}


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_a_width_that_a_constructor_takes_only_in_pairs_fours_or_eights_is_a_multiple(multiple: int) -> None:
    traced = channels.trace(partial(Numbered, range(0, 1000, multiple)), (16, 16))
    assert traced.multiples == {"stem": multiple, "head": 1} and not traced.fixed


class Identical(nn.Module):
    """Begins with a matrix of its own width, behind a layer of any."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 1)
        self.square, self.head = nn.Linear(8, 8), nn.Linear(8, 6)
        self.begin()

    def begin(self) -> None:
        square = self.square
        square.weight.data.copy_(torch.eye(8))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self.head(self.square(self.read(self.stem(images)).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)}


def test_where_a_constructor_fails_the_layers_that_it_had_at_hand_are_kept() -> None:
    traced = channels.trace(Identical, (16, 16))
    assert traced.widths == {"stem": 12, "head": 6}
    assert {why[:46] for why in traced.fixed.values()} == {"the network is not built with other widths (Th"}


class Filled(nn.Module):
    """Copies values at construction, which tensors without memory do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.table = torch.zeros(4)
        self.table.copy_(self.stem.weight.flatten()[:4].detach())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"maps": self.head(self.stem(images)) + self.table.sum()}


def test_a_constructor_that_needs_memory_has_it() -> None:
    assert channels.trace(Filled, (16, 16)).widths == {"stem": 8, "head": 6}


def test_a_stateless_module_may_be_shared() -> None:
    act = nn.ReLU()
    assert channels.trace(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 4, 3)), (16, 16)).widths


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (3, "got int; expected a function or class that builds a network, without arguments"),
        (lambda: None, "gives NoneType; expected a network, a torch.nn.Module"),
        (lambda width: None, "fails: TypeError: "),
        (lambda: 1 / 0, "fails: ZeroDivisionError: division by zero; expected a function or class"),
    ],
)
def test_what_builds_no_network_is_refused_in_a_line(build: Any, message: str) -> None:
    with pytest.raises(ChannelError) as caught:
        channels.trace(build)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({}, "no width for the channel group'?s? '?0'?"),
        ({"0": 0}, "channel group '0': width 0; expected a positive"),
        ({"0": -1}, "channel group '0': width -1; expected a positive"),
        ({"0": None}, "channel group '0': width None; expected a positive"),
    ],
)
def test_costs_of_widths_that_no_network_has_are_refused(widths: dict[str, int], message: str) -> None:
    traced = channels.trace(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), (16, 16))
    for cost in (traced.parameters, traced.macs, partial(channels.table, traced), partial(channels.frame, traced)):
        with pytest.raises(ChannelError, match=message):
            cost(widths)
