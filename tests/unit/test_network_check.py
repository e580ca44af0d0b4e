"""A bad plugin is named, with its file and line, before any run is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.cli import plugin_commands
from eigendet.config.sections import BackboneChoice
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.runs import network_check, plan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plugin_commands.write_example("detector", "mine", tmp_path / "plugins")
    plugin_commands.write_example("backbone", "net", tmp_path / "plugins")
    return tmp_path / "plugins"


def tried(values: dict[str, Any]) -> network_check.NetworkSummary:
    small = {"fpn_channels": 16, "head_channels": 32, "proposals": 20}
    values["detectors"] = {"it": {"plugin": "mine"} | small}
    values["backbones"] = {"net": {"plugin": "net", "channels": 8}}
    return network_check.check_network(config.parse(values), "net", "it")


def test_a_good_network_is_summed_up(folder: Path, values: dict[str, Any]) -> None:
    found = tried(values)
    assert found["costs"]["parameters"] > found["costs"]["backbone_parameters"] > 0
    assert {len(version) for version in found["plugins"].values()} == {8}
    assert found["losses"].keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


OTHERWISE = """
    plain = model.forward
    def forward(images, targets=None):
        import torch
        found = plain(images, targets)
        {}
        return found
    model.forward = forward
    return model
"""


def box(corners: str, label: float = 1, score: float = 0.5) -> str:
    """One detection in the place of what was found."""
    parts = {"boxes": f"[[{corners}]]", "labels": f"[{label}]", "scores": f"[{float(score)}]"}
    return f"found = [{{{', '.join(f'{name!r}: torch.tensor({value})' for name, value in parts.items())}}}]"


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
        r"gave a tensor \(\) of float32 in training; expected a dict of losses",
    ),
    (
        "    return model\n",
        "    plain = model.forward\n"
        "    def forward(images, targets=None):\n"
        "        return {'loss': plain(images, targets)['loss_box_reg'].detach()}\n"
        "    model.forward = forward\n    return model\n",
        r"its loss 'loss' is a tensor \(\) of float32; expected a tensor \(\) of one number with a gradient",
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
        r"takes \(nothing, backbone, classes, size\); expected \(backbone, classes, size, \*\)",
    ),
    *(
        ("    return model\n", OTHERWISE.format(f"if {mode}: {change}"), message)
        for mode, change, message in [
            ("not model.training", box("9, 9, 4, 12"), "a box is .9, 9, 4, 12.; expected left, top, right"),
            ("not model.training", box("torch.nan, 1, 4, 12"), "a box is .nan, 1.0, 4.0, 12.0."),
            ("not model.training", box("1, 1, 4, 12", score=7), "scores reach from 7 to 7; expected 0 to 1"),
            ("not model.training", box("1, 1, 4, 12", label=1.0), "labels are torch.float32; expected integers"),
            ("not model.training", box("1, 1, 4, 12", label=0), "labels are from 0 to 0; expected 1 to 10"),
            ("model.training", "found['loss_box_reg'] *= torch.nan", "its loss 'loss_box_reg' is nan in the first"),
            ("model.training", "found['loss_box_reg'] = found['loss_box_reg'][None]", r"a tensor \(\) of one number"),
            (
                "model.training",
                "found['loss_box_reg'] *= torch.ones((), requires_grad=True)",
                r"depends on a tensor \(\) of float32 with a gradient that is none of its parameters",
            ),
            ("model.training", "model.rpn.requires_grad_(False)", "rpn.head.conv.0.0.weight, .* are frozen"),
        ]
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
    ("return maps", "return {k: v * float('nan') for k, v in maps.items()}", "its map 'stage0' holds NaN or infinity"),
    ("return maps", "return {k: v.detach() for k, v in maps.items()}", "its maps have no gradient for stem.0.weight,"),
    (
        "return maps",
        "import torch; return {k: v * torch.ones(1, requires_grad=True) for k, v in maps.items()}",
        r"depends on a tensor \(1,\) of float32 with a gradient that is none of its parameters",
    ),
    ("return maps", "return list(maps) if self.training else maps", "gave a list of 4; expected a dict"),
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
        Definition(BackboneChoice(plugin="net"), ["a"], (64, 64)).build()


HIDDEN = (
    "            x = self.stem(images)\n",
    "            stem, norm, act = self.stem\n"
    "            x = nn.functional.conv2d(images, stem.weight, stride=2, padding=1)\n"
    "            x = nn.functional.group_norm(x, 8, norm.weight, norm.bias).relu()\n",
)


def test_a_network_whose_widths_could_not_be_read_is_refused_before_it_is_trained(
    folder: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    text = (folder / "net.py").read_text()
    assert HIDDEN[0] in text
    (folder / "net.py").write_text(text.replace(*HIDDEN))
    message = (
        r"it over net: the channel groups stem.0 have no feature map of their own, .*; leave derived, "
        "uniform_parameters, profile out of arms"
    )
    with pytest.raises(UserError, match=message):
        tried(values)
    with pytest.raises(UserError, match=message):
        plan.planned_stages(config.parse(values), tmp_path)
    tried(values | {"arms": {"scratch": {}}})  # none of which has widths of its own
    with pytest.raises(UserError, match="leave untrained out of arms"):
        tried(values | {"arms": {"scratch": {}, "untrained": {}}})


VIEWED = """
from eigendet.plugins import backbone

