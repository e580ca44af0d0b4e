"""RetinaNet with a feature pyramid, from torchvision's parts, over any backbone."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from eigendet.plugins import Options, detector

if TYPE_CHECKING:
    from torch import nn


class RetinaNetOptions(Options):
    """Options of RetinaNet."""

    version: Literal[1, 2] = Field(
        1,
        description="of torchvision's: 2 has GroupNorm in the heads, learns boxes by their overlap, and makes its "
        "first level beyond the backbone's maps from the coarsest of these rather than from the pyramid",
    )
    fpn_channels: PositiveInt = Field(256, description="of each level of the pyramid, and of the heads")
    norm_groups: PositiveInt = Field(32, description="of each GroupNorm, at most; for version 2")
    anchor_sizes: list[PositiveInt] = Field(
        [32, 64, 128, 256, 512],
        description="in pixels, one a level, finest first; each comes in three steps of a third of an octave",
    )


@detector
def retinanet(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: RetinaNetOptions) -> "nn.Module":
    """Build torchvision's RetinaNet over an FPN of strides 8 to 128, without the finest map."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    from eigendet.networks.parts import PyramidBackbone, check_levels, coarser_maps, group_norm, hide_background

    channels, first = options.fpn_channels, options.version == 1
    *_, coarsest = coarser_maps(backbone, 1).values()
    extra = LastLevelP6P7(channels if first else coarsest, channels)
    extra.use_P5 = first  # else it goes by whether the two widths are equal
    pyramid = PyramidBackbone(backbone, channels, extra, skip=1)
    check_levels("anchor_sizes", options.anchor_sizes, pyramid)
    octaves = tuple(tuple(int(side * 2 ** (step / 3)) for step in range(3)) for side in options.anchor_sizes)
    head = RetinaNetHead(channels, 9, classes + 1, None if first else group_norm(options.norm_groups))
    head.classification_head.register_forward_hook(hide_background)
    head.regression_head._loss_type = "l1" if first else "giou"
    return RetinaNet(
        pyramid,
        classes + 1,
        min_size=size[0],
        max_size=size[1],
        anchor_generator=AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * len(octaves)),
        head=head,
        _skip_resize=True,  # in training, images come resized; in evaluation it does not apply
    )
