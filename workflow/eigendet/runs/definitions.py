"""Definitions of the networks that an experiment names, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from eigendet.channels.groups import Widths
from eigendet.config import Experiment
from eigendet.data.datasets import open_split
from eigendet.errors import UserError, unknown
from eigendet.networks.backbones import backbone_of, parameter_count, reference_groups
from eigendet.networks.definition import Definition
from eigendet.networks.widths_file import read_widths

Choice = TypeVar("Choice")


def choose(choices: Mapping[str, Choice], name: str, key: str) -> Choice:
    """Return an entry of a section by its name; `key` names the section.

    >>> choose({"small": 18, "large": 50}, "large", "backbones")
    50

    Raises:
        UserError: there is none of that name.
    """
    if name not in choices:
        raise UserError(unknown(f"entry of {key}", name, choices))
    return choices[name]


def costs_of(definition: Definition, model: torch.nn.Module) -> dict[str, int]:
    """Return parameters and multiply-accumulates, the latter for a square image of the shorter side.

    `macs`, of the whole detector, is there if its own layers have widths to choose.
    """
    side = definition.size[0]
    backbone, reference = reference_groups(definition.backbone, (side, side))
    costs = {
        "parameters": parameter_count(model),
        "backbone_parameters": parameter_count(backbone_of(model)),
        "backbone_macs": backbone.macs(definition.widths or reference),
    }
    if definition.heads:
        whole, reference = definition.reference(side)
        costs["macs"] = whole.macs(definition.widths or reference)
    return costs


def definition_of(
    experiment: Experiment, backbone: str, detector: str, classes: list[str], size: tuple[int, int]
) -> Definition:
    """Return a detector over a backbone, by their keys in the experiment, with the reference's widths."""
    return Definition(
        choose(experiment.backbones, backbone, "backbones"),
        classes,
        size,
        choose(experiment.detectors, detector, "detectors"),
        heads=experiment.widths.heads,
    )


def definition_for_widths(experiment: Experiment, backbone: str, detector: str, heads: bool) -> Definition:
    """Return the network whose widths are chosen, at the side for which costs count."""
    side = experiment.training.min_size
    classes = open_split(experiment, "detection", "train").classes if heads else []
    return replace(definition_of(experiment, backbone, detector, classes, (side, side)), heads=heads)


def backbone_widths(experiment: Experiment, backbone: str, detector: str, file: Path) -> Widths:
    """Return the widths of a backbone's groups from a file, which may be of a whole detector.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    network = definition_for_widths(experiment, backbone, detector, experiment.widths.heads)
    widths, (_, reference) = read_widths(file, network), reference_groups(network.backbone, (network.size[0],) * 2)
    return {group: widths.get(group, width) for group, width in reference.items()}


def classifier_of(experiment: Experiment, backbone: str, classes: list[str]) -> Definition:
    """Return what a backbone is pre-trained as.

    Raises:
        UserError: the experiment has no section `pretraining`.
    """
    if experiment.pretraining is None:
        raise UserError("pretraining: missing; it is needed to pre-train a backbone.")
    crop = experiment.pretraining.image_size
    return Definition(choose(experiment.backbones, backbone, "backbones"), classes, (crop, crop))
