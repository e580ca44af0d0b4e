"""Every shipped detector over every kind of norm keeps the contract: it trains, detects, is resized and learns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eigendet import channels, config
from eigendet.config.sections import BackboneChoice, CovarianceSettings, PluginChoice
from eigendet.data.datasets import open_split
from eigendet.errors import UserError
from eigendet.networks import parts
from eigendet.networks.backbones import backbone_of, parameter_count, reference_groups
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.runs import training
from eigendet.runs.images import Decoded, Images
from eigendet.runs.observation import observed_taps
from eigendet.testing import DetectorContract

OPTIONS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"fpn_channels": 16, "head_channels": 32, "anchor_sizes": [8, 16, 32, 48, 64], "box_samples": 16},
    "mask_rcnn": {"fpn_channels": 16, "head_channels": 32, "mask_channels": 16, "anchor_sizes": [8, 16, 32, 48, 64]},
    "retinanet": {"fpn_channels": 16, "anchor_sizes": [8, 16, 32, 48, 64]},
}
LOSSES = {
    "faster_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
    "mask_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_mask"},
    "retinanet": {"classification", "bbox_regression"},
}


def definition(name: str, widths: dict[str, int] | None = None, **backbone: Any) -> Definition:
    choice = {"plugin": "resnet", "depth": 18, "width": 0.125, "norm": "group", "norm_groups": 4} | backbone
    detector = PluginChoice(plugin=name, **OPTIONS[name])
    return Definition(BackboneChoice(**choice), [str(d) for d in range(10)], (64, 64), detector, widths)


class TestFasterRCNN(DetectorContract):
    plugin, options = "faster_rcnn", OPTIONS["faster_rcnn"]


class TestMaskRCNN(DetectorContract):
    plugin, options = "mask_rcnn", OPTIONS["mask_rcnn"]


class TestRetinaNet(DetectorContract):
    plugin, options = "retinanet", OPTIONS["retinanet"]


@pytest.mark.parametrize("norm", ["group", "batch", "sync_batch", "frozen_batch"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_gives_losses_in_training_and_detections_in_evaluation(name: str, norm: str, values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    data = open_split(experiment, "detection", "train")
    torch.manual_seed(0)
    model = definition(name, norm=norm).build()
    assert all(parameter.requires_grad for parameter in model.parameters())
    batch = next(iter(training.detection_task(model, data, experiment.training, 0).batches(0)))
    losses = training.detection_losses(model.train(), batch, torch.device("cpu"))
    assert losses.keys() == LOSSES[name]
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone_of(model).parameters())
    with torch.no_grad():
        (answer,) = model.eval()([torch.rand(3, 48, 80)])
    assert {"boxes", "labels", "scores"} <= answer.keys()
    assert ("masks" in answer) == learns_masks(model)
    if len(answer["boxes"]):
        assert answer["boxes"][:, 2].max() <= 80 and answer["boxes"][:, 3].max() <= 48
        assert answer["labels"].min() >= 1 and answer["labels"].max() <= 10


@pytest.mark.parametrize("name", OPTIONS)
def test_it_adapts_to_narrower_and_wider_backbones(name: str, values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    data = open_split(experiment, "detection", "train")
    groups = reference_groups(definition(name).backbone)[1]
    for widths in (dict.fromkeys(groups, 4), {group: width + 12 for group, width in groups.items()}):
        model = definition(name, widths).build()
        assert list(parts.feature_channels(backbone_of(model)).values())[-1] == widths["layer4.0.conv2"]
        settings = CovarianceSettings(points=["act", "fpn"])
        images = Images(Decoded(data), [0], torch.device("cpu"))
        found = {str(tap.key): tap for tap in observed_taps(model.eval(), settings, images)}
        assert found["layer4.1.relu#1:act"].covariance.channels == widths["layer4.0.conv2"]
        assert sum(tap.key.point == "fpn" for tap in found.values()) == 5
        assert {tap.padding for tap in found.values()} == {"excluded"}


@pytest.mark.parametrize("name", OPTIONS)
def test_pyramid_and_heads_are_resized_at_the_predicted_cost(name: str) -> None:
    reference = replace(definition(name), heads=True)
    groups, usual = reference.reference(64)
    backbone, _ = reference_groups(reference.backbone)
    own = usual.keys() - backbone.widths.keys()
    assert {f"backbone.fpn.inner_blocks.{2 if name == 'retinanet' else 3}.0"} <= own
    assert not own & {"roi_heads.box_predictor.cls_score", "head.classification_head.cls_logits"}
    random = Random(0)
    widths = {g: groups.multiples[g] * random.randint(1, 40 // groups.multiples[g]) for g in usual}
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
    assert seen.keys() == getattr(model, "regions", {}).keys()
    build = partial(definition(name)._at_full_width, (64, 64))
    counted = channels.trace_detector(build, (64, 64), seen).renamed("backbone.body.")
    assert counted.macs(widths) == counter.get_total_flops() // 2
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}
    losses = model.train()([torch.rand(3, 64, 64)], [target | {"masks": torch.ones(1, 64, 64, dtype=torch.uint8)}])
    sum(losses.values()).backward()
    again = Definition.of(replace(reference, widths=widths).plain()).build()
    assert again.load_state_dict(model.state_dict()).missing_keys == []


@pytest.mark.parametrize("name", OPTIONS)
def test_heads_are_tapped_on_request_a_shared_one_for_each_level(name: str, values: dict[str, Any]) -> None:
    data = open_split(config.parse(values), "detection", "train")
    settings = CovarianceSettings(points=["conv", "linear"], heads=True)
    images = Images(Decoded(data), [0], torch.device("cpu"))
    found = {str(tap.key): tap for tap in observed_taps(definition(name).build(), settings, images)}
    shared = {"retinanet": "head.classification_head.conv.0.0"}.get(name, "rpn.head.conv.0.0")
    assert [key for key in found if key.startswith(f"{shared}#")] == [f"{shared}#{level}:conv" for level in range(5)]
    if name != "retinanet":
        boxes = found["roi_heads.box_head.fc6#0:linear"]
        assert (boxes.padding, found[f"{shared}#0:conv"].padding) == ("none", "excluded")


@pytest.mark.parametrize("name", OPTIONS)
def test_anchor_sizes_that_do_not_match_the_levels_are_refused(name: str) -> None:
    detector = PluginChoice(plugin=name, **OPTIONS[name] | {"anchor_sizes": [8, 16]})
    wrong = replace(definition(name), detector=detector)
    with pytest.raises(UserError, match=r"anchor_sizes is \[8, 16\]; this pyramid has 5 levels, so expected 5 sizes"):
        wrong.build()
