"""What the tests of taps and of their shortcuts share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from eigendet.data.samples import Rectangles
from eigendet.networks.detector import learns_masks, regions
from eigendet.observe.keys import Point
from eigendet.observe.taps import tap
from eigendet.runs.gradients import Samples, computing_losses
from eigendet.runs.images import Decoded

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


def maps_of_the_loss(model: nn.Module) -> set[str]:
    """Assert that a detector has the same maps where it computes losses as in evaluation, but for those of regions.

    Returns:
        The taps of regions, of which the loss samples others.
    """
    samples = Samples(Decoded(Rectangles(80)), [1], learns_masks(model), torch.device("cpu"))
    points: tuple[Point, ...] = (*ALL, "fpn")
    with torch.no_grad(), tap(model, points, shortcuts=False) as evaluation:
        model.eval()([samples[0].image])
    with torch.no_grad(), tap(model, points, shortcuts=False) as loss, computing_losses(model) as losses:
        assert losses(samples[0])
    shared = [key for key in evaluation if key in loss]
    of_regions = {key for key in shared if any(part in key for part in regions(model))}
    assert set(shared) - of_regions
    for key in set(shared) - of_regions:
        assert torch.equal(evaluation[key].scatter, loss[key].scatter), key
    return set(of_regions)
