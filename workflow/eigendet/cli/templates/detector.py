"""A detector plugin: a Faster R-CNN from torchvision's parts, to change into your own."""

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from eigendet.plugins import detector

if TYPE_CHECKING:
    from torch import nn


# The first line of the docstring is what `eigendet plugins` lists; keyword-only parameters are the options, checked by
# their types before anything runs. `eigendet plugins show example` prints them.
@detector
def example(
    backbone: "nn.Module",
    classes: int,
    size: tuple[int, int],
    *,
    fpn_channels: PositiveInt = 64,
    head_channels: PositiveInt = 128,
    proposals: PositiveInt = 200,
) -> "nn.Module":
    """Build a Faster R-CNN over a feature pyramid, with anchors that follow from the number of levels."""
    from torchvision.models.detection import FasterRCNN  # here, so that options are checked without waiting for torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    from eigendet.networks.parts import PyramidBackbone

    # Any backbone plugin may have made the backbone, which gives a dict of maps, finest first. This pyramid reads its
    # widths off a small image, so that nothing here needs to know them.
    pyramid = PyramidBackbone(backbone, fpn_channels, LastLevelMaxPool())
    levels = len(pyramid.maps) + 1
    model = FasterRCNN(
        pyramid,
        min_size=size[0],  # in evaluation images are resized to this; boxes come back in their own pixels
        max_size=size[1],
        _skip_resize=True,  # in training they come resized
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * 2**level,) for level in range(levels)), ((0.5, 1.0, 2.0),) * levels
        ),
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(pyramid.maps, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(fpn_channels * 7**2, head_channels),
        box_predictor=FastRCNNPredictor(head_channels, classes + 1),  # label 0 is background
    )
    # So many regions of an image go through the box head; its cost is counted by that.
    model.regions = {"roi_heads": proposals}
    # Nothing is frozen or loaded here, and nothing is said of training: the configuration decides that.
    return model
