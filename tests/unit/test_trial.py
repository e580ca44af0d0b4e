"""A bad plugin is named, with its file and line, before any run is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigendet import cli_plugins, config, models, trial
from eigendet.errors import UserError
from eigendet.sections import BackboneChoice


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cli_plugins.write("detector", "mine", tmp_path / "plugins")
    cli_plugins.write("backbone", "net", tmp_path / "plugins")
    return tmp_path / "plugins"


def tried(values: dict[str, Any]) -> dict[str, Any]:
    small = {"fpn_channels": 16, "head_channels": 32, "proposals": 20}
    values["detectors"] = {"it": {"plugin": "mine"} | small}
    values["backbones"] = {"net": {"plugin": "net", "channels": 8}}
    return trial.network(config.parse(values), "net", "it")


def test_a_good_network_is_summed_up(folder: Path, values: dict[str, Any]) -> None:
    found = tried(values)
    assert found["costs"]["parameters"] > found["costs"]["backbone_parameters"] > 0
    assert {len(version) for version in found["plugins"].values()} == {8}
    assert found["losses"].keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


DETECTOR = [
    ("    return model\n", "    return [model]\n", "gave a list of 1; expected a torch.nn.Module"),
    (
        "    return model\n",
        "    return backbone.absent\n",
        r"fails at line 55: AttributeError: 'Network' object has no",
    ),
    (
        "    return model\n",
        "    next(model.roi_heads.parameters()).requires_grad = False\n    return model\n",
        r"roi_heads.box_head.fc6.weight is frozen \(requires_grad is false\)",
    ),
    (
        "    return model\n",
        "    import copy\n    return copy.deepcopy(model)\n",
        "the detector does not hold the backbone that it was given",
    ),
    (
        "    return model\n",
        "    model.forward = lambda images, targets=None: sum(image.sum() for image in images)\n    return model\n",
        r"gave a tensor \(\) in training; expected a dict of losses",
    ),
    (
        "    return model\n",
        "    plain = model.forward\n"
        "    def forward(images, targets=None):\n"
        "        return {'loss': plain(images, targets)['loss_box_reg'].detach()}\n"
        "    model.forward = forward\n    return model\n",
        r"its loss 'loss' is a tensor \(\); expected a tensor of one number with a gradient",
    ),
    (
        "    return model\n",
        "    plain = model.forward\n"
        "    def forward(images, targets=None):\n"
        "        found = plain(images, targets)\n"
        "        return found if model.training else found[0]\n"
        "    model.forward = forward\n    return model\n",
        r"gave a dict with boxes, labels, scores for 1 images; expected a list with a dict for each",
    ),
    (
        "    return model\n",
        "    model.roi_heads.box_head.forward = lambda x: 1 / 0\n    return model\n",
        r"fails at line 55: ZeroDivisionError: division by zero",
    ),
    (
        "    return model\n",
        "    model.backbone.body.stages[0][0][0].weight.register_hook(lambda grad: None)\n"
        "    plain = model.forward\n"
        "    def forward(images, targets=None):\n"
        "        import torch\n"
        "        if not model.training:\n"
        "            return plain(images)\n"
        "        return {'loss': model.rpn.head.cls_logits.weight.sum()}\n"
        "    model.forward = forward\n    return model\n",
        r"the loss does not reach stem.0.weight, .* of the backbone; it would never be trained",
    ),
    (
        "(\n    backbone:",
        "(\n    nothing: int, backbone:",
        r"TypeError: mine\(\) missing 1 required positional argument",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), DETECTOR)
def test_a_bad_detector_is_named(folder: Path, values: dict[str, Any], old: str, new: str, message: str) -> None:
    file = folder / "mine.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    line = text[: text.index("def mine")].count("\n") + 1
    with pytest.raises(UserError, match=rf"detector plugin 'mine' \(plugins/mine.py:{line}\).*{message}"):
        tried(values)


BACKBONE = [
    ("return maps", "return list(maps.values())", "gave a list of 4; expected a dict of feature maps by name"),
    ("return maps", "return {k: v.mean((2, 3)) for k, v in maps.items()}", r"its map 'stage0' is a tensor \(1, 16\)"),
    ("return maps", "return dict(reversed(maps.items()))", "expected the finest first"),
    ("    return Network()", "    return Network().requires_grad_(False)", "are frozen"),
    ("    return Network()", "    return Network", "gave type; expected a torch.nn.Module"),
]


@pytest.mark.parametrize(("old", "new", "message"), BACKBONE)
def test_a_bad_backbone_is_named(folder: Path, values: dict[str, Any], old: str, new: str, message: str) -> None:
    file = folder / "net.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    line = text[: text.index("def net")].count("\n") + 1
    with pytest.raises(UserError, match=rf"backbone plugin 'net' \(plugins/net.py:{line}\).*{message}"):
        tried(values)


def test_maps_are_checked_wherever_a_backbone_is_built(folder: Path) -> None:
    (folder / "net.py").write_text((folder / "net.py").read_text().replace("return maps", "return x"))
    with pytest.raises(UserError, match=r"backbone plugin 'net' \(plugins/net.py:\d+\): gave a tensor"):
        models.Definition(BackboneChoice(plugin="net").model_dump(), ["a"], (64, 64)).build()
