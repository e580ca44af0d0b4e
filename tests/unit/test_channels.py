from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from eigendet import channels, plugins
from eigendet.channels import ChannelError
from eigendet.config import PluginChoice


def resnet(**options: object) -> Callable[[], nn.Module]:
    return plugins.bind("backbone", PluginChoice(plugin="resnet", **options))


def macs(model: nn.Module, size: tuple[int, int]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size))
    return counter.get_total_flops() / 2


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["group", "batch", "sync_batch", "frozen_batch"])
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_predicted_costs_equal_those_of_the_built_network(depth: int, norm: str) -> None:
    build = resnet(depth=depth, norm=norm)
    traced = channels.trace(build, (64, 96))
    mixed = {group: 8 * (3 + position % 9) for position, group in enumerate(traced.widths)}  # narrower and wider
    for widths in (traced.widths, mixed):
        model = channels.rebuild(build, traced, widths)
        assert traced.parameters(widths) == parameters(model)
        assert traced.macs(widths) == macs(model, (64, 96))


def test_resnet50_has_the_known_costs() -> None:
    traced = channels.trace(resnet(depth=50, norm="batch"), (224, 224))
    reference = resnet50()
    assert traced.parameters(traced.widths) == parameters(reference) - parameters(reference.fc)
    assert traced.macs(traced.widths) == pytest.approx(4.087e9, rel=1e-3)


def test_residual_sums_tie_channels_and_calls_are_told_apart() -> None:
    traced = channels.trace(resnet(depth=50))
    assert {traced.outputs[module, call] for module, call in [
        ("layer2.0.conv3", 0), ("layer2.0.downsample.0", 0), ("layer2.3.conv3", 0), ("layer2.1.relu", 2), ("layer2", 0),
    ]} == {"layer2.0.conv3"}  # fmt: skip
    assert traced.outputs["layer2.1.relu", 0] == "layer2.1.conv1"
    assert traced.outputs["layer2.1.relu", 1] == "layer2.1.conv2"
    assert len(traced.widths) == 1 + 4 + 2 * 16
    assert channels.trace(resnet(depth=18)).outputs["layer1.1.conv2", 0] == "conv1"  # tied to the stem


def test_rebuilding_with_the_same_widths_gives_the_same_weights() -> None:
    build = resnet(depth=18)
    traced = channels.trace(build)
    torch.manual_seed(3)
    plain = build().state_dict()
    torch.manual_seed(3)
    rebuilt = channels.rebuild(build, traced, traced.widths).state_dict()
    assert plain.keys() == rebuilt.keys()
    assert all(torch.equal(plain[name], rebuilt[name]) for name in plain)


def test_new_widths_are_initialised_as_the_network_initialises_itself() -> None:
    build = resnet(depth=18, norm="batch")
    traced = channels.trace(build)
    model = channels.rebuild(build, traced, {group: 2 * width for group, width in traced.widths.items()})
    weight = model.get_parameter("layer3.0.conv1.weight")
    assert weight.shape == (512, 256, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)  # He, fan out


def test_group_norm_keeps_its_groups_where_they_divide_the_width() -> None:
    build = resnet(depth=18, norm="group", norm_groups=32)
    traced = channels.trace(build)
    model = channels.rebuild(build, traced, traced.widths | {"layer3.0.conv1": 96, "layer4.0.conv1": 40})
    assert [model.get_submodule(f"layer{n}.0.bn1").num_groups for n in (2, 3, 4)] == [32, 32, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer9": 8}, "unknown channel group 'layer9'"),
        ({"conv1": 0}, "channel group 'conv1': width 0; expected a positive integer"),
        ({"conv1": 8.0}, "channel group 'conv1': width 8.0; expected a positive integer"),
        ({"conv1": None}, "channel group 'conv1': width None"),
    ],
)
def test_wrong_widths_are_refused_by_name(change: dict[str, int], message: str) -> None:
    build = resnet(depth=18)
    traced = channels.trace(build)
    with pytest.raises(ChannelError, match=message):
        channels.rebuild(build, traced, traced.widths | change)
    with pytest.raises(ChannelError, match=r"no width for the channel groups conv1, layer1\.0\.conv1"):
        channels.rebuild(build, traced, {})


class Odd(nn.Module):
    """A network with one operation of choice behind a convolution."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.operation = operation

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.operation(self.stem(images))}


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), r"operation: a grouped \(groups=8\) convolution cannot be resized"),
        (nn.ConvTranspose2d(8, 8, 3), "operation: a transposed convolution cannot be resized"),
        (nn.PixelShuffle(2), "operation: the channels of operation 'aten.pixel_shuffle' cannot be followed"),
        (lambda maps: maps.flip(1), "Odd: the channels of operation 'aten.flip' cannot be followed"),
        (lambda maps: torch.cat([maps, maps], 1), "Odd: the channels of operation 'aten.cat' cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(operation: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ChannelError, match=message):
        channels.trace(lambda: Odd(operation))


def test_a_frozen_norm_is_resized_with_its_convolution() -> None:
    def build() -> nn.Module:
        return Odd(FrozenBatchNorm2d(8))

    model = channels.rebuild(build, channels.trace(build), {"stem": 12})
    assert model.eval()(torch.zeros(1, 3, 8, 8))["out"].shape[1] == 12
