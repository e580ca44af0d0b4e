from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from eigendet import channels, plugins
from eigendet.channels import construction
from eigendet.channels.groups import ChannelError
from eigendet.config.sections import PluginChoice
from tests.benchmarks import channels as resizing


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
    mixed = {group: 32 * (1 + position % 9) for position, group in enumerate(traced.widths)}  # narrower and wider
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


def test_new_widths_are_initialized_as_the_network_initializes_itself() -> None:
    build = resnet(depth=18, norm="batch")
    traced = channels.trace(build)
    model = channels.rebuild(build, traced, {group: 2 * width for group, width in traced.widths.items()})
    weight = model.get_parameter("layer3.0.conv1.weight")
    assert weight.shape == (512, 256, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)  # He, fan out


def test_widths_are_multiples_of_the_groups_of_a_group_norm() -> None:
    build = resnet(depth=18, norm="group", norm_groups=32)
    traced = channels.trace(build)
    assert set(traced.multiples.values()) == {32}
    model = channels.rebuild(build, traced, traced.widths | {"layer3.0.conv1": 96})
    assert model.get_submodule("layer3.0.bn1").num_groups == 32
    with pytest.raises(ChannelError, match=r"'layer3.0.conv1': width 40; expected a multiple of 32"):
        channels.rebuild(build, traced, traced.widths | {"layer3.0.conv1": 40})


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

    def __init__(self, make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.operation = make()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.operation(self.stem(images))}


class Blur(nn.Module):
    """Convolves by itself, with a filter that its constructor makes for each channel."""

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filter", torch.rand(size, size).expand(channels, 1, size, size).clone())

    def forward(self, maps: Tensor) -> Tensor:
        return nn.functional.conv2d(maps, self.get_buffer("filter"), groups=self.channels)


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (lambda: Blur(8), {"stem": 12}),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), {"stem": 12}),
        (lambda: nn.Conv2d(8, 24, 3, groups=8), {"stem": 12}),
        (lambda: nn.Conv2d(8, 12, 3, groups=4), {"stem": 12, "operation": 8}),
        (lambda: nn.ConvTranspose2d(8, 4, 2, 2), {"stem": 12, "operation": 9}),
        (lambda: nn.PixelShuffle(2), {"stem": 12}),
        (lambda: nn.ChannelShuffle(2), {"stem": 12}),
        (lambda: FrozenBatchNorm2d(8), {"stem": 12}),
        (lambda: nn.GroupNorm(4, 8), {"stem": 12}),
        (lambda: lambda maps: maps.flip(1), {"stem": 12}),
        (lambda: lambda maps: torch.cat([maps, maps], 1), {"stem": 12}),
        (lambda: lambda maps: maps.chunk(2, 1)[0].sigmoid() * maps.chunk(2, 1)[1], {"stem": 12}),
        (lambda: lambda maps: maps * maps.mean((2, 3), keepdim=True), {"stem": 12}),
    ],
)
def test_operations_follow_other_widths(make: Callable[[], Callable[[Tensor], Tensor]], widths: dict[str, int]) -> None:
    def build() -> nn.Module:
        return Odd(make)

    traced = channels.trace(build, (16, 16))
    assert set(traced.widths) == set(widths) and not traced.fixed
    model = channels.rebuild(build, traced, widths)
    assert traced.parameters(widths) == parameters(model)
    assert traced.macs(widths) == macs(model, (16, 16))


