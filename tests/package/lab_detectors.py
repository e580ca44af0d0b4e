"""A detector of another laboratory: torchvision's RetinaNet over a small pyramid."""

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from eigendet.plugins import detector

if TYPE_CHECKING:
    from torch import nn


@detector
def lab_detector(
    backbone: "nn.Module", classes: int, size: tuple[int, int], *, channels: PositiveInt = 32
) -> "nn.Module":
    """The laboratory's detector."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    from eigendet.networks.parts import PyramidBackbone

    pyramid = PyramidBackbone(backbone, channels, LastLevelMaxPool(), skip=1)
    levels = len(pyramid.maps) + 1
    anchors = AnchorGenerator(tuple((16 * 2**level,) for level in range(levels)), ((1.0,),) * levels)
    return RetinaNet(
        pyramid, classes + 1, min_size=size[0], max_size=size[1], anchor_generator=anchors, _skip_resize=True
    )
