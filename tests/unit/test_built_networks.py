"""Channel groups of networks that are built already, and of detectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eigendet import channels
from eigendet.channels.groups import ChannelError
from tests.unit.test_channels import Odd, Parts, Scale, parameters, resnet


def test_a_network_as_built_has_the_groups_of_what_builds_it_and_stays_as_it_is() -> None:
    build = resnet(depth=18, norm="group", norm_groups=8)
    model, traced = build(), channels.trace(build)
    before = copy.deepcopy(model.state_dict())
    assert channels.trace(model.train()) == replace(traced, order=None)
    assert model.training and not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_groups_of_a_network_as_built_are_not_tried() -> None:
    values = torch.arange(8.0)[:, None, None]
    assert channels.trace(Odd(lambda: lambda maps: maps.reshape(1, 8, 14, 14)), (16, 16)).widths == {"stem": 8}
    assert channels.trace(Odd(lambda: Scale(values)), (16, 16)).widths == {"stem": 8}


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.second(self.first(self.stem(images)))}


def test_a_weight_that_two_layers_share_is_still_one_in_a_network_as_built() -> None:
    traced = channels.trace(Tied(), (16, 16))
    assert traced.parameters(traced.widths) == parameters(Tied())


def test_a_network_that_cannot_be_copied_is_refused_by_name() -> None:
    model = Parts()
    model.kept = model.stem.weight * 2
    with pytest.raises(ChannelError, match=r"^Parts: cannot be copied \(.*\); give the function that builds it$"):
        channels.trace(model)


def test_rebuilding_needs_what_builds_the_network() -> None:
    model, traced = Parts(), channels.trace(Parts)
    for build, groups in ((Parts, channels.trace(model)), (model, traced)):
        with pytest.raises(ChannelError, match="rebuilding runs the network's own constructor; give trace and rebuild"):
            channels.rebuild(build, groups, {"stem": 4})


class Cropping(nn.Module):
    """A detector whose head sees as many crops as it finds bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 4)
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        maps: Tensor = self.stem(torch.stack(images))
        crops = maps[:, :, :4, :4].repeat(int((images[0][0] > self.get_buffer("threshold")).sum()), 1, 1, 1)
        return [self.head(crops)]


@pytest.mark.parametrize("network", [Cropping, Cropping()])
def test_a_detector_is_run_on_noise_and_its_regions_are_counted_as_stated(network: Callable[[], nn.Module]) -> None:
    traced = channels.trace_detector(network, (16, 16), {"head": 100})
    costs = {layer.module: layer.macs(traced.widths) for layer in traced.layers}
    assert costs == {"stem": 3 * 8 * 16 * 16, "head": 8 * 4 * 16 * 100}
    noise = channels.trace_detector(network, (16, 16))
    crops = noise.layers[-1].positions
    assert 0 < crops < 256 and noise.macs(noise.widths) == costs["stem"] + 8 * 4 * 16 * crops
