"""Images a second that one device takes: measured for some steps of the real loops, or inferred from one figure."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd
import torch

from eigendet.channels.tracing import SIDE
from eigendet.config import Experiment
from eigendet.config.sections import Optimization
from eigendet.data.datasets import open_split
from eigendet.networks.backbones import reference_groups
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.runs import gradients, parallel, training
from eigendet.runs.folder import RunFolder
from eigendet.runs.images import Decoded, Images
from eigendet.runs.latency import timed
from eigendet.runs.observation import observed_taps
from eigendet.runs.precision import full_float32

STEPS, WARM_UP = 6, 2  # measured, of which so many do not count
IMAGES = 4  # looked at
PASSES = 3  # forward passes that a training step amounts to: for each product, the backward pass takes two
COVARIANCE = 2  # forward passes that observing amounts to: about as long again for the covariances
GRADIENTS = 4  # that observing gradients amounts to beside: a pass, its backward pass, and as long again as one

Settings = TypeVar("Settings", bound=Optimization)


class Throughput(NamedTuple):
    """Images a second.

    Attributes:
        training: of a detector.
        looking: through a detector without learning, as in evaluation.
        observing: through a detector whose covariances are computed.
        pretraining: of a classifier; None where there is none.
    """

    training: float
    looking: float
    observing: float
    pretraining: float | None


def measured(experiment: Experiment, detector: Definition, classifier: Definition | None) -> Throughput:
    """Measure some steps of training, looking and observing on this machine's device; no file stays."""
    device = parallel.device_of(experiment.device)
    data = open_split(experiment, "detection", "train")
    model, (groups, _) = detector.build(), detector.reference()
    task = training.detection_task(model, data, _short(experiment.training), 0, device)
    rate = _trained(model, detector, task, experiment.training, device)
    pretraining = None
    if classifier is not None and experiment.pretraining is not None:
        labeled = open_split(experiment, "classification", "train")
        task = training.classification_task(labeled, _short(experiment.pretraining), 0, device)
        pretraining = _trained(classifier.build(), classifier, task, experiment.pretraining, device)
    # Without keeping any, as where there are more than are kept.
    decoded, some = Decoded(data, memory=0), [index % len(data) for index in range(IMAGES)]
    images = Images(decoded, some, device)
    with_loss = [index for index in some if data.objects(index)] if experiment.covariance.gradients else []
    samples = gradients.Samples(decoded, with_loss, learns_masks(model), device)
    model.eval()

    def look() -> None:
        with torch.inference_mode():
            for image in images:
                model(image)

    def observe() -> None:
        with full_float32():
            taps = observed_taps(model, experiment.covariance, images, groups=groups)
            channels = {tap.key: tap.covariance.channels for tap in taps}
            list(gradients.loss_gradients(model, experiment.covariance, samples, channels, groups))

    def rate_of(call: Callable[[], None]) -> float:
        call()  # to warm up
        return IMAGES / timed(call, device)

    return Throughput(training=rate, looking=rate_of(look), observing=rate_of(observe), pretraining=pretraining)


def _short(settings: Settings) -> Settings:
    """Return the settings of a run of a few steps, whose first row in the log is of the warm-up."""
    few = {"steps": STEPS, "snapshots": [], "log_every": WARM_UP, "checkpoint_every": STEPS + 1, "tensorboard": False}
    return settings.model_copy(update=few)


def _trained(
    model: torch.nn.Module, definition: Definition, task: training.Task, settings: Optimization, device: torch.device
) -> float:
    """Return the images a second of some steps after the warm-up."""
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        training.fit(folder, model, definition, task, _short(settings), 0, {}, device, "measure")
        rates = pd.read_csv(folder.log)["images_per_second"][1:]
    return float(len(rates) / (1 / rates).sum())


def inferred(rate: float, experiment: Experiment, detector: Definition, classifier: Definition | None) -> Throughput:
    """Infer all from the images a second of training a detector, by multiply-accumulates."""
    pretraining = None
    if classifier is not None:
        backbone, reference = reference_groups(classifier.backbone, classifier.size)
        area = math.prod(detector.size)
        whole, widths = replace(detector, heads=True).reference()
        pretraining = rate * area / SIDE**2 * whole.macs(widths) / backbone.macs(reference)
    passes = COVARIANCE + (GRADIENTS if experiment.covariance.gradients else 0)
    return Throughput(training=rate, looking=PASSES * rate, observing=PASSES / passes * rate, pretraining=pretraining)


def device_name(experiment: Experiment) -> str:
    """Return what is paid for by the hour: "GPU" or "CPU"."""
    return "GPU" if parallel.device_of(experiment.device).type == "cuda" else "CPU"
