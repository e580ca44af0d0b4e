"""The covariance dump: every snapshot of a run over one fixed set of probe images, to one file.

Weights are fixed and the network is in evaluation mode. Images pass one by one, so that none is padded to the size of
another. Backbone taps are named as in the backbone alone, so that they compare across detectors and with a classifier;
the pyramid's are named as in the detector.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from eigendet import store
from eigendet.config import Experiment, Point
from eigendet.covariance import Covariance
from eigendet.datasets import Detection, open_splits
from eigendet.errors import UserError
from eigendet.files import value_digest
from eigendet.loading import as_float
from eigendet.models import backbone_of, device_of, read_snapshot
from eigendet.runs import read_run, versions
from eigendet.taps import TapKey, tap
from eigendet.training import snapshot_path


def dump(experiment: Experiment, folder: Path, output: Path) -> None:
    """Write the covariance of every tap at every snapshot of the run in `folder` to `output`."""
    record = read_run(folder)
    if record["definition"]["detector"] is None:
        raise UserError(f"{folder}: a run of a classifier; expected the folder of a detector's run.")
    settings = experiment.covariance
    dataset = open_splits(experiment, "detection")[settings.split]
    probe = probe_indices(len(dataset), settings.images, f"data.detection.{settings.split}")
    device = device_of(experiment.device)

    def snapshots() -> Iterator[tuple[int, dict[TapKey, Covariance]]]:
        for step in tqdm(record["snapshots"], unit="snapshot", disable=None):
            _, model, _ = read_snapshot(snapshot_path(folder, step))
            yield step, covariances(model.to(device), settings.points, dataset, probe, device)

    provenance: dict[str, Any] = {
        "run": record["run"],
        "definition": record["definition"],
        "experiment": value_digest(experiment.model_dump(mode="json")),
        "probe": {"split": settings.split, "images": len(probe), "data": dataset.digest},
        "points": list(settings.points),
        "precision": "float32 products of samples shifted by the first image's mean; float64 sums",
        "padding": "to a multiple of 32 pixels, as the detector pads; padded positions are included",
    }
    store.write(output, snapshots(), provenance | versions())


def covariances(
    model: nn.Module, points: list[Point], dataset: Detection, indices: list[int], device: torch.device
) -> dict[TapKey, Covariance]:
    """Covariances of a detector's feature maps over some images of a data set."""
    with ExitStack() as stack:
        backbone = stack.enter_context(tap(backbone_of(model), [point for point in points if point != "fpn"]))
        pyramid = stack.enter_context(tap(model, ["fpn"] if "fpn" in points else []))
        for index in indices:
            model([as_float(dataset[index][0]).to(device)])
    return backbone | pyramid


def probe_indices(available: int, wanted: int, name: str) -> list[int]:
    """The same `wanted` images in every run, spread over the data set."""
    if wanted > available:
        raise UserError(f"covariance.images is {wanted}; {name} has {available} images, so at most that many.")
    return sorted(np.random.default_rng(0).permutation(available)[:wanted].tolist())
