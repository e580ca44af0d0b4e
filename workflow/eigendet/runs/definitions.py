"""Definitions of the networks that an experiment names, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from eigendet.config import Experiment
from eigendet.data.datasets import open_splits
from eigendet.errors import UserError, unknown
from eigendet.networks import models
from eigendet.networks.models import Definition


def choose(choices: dict[str, Any], name: str, key: str) -> Any:
    """The entry of a section by its name."""
    if name not in choices:
        raise UserError(unknown(f"entry of {key}", name, choices))
    return choices[name]


def costs_of(definition: Definition, model: torch.nn.Module) -> dict[str, int]:
    """Parameters, and multiply-accumulates for a square image of the shorter side: the backbone's, perhaps all."""
    side = definition.size[0]
    backbone, usual = models.reference(definition.backbone, (side, side))
    found = {
        "parameters": models.parameter_count(model),
        "backbone_parameters": models.parameter_count(models.backbone_of(model)),
        "backbone_macs": backbone.macs(definition.widths or usual),
    }
    if definition.heads:
        whole, usual = definition.reference(side)
        found["macs"] = whole.macs(definition.widths or usual)
    return found


def definition_of(
    experiment: Experiment, backbone: str, detector: str, classes: list[str], size: tuple[int, int]
) -> Definition:
    """A detector over a backbone, by their keys in the experiment, with the reference's widths."""
    return Definition(
        choose(experiment.backbones, backbone, "backbones"),
        classes,
        size,
        choose(experiment.detectors, detector, "detectors"),
        heads=experiment.widths.heads,
    )


def definition_for_widths(experiment: Experiment, backbone: str, detector: str, heads: bool) -> Definition:
    """The network whose widths are chosen: at the side for which costs count."""
    side = experiment.training.min_size
    classes = open_splits(experiment, "detection")["train"].classes if heads else []
    return replace(definition_of(experiment, backbone, detector, classes, (side, side)), heads=heads)


def classifier_of(experiment: Experiment, backbone: str, classes: list[str]) -> Definition:
    """What a backbone is pre-trained as.

    Raises:
        UserError: the experiment has no section `pretraining`.
    """
    if experiment.pretraining is None:
        raise UserError("pretraining: missing; it is needed to pre-train a backbone.")
    crop = experiment.pretraining.image_size
    return Definition(choose(experiment.backbones, backbone, "backbones"), classes, (crop, crop))