@backbone
def net(*, channels: int):
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(8 if level else 3, 8, 3, 2, 1) for level in range(6))
            self.act = nn.ReLU()

        def forward(self, x):
            maps = {}
            for level, layer in enumerate(self.layers):
                x = layer(x)
                x = self.act(x.view(len(x), 8, *x.shape[2:]))
                maps[str(level)] = x
            return dict(list(maps.items())[1:])

    return Network()
"""


# One line farther down, so that what is remembered of the other is not taken for it.
FREE_AT_128 = "\n" + VIEWED.replace("maps = {}", "maps, free = {}, x.shape[2] == 128").replace(
    "self.act(x.view", "self.act(x if free else x.view"
)


@pytest.mark.parametrize("text", [VIEWED, FREE_AT_128])
def test_a_network_none_of_whose_widths_can_change_is_refused(folder: Path, values: dict[str, Any], text: str) -> None:
    """Also where its code keeps them only in images of the size that it is trained on."""
    (folder / "net.py").write_text(text)
    values["training"] |= {"min_size": 96, "max_size": 96}
    message = (
        r"it over net: none of its widths can change \(layers.0: .*\); leave derived, uniform_parameters, profile "
        "out of arms"
    )
    with pytest.raises(UserError, match=message):
        tried(values)
    tried(values | {"arms": {"scratch": {}}})


CAPS = [
    ({"macs": 0.001}, r"widths.macs is 0.001; the narrowest network that widths.round_to \(4\), .* so give at least"),
    ({"round_to": 4096}, r"widths.macs is 1; the narrowest network that widths.round_to \(4096\)"),
    ({"min_factor": 1.0, "macs": None, "parameters": 0.5}, r"widths.parameters is 0.5; .* widths.min_factor \(1\)"),
]


@pytest.mark.parametrize(("widths", "message"), CAPS)
def test_a_budget_that_no_network_can_meet_is_refused_before_any_training(
    values: dict[str, Any], tmp_path: Path, widths: dict[str, Any], message: str
) -> None:
    values["widths"] |= widths
    experiment = config.parse(values)
    with pytest.raises(UserError, match=f"rcnn over tiny: {message}"):
        network_check.check_network(experiment, "tiny", "rcnn")
    with pytest.raises(UserError, match=message):
        plan.planned_stages(experiment, tmp_path)
    network_check.check_network(config.parse(values | {"arms": {"scratch": {}}}), "tiny", "rcnn")  # needs no widths


def test_a_file_of_widths_that_does_not_fit_is_refused_before_any_training(
    values: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    values["arms"] = {"scratch": {}, "mine": {"widths": str(file)}}
    experiment = config.parse(values)
    for content, message in [(None, "cannot be read"), ('{"widths": {"convv1": 8}}', "unknown channel group 'convv1'")]:
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=rf"mine.json: {message}"):
            network_check.check_network(experiment, "tiny", "rcnn")
        with pytest.raises(UserError, match=rf"mine.json: {message}"):
            plan.planned_stages(experiment, tmp_path)


READ = [
    (["act"], "act", {"block": 7}),
    (["act", "norm", "conv"], "act", {"norm": 7}),
    (["block", "act"], "block", {"act": 18}),
    (["norm"], "norm", {}),
]


@pytest.mark.parametrize(("points", "point", "counts"), READ)
def test_where_each_group_is_read_is_said(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture, points: list[str], point: str, counts: dict[str, int]
) -> None:
    """Of MobileNetV2, whose linear bottlenecks have no activation: the point that the width stage will take."""
    values["backbones"] = {"net": {"plugin": "torchvision", "name": "mobilenet_v2", "width": 0.25}}
    values["covariance"]["points"] = points
    values["widths"]["point"] = point
    with caplog.at_level("INFO"):
        network_check.check_network(config.parse(values), "net", "rcnn")
    beginning = f"rcnn over net: without a map at {point}, and read at "
    listed = {}
    for message in caplog.messages:
        assert message.startswith(beginning)
        elsewhere, _, groups = message.removeprefix(beginning).partition(": ")
        listed[elsewhere] = groups
    assert {elsewhere: counted(groups) for elsewhere, groups in listed.items()} == counts


def counted(groups: str) -> int:
    """How many groups a message lists."""
    named, _, more = groups.partition(" and ")
    return len(named.split(", ")) + int(more.removesuffix(" more") or 0)


def test_without_arms_of_other_widths_it_is_said_where_groups_are_observed(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    values["backbones"] = {"net": {"plugin": "torchvision", "name": "mobilenet_v2", "width": 0.25}}
    values["arms"] = {"scratch": {}}
    with caplog.at_level("INFO"):
        network_check.check_network(config.parse(values), "net", "rcnn")
    assert caplog.messages == [
        "rcnn over net: without a map at act, and observed at block: features.1.conv.1, features.2.conv.2, "
        "features.4.conv.2, features.7.conv.2, features.11.conv.2 and 2 more"
    ]
