"""Small detectors of five families with widths of their own, in the folders of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.networks.definition import Definition
from eigendet.runs.folder import RunFolder, RunNames, RunRecord, code_versions

PYRAMID = {"fpn_channels": 16, "anchor_sizes": [8, 16, 32, 48, 64]}
FAMILIES: dict[str, dict[str, Any]] = {
    "faster_rcnn": {**PYRAMID, "head_channels": 32, "proposals": 20},
    "mask_rcnn": {**PYRAMID, "head_channels": 32, "proposals": 20, "mask_channels": 8, "version": 2},
    "retinanet": PYRAMID,
    "fcos": PYRAMID,
    "ssd": {"extra_channels": [16, 16, 16]},
}
SIZE = (64, 96)
RESNET = {"plugin": "resnet", "depth": 18, "width": 0.125, "norm_groups": 4}


class Exported(NamedTuple):
    """A run's folder, its detector, and what that is."""

    folder: Path
    model: nn.Module
    definition: Definition


def resized(definition: Definition, times: float) -> Definition:
    """Return the definition with every width that can be so many times as large."""
    groups, reference = definition.reference()
    widths = {
        group: max(1, round(width * times / groups.multiples[group])) * groups.multiples[group]
        for group, width in reference.items()
    }
    return replace(definition, widths=widths)


def definition_of(family: str, times: float) -> Definition:
    choice = PluginChoice(plugin=family, **FAMILIES[family])
    return resized(Definition(BackboneChoice(**RESNET), ["cat", "dog"], SIZE, choice, heads=True), times)


def trained(definition: Definition, folder: Path) -> Exported:
    """Write the folder of a run whose detector finds something."""
    torch.manual_seed(0)
    model = definition.build().eval()
    for name, value in model.named_parameters():
        # Where scores are equal, their order is anyone's; and anchors that stay may overlap by the threshold itself.
        if name.startswith("head."):
            nn.init.normal_(value, std=0.15)
    run = RunFolder(folder)
    run.write_snapshot(4, model, definition)
    names: RunNames = {"arm": "derived", "backbone": "tiny", "detector": "rcnn", "seed": 0}
    run.complete(
        RunRecord(
            run=names, costs={"parameters": 3}, identity={"seed": 0}, definition=definition, snapshots=[4],
            seconds=1.0, images_per_second=2.0, processes=1, device="cpu", **code_versions(),
        )
    )  # fmt: skip
    return Exported(folder, model, definition)


def assert_same(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-5)
