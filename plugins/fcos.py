"""FCOS with a feature pyramid, from torchvision's parts, over any backbone."""

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from eigendet.plugins import Options, detector

if TYPE_CHECKING:
    from torch import nn


class FCOSOptions(Options):
    """Options of FCOS."""

    fpn_channels: PositiveInt = Field(256, description="of each level of the pyramid, and of the heads")
    norm_groups: PositiveInt = Field(32, description="of each GroupNorm in the heads, at most")
    anchor_sizes: list[PositiveInt] = Field(
        [8, 16, 32, 64, 128],
        description="in pixels, one a level, finest first, usually its stride; a level learns those points of an "
        "object whose farthest side is four to eight such sizes away",
    )


@detector
def fcos(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: FCOSOptions) -> "nn.Module":
    """Build torchvision's FCOS, without anchor boxes, over an FPN of strides 8 to 128, without the finest map."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    from eigendet.networks.parts import PyramidBackbone, check_levels, group_norm, hide_background

    channels, norm = options.fpn_channels, group_norm(options.norm_groups)
    pyramid = PyramidBackbone(backbone, channels, LastLevelP6P7(channels, channels), skip=1)
    check_levels("anchor_sizes", options.anchor_sizes, pyramid)
    points = tuple((side,) for side in options.anchor_sizes)
    head = FCOSHead(channels, 1, classes + 1, num_convs=0)  # it takes no normalization, but its two parts do
    head.classification_head = FCOSClassificationHead(channels, 1, classes + 1, norm_layer=norm)
    head.classification_head.register_forward_hook(hide_background)
    head.regression_head = FCOSRegressionHead(channels, 1, norm_layer=norm)
    return FCOS(
        pyramid,
        classes + 1,
        min_size=size[0],
        max_size=size[1],
        anchor_generator=AnchorGenerator(points, ((1.0,),) * len(points)),
        head=head,
        _skip_resize=True,  # in training, images come resized; in evaluation it does not apply
    )
