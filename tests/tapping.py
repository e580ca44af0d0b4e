"""What the tests of taps and of their shortcuts share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from eigendet.observe.keys import Point

ALL: tuple[Point, ...] = ("conv", "linear", "norm", "act", "block")


def exact(feature_map: Tensor, channel_dim: int = 1) -> Tensor:
    """Covariance in float64 by torch."""
    return torch.cov(feature_map.detach().double().movedim(channel_dim, 0).flatten(1), correction=0)


def error(computed: Tensor, expected: Tensor) -> float:
    return float((computed - expected).norm() / expected.norm())


def block_with_statistics() -> nn.Module:
    """A residual block in evaluation mode whose batch norms have seen data."""
    torch.manual_seed(0)
    block = Bottleneck(16, 4)
    with torch.no_grad():
        block(torch.randn(8, 16, 9, 9))
    return block.eval()
