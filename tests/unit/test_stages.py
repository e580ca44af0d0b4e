"""The stage of every channel group."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eigendet import channels
from eigendet.channels.groups import Channels, Layer
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.networks.definition import Definition
from eigendet.networks.detector import regions
from eigendet.widths.stages import stage_numbers
from tests.benchmarks.channels import torchvision_network
from tests.handmade import NETWORK, size


def test_stages_are_halvings_of_the_resolution() -> None:
    inception = stage_numbers(channels.trace(*torchvision_network("inception_v3")))
    first = [f"Conv2d_{name}.conv" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    assert [inception[group] for group in first] == [0, 0, 0, 1, 1]  # 149, 147, 147, 73 and 71 pixels
    vgg = stage_numbers(channels.trace(*torchvision_network("vgg11_bn")))
    assert list(vgg.values()) == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def positioned(positions: dict[str, int]) -> Channels:
    """A network whose groups are written at so many positions, and a product that counts none."""
    layers = [Layer(name, "conv", None, size(**{name[0]: 1}), positions=number) for name, number in positions.items()]
    return replace(NETWORK, widths=dict.fromkeys("abcde", 8), layers=(*layers, Layer("n", "norm", None, size(e=1))))


def test_a_stage_is_a_halving_of_the_sides_below_the_finest_and_those_without_a_group_do_not_count() -> None:
    found = stage_numbers(positioned({"a": 1024, "b": 256, "c": 260, "d": 1}))
    assert found == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0}  # halvings: 0, 1, 1 and 5; and what only a norm writes
    assert stage_numbers(positioned({"a": 1024, "a2": 64, "b": 256})) == {
        "a": 1,
        "b": 0,
        "c": 0,
        "d": 0,
        "e": 0,
    }
    assert set(stage_numbers(replace(NETWORK, layers=())).values()) == {0}


def test_squeeze_and_excitation_is_of_the_stage_of_its_block() -> None:
    for name, squeezed, block in (
        ("efficientnet_b0", "features.{}.0.block.2.fc1", "features.{}.0.block.0.0"),
        ("mobilenet_v3_small", "features.{}.block.2.fc1", "features.{}.block.0.0"),
    ):
        traced = channels.trace(*torchvision_network(name))
        stage = stage_numbers(traced)
        numbers = [number for number in range(13) if squeezed.format(number) in stage]
        assert len(numbers) > 4
        assert [stage[squeezed.format(n)] for n in numbers] == [stage[block.format(n)] for n in numbers]
    plain = stage_numbers(channels.trace(*torchvision_network("efficientnet_b0")))
    assert max(plain.values()) == 4 and plain["features.0.0"] == 0 and plain["features.7.0.block.0.0"] == 4


@pytest.mark.parametrize("plugin", ["faster_rcnn", "mask_rcnn"])
def test_heads_of_regions_are_of_the_stage_whose_maps_are_as_large(plugin: str) -> None:
    backbone = BackboneChoice(plugin="resnet", depth=18, width=0.25, norm="group", norm_groups=8)
    network = Definition(backbone, ["a"], (128, 128), PluginChoice(plugin=plugin), heads=True)
    traced, _ = network.reference(128)
    stage = stage_numbers(traced, regions(network.build()))
    assert [stage[group] for group in ("conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1")] == [0, 1, 2, 3]
    assert stage["roi_heads.box_head.fc6"] == stage["roi_heads.box_head.fc7"] == 2  # 7 pixels, and layer3 has 8
    if plugin == "mask_rcnn":
        assert stage["roi_heads.mask_head.0.0"] == 1  # 14 pixels, and layer2 has 16


def test_a_layer_that_did_not_run_is_of_the_stage_of_what_it_reads() -> None:
    layers = (
        Layer("a", "conv", size(3), size(a=1), kernel=9, positions=1024),
        Layer("b", "conv", size(a=1), size(b=1), kernel=9, positions=64),
        Layer("c", "conv", size(b=1), size(c=1), kernel=9, positions=0),
        Layer("d", "linear", size(c=1), size(d=1), positions=0),
    )
    network = replace(NETWORK, widths=dict.fromkeys("abcd", 8), layers=layers)
    assert stage_numbers(network) == {"a": 0, "b": 1, "c": 1, "d": 1}
