"""The two kinds of runs, pre-training a backbone and training a detector, from an experiment to a folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eigendet import plugins, processes
from eigendet.channels.groups import Widths
from eigendet.config import Experiment, layout
from eigendet.config.sections import IMMATERIAL, Optimization
from eigendet.data.batches import evaluation_crop, stream_seed
from eigendet.data.datasets import Detection, Task, open_split, require_same_classes
from eigendet.errors import UserError, unknown
from eigendet.files import Plain, file_digest
from eigendet.networks import checkpoints, weights
from eigendet.networks.backbones import backbone_of, build_backbone
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import read_snapshot
from eigendet.networks.widths_file import read_widths
from eigendet.runs import parallel, training
from eigendet.runs.definitions import backbone_widths, choose, classifier_of, costs_of, definition_of
from eigendet.runs.detections import detect
from eigendet.runs.evaluation import Evaluation, SnapshotScores, score, top1
from eigendet.runs.examples import examples
from eigendet.runs.folder import FetchedBackbone, Identity, RunFolder, RunNames, RunRecord, code_versions, job_name

logger = logging.getLogger(__name__)


def pretrain(experiment: Experiment, name: str, seed: int, path: Path, widths: Widths | None = None) -> None:
    """Train a classifier, and keep its backbone as `backbone.pt` in the folder `path`.

    Args:
        experiment: says how.
        name: the backbone's key.
        seed: of weights, order and augmentation.
        path: of the run; a complete run there is kept, an interrupted one goes on.
        widths: channels of the backbone's groups; None: those of the reference.
    """
    folder = RunFolder(path)
    data = {split: open_split(experiment, "classification", split) for split in ("train", "val")}
    require_same_classes(data["train"].classes, data["val"].classes, "data.classification: train and val")
    definition = replace(classifier_of(experiment, name, data["train"].classes), widths=widths)
    settings = experiment.pretraining
    assert settings is not None  # or there would be no definition
    identity = {
        "pretraining": _material(settings),
        "seed": seed,
        "backbone": definition.backbone.model_dump(mode="json", exclude={"pretrained"}),
        "widths": widths,
        "plugins": plugins.versions(backbone=experiment.backbones[name]),
        "data": data["train"].digest,
    }
    if _is_complete(folder, identity):
        return
    training.seed_everything(stream_seed(seed, "weights", 0))
    model = definition.build()
    device = parallel.device_of(experiment.device)
    task = training.classification_task(data["train"], settings, seed, device)
    costs = costs_of(definition, model)
    names: RunNames = {"backbone": name, "seed": seed}
    job = job_name(experiment, "pretrain", names if len(settings.seeds) > 1 else {"backbone": name})
    outcome = training.fit(folder, model, definition, task, settings, seed, identity, device, job)
    if processes.rank() > 0:
        return
    accuracy = top1(model, data["val"], evaluation_crop(settings), device, job)
    logger.info("top-1 accuracy %.4f on %d images", accuracy, len(data["val"]))
    _save_backbone(folder, backbone_of(model))
    record = RunRecord(
        run=names,
        costs=costs,
        identity=identity,
        definition=definition,
        top1=accuracy,
        **outcome,
        **code_versions(),
    )
    folder.complete(record)


def fetch(experiment: Experiment, arm: str, name: str, path: Path) -> None:
    """Fill the folder `path` with an arm's backbone, `backbone.pt`, from a file or from those who published it.

    Raises:
        UserError: the arm starts from no such weights, or they do not fit.
    """
    choice, folder = choose(experiment.backbones, name, "backbones"), RunFolder(path)
    source, file = experiment.init_of(arm, name), experiment.arms[arm].widths if arm in experiment.arms else None
    if source in (None, "workflow"):
        there = [own for own in experiment.all_arms if experiment.init_of(own, name) not in (None, "workflow")]
        raise UserError(f"--arm: {unknown('arm whose weights come from elsewhere', arm, there)}")
    detector = next(iter(experiment.detectors))
    backbone = build_backbone(choice, backbone_widths(experiment, name, detector, Path(file)) if file else None)
    logger.info(weights.load_backbone(backbone, weights.read_weights(source), source))
    _save_backbone(folder, backbone)
    record: FetchedBackbone = {"run": {"backbone": name}, "source": source, **code_versions()}
    folder.complete(record)


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
        experiment: what is trained, and how.
        arm: one of the experiment's arms.
        backbone: its key in the experiment.
        detector: its key in the experiment.
        seed: fixes weights, order and augmentation.
        folder: of the run; a complete run there is kept, an interrupted one goes on.
        init: weights that the backbone starts from (of the arms that have some, and no other).
        widths: file of the backbone's widths (of the arms that have not the reference's, and no other).

    Raises:
        UserError: the arm lacks a file or takes none, or the folder holds another run.
    """
    _check_arm(experiment, arm, backbone, init, widths)
    settings = experiment.training_of(arm)
    data = open_split(experiment, "detection", "train")
    definition = definition_of(experiment, backbone, detector, data.classes, (settings.min_size, settings.max_size))
    if widths is not None:
        definition = replace(definition, widths=read_widths(widths, definition))
    versions = plugins.versions(backbone=experiment.backbones[backbone], detector=experiment.detectors[detector])
    identity = _detector_identity(definition, settings, seed, versions, init, data)
    run = RunFolder(folder)
    names: RunNames = {"arm": arm, "backbone": backbone, "detector": detector, "seed": seed}
    if _is_complete(run, identity):
        return
    model = _initial_detector(definition, seed, init)
    for note in data.notes:
        logger.info(note)
    device = parallel.device_of(experiment.device)
    task = training.detection_task(model, data, settings, seed, device)
    costs = costs_of(definition, model)
    job = job_name(experiment, "train", names)
    outcome = training.fit(run, model, definition, task, settings, seed, identity, device, job)
    if processes.rank() > 0:
        return
    record = RunRecord(
        run=names,
        costs=costs,
        identity=identity,
        definition=definition,
        **outcome,
        **code_versions(),
    )
    run.complete(record)


