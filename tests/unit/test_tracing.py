"""What is noted of a forward pass: layers met once or twice, parameters that stand alone, outputs, and where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from eigendet.channels.follower import Follower
from eigendet.channels.record import Call, Record
from tests.following import Followed, Named

MAP: Named = ((2, 8, 4, 6), ".a..")


class Applied(nn.Module):
    """A module with one parameter, or buffer, and a function of it and the maps."""

    def __init__(
        self, shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor], buffer: bool = False
    ) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("scale", torch.ones(shape))
        else:
            self.scale = nn.Parameter(torch.ones(shape))
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(maps, self.scale)


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize(
    ("shape", "function", "dim"),
    [
        ((8, 1, 1), lambda maps, scale: maps * scale, 0),
        ((1, 8, 1, 1), lambda maps, scale: maps * scale, 1),
        ((1, 8, 4, 6), lambda maps, scale: scale + maps, 1),
        ((8,), lambda maps, scale: maps * scale.view(1, -1, 1, 1), 0),
        ((4, 6, 8), lambda maps, scale: maps + scale.permute(2, 0, 1), 2),
    ],
)
def test_a_parameter_that_meets_maps_is_as_wide_as_they_are(
    shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor], dim: int, buffer: bool
) -> None:
    found = Followed(Applied(shape, function, buffer), MAP)
    assert found.axes == [".", "a", ".", "."] and not found.fixed
    call = found.call
    assert (call.path, call.kind, call.owned, call.dim) == ("0.scale", "parameter", False, dim)
    assert found.text(call.axis) == "a" and call.source is None and call.positions == 0


def test_a_parameter_is_counted_once_however_often_it_is_used() -> None:
    found = Followed(Applied((8, 1, 1), lambda maps, scale: maps * scale + scale), MAP)
    assert found.call.path == "0.scale"


def test_a_single_number_has_no_width() -> None:
    for shape in ((), (1,), (1, 1, 1)):
        found = Followed(Applied(shape, lambda maps, scale: maps * scale), MAP)
        assert not found.record.calls and found.axes == [".", "a", ".", "."]


def test_a_parameter_that_is_changed_before_its_use_keeps_the_width_of_the_maps() -> None:
    found = Followed(Applied((4, 1, 1), lambda maps, scale: maps * scale.repeat(2, 1, 1)), MAP)
    assert found.fixed == {"a": "'scale' of 0, changed before its use"}


def test_a_normalization_written_out_is_one() -> None:
    class Written(FrozenBatchNorm2d):
        pass

    found = Followed(Written(8), MAP)
    assert [(call.path, call.kind, found.text(call.axis)) for call in found.record.calls] == [("0", "norm", "a")]


class Twice(nn.Module):
    def __init__(self, layer: nn.Module, between: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.between = layer, between or nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.layer(self.between(self.layer(maps)))


def test_a_layer_that_is_used_again_reads_and_writes_the_same() -> None:
    found = Followed(Twice(nn.Conv2d(8, 8, 1)), MAP)
    assert found.axes[1] == found.text(found.known["a"])
    first, second = found.record.calls
    assert first.path == second.path == "0.layer"
    apart = Followed(Twice(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), MAP)
    assert apart.axes[1] == "0.layer" and apart.text(apart.known["a"]) == "a"
    assert [call.path for call in apart.record.calls] == ["0.layer", "0.between", "0.layer"]
    assert apart.text(apart.record.calls[1].axis) == "a"


def test_a_normalization_that_is_used_again_ties_what_it_meets() -> None:
    found = Followed(Twice(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)), MAP)
    assert found.axes == [".", "a", ".", "."] and found.text(found.record.calls[-1].axis) == "a"
    assert [call.kind for call in found.record.calls] == ["norm", "conv"]


@pytest.mark.parametrize(("layer", "map_"), [(nn.Conv2d(8, 1, 1), MAP), (nn.Linear(8, 1), ((5, 8), ".a"))])
def test_a_single_channel_is_no_width(layer: nn.Module, map_: Named) -> None:
    found = Followed(layer, map_)
    assert found.axes[1] == "1"
    assert "a single channel" in found.record.sizes.fixed.values()


def test_two_channels_are_a_width() -> None:
    assert Followed(nn.Conv2d(8, 2, 1), MAP).axes == [".", "0", ".", "."]


# The pass itself.


def test_channels_of_the_images_are_given_and_lie_before_rows_and_columns() -> None:
    for images in (torch.empty(2, 3, 8, 9), [torch.empty(3, 8, 9)], {"image": torch.empty(1, 3, 8, 9)}):
        record = Record(nn.Sequential())
        record.begin(images)
        assert list(record.sizes.built) == [3] and record.sizes.fixed == {0: "the channels of the image"}
        (axes,) = record.axes.values()
        assert [axis is not None for axis in axes[-3:]] == [True, False, False]
        assert not any(axes[:-3])


def test_outputs_are_noted_by_call_if_one_dimension_counts_channels() -> None:
    record = Record(nn.Sequential())
    first, second = record.sizes.new("first", 8), record.sizes.new("second", 6)
    one, both, none = torch.empty(2, 8), torch.empty(6, 8), torch.empty(3)
    record.note(one, (None, first))
    record.note(both, (second, first))
    for output in (one, both, none, [one]):
        record.enter("layer")
        record.leave("layer", len(record.outputs), output)
    assert record.outputs == {("layer", 0): first}
    record.counting = False
    record.enter("other")
    record.leave("other", 0, one)
    assert record.outputs == {("layer", 0): first}


def test_positions_are_not_counted_again_where_a_network_is_followed_in_training() -> None:
    record = Record(nn.Sequential())
    axis = record.sizes.new("a", 8)
    record.add(Call("a", "conv", None, axis, positions=7))
    record.counting = False
    record.add(Call("a", "conv", None, axis, positions=7))
    assert [call.positions for call in record.calls] == [7, 0]


def test_operations_are_noted_with_their_place_and_the_axes_that_took_part() -> None:
    found = Followed(lambda x, y: (x + y).relu().mean((2, 3)) @ torch.ones(8, 3, device="meta"), MAP, MAP)
    operations = [operation for operation in found.record.operations if operation.axes]
    assert [operation.name for operation in operations] == ["add", "relu", "mean", "mm"]
    assert {operation.module for operation in operations} == {""}
    assert [operation.place for operation in operations[:3]] == [0, 1, 2]
    assert [len(operation.axes) for operation in operations] == [2, 1, 1, 1]
    assert [operation.outputs[0][0] for operation in operations] == [(2, 8, 4, 6)] * 2 + [(2, 8), (2, 3)]
    found.record.stack += ["layer4", "layer4.conv1"]
    assert found.record.where() == "layer4.conv1"


def test_only_what_is_computed_from_the_tensors_of_one_module_belongs_to_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    record = Record(model)
    one, two = model.get_parameter("0.weight"), model.get_parameter("1.weight")
    with torch.no_grad(), Follower(record):
        own, mixed, other = one.t() * 2, one + two, torch.ones(4, 4)
    assert record.owner(own) == ("0", True) and record.is_weight(own)
    assert record.owner(mixed) == ("Sequential", False) and not record.is_weight(mixed)
    assert record.owner(other) == ("Sequential", False)
    convolution = Record(nn.Sequential(nn.Conv2d(4, 4, 1)))
    assert not convolution.is_weight(convolution.model.get_parameter("0.weight"))


def test_what_is_gone_is_not_taken_for_what_comes_to_lie_in_its_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    record, weight = Record(model), model.get_parameter("0.weight")
    with torch.no_grad(), Follower(record):
        for _ in range(20):
            weight.t() * 2  # dropped at once, so that the next one may have its address
            assert record.owner(torch.ones(4, 4)) == ("Sequential", False)


def test_a_rule_is_given_what_was_known_before_an_operation_in_place() -> None:
    found = Followed(lambda x: x.add_(1).unsqueeze_(0), MAP)
    assert found.axes == [".", ".", "a", ".", "."]
