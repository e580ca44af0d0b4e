from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from eigendet.taps import TapKey, tap


class SharedHead(nn.Module):
    """One convolution over several levels, as in an RPN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.conv(level) for level in levels]


def test_a_relu_used_three_times_gives_three_taps_and_the_block_is_the_last() -> None:
    block = Bottleneck(16, 4).eval()
    images = torch.randn(2, 16, 5, 5)
    with tap(block, ["act", "block"]) as taps:
        output = block(images)
    assert list(map(str, taps)) == ["relu#0:act", "relu#1:act", "relu#2:act", "#0:block"]
    assert [taps[key].channels for key in taps] == [4, 4, 16, 16]
    rows = output.detach().double().permute(0, 2, 3, 1).reshape(-1, 16)
    torch.testing.assert_close(taps[TapKey("", 0, "block")].mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(taps[TapKey("", 0, "block")].scatter, taps[TapKey("relu", 2, "act")].scatter)


def test_a_head_on_several_levels_counts_every_position_apart() -> None:
    head = SharedHead()
    with tap(head, ["conv"]) as taps:
        for _ in range(5):
            head([torch.randn(1, 4, side, side) for side in (8, 4, 2)])
    assert {str(key): taps[key].count for key in taps} == {"conv#0:conv": 320, "conv#1:conv": 80, "conv#2:conv": 20}


def test_every_level_of_a_pyramid_is_a_tap() -> None:
    model = nn.Sequential(OrderedDict(fpn=FeaturePyramidNetwork([4, 8], 5)))
    with tap(model, ["fpn"]) as taps:
        model({"fine": torch.randn(1, 4, 8, 8), "coarse": torch.randn(1, 8, 4, 4)})
    assert {str(key): taps[key].count for key in taps} == {"fpn.fine#0:fpn": 64, "fpn.coarse#0:fpn": 16}


def test_outputs_and_gradients_are_bit_identical_with_taps() -> None:
    images = torch.randn(2, 16, 5, 5)
    results = []
    for points in ([], ["conv", "norm", "act", "block"]):
        torch.manual_seed(0)
        block = Bottleneck(16, 4)
        with tap(block, points), torch.enable_grad():  # type: ignore[arg-type]
            output = block(images)
            output.square().sum().backward()
        results.append((output, [parameter.grad for parameter in block.parameters()]))
    (plain, gradients), (tapped, tapped_gradients) = results
    assert torch.equal(plain, tapped)
    assert all(torch.equal(a, b) for a, b in zip(gradients, tapped_gradients, strict=True))


def test_hooks_are_gone_after_an_exception_and_the_model_can_be_pickled() -> None:
    block = Bottleneck(16, 4)
    with pytest.raises(RuntimeError), tap(block, ["conv"]):
        block(torch.randn(1, 3, 5, 5))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    torch.save(block, io.BytesIO())
