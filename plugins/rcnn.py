"""Faster R-CNN and Mask R-CNN with a feature pyramid, from torchvision's parts, over any backbone."""

from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from eigendet.plugins import detector

if TYPE_CHECKING:
    from torch import nn

ANCHOR_SIZES = [32, 64, 128, 256, 512]


@detector
def faster_rcnn(
    backbone: "nn.Module",
    classes: int,
    size: tuple[int, int],
    *,
    fpn_channels: PositiveInt = 256,
    head_channels: PositiveInt = 1024,
    anchor_sizes: list[PositiveInt] = ANCHOR_SIZES,
    proposals: PositiveInt = 1000,
    box_samples: PositiveInt = 512,
) -> "nn.Module":
    """torchvision's Faster R-CNN over an FPN. Anchor sizes in pixels, one for each level, finest first."""
    from torchvision.models.detection import FasterRCNN

    parts = _parts(backbone, classes, size, fpn_channels, head_channels, anchor_sizes, proposals, box_samples)
    model = FasterRCNN(**parts)
    model.regions = {"roi_heads": proposals}
    return model


@detector
def mask_rcnn(
    backbone: "nn.Module",
    classes: int,
    size: tuple[int, int],
    *,
    fpn_channels: PositiveInt = 256,
    head_channels: PositiveInt = 1024,
    mask_channels: PositiveInt = 256,
    anchor_sizes: list[PositiveInt] = ANCHOR_SIZES,
    proposals: PositiveInt = 1000,
    box_samples: PositiveInt = 512,
) -> "nn.Module":
    """torchvision's Mask R-CNN over an FPN. Anchor sizes in pixels, one for each level, finest first."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    parts = _parts(backbone, classes, size, fpn_channels, head_channels, anchor_sizes, proposals, box_samples)
    model = MaskRCNN(
        **parts,
        mask_roi_pool=MultiScaleRoIAlign(parts["backbone"].maps, 14, 2, canonical_scale=7 * anchor_sizes[0]),
        mask_head=MaskRCNNHeads(fpn_channels, [mask_channels] * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, classes + 1),
    )
    model.regions = {"roi_heads": proposals, "roi_heads.mask": model.roi_heads.detections_per_img}
    model.learns_masks = True
    return model


def _parts(
    backbone: "nn.Module",
    classes: int,
    size: tuple[int, int],
    fpn_channels: int,
    head_channels: int,
    anchor_sizes: list[int],
    proposals: int,
    box_samples: int,
) -> dict[str, Any]:
    """Arguments that the two have in common. Nothing is frozen and no normalisation is changed."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    from eigendet.models import PyramidBackbone, check_levels

    pyramid = PyramidBackbone(backbone, fpn_channels, LastLevelMaxPool())
    check_levels("anchor_sizes", anchor_sizes, pyramid)
    return {
        "backbone": pyramid,
        "min_size": size[0],
        "max_size": size[1],
        "rpn_anchor_generator": AnchorGenerator(
            tuple((side,) for side in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes)
        ),
        "rpn_pre_nms_top_n_train": 2 * proposals,
        "rpn_post_nms_top_n_train": proposals,
        "rpn_pre_nms_top_n_test": proposals,
        "rpn_post_nms_top_n_test": proposals,
        # The finest level takes the boxes of the finest anchors; 224 pixels go to stride 16 with the default anchors.
        "box_roi_pool": MultiScaleRoIAlign(pyramid.maps, 7, 2, canonical_scale=7 * anchor_sizes[0]),
        "box_head": TwoMLPHead(fpn_channels * 7**2, head_channels),
        "box_predictor": FastRCNNPredictor(head_channels, classes + 1),
        "box_batch_size_per_image": box_samples,
        "_skip_resize": True,  # in training, images come resized; in evaluation it does not apply
    }
