"""What layers with weights do to the axes of maps, and what is counted of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.following import Followed, Named

MAP: Named = ((2, 8, 4, 6), ".a..")


@pytest.mark.parametrize(
    ("layer", "shape", "positions", "kernel"),
    [
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), (1, 8, 16, 10), 8 * 5, 9),
        (nn.Conv2d(8, 12, (1, 3)), (1, 8, 16, 10), 16 * 8, 3),
        (nn.Conv2d(8, 12, 3), (3, 8, 16, 10), 3 * 14 * 8, 9),
        (nn.Conv1d(8, 12, 3), (1, 8, 16), 14, 3),
        (nn.Conv3d(8, 12, 2), (1, 8, 4, 5, 6), 3 * 4 * 5, 8),
        (nn.ConvTranspose2d(8, 12, 2, 2), (1, 8, 5, 7), 5 * 7, 4),
        (nn.ConvTranspose2d(8, 12, 3, 2), (2, 8, 5, 7), 2 * 5 * 7, 9),
        (nn.Linear(8, 12), (5, 8), 5, 1),
        (nn.Linear(8, 12, bias=False), (5, 8), 5, 1),
        (nn.Linear(8, 12), (2, 7, 8), 14, 1),
    ],
)
def test_a_layer_makes_an_axis_and_counts_where_its_weights_are_applied(
    layer: nn.Module, shape: tuple[int, ...], positions: int, kernel: int
) -> None:
    linear = isinstance(layer, nn.Linear)
    names = "." * (len(shape) - 1) + "a" if linear else ".a" + "." * (len(shape) - 2)
    found = Followed(layer, (shape, names))
    assert "".join(found.axes) == names.replace("a", "0")
    call = found.call
    assert (call.path, call.kind, call.owned) == ("0", "linear" if linear else "conv", True)
    assert (found.text(call.source), found.text(call.axis)) == ("a", "0")
    assert (call.positions, call.kernel, call.groups, call.depthwise) == (positions, kernel, 1, False)
    assert math.prod(found.output.shape) and not found.multiples and not found.fixed


def test_layers_that_see_regions_count_as_many_of_them_as_was_said() -> None:
    found = Followed(nn.Conv2d(8, 12, 3), ((3, 8, 6, 6), ".a.."), regions={"": 2, "0": 50})
    assert found.call.positions == 50 * 16
    assert Followed(nn.Linear(8, 12), ((30, 8), ".a"), regions={"0": 50}).call.positions == 50
    assert Followed(nn.Linear(8, 12), ((30, 8), ".a"), regions={"1": 50}).call.positions == 30


def test_the_channels_of_one_image_without_a_batch_are_its_first_dimension() -> None:
    found = Followed(nn.Conv2d(8, 12, 3), ((8, 6, 5), "a.."))
    assert found.axes == ["0", ".", "."] and found.call.positions == 4 * 3


def test_groups_of_a_convolution_divide_what_it_reads_and_writes() -> None:
    found = Followed(nn.Conv2d(8, 12, 3, groups=4), MAP)
    assert found.multiples == {"a": 4, "0": 4}
    assert found.call.groups == 4 and not found.call.depthwise
    assert Followed(nn.Conv2d(8, 12, 3, groups=2), MAP).multiples == {"a": 2, "0": 2}


def test_a_convolution_of_one_channel_is_not_depthwise_and_one_of_two_in_two_groups_is() -> None:
    single = Followed(nn.Conv2d(1, 12, 3), ((2, 1, 4, 6), ".a.."))
    assert single.axes == [".", "0", ".", "."] and not single.call.depthwise
    two = Followed(nn.Conv2d(2, 4, 3, groups=2), ((2, 2, 4, 6), ".a.."))
    assert two.axes == [".", "2a", ".", "."] and two.call.depthwise


@pytest.mark.parametrize(("out", "axis"), [(8, "a"), (24, "3a")])
def test_a_depthwise_convolution_writes_a_multiple_of_what_it_reads(out: int, axis: str) -> None:
    found = Followed(nn.Conv2d(8, out, 3, groups=8), MAP)
    assert found.axes == [".", axis, ".", "."]
    assert found.call.depthwise and found.text(found.call.source) == "a" and not found.multiples


def test_weights_that_are_no_layers_keep_what_they_read_and_write() -> None:
    found = Followed(lambda x: F.conv2d(x, torch.ones(5, 8, 3, 3, device="meta")), MAP)
    assert found.axes == [".", "5", ".", "."]
    assert found.fixed == {"a": "weights of a convolution that are not a layer's, in Sequential"}
    assert not found.call.owned and found.call.positions == 2 * 2 * 4


def test_a_layer_that_reads_what_counts_no_channels_reads_a_constant() -> None:
    for layer, shape, names in (
        (nn.Conv2d(8, 12, 1), (1, 8, 4, 6), "..b."),
        (nn.Linear(8, 12), (5, 8), "b."),
    ):
        found = Followed(layer, (shape, names))
        assert found.text(found.record.calls[-1].source) == "8"
        (reason,) = found.record.sizes.fixed.values()
        assert reason == "not a number of channels, in Sequential"


def test_a_convolution_that_runs_over_channels_costs_its_kernel_for_each_of_them() -> None:
    """As in efficient channel attention: one filter along the means of all channels."""
    found = Followed(nn.Conv1d(1, 1, 3, padding=1, bias=False), ((2, 1, 8), "..a"))
    assert found.axes == [".", "1", "a"] and not found.fixed
    along, layer = found.record.calls
    assert (along.path, along.kind, along.source, along.owned) == ("0@0", "product", None, False)
    assert found.text(along.axis) == "a" and along.positions == 3 * 2
    assert layer.positions == 0 and layer.kernel == 3
    both = Followed(nn.Conv2d(1, 1, 3, padding=1), ((2, 1, 8, 6), "..ab"))
    assert both.axes == [".", "1", "a", "b"]
    product = both.record.calls[0]
    assert product.source and (both.text(product.source), both.text(product.axis)) == ("a", "b")
    assert product.positions == 9 * 2


@pytest.mark.parametrize(
    ("layer", "shape", "names", "multiples"),
    [
        (nn.BatchNorm2d(8).eval(), (2, 8, 4, 6), ".a..", {}),
        (nn.BatchNorm1d(8).train(), (5, 8), ".a", {}),
        (nn.GroupNorm(4, 8), (2, 8, 4, 6), ".a..", {"a": 4}),
        (nn.LayerNorm(8), (2, 4, 8), "..a", {}),
        (nn.InstanceNorm2d(8, affine=True), (1, 8, 4, 6), ".a..", {}),
    ],
)
def test_a_normalization_keeps_the_axes_and_has_parameters_for_its_channels(
    layer: nn.Module, shape: tuple[int, ...], names: str, multiples: dict[str, int]
) -> None:
    found = Followed(layer, (shape, names))
    assert "".join(found.axes) == names and not found.fixed
    assert found.multiples == multiples
    assert [(call.path, call.kind, found.text(call.axis)) for call in found.record.calls] == [("0", "norm", "a")]


def test_a_normalization_without_parameters_is_no_layer() -> None:
    for operation, multiples in ((nn.GroupNorm(4, 8, affine=False), {"a": 4}), (nn.BatchNorm2d(8, affine=False), {})):
        found = Followed(operation, MAP)
        assert found.axes == [".", "a", ".", "."] and found.multiples == multiples
        assert [call for call in found.record.calls if found.text(call.axis) != "a"] == []


def test_statistics_that_are_no_modules_make_no_layer() -> None:
    zeros, ones = torch.zeros(8, device="meta"), torch.ones(8, device="meta")
    found = Followed(lambda x: F.batch_norm(x, zeros, ones), MAP)
    assert found.axes == [".", "a", ".", "."] and not found.record.calls and not found.fixed


def test_a_normalization_over_what_counts_no_channels_lets_these_pass_and_keeps_its_own_size() -> None:
    found = Followed(nn.LayerNorm(6), MAP)
    assert found.fixed == {} and found.axes == [".", "a", ".", "."]
    [call] = found.record.calls
    assert call.kind == "norm" and found.record.sizes.size(call.axis) == 6
