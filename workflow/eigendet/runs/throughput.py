"""Images a second that one device takes: measured for some steps of the real loops, or inferred from one figure."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd
import torch

from eigendet.channels.tracing import SIDE
from eigendet.config import Experiment
from eigendet.config.sections import Optimization
from eigendet.data.batches import classification_batches, detection_batches
from eigendet.data.datasets import open_splits
from eigendet.networks import models
from eigendet.networks.models import Definition
from eigendet.runs import covariances, parallel, training
from eigendet.runs.latency import timed

STEPS, WARM_UP = 6, 2  # measured, of which so many do not count
IMAGES = 4  # looked at
PASSES = 3  # forward passes that a training step amounts to: for each product, the backward pass takes two
COVARIANCE = 2  # and a dump: about as long again for the covariances

Settings = TypeVar("Settings", bound=Optimization)


class Throughput(NamedTuple):
    """Images a second. `looking`: as in evaluation; `pretraining`: None where there is none."""

    training: float
    looking: float
    observing: float
    pretraining: float | None


def measured(experiment: Experiment, detector: Definition, classifier: Definition | None) -> Throughput:
    """Train, look and dump for some steps, in files that are thrown away, on this machine's device."""
    device = parallel.device_of(experiment.device)
    data = open_splits(experiment, "detection")["train"]
    model = detector.build()
    masks = bool(getattr(model, "learns_masks", False))
    task = training.Task(
        partial(detection_batches, data, _short(experiment.training), 0, masks=masks), training.detection_losses
    )
    rate = _trained(model, detector, task, experiment.training, device)
    pretraining = None
    if classifier is not None and experiment.pretraining is not None:
        images = open_splits(experiment, "classification")["train"]
        batches = partial(classification_batches, images, _short(experiment.pretraining), 0)
        task = training.Task(batches, training.classification_losses)
        pretraining = _trained(classifier.build(), classifier, task, experiment.pretraining, device)
    shown = covariances.Images(data, [index % len(data) for index in range(IMAGES)], device)
    model.eval()

    def look() -> None:
        with torch.inference_mode():
            for image in shown:
                model(image)

    def observe() -> None:
        list(covariances.observed_taps(model, experiment.covariance, shown))

    seconds = []
    for call in (look, observe):
        call()
        seconds.append(timed(call, device))
    return Throughput(rate, IMAGES / seconds[0], IMAGES / seconds[1], pretraining)


def _short(settings: Settings) -> Settings:
    return settings.model_copy(update={"steps": STEPS, "snapshots": [], "log_every": 1, "checkpoint_every": STEPS + 1})


def _trained(
    model: torch.nn.Module, definition: Definition, task: training.Task, settings: Optimization, device: torch.device
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        training.fit(Path(folder), model, definition, task, _short(settings), 0, {}, device)
        rates = pd.read_csv(Path(folder, "log.csv"))["images_per_second"][WARM_UP:]
    return float(len(rates) / (1 / rates).sum())


def inferred(rate: float, experiment: Experiment, detector: Definition, classifier: Definition | None) -> Throughput:
    """From that of training a detector, by multiply-accumulates."""
    pretraining = None
    if classifier is not None:
        backbone, usual = models.reference(classifier.backbone, classifier.size)
        area = math.prod(detector.size)
        whole, widths = replace(detector, heads=True).reference()
        pretraining = rate * area / SIDE**2 * whole.macs(widths) / backbone.macs(usual)
    return Throughput(rate, PASSES * rate, PASSES / COVARIANCE * rate, pretraining)


def device_name(experiment: Experiment) -> str:
    """What is paid for by the hour."""
    return "GPU" if parallel.device_of(experiment.device).type == "cuda" else "CPU"