def _check_arm(experiment: Experiment, arm: str, backbone: str, init: Path | None, widths: Path | None) -> None:
    """Raise UserError unless the experiment has the arm, and the arm has just the files that it takes."""
    if arm not in experiment.all_arms:
        raise UserError(f"--arm: {unknown('arm', arm, experiment.all_arms)} Others can be added to `arms`.")
    choose(experiment.backbones, backbone, "backbones")
    starts_from, own_widths = experiment.init_of(arm, backbone), experiment.widths_of(arm) is not None
    if init is None and starts_from is not None:
        raise UserError(f"arm {arm} starts from pre-trained weights: give --init FILE.")
    if init is not None and starts_from is None:
        raise UserError(f"arm {arm} starts from random weights: leave --init out, or use --arm finetune.")
    if widths is None and own_widths:
        raise UserError(f"arm {arm} has widths of its own: give --widths FILE.")
    if widths is not None and not own_widths:
        raise UserError(f"arm {arm} has the reference's widths: leave --widths out, or use --arm derived.")


def _detector_identity(
    definition: Definition,
    settings: Optimization,
    seed: int,
    versions: dict[str, str],
    init: Path | None,
    data: Detection,
) -> Identity:
    """Return what fixes the outcome of a detector's training."""
    return {
        "training": _material(settings),
        "seed": seed,
        "backbone": definition.backbone.model_dump(mode="json", exclude={"pretrained"}),
        "detector": definition.detector and definition.detector.model_dump(mode="json"),
        "plugins": versions,
        "widths": definition.widths,
        "init": file_digest(init) if init else None,
        "data": data.digest,
    }


def _initial_detector(definition: Definition, seed: int, init: Path | None) -> torch.nn.Module:
    """Return a detector with the weights of a seed, those of the backbone from a file if there is one."""
    training.seed_everything(stream_seed(seed, "weights", 0))
    model = definition.build()
    if init is not None:
        logger.info(weights.load_backbone(backbone_of(model), weights.read_weights(str(init)), str(init)))
    return model


def evaluate(experiment: Experiment, folder: Path) -> Evaluation:
    """Return the accuracy of a complete run on the validation split: at its last snapshot, and if observed at others.

    One that is missing, but not the last, is left out, with a warning.

    Raises:
        UserError: the run is not complete, or was trained on other classes.
    """
    run = RunFolder(folder)
    record = run.read()
    definition = record.definition
    task: Task = "classification" if definition.detector is None else "detection"
    dataset: Any = open_split(experiment, task, "val")
    if dataset.classes != definition.classes:
        raise UserError(
            f"{folder}: trained on the classes {definition.classes}; data.{task}.val has {dataset.classes}."
        )
    device = parallel.device_of(experiment.device)
    result: Evaluation = {
        "version": layout.EVALUATION_VERSION,
        "run": record.run,
        "step": record.last_step,
        "images": len(dataset),
        "data": dataset.digest,
    }
    job = job_name(experiment, "evaluate", record.run)
    if definition.detector is not None:
        is_observed = record.run.get("arm") in experiment.observed
        steps = experiment.evaluation.chosen(record.snapshots) if is_observed else [record.last_step]
        named = f"{job} step {{}}".format if len(steps) > 1 else lambda step: job
        scored: list[SnapshotScores] = []
        for step in steps:
            if step != record.last_step and not run.snapshot(step).is_file():
                logger.warning("%s: no such file, so step %d is not scored", run.snapshot(step), step)
                continue
            _, model, _ = read_snapshot(run.snapshot(step))
            seen = detect(model, dataset, device, named(step))
            averages, curves = score(seen)
            scored.append({"step": step, **averages})
        return {**result, **averages, "snapshots": scored, "curves": curves, "examples": examples(dataset, seen)}
    _, model, _ = read_snapshot(run.snapshot(record.last_step))
    if experiment.pretraining is None:
        raise UserError("pretraining: missing; it says how images are cropped for a classifier.")
    return {**result, "top1": top1(model, dataset, evaluation_crop(experiment.pretraining), device, job)}


def _is_complete(folder: RunFolder, identity: Identity) -> bool:
    """Return whether there is nothing to do, and say so."""
    complete = folder.is_complete(identity)
    if complete:
        logger.info("%s: complete already, nothing to do", folder.path)
    return complete


def _material(settings: Optimization) -> Plain:
    """Return the settings that fix the outcome."""
    return settings.model_dump(mode="json", exclude=IMMATERIAL)


def _save_backbone(folder: RunFolder, backbone: torch.nn.Module) -> None:
    """Write the backbone's weights, on the CPU."""
    checkpoints.save(folder.backbone, {name: tensor.cpu() for name, tensor in backbone.state_dict().items()})
