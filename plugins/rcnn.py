"""Faster R-CNN and Mask R-CNN with a feature pyramid, from torchvision's parts, over any backbone."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from eigendet.plugins import Options, detector

if TYPE_CHECKING:
    from torch import nn


class FasterRCNNOptions(Options):
    """Options of Faster R-CNN."""

    version: Literal[1, 2] = Field(
        1,
        description="of torchvision's heads: 1, linear layers; 2, four convolutions before one linear layer, two "
        "convolutions for region proposals, and GroupNorm in the pyramid and in the heads",
    )
    fpn_channels: PositiveInt = Field(256, description="of each level of the pyramid, and of convolutions over it")
    head_channels: PositiveInt = Field(1024, description="of the linear layers that look at boxes")
    norm_groups: PositiveInt = Field(32, description="of each GroupNorm, at most; for version 2")
    anchor_sizes: list[PositiveInt] = Field([32, 64, 128, 256, 512], description="in pixels, one a level, finest first")
    proposals: PositiveInt = Field(1000, description="regions of an image that the heads look at")
    box_samples: PositiveInt = Field(512, description="regions of an image that the box head learns from")


class MaskRCNNOptions(FasterRCNNOptions):
    """Options of Mask R-CNN."""

    mask_channels: PositiveInt = Field(256, description="of each layer that looks at masks")


@detector
def faster_rcnn(
    backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: FasterRCNNOptions
) -> "nn.Module":
    """Build torchvision's Faster R-CNN over an FPN."""
    from torchvision.models.detection import FasterRCNN

    model = FasterRCNN(**_parts(backbone, classes, size, options))
    model.regions = {"roi_heads": options.proposals}
    return model


@detector
def mask_rcnn(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: MaskRCNNOptions) -> "nn.Module":
    """Build torchvision's Mask R-CNN over an FPN."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    from eigendet.networks.parts import group_norm

    parts = _parts(backbone, classes, size, options)
    channels, norm = options.mask_channels, group_norm(options.norm_groups) if options.version == 2 else None
    model = MaskRCNN(
        **parts,
        mask_roi_pool=MultiScaleRoIAlign(parts["backbone"].maps, 14, 2, canonical_scale=7 * options.anchor_sizes[0]),
        mask_head=MaskRCNNHeads(options.fpn_channels, [channels] * 4, dilation=1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes + 1),
    )
    model.regions = {"roi_heads": options.proposals, "roi_heads.mask": model.roi_heads.detections_per_img}
    model.learns_masks = True
    return model


def _parts(backbone: "nn.Module", classes: int, size: tuple[int, int], options: FasterRCNNOptions) -> dict[str, Any]:
    """Make the arguments that the two have in common."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    from eigendet.networks.parts import PyramidBackbone, check_levels, group_norm

    channels, sizes = options.fpn_channels, options.anchor_sizes
    norm = group_norm(options.norm_groups) if options.version == 2 else None
    pyramid = PyramidBackbone(backbone, channels, LastLevelMaxPool(), norm=norm)
    check_levels("anchor_sizes", sizes, pyramid)
    anchors = AnchorGenerator(tuple((side,) for side in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    if options.version == 1:
        box_head = TwoMLPHead(channels * 7**2, options.head_channels)
    else:
        box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [options.head_channels], norm)
    return {
        "backbone": pyramid,
        "min_size": size[0],
        "max_size": size[1],
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, 3, conv_depth=options.version),
        "rpn_pre_nms_top_n_train": 2 * options.proposals,
        "rpn_post_nms_top_n_train": options.proposals,
        "rpn_pre_nms_top_n_test": options.proposals,
        "rpn_post_nms_top_n_test": options.proposals,
        # The finest level takes the boxes of the finest anchors; 224 pixels go to stride 16 with the default anchors.
        "box_roi_pool": MultiScaleRoIAlign(pyramid.maps, 7, 2, canonical_scale=7 * sizes[0]),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(options.head_channels, classes + 1),
        "box_batch_size_per_image": options.box_samples,
        "_skip_resize": True,  # in training, images come resized; in evaluation it does not apply
    }
