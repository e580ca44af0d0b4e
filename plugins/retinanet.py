"""RetinaNet with a feature pyramid, from torchvision's parts, over any backbone."""

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from eigendet.plugins import detector

if TYPE_CHECKING:
    from torch import nn

ANCHOR_SIZES = [32, 64, 128, 256, 512]


@detector
def retinanet(
    backbone: "nn.Module",
    classes: int,
    size: tuple[int, int],
    *,
    fpn_channels: PositiveInt = 256,
    anchor_sizes: list[PositiveInt] = ANCHOR_SIZES,
) -> "nn.Module":
    """torchvision's RetinaNet over an FPN of strides 8 to 128, that is without the finest map.

    Anchor sizes in pixels, one for each level; each comes in three steps of a third of an octave.
    """
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    from eigendet.models import PyramidBackbone, check_levels

    pyramid = PyramidBackbone(backbone, fpn_channels, LastLevelP6P7(fpn_channels, fpn_channels), skip=1)
    check_levels("anchor_sizes", anchor_sizes, pyramid)
    octaves = tuple(tuple(round(side * 2 ** (step / 3)) for step in range(3)) for side in anchor_sizes)
    return RetinaNet(
        pyramid,
        classes + 1,
        min_size=size[0],
        max_size=size[1],
        anchor_generator=AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * len(octaves)),
        _skip_resize=True,  # in training, images come resized; in evaluation it does not apply
    )
