"""Parts from which detector plugins are made: what maps a backbone gives, a pyramid on them, norms of heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from eigendet.channels.tracing import SIDE
from eigendet.errors import UserError


def feature_channels(backbone: nn.Module) -> dict[str, int]:
    """Channels of each feature map by name, finest first, read off a small image."""
    return {name: feature_map.shape[1] for name, feature_map in features_of_blank(backbone).items()}


def feature_strides(backbone: nn.Module) -> dict[str, tuple[int, int]]:
    """Stride in pixels, to the nearest, and channels of each feature map by name, finest first."""
    maps = features_of_blank(backbone)
    return {name: (round(SIDE / value.shape[3]), value.shape[1]) for name, value in maps.items()}


def coarser_maps(backbone: nn.Module, skip: int) -> dict[str, int]:
    """`feature_channels` without the `skip` finest maps; UserError if none is left."""
    found = feature_channels(backbone)
    if len(found) <= skip:
        raise UserError(
            f"the backbone gives {len(found)} feature maps ({', '.join(found)}), of which the detector leaves out the "
            f"{skip} finest; choose a backbone with more."
        )
    return dict(list(found.items())[skip:])


class PyramidBackbone(nn.Module):
    """A backbone with a feature pyramid on its maps, as torchvision's detectors take it.

    Args:
        channels: of every level of the pyramid.
        extra: makes the levels beyond the backbone's maps.
        skip: how many of the finest maps the pyramid leaves out.
        norm: makes a normalization for so many channels after each convolution of the pyramid; None: without.

    Raises:
        UserError: no map is left.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        extra: ExtraFPNBlock,
        skip: int = 0,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.body = backbone
        sizes = coarser_maps(backbone, skip)
        self.maps = list(sizes)  # names, finest first
        self.fpn = FeaturePyramidNetwork(list(sizes.values()), channels, extra, norm)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        pyramid: dict[str, Tensor] = self.fpn({name: features[name] for name in self.maps})
        return pyramid


class HeadNorm(nn.GroupNorm):
    """GroupNorm over a map of any size: nn.GroupNorm refuses a group of one number, and coarse levels are one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(groups: int) -> Callable[[int], HeadNorm]:
    """Makes a GroupNorm for so many channels, in `groups` groups or, where these do not divide them, the most that do.

    Heads take it rather than BatchNorm, whose statistics over the few images of a step are noise.
    """
    return lambda channels: HeadNorm(math.gcd(groups, channels), channels)


def hide_background(head: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
    """Forward hook of a head that scores each class by itself, and background as the first of them: never detect it.

    torchvision's RetinaNet and FCOS learn that score, to be low, but would detect background where it is not yet low.

    Args:
        logits: (..., classes), background first.
    """
    if head.training:
        return logits
    return logits.index_fill(-1, torch.zeros(1, dtype=torch.int64, device=logits.device), -math.inf)


def check_levels(option: str, values: Sequence[float], levels: nn.Module, kind: str = "sizes in pixels") -> None:
    """Raise UserError unless a detector's option has one value for each map that `levels` makes of images."""
    found = len(features_of_blank(levels))
    if len(values) != found:
        raise UserError(
            f"{option} is {list(values)}; this pyramid has {found} levels, so expected {found} {kind}, finest first."
        )


def features_of_blank(module: nn.Module) -> Any:
    """What a module gives for a black image, with its state as it was."""
    mode = module.training
    with torch.no_grad():
        features = module.eval()(torch.zeros(1, 3, SIDE, SIDE))
    module.train(mode)
    return features
