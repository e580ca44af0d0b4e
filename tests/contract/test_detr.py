"""DETR from transformers' parts beside its contract: targets, losses, masks of padding, boxes, and what is resized."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eigendet import plugins
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.errors import UserError
from eigendet.networks.backbones import parameter_count, reference_groups
from eigendet.networks.definition import Definition
from eigendet.testing import DetectorContract

transformers = pytest.importorskip("transformers")

OPTIONS: dict[str, Any] = {"d_model": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "queries": 12}
NETWORK = "network.model"


class TestDETR(DetectorContract):
    plugin, options = "detr", OPTIONS | {"layers": 1}
    steps = 150  # a transformer learns slowly at first


class Pixels(nn.Module):
    """A backbone that sees one pixel at each position of stride 32, so that padding changes nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"map": self.conv(images)[..., ::32, ::32]}


def definition(**options: Any) -> Definition:
    backbone = BackboneChoice(**DetectorContract.backbone)
    detector = PluginChoice(plugin="detr", **OPTIONS | options)
    return Definition(backbone, [str(label) for label in range(10)], (64, 64), detector)


def detector(**options: Any) -> Any:
    """Over a backbone that sees pixels, for images of 64 to 128 pixels."""
    torch.manual_seed(0)
    return plugins.bind("detector", PluginChoice(plugin="detr", **OPTIONS | options))(Pixels(), 10, (64, 128))


def test_nothing_is_downloaded_or_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    model = detector().train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not [name for name, _ in model.named_buffers()]
    assert not [name for name, _ in model.named_modules() if "embedder" in name]


def test_around_the_backbone_it_is_the_librarys_network() -> None:
    with torch.device("meta"):
        config = transformers.DetrConfig(backbone_config=transformers.ResNetConfig(), num_labels=90)
        oracle = transformers.DetrForObjectDetection(config)
        backbone = plugins.bind("backbone", PluginChoice(plugin="resnet", depth=50))()
        model = plugins.bind("detector", PluginChoice(plugin="detr"))(backbone, 90, (800, 1333))
    shapes = [
        {name: value.shape for name, value in network.named_parameters() if not name.startswith("model.backbone.")}
        for network in (model.network, oracle)
    ]
    assert shapes[0] == shapes[1]


def test_queries_begin_apart() -> None:
    model = detector(queries=50).eval()
    assert model.network.model.query_position_embeddings.weight.std().item() == pytest.approx(1, abs=0.1)


def test_targets_are_shares_of_each_image_and_its_padding_is_masked() -> None:
    model = detector().train()
    seen: dict[str, Any] = {}
    model.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs, args=args), with_kwargs=True
    )
    boxes = torch.tensor([[16.0, 8, 48, 24]])
    model(
        [torch.rand(3, 64, 64), torch.rand(3, 32, 128)],
        [{"boxes": boxes, "labels": torch.tensor([1])}, {"boxes": boxes, "labels": torch.tensor([10])}],
    )
    assert [target["class_labels"].tolist() for target in seen["labels"]] == [[0], [9]]
    assert seen["labels"][0]["boxes"].tolist() == [[0.5, 0.25, 0.5, 0.25]]
    assert seen["labels"][1]["boxes"].tolist() == [[0.25, 0.5, 0.25, 0.5]]
    images, mask = seen["args"]
    assert images.shape == (2, 3, 64, 128)
    assert mask[0, :, :64].all() and not mask[0, :, 64:].any()
    assert mask[1, :32].all() and not mask[1, 32:].any()


def test_its_losses_sum_to_the_librarys() -> None:
    model, outputs = detector().train(), []
    model.network.register_forward_hook(lambda module, args, output: outputs.append(output))
    target = {"boxes": torch.tensor([[16.0, 8, 48, 24], [0, 0, 20, 60]]), "labels": torch.tensor([1, 3])}
    losses = model([torch.rand(3, 64, 64)], [target])
    assert losses.keys() == {"loss_ce", "loss_bbox", "loss_giou"}
    torch.testing.assert_close(sum(losses.values()), outputs[0].loss)
    assert "loss_giou_0" in outputs[0].loss_dict  # of the first of two layers


def test_boxes_come_back_in_the_pixels_of_each_image() -> None:
    model = detector().eval()
    logits = torch.full((2, 2, 11), -9.0)
    logits[:, 0, 3], logits[:, 1, 9] = 9, 9
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.5]]]).expand(2, 2, 4)
    model.network.forward = lambda *args, **kwargs: SimpleNamespace(logits=logits, pred_boxes=boxes)
    wide, high = model([torch.rand(3, 40, 80), torch.rand(3, 100, 60)])
    torch.testing.assert_close(wide["boxes"], torch.tensor([[20.0, 0, 60, 40], [60, 10, 80, 30]]))
    torch.testing.assert_close(high["boxes"], torch.tensor([[15.0, 0, 45, 100], [45, 25, 60, 75]]), atol=0.5, rtol=0)
    assert wide["labels"].tolist() == [4, 10]
    assert (wide["scores"] > 0.99).all()


def test_an_image_gives_the_same_alone_and_padded_beside_a_larger_one() -> None:
    model = detector().eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 128)]
    with torch.no_grad():
        alone, beside = model(images[:1])[0], model(images)[0]
    torch.testing.assert_close(alone, beside)


def test_what_lies_between_tokens_is_resized_at_the_predicted_cost_and_tokens_are_kept() -> None:
    reference = replace(definition(), heads=True)
    groups, usual = reference.reference(64)
    backbone, _ = reference_groups(reference.backbone)
    feed_forward = {f"{NETWORK}.{part}.layers.{n}.mlp.fc1" for part in ("encoder", "decoder") for n in (0, 1)}
    boxes = {f"network.bbox_predictor.layers.{n}" for n in (0, 1)}
    attention = {f"{NETWORK}.{part}.layers.{n}.self_attn.q_proj" for part in ("encoder", "decoder") for n in (0, 1)}
    attention |= {f"{NETWORK}.decoder.layers.{n}.encoder_attn.q_proj" for n in (0, 1)}
    assert usual.keys() - backbone.widths.keys() == feed_forward | boxes | attention
    for kept in ("model.input_projection", "model.encoder.layers.0.self_attn.o_proj", "class_labels_classifier"):
        assert f"network.{kept}" in groups.fixed
    random = Random(0)
    widths = {g: groups.multiples[g] * random.randint(1, 40 // groups.multiples[g]) for g in usual}
    model = replace(reference, widths=widths).build()
    assert parameter_count(model) == groups.parameters(widths)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()([torch.rand(3, 64, 64)])
    assert groups.macs(widths) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 30}, "d_model is 30; expected a multiple of 4, into which positions divide it, and of heads, 4"),
        ({"heads": 12}, "d_model is 32; expected a multiple of 4, .*, and of heads, 12"),
        ({"queries": 0}, "queries: got 0; input should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detector(**options)


def test_without_transformers_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert plugins.find("detector", "detr").unavailable == (
        "transformers is not installed: pip install 'eigendet[transformers]'"
    )
