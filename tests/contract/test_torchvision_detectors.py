"""Detectors from torchvision's parts beside their contract: its published builders are the oracle of what they are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from eigendet import channels, plugins
from eigendet.config.sections import BackboneChoice, CovarianceSettings, PluginChoice
from eigendet.data.samples import Rectangles
from eigendet.errors import UserError
from eigendet.networks.backbones import parameter_count
from eigendet.networks.definition import Definition
from eigendet.runs.images import Decoded, Images
from eigendet.runs.observation import observed_taps
from eigendet.testing import DetectorContract

PYRAMID = {"fpn_channels": 16, "norm_groups": 4, "anchor_sizes": [8, 16, 32, 48, 64]}
BOXES = PYRAMID | {"version": 2, "head_channels": 32, "box_samples": 16, "proposals": 50}
OPTIONS: dict[str, dict[str, Any]] = {
    "faster_rcnn": BOXES,
    "mask_rcnn": BOXES | {"mask_channels": 16},
    "retinanet": PYRAMID | {"version": 2},
    "fcos": PYRAMID | {"anchor_sizes": [4, 8, 16, 32, 64]},
    "ssd": {"extra_channels": [32, 16], "scales": [0.1, 0.2, 0.4, 0.6, 0.8]},
    "ssdlite": {"skip_maps": 1, "extra_channels": [32], "scales": [0.1, 0.2, 0.4, 0.7], "norm_groups": 4},
}
# Layers whose widths are not to be chosen: a number for each class, box or anchor.
OUTPUTS = {
    "faster_rcnn": {"rpn.head.cls_logits", "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"},
    "mask_rcnn": {"rpn.head.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"},
    "retinanet": {"head.classification_head.cls_logits", "head.regression_head.bbox_reg"},
    "fcos": {"head.classification_head.cls_logits", "head.regression_head.bbox_ctrness"},
    "ssd": {f"head.classification_head.module_list.{level}" for level in range(5)},
    "ssdlite": {f"head.regression_head.module_list.{level}.1" for level in range(4)},
}
# Some whose widths are.
OWN = {
    "faster_rcnn": {"backbone.fpn.inner_blocks.3.0", "rpn.head.conv.1.0", "roi_heads.box_head.2.0"},
    "mask_rcnn": {"backbone.fpn.inner_blocks.3.0", "roi_heads.mask_head.1.0", "roi_heads.mask_predictor.conv5_mask"},
    "retinanet": {"backbone.fpn.inner_blocks.2.0", "head.regression_head.conv.3.0"},
    "fcos": {"backbone.fpn.inner_blocks.2.0", "head.classification_head.conv.0", "head.regression_head.conv.9"},
    "ssd": {"backbone.extra.0.0.0", "backbone.extra.0.1.0", "backbone.extra.1.1.0"},
    "ssdlite": {"backbone.extra.0.0.0", "backbone.extra.0.2.0"},
}


class TestFasterRCNN2(DetectorContract):
    plugin, options = "faster_rcnn", OPTIONS["faster_rcnn"]


class TestMaskRCNN2(DetectorContract):
    plugin, options = "mask_rcnn", OPTIONS["mask_rcnn"]


class TestRetinaNet2(DetectorContract):
    plugin, options = "retinanet", OPTIONS["retinanet"]


class TestFCOS(DetectorContract):
    plugin, options = "fcos", OPTIONS["fcos"]


class TestSSD(DetectorContract):
    plugin, options = "ssd", OPTIONS["ssd"]


class TestSSDLite(DetectorContract):
    plugin, options = "ssdlite", OPTIONS["ssdlite"]


def definition(name: str, **options: Any) -> Definition:
    detector = PluginChoice(plugin=name, **OPTIONS[name] | options)
    backbone = BackboneChoice(**DetectorContract.backbone)
    return Definition(backbone, [str(label) for label in range(10)], (64, 64), detector)


@pytest.mark.parametrize("name", OPTIONS)
def test_all_but_its_outputs_is_resized_at_the_predicted_cost(name: str) -> None:
    reference = replace(definition(name), heads=True)
    groups, usual = reference.reference(64)
    assert OWN[name] <= usual.keys()
    assert not OUTPUTS[name] & usual.keys()
    random = Random(0)
    widths = {g: groups.multiples[g] * random.randint(1, max(1, 40 // groups.multiples[g])) for g in usual}
    model = replace(reference, widths=widths).build()
    assert parameter_count(model) == groups.parameters(widths)
    seen: dict[str, int] = {}
    for prefix, path in {"roi_heads": "roi_heads.box_head", "roi_heads.mask": "roi_heads.mask_head"}.items():
        if path in dict(model.named_modules()):
            model.get_submodule(path).register_forward_pre_hook(
                lambda module, inputs, prefix=prefix: seen.update({prefix: len(inputs[0])})
            )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()([torch.rand(3, 64, 64)])
    build = partial(definition(name)._at_full_width, (64, 64))
    counted = channels.trace_detector(build, (64, 64), seen).renamed("backbone.body.")
    assert counted.macs(widths) == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_background_is_never_detected(name: str) -> None:
    """As torchvision does where it has not learned yet that background is not to be scored."""
    model = definition(name).build().eval()
    head: Any = model.get_submodule("head.classification_head")
    nn.init.constant_(head.cls_logits.bias, 3.0)
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        (found,) = model(images)
        head._forward_hooks.clear()
        (without,) = model(images)
    assert len(found["labels"])
    assert 0 in without["labels"].tolist()
    assert 0 not in found["labels"].tolist()


PUBLISHED: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": {"plugin": "faster_rcnn"},
    "fasterrcnn_resnet50_fpn_v2": {"plugin": "faster_rcnn", "version": 2},
    "maskrcnn_resnet50_fpn": {"plugin": "mask_rcnn"},
    "maskrcnn_resnet50_fpn_v2": {"plugin": "mask_rcnn", "version": 2},
    "retinanet_resnet50_fpn": {"plugin": "retinanet"},
    "retinanet_resnet50_fpn_v2": {"plugin": "retinanet", "version": 2},
    "fcos_resnet50_fpn": {"plugin": "fcos"},
}


def ours(detector: dict[str, Any], size: tuple[int, int] = (800, 1333)) -> Any:
    """Over torchvision's ResNet-50 with batch norm, for the 90 classes of COCO."""
    backbone = plugins.bind("backbone", PluginChoice(plugin="resnet", depth=50, norm="batch"))()
    return plugins.bind("detector", PluginChoice(**detector))(backbone, 90, size)


