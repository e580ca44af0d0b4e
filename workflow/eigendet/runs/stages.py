"""The two kinds of runs, pre-training a backbone and training a detector, from an experiment to a folder."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eigendet import __version__, plugins, processes
from eigendet.config import WITH_REFERENCE_WIDTHS, Experiment
from eigendet.config.sections import IMMATERIAL, Optimization
from eigendet.data.batches import classification_batches, detection_batches, evaluation_crop, stream_seed
from eigendet.data.datasets import open_splits
from eigendet.errors import UserError, unknown
from eigendet.files import file_digest, read_json
from eigendet.networks import models, weights
from eigendet.runs import parallel, training
from eigendet.runs.definitions import choose, classifier_of, costs_of, definition_of
from eigendet.runs.evaluation import average_precision, top1

logger = logging.getLogger(__name__)


def pretrain(experiment: Experiment, name: str, folder: Path) -> None:
    """Fill `folder` with a pre-trained backbone, `backbone.pt`: trained here, or taken from where the choice says."""
    choice = choose(experiment.backbones, name, "backbones")
    if choice.pretrained != "workflow":
        backbone = models.build_backbone(choice)
        weights.load_backbone(backbone, weights.read_weights(choice.pretrained), choice.pretrained)
        _save_backbone(folder, backbone)
        training.finish(folder, {"run": {"backbone": name}, "source": choice.pretrained} | versions())
        return
    data = open_splits(experiment, "classification")
    definition = classifier_of(experiment, name, data["train"].classes)
    settings = experiment.pretraining
    assert settings is not None  # or there would be no definition
    identity = {
        "pretraining": _material(settings),
        "backbone": definition.backbone.model_dump(mode="json"),
        "plugins": plugins.versions(backbone=choice),
        "data": data["train"].digest,
    }
    if training.is_complete(folder, identity):
        logger.info("%s: complete already, nothing to do", folder)
        return
    training.seed_everything(stream_seed(settings.seed, "weights", 0))
    model = definition.build()
    task = training.Task(
        partial(classification_batches, data["train"], settings, settings.seed), training.classification_losses
    )
    device = parallel.device_of(experiment.device)
    costs = costs_of(definition, model)
    result = training.fit(folder, model, definition, task, settings, settings.seed, identity, device)
    if processes.rank() > 0:
        return
    accuracy = top1(model, data["val"], evaluation_crop(settings), device)
    logger.info("top-1 accuracy %.4f on %d images", accuracy, len(data["val"]))
    _save_backbone(folder, models.backbone_of(model))
    run = {"backbone": name, "seed": settings.seed}
    training.finish(folder, {"run": run, "top1": accuracy, "costs": costs} | result | versions())


def train(
    experiment: Experiment,
    arm: str,
    backbone: str,
    detector: str,
    seed: int,
    folder: Path,
    init: Path | None = None,
    widths: Path | None = None,
) -> None:
    """Fill `folder` with a detector trained in one arm.

    Args:
        init: weights that the backbone starts from (arm finetune, and no other).
        widths: file of the backbone's widths (not for the arms finetune and scratch, but for every other).
    """
    if arm not in experiment.all_arms:
        raise UserError(f"--arm: {unknown('arm', arm, experiment.all_arms)} Others can be added to `arms`.")
    if init is None and arm == "finetune":
        raise UserError("arm finetune starts from pre-trained weights: give --init FILE.")
    if init is not None and arm != "finetune":
        raise UserError(f"arm {arm} starts from random weights: leave --init out, or use --arm finetune.")
    if widths is None and arm not in WITH_REFERENCE_WIDTHS:
        raise UserError(f"arm {arm} has widths of its own: give --widths FILE.")
    if widths is not None and arm in WITH_REFERENCE_WIDTHS:
        raise UserError(f"arm {arm} has the reference's widths: leave --widths out, or use --arm derived.")
    settings = experiment.training_of(arm)
    data = open_splits(experiment, "detection")
    definition = definition_of(
        experiment, backbone, detector, data["train"].classes, (settings.min_size, settings.max_size)
    )
    if widths is not None:
        definition = replace(definition, widths=models.read_widths(widths, definition))
    identity = {
        "training": _material(settings),
        "seed": seed,
        "backbone": definition.backbone.model_dump(mode="json", exclude={"pretrained"}),
        "detector": experiment.detectors[detector].model_dump(mode="json"),
        "plugins": plugins.versions(backbone=experiment.backbones[backbone], detector=experiment.detectors[detector]),
        "widths": definition.widths,
        "init": file_digest(init) if init else None,
        "data": data["train"].digest,
    }
    if training.is_complete(folder, identity):
        logger.info("%s: complete already, nothing to do", folder)
        return
    training.seed_everything(stream_seed(seed, "weights", 0))
    model = definition.build()
    if init is not None:
        weights.load_backbone(models.backbone_of(model), weights.read_weights(str(init)), str(init))
    for note in data["train"].notes:
        logger.info(note)
    batches = partial(
        detection_batches, data["train"], settings, seed, masks=bool(getattr(model, "learns_masks", False))
    )
    task = training.Task(batches, training.detection_losses)
    device = parallel.device_of(experiment.device)
    costs = costs_of(definition, model)
    result = training.fit(folder, model, definition, task, settings, seed, identity, device)
    if processes.rank() > 0:
        return
    run = {"arm": arm, "backbone": backbone, "detector": detector, "seed": seed}
    training.finish(folder, {"run": run, "costs": costs} | result | versions())


def evaluate(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Accuracy of a complete run's last snapshot on the validation split."""
    record = read_run(folder)
    step, model, definition = models.read_snapshot(training.snapshot_path(folder, record["snapshots"][-1]))
    task = "classification" if definition.detector is None else "detection"
    dataset = open_splits(experiment, task)["val"]
    if dataset.classes != definition.classes:
        raise UserError(
            f"{folder}: trained on the classes {definition.classes}; data.{task}.val has {dataset.classes}."
        )
    device = parallel.device_of(experiment.device)
    result = {"run": record["run"], "step": step, "images": len(dataset), "data": dataset.digest}
    if definition.detector is None:
        if experiment.pretraining is None:
            raise UserError("pretraining: missing; it says how images are cropped for a classifier.")
        return result | {"top1": top1(model, dataset, evaluation_crop(experiment.pretraining), device)}
    return result | average_precision(model, dataset, device)


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a complete run."""
    record = read_json(folder / "run.json", "the record of a complete run, written when training ends")
    if not isinstance(record, dict) or not record.get("snapshots") or not {"run", "definition"} <= record.keys():
        raise UserError(f"{folder / 'run.json'}: names no snapshots; expected the record of a run trained here.")
    return record


def versions() -> dict[str, Any]:
    """What the code was: version of the library, revision of the checkout ('+' where it was changed), torch."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision, changed = "unknown", ""
    return {"eigendet": __version__, "revision": revision + "+" * bool(changed), "torch": torch.__version__}


def _material(settings: Optimization) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=IMMATERIAL)


def _save_backbone(folder: Path, backbone: torch.nn.Module) -> None:
    weights.save(folder / "backbone.pt", {name: tensor.cpu() for name, tensor in backbone.state_dict().items()})