class Head(nn.Module):
    """Reads the first six channels, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv(maps[:, :6])


class Scale(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(values)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.scale


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: lambda maps: torch.cat(maps.split(4, 1)[:2], 1) + maps, "keeps its sizes"),
        (lambda: lambda maps: maps.reshape(1, 8, 14, 14), "operation|Odd keeps its sizes"),
        (lambda: Head(), "operation keeps its sizes"),
        (lambda: Blur(8, size=8), "operation keeps its sizes"),  # which eight is the width?
        (lambda: lambda maps: maps * torch.ones(1, 8, 1, 1, device=maps.device), "Odd keeps its sizes"),
        (lambda: Scale(torch.rand(8, 1, 1)), "operation.scale has values of its own"),
        (lambda: lambda maps: maps.mean((2, 3)), "an output of the network, a number for each class"),
    ],
)  # fmt: skip
def test_what_cannot_be_resized_keeps_its_width_and_says_why(
    make: Callable[[], Callable[[Tensor], Tensor]], reason: str
) -> None:
    def build() -> nn.Module:
        return Odd(make)

    traced = channels.trace(build, (16, 16))
    assert not traced.widths
    assert re.search(reason, traced.fixed["stem"])
    assert traced.parameters({}) == parameters(channels.rebuild(build, traced, {}))
    with pytest.raises(ChannelError, match=r"channel group 'stem' cannot be resized"):
        channels.rebuild(build, traced, {"stem": 4})


class Counted(nn.Module):
    """Splits by itself, outside of any layer, by numbers that no width changes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.scores = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.hidden(images)).split([5, 1], 1)[0]


def test_where_the_network_itself_fails_only_what_took_part_is_kept() -> None:
    traced = channels.trace(Counted, (16, 16))
    assert traced.widths == {"hidden": 8}
    assert re.search(r"Counted keeps its sizes \(split_with_sizes expects", traced.fixed["scores"])


def test_a_parameter_of_one_value_is_made_in_another_width() -> None:
    def build() -> nn.Module:
        return Odd(lambda: Scale(torch.full((8, 1, 1), 0.25)))

    model = channels.rebuild(build, channels.trace(build, (16, 16)), {"stem": 12})
    scale = model.get_parameter("operation.scale")
    assert scale.shape == (12, 1, 1) and bool((scale == 0.25).all()) and scale.requires_grad


def test_tracing_leaves_the_random_state_as_it_was() -> None:
    state = torch.random.get_rng_state()
    channels.trace(lambda: Odd(lambda: Scale(torch.rand(8, 1, 1))), (16, 16))
    channels.trace(resnet(depth=18))
    assert torch.equal(torch.random.get_rng_state(), state)