def published(name: str, **options: Any) -> Any:
    return getattr(detection, name)(weights=None, weights_backbone=None, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_by_default_it_is_the_published_network(name: str) -> None:
    with torch.device("meta"):
        models = ours(PUBLISHED[name]), published(name)
    shapes = [{key: value.shape for key, value in model.named_parameters()} for model in models]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"])
def test_with_the_published_networks_weights_it_finds_and_loses_the_same(name: str) -> None:
    """Once it has learned that background is not to be scored: until then it alone finds background."""
    oracle = published(name, min_size=96, max_size=128, score_thresh=0.0)
    head = oracle.head.classification_head
    with torch.no_grad():
        head.cls_logits.bias.view(-1, head.num_classes)[:, 0] = -30
    model = ours(PUBLISHED[name], (96, 128))
    model.load_state_dict(oracle.state_dict())
    model.score_thresh = 0.0
    image, target = torch.rand(3, 96, 128), {"boxes": torch.tensor([[8.0, 8, 60, 80]]), "labels": torch.tensor([7])}
    with torch.no_grad():
        found = [network.eval()([image])[0] for network in (model, oracle)]
        losses = [network.train()([image], [target]) for network in (model, oracle)]
    assert len(found[0]["boxes"])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(losses[0], losses[1])


class Maps(nn.Module):
    """A backbone that gives maps of chosen channels, at strides 8 and 16."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, width, 1) for width in channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(n): layer(images)[..., :: 8 << n, :: 8 << n] for n, layer in enumerate(self.layers)}


@pytest.mark.parametrize(
    ("name", "builder", "channels", "options"),
    [
        ("ssd", "ssd300_vgg16", (512, 1024), {"extra_channels": [512, 256, 256, 256], "aspect_ratios": [2]}),
        ("ssdlite", "ssdlite320_mobilenet_v3_large", (672, 480), {}),
    ],
)
def test_added_levels_and_heads_are_those_of_the_published_ssd(
    name: str, builder: str, channels: tuple[int, int], options: dict[str, Any]
) -> None:
    with torch.device("meta"):
        oracle = published(builder)
        choice = PluginChoice(plugin=name, **options | {"skip_maps": 0})
        model = plugins.bind("detector", choice)(Maps(*channels), 90, (300, 300))
    added = [oracle.backbone.extra[-4:], model.backbone.extra]
    assert len({str([tuple(value.shape) for value in part.parameters()]) for part in added}) == 1
    heads = [[tuple(value.shape) for value in part.head.parameters()] for part in (oracle, model)]
    if name == "ssdlite":
        assert heads[0] == heads[1]
    else:  # whose published numbers of boxes differ from level to level
        assert [shape[1:] for shape in heads[0]] == [shape[1:] for shape in heads[1]]
        assert heads[0][0] == heads[1][0]


def test_default_boxes_are_those_of_ssd_on_a_canvas_of_the_images_size_and_the_same_on_any_other() -> None:
    model: Any = definition("ssd").build()
    oracle = DefaultBoxGenerator([[2, 3]] * 5, scales=[0.1, 0.2, 0.4, 0.6, 0.8, 1.0], clip=False)
    maps = [torch.zeros(1, 1, side, side) for side in (8, 4, 2, 1, 1)]
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    (found,) = model.anchor_generator(images, maps)
    torch.testing.assert_close(found, oracle(images, maps)[0])
    wide = [torch.zeros(1, 1, side, 2 * side) for side in (8, 4, 2, 1, 1)]
    (again,) = model.anchor_generator(ImageList(torch.zeros(1, 3, 64, 128), [(64, 128)]), wide)
    row = 8 * 6  # positions of the finest map, and boxes at each
    torch.testing.assert_close(again[:row], found[:row])


def test_heads_are_tapped_for_each_level() -> None:
    images = Images(Decoded(Rectangles(64)), [0], torch.device("cpu"))
    settings = CovarianceSettings(points=["norm", "conv"], heads=True)
    found = {str(tap.key) for tap in observed_taps(definition("fcos").build(), settings, images)}
    assert {f"head.classification_head.conv.1#{level}:norm" for level in range(5)} <= found
    found = {str(tap.key) for tap in observed_taps(definition("ssd").build(), settings, images)}
    assert {"backbone.extra.0.1.0#0:conv", "head.regression_head.module_list.4#0:conv"} <= found


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcos", {"anchor_sizes": [8]}, r"anchor_sizes is \[8\]; this pyramid has 5 levels, so expected 5 sizes in"),
        ("ssd", {"scales": [0.1, 0.2]}, r"scales is \[0.1, 0.2\]; this pyramid has 5 levels, so expected 5 shares of"),
        ("ssd", {"skip_maps": 4}, "the backbone gives 4 feature maps .* leaves out the 4 finest"),
        ("ssdlite", {"extra_channels": [1]}, r"extra_channels.0: got 1; input should be greater than or equal to 2"),
        ("retinanet", {"version": 3}, "version: got 3; input should be 1 or 2"),
    ],
)
def test_options_that_do_not_fit_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        definition(name, **options).build()
