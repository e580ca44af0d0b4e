"""Every shipped backbone keeps the contract, and the networks of torchvision and timm are what they are there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models as library

from eigendet import plugins
from eigendet.channels.construction import constructing
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.errors import UserError
from eigendet.networks import weights
from eigendet.networks.backbones import build_backbone
from eigendet.networks.definition import Definition
from eigendet.testing import BackboneContract

TRANSFORMERS = ["maxvit*", "swin*", "vit*"]
CLASSIFIERS = library.list_models(module=library, exclude=TRANSFORMERS)


class Narrow(BackboneContract):
    """At a quarter of its width."""

    def definition(self) -> Definition:
        definition = super().definition()
        return replace(definition, backbone=definition.backbone.model_copy(update={"width": 0.25}))


class TestResNet(Narrow):
    plugin, options = "resnet", {"depth": 18, "norm_groups": 8}


class TestMobileNetV3(Narrow):
    plugin, options = "torchvision", {"name": "mobilenet_v3_small", "norm": "group", "norm_groups": 4}


class TestDenseNet(Narrow):
    plugin, options = "torchvision", {"name": "densenet121"}


class TestEfficientNet(Narrow):
    plugin, options = "torchvision", {"name": "efficientnet_b0"}


class TestConvNeXt(Narrow):
    plugin, options = "torchvision", {"name": "convnext_tiny"}


class TestRegNet(Narrow):
    plugin, options = "torchvision", {"name": "regnet_y_400mf"}


class TestShuffleNet(Narrow):
    plugin, options = "torchvision", {"name": "shufflenet_v2_x0_5"}


class TestTimmResNet(Narrow):
    plugin, options = "timm", {"name": "resnet18d", "norm": "group", "norm_groups": 8}


class TestTimmMobileNetV3(Narrow):
    plugin, options = "timm", {"name": "mobilenetv3_small_050"}


class TestTimmConvNeXt(Narrow):
    plugin, options = "timm", {"name": "convnext_atto"}


class TestTimmRegNet(Narrow):
    plugin, options = "timm", {"name": "regnetz_005"}


class TestTimmGhostNet(Narrow):
    plugin, options = "timm", {"name": "ghostnet_050"}


def build(plugin: str, name: str) -> nn.Module:
    backbone: nn.Module = plugins.bind("backbone", PluginChoice(plugin=plugin, name=name))()
    return backbone


def classifier(name: str) -> nn.Module:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return library.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_of_torchvision_gives_maps_and_takes_published_weights(name: str) -> None:
    with constructing(lambda layer, arguments: None, meta=True):  # layers only: a RegNet computes widths by tensors
        backbone, published = build("torchvision", name).eval().to("meta"), classifier(name).state_dict()
    with torch.device("meta"):
        maps = [backbone(torch.zeros(1, 3, *size)) for size in [(128, 128), (97, 75), (333, 500), (800, 1333)]]
    assert all(found.keys() == maps[0].keys() for found in maps)  # the same layers whatever the image
    sides = [128 / feature.shape[2] for feature in maps[0].values()]
    assert sides == sorted(sides) and sides[0] > 3.9 and len(sides) == (3 if "squeeze" in name else 4)
    own = backbone.state_dict()
    assert {key: value.shape for key, value in own.items()}.items() <= {
        k: v.shape for k, v in published.items()
    }.items()
    left = {key.partition(".")[0] for key in published.keys() - own.keys()}
    assert left <= {"classifier", "fc", "aux1", "aux2", "AuxLogits"}


@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
        "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
        "squeezenet1_1", "vgg11_bn",
    ],
)  # fmt: skip
def test_its_maps_are_those_inside_the_classifier(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = classifier(name).eval(), build("torchvision", name).eval()
    weights.load_backbone(ours, theirs.state_dict(), name)
    images = torch.rand(1, 3, 96, 128)
    inside: dict[str, Tensor] = {}
    with torch.no_grad():
        found = ours(images)
        for path in found:
            theirs.get_submodule(path).register_forward_hook(
                lambda module, inputs, output, path=path: inside.update({path: output.clone()})
            )
        theirs(images)
    assert found.keys() == inside.keys()
    for path, feature in found.items():
        torch.testing.assert_close(feature, inside[path], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet18d", "convnext_atto", "hrnet_w18_small", "legacy_xception", "vgg11_bn"])
def test_maps_and_names_of_timm_are_those_of_its_features(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = timm.create_model(name, features_only=True, pretrained=False).eval(), build("timm", name).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    weights.load_backbone(ours, theirs.state_dict(), name)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, wanted = ours(images), theirs(images)[-4:]
    assert [64 // feature.shape[2] for feature in found.values()] == [4, 8, 16, 32]
    for one, other in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.stack([feature.sum() for feature in ours.train()(images.repeat(2, 1, 1, 1)).values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize(
    ("plugin", "name", "message"),
    [
        (
            "torchvision",
            "resnet19",
            "unknown convolutional classifier of torchvision 'resnet19'. Did you mean 'resnet1",
        ),
        (
            "torchvision",
            "swin_t",
            "name: it is a transformer; unknown convolutional classifier of torchvision 'swin_t'",
        ),
        ("timm", "resnet19", r"unknown network of timm 'resnet19'. Did you mean 'resnet1.* and \d+ more"),
        ("timm", "hf-hub:timm/resnet18", "unknown network of timm 'hf-hub:timm/resnet18'"),
        (
            "timm",
            "vit_tiny_patch16_224",
            r"'vit_tiny_patch16_224' has NCHW maps of the strides \[16, 16, 16\]; expected",
        ),
        ("timm", "swin_tiny_patch4_window7_224", "has NHWC maps of the strides"),
    ],
)
def test_other_networks_are_refused(plugin: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(plugin, name)


def test_a_network_that_cannot_run_on_small_images_is_named() -> None:
    with pytest.raises(UserError, match=r"backbone plugin 'timm' .*Input height \(128\) doesn't match model"):
        build_backbone(BackboneChoice(plugin="timm", name="nest_tiny"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnet18.nothing", "unknown weights of timm 'resnet18.nothing'. Did you mean 'resnet18"),
        ("timm:resnet18", "timm:resnet18: cannot be downloaded .*; give a state-dict file instead"),
        ("torchvision:VGG16_Weights", "unknown weights of torchvision 'VGG16_Weights'. Did you mean 'VGG16"),
    ],
)
def test_weights_that_cannot_be_had_are_one_message(source: str, message: str, monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        weights.read_weights(source)
    assert "\n" not in str(error.value)


def test_published_weights_of_timm_fit_its_backbone(monkeypatch: Any) -> None:
    create, asked = timm.create_model, []

    def downloads(name: str, **options: Any) -> nn.Module:
        asked.append((name, options.pop("pretrained")))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", downloads)
    found = weights.read_weights("timm:mobilenetv3_small_050.lamb_in1k")
    assert asked == [("mobilenetv3_small_050.lamb_in1k", True)]
    backbone = build("timm", "mobilenetv3_small_050")
    weights.load_backbone(backbone, found, "timm")
    assert all(torch.equal(value, found[key]) for key, value in backbone.state_dict().items())


def test_batch_norms_of_a_head_do_not_hinder_group_norms() -> None:
    published = classifier("googlenet").state_dict()
    assert "aux1.conv.bn.running_mean" in published
    weights.load_backbone(build("torchvision", "googlenet"), published, "googlenet")
    grouped = plugins.bind(
        "backbone", PluginChoice(plugin="torchvision", name="googlenet", norm="group", norm_groups=8)
    )
    with pytest.raises(UserError, match=r"has 'conv1.bn.running_mean', so its backbone was trained with batch norm"):
        weights.load_backbone(grouped(), published, "googlenet")
