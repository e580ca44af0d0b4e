"""Parts for authors of detector plugins: the maps of a backbone, a pyramid on them, norms of heads."""

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
    """Return the channels of each feature map by name, finest first, read off a small image.

    >>> class Two(nn.Module):
    ...     def forward(self, images):
    ...         return {"fine": images[:, :, ::4, ::4], "coarse": images[:, :2, ::8, ::8]}
    >>> feature_channels(Two())
    {'fine': 3, 'coarse': 2}
    """
    return {name: feature_map.shape[1] for name, feature_map in features_of_blank(backbone).items()}


def feature_strides(backbone: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the stride in pixels, to the nearest, and the channels of each feature map by name, finest first."""
    maps = features_of_blank(backbone)
    return {name: (round(SIDE / value.shape[3]), value.shape[1]) for name, value in maps.items()}


def coarser_maps(backbone: nn.Module, skip: int) -> dict[str, int]:
    """Return `feature_channels` without the `skip` finest maps.

    Raises:
        UserError: no map is left.
    """
    maps = feature_channels(backbone)
    if len(maps) <= skip:
        raise UserError(
            f"the backbone gives {len(maps)} feature maps ({', '.join(maps)}), of which the detector leaves out the "
            f"{skip} finest; choose a backbone with more."
        )
    return dict(list(maps.items())[skip:])


class PyramidBackbone(nn.Module):
    """A backbone with a feature pyramid on its maps, in the form that torchvision's detectors take.

    Args:
        backbone: gives feature maps by name, finest first.
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
        """Return the levels of the pyramid by name, finest first, from images (N, 3, H, W)."""
        features = self.body(images)
        pyramid: dict[str, Tensor] = self.fpn({name: features[name] for name in self.maps})
        return pyramid


class HeadNorm(nn.GroupNorm):
    """GroupNorm over a map of any size: nn.GroupNorm refuses a group of one number, and coarse levels are one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (N, C, H, W), normalized."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(groups: int) -> Callable[[int], HeadNorm]:
    """Return a function that makes a GroupNorm for a number of channels.

    It has `groups` groups or, where these do not divide the channels, the most that do. Heads take it rather than
    BatchNorm, whose statistics over the few images of a step are noise.

    >>> group_norm(32)(48).num_groups
    16
    """
    return lambda channels: HeadNorm(math.gcd(groups, channels), channels)


def hide_background(head: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
    """Never detect background, as a forward hook of a head that scores each class by itself and background first.

    torchvision's RetinaNet and FCOS learn that score, to be low, but would detect background where it is not yet low.

    Args:
        head: in training, its logits stay as they are.
        inputs: of the head, not used.
        logits: (..., classes), background first.
    """
    if head.training:
        return logits
    return logits.index_fill(-1, torch.zeros(1, dtype=torch.int64, device=logits.device), -math.inf)


def check_levels(option: str, values: Sequence[float], levels: nn.Module, kind: str = "sizes in pixels") -> None:
    """Raise UserError unless a detector's option has one value for each map that `levels` makes of images."""
    count = len(features_of_blank(levels))
    if len(values) != count:
        raise UserError(
            f"{option} is {list(values)}; this pyramid has {count} levels, so expected {count} {kind}, finest first."
        )


def features_of_blank(module: nn.Module) -> Any:
    """Return what a module gives for a black image, and leave its state as it was."""
    mode = module.training
    with torch.no_grad():
        features = module.eval()(torch.zeros(1, 3, SIDE, SIDE))
    module.train(mode)
    return features
