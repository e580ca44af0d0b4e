"""Every network of an experiment built once, trained for a step and made to detect, before any run is started.

So a mistake in a plugin is known at once, by the plugin's file and line, and not after a night of pre-training.
"""

from __future__ import annotations

from typing import Any

import torch

from eigendet import plugins
from eigendet.config import Experiment
from eigendet.config.sections import DetectorTraining
from eigendet.data.batches import as_float, detection_batches
from eigendet.data.datasets import open_splits
from eigendet.errors import UserError, some
from eigendet.networks import checks, models
from eigendet.runs import definitions, training

LARGEST = 256  # pixels of the shorter side, so that a large experiment is tried in seconds


def small(settings: DetectorTraining) -> tuple[int, int]:
    """Shorter and longest side of images that are quick to go through, in the proportions of the real ones."""
    shrink = min(1.0, LARGEST / settings.min_size)
    return round(shrink * settings.min_size), round(shrink * settings.max_size)


def network(experiment: Experiment, backbone: str, detector: str) -> dict[str, Any]:
    """Try a detector over a backbone on two training images, on the CPU.

    Returns:
        A summary: parameters and multiply-accumulates, versions of the plugins, losses of the first step.

    Raises:
        UserError: a plugin fails, or does not keep its contract; the message names its file and line.
    """
    data = open_splits(experiment, "detection")["train"]
    settings = experiment.training
    size = small(settings)
    definition = definitions.definition_of(experiment, backbone, detector, data.classes, size)
    first, second = experiment.backbones[backbone], experiment.detectors[detector]
    own, over = plugins.find("backbone", first.plugin), plugins.find("detector", second.plugin)
    training.seed_everything(0)
    with plugins.failures_named(over, own):
        model = definition.build()
        costs = definitions.costs_of(definition, model)
        inside = models.backbone_of(model)
        features = inside.train()(torch.rand(2, 3, size[0], size[0]))
        checks.check_features(features, own)
        checks.check_gradients(features, inside, own)
        few = settings.model_copy(update={"batch_size": 2, "min_size": size[0], "max_size": size[1], "workers": 0})
        masks = bool(getattr(model, "learns_masks", False))
        batch = next(iter(detection_batches(data, few, 0, 0, masks)))
        losses = training.detection_losses(model.train(), batch, torch.device("cpu"))
        checks.check_losses(losses, str(over))
        loss = torch.stack(list(losses.values())).sum()
        checks.check_leaves(loss, model, str(over))
        loss.backward()
        idle = [name for name, value in inside.named_parameters() if value.grad is None]
        if idle:
            raise UserError(f"{over}: the loss does not reach {some(idle)} of the backbone; it would never be trained.")
        checks.check_network(inside, own)  # again: a first pass may have frozen something
        checks.check_network(model, over)
        image = as_float(data[0][0])
        with torch.no_grad():
            found = model.eval()([image])
        checks.check_detections(found, [(image.shape[1], image.shape[2])], len(data.classes), str(over))
    versions = plugins.versions(backbone=first, detector=second)
    return {
        "costs": costs,
        "plugins": versions,
        "losses": {name: float(value.detach()) for name, value in losses.items()},
    }