FAMILIES = [
    "alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_x_400mf", "regnet_y_400mf",
    "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_torchvision_take_any_widths(name: str) -> None:
    """One of each family; tests/benchmarks/channels.md lists them all."""
    result = resizing.resized(*resizing.torchvision_network(name))
    assert result.refused == ""
    assert result.kept == 0


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t", "vit_b_32"])
def test_feed_forward_parts_of_transformers_take_any_width(name: str) -> None:
    """And so do the heads of those whose attention has a width of its own."""
    result = resizing.resized(*resizing.torchvision_network(name))
    assert result.refused == "" and result.resized_inside
    assert result.hidden == (12, 12) and result.heads in ((12, 12), (0, 0))
    tables = result.reason.startswith("encoder.pos_embedding has values of its own")
    assert tables if name.startswith("vit") else result.heads[1] == 12


def test_shuffled_halves_concatenations_and_excitations_are_tied_as_they_must_be() -> None:
    shuffle = channels.trace(resizing.torchvision_network("shufflenet_v2_x0_5")[0])
    assert {("stage2.0.branch1.2", "out"), ("stage2.3.branch2.5", "out")} <= set(shuffle.members("stage2.0.branch1.2"))
    dense = channels.trace(resizing.torchvision_network("densenet121")[0])
    last = "features.denseblock1.denselayer6.norm1"
    assert sum((last, "out") in dense.members(group) for group in dense.widths) == 6  # the stem and five layers
    efficient = channels.trace(resizing.torchvision_network("efficientnet_b0")[0])
    expanded = efficient.members("features.2.0.block.0.0")
    assert {("features.2.0.block.1.0", "out"), ("features.2.0.block.2.fc2", "out")} <= set(expanded)
    assert ("features.2.0.block.2.fc1", "out") not in expanded


ORACLE = [
    "resnet50", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "googlenet", "inception_v3",
    "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf", "resnext50_32x4d", "mnasnet0_5",
]  # fmt: skip


@pytest.mark.parametrize("name", ORACLE)
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    """On one network with batch norm of each family where that library succeeds; the benchmark compares all."""
    ours, theirs = resizing.groups_of_both(*resizing.torchvision_network(name))
    assert ours == theirs


class Parts(nn.Module):
    """Modules that see a whole map, two of it side by side, half of it, and what a classifier makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.same, self.both, self.piece = nn.ReLU(), nn.Identity(), nn.Identity()
        self.classes = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.same(self.stem(images))
        self.both(torch.cat([maps, maps], 1))
        self.piece(maps.chunk(2, 1)[0])
        classes: Tensor = self.classes(maps.mean((2, 3)))
        return classes


def test_a_map_is_of_a_group_where_it_has_its_channels_and_no_others() -> None:
    traced = channels.trace(Parts)
    assert traced.widths == {"stem": 8}
    assert {key: group for key, group in traced.outputs.items() if key[0]} == {("stem", 0): "stem", ("same", 0): "stem"}
    assert traced.multiples == {"stem": 2}
    assert traced.fixed["classes"] == "an output of the network, a number for each class"


class Scaled(nn.Module):
    """A convolution whose channels are scaled by a parameter and shifted by a buffer, which is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.scale = nn.Parameter(torch.full((2, 8, 1, 1), 0.5)[:1])
        self.register_buffer("shift", torch.ones(1, 8, 1, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.stem(images) * self.scale + self.get_buffer("shift")}


def test_parameters_that_stand_alone_are_counted_and_buffers_are_not() -> None:
    traced = channels.trace(Scaled)
    assert traced.parameters(traced.widths) == parameters(Scaled()) == 8 * 27 + 8 + 8
    wider = channels.rebuild(Scaled, traced, {"stem": 12})
    assert traced.parameters({"stem": 12}) == parameters(wider) == 12 * 27 + 12 + 12
    assert wider.get_parameter("scale").shape == wider.get_buffer("shift").shape == (1, 12, 1, 1)
    assert traced.macs({"stem": 12}) == macs(wider, (128, 128))


class Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("\n  the cause\nand where it was")


def test_a_network_that_fails_by_itself_is_said_in_a_line() -> None:
    with pytest.raises(ChannelError, match=r"^Failing: cannot be run on an image of \(64, 96\): the cause$"):
        channels.trace(Failing, (64, 96))


def test_tracing_leaves_no_hooks() -> None:
    made: list[nn.Module] = []

    def build() -> nn.Module:
        made.append(Parts())
        return made[-1]

    channels.trace(build)
    assert len(made) > 2 and not [m for network in made for m in network.modules() if m._forward_pre_hooks]


class Inherited(Blur):
    """Has no constructor of its own."""


@pytest.mark.parametrize("fails", [False, True])
def test_constructors_are_put_back_also_after_a_failure(fails: bool) -> None:
    classes = [*construction.CONSTRUCTED, Blur, Inherited]
    before = [vars(layer).get("__init__") for layer in classes]
    state, seen = torch.random.get_rng_state(), []
    with (
        contextlib.suppress(RuntimeError),
        construction.constructing(lambda layer, arguments: seen.append(type(layer)), True, (Blur, Inherited)),
    ):
        assert nn.Conv2d(3, 8, 3).weight.is_meta and nn.BatchNorm2d(8).bias.is_meta
        Blur(4)
        if fails:
            raise RuntimeError
    assert seen == [nn.Conv2d, nn.BatchNorm2d, Blur]
    assert [vars(layer).get("__init__") for layer in classes] == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not nn.Conv2d(3, 8, 3).weight.is_meta
