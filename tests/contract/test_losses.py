"""Every shipped detector has the same maps where it computes the loss whose gradient is observed as in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigendet.config.sections import BackboneChoice, CovarianceSettings, PluginChoice
from eigendet.data.samples import Rectangles
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.runs import gradients
from eigendet.runs.images import Decoded
from eigendet.runs.observation import observed_taps
from tests.contract.test_torchvision_detectors import OPTIONS
from tests.tapping import maps_of_the_loss

DETECTORS: list[tuple[str, dict[str, Any]]] = [
    *OPTIONS.items(),
    ("detr", {"d_model": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "queries": 12}),
]
SMALL = {"fpn_channels": 16, "anchor_sizes": [8, 16, 32, 48, 64]}
REGIONS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn")


def tried(plugin: str, options: dict[str, Any]) -> None:
    """Over batch norm, which would otherwise have the statistics of one image."""
    if plugin == "detr":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = BackboneChoice(plugin="resnet", depth=18, width=0.25, norm="batch")
    detector = PluginChoice(plugin=plugin, **options)
    definition = Definition(backbone, Rectangles(64).classes, (64, 64), detector)
    model = definition.build()
    of_regions = maps_of_the_loss(model)
    assert bool(of_regions) == (options.get("model", plugin) in REGIONS)
    samples = gradients.Samples(Decoded(Rectangles(80)), [1, 2], learns_masks(model), torch.device("cpu"))
    settings = CovarianceSettings(points=["act", "fpn"], heads=True)
    groups, _ = definition.reference()
    images = [[sample.image] for sample in samples]
    taps = {tap.key: tap.covariance for tap in observed_taps(model.eval(), settings, images, groups=groups)}
    channels = {key: covariance.channels for key, covariance in taps.items()}
    observed = dict(gradients.loss_gradients(model, settings, samples, channels, groups))
    assert observed.keys() == taps.keys()
    for key, gradient in observed.items():
        assert gradient.passes == 2
        if key not in of_regions:
            assert gradient.moments.count == taps[key].count, key
    backbone_taps = [gradient for key, gradient in observed.items() if key.module.startswith("layer")]
    assert backbone_taps and all(gradient.second_moment.trace() > 0 for gradient in backbone_taps)


@pytest.mark.parametrize(("plugin", "options"), DETECTORS, ids=[plugin for plugin, _ in DETECTORS])
def test_maps_are_those_of_evaluation_where_losses_are_computed(plugin: str, options: dict[str, Any]) -> None:
    tried(plugin, options)


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("model", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet"])
def test_so_they_are_in_detectron2(model: str) -> None:
    heads = {} if model == "retinanet" else {"head_channels": 32, "proposals": 50, "box_samples": 16}
    tried("detectron2", SMALL | heads | {"model": model})
