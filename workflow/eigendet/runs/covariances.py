"""The covariance dump: every snapshot of a run over one fixed set of probe images, to one file.

Weights are fixed and the network is in evaluation mode. Images pass one by one, so that none is padded to the size of
another; the few pixels to a multiple of the network's stride are padding and left out. Backbone taps are named as in
the backbone alone, so that they compare across detectors and with a classifier; all others as in the detector.

Finished snapshots are kept beside the output until all are there, so a dump that was stopped goes on with the next.
Several processes share the images of each snapshot (see `parallel`), and the first merges what they found.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eigendet import processes
from eigendet.config import Experiment
from eigendet.config.sections import CovarianceSettings
from eigendet.data.batches import as_float
from eigendet.data.datasets import Detection, open_splits
from eigendet.errors import UserError
from eigendet.files import value_digest
from eigendet.networks.models import read_snapshot
from eigendet.observe import merging, store
from eigendet.observe.covariance import Tap
from eigendet.observe.passes import covariances
from eigendet.observe.points import point_of
from eigendet.observe.taps import PRECISION
from eigendet.runs import parallel
from eigendet.runs.stages import read_run, versions
from eigendet.runs.training import snapshot_path

logger = logging.getLogger(__name__)


def compute_covariance(experiment: Experiment, folder: Path, output: Path, shard: tuple[int, int] = (1, 1)) -> None:
    """Write the covariance of every tap at every snapshot of the run in `folder` to `output`.

    Args:
        shard: (k, n): the k-th of n parts of the probe images. `merging.merge` makes one file of all n.
    """
    record = read_run(folder)
    if record["definition"]["detector"] is None:
        raise UserError(f"{folder}: a run of a classifier; expected the folder of a detector's run.")
    settings = experiment.covariance
    dataset = open_splits(experiment, "detection")[settings.split]
    probe = probe_indices(len(dataset), settings.images, f"data.detection.{settings.split}")
    places = range(*(len(probe) * number // shard[1] for number in (shard[0] - 1, shard[0])))
    mine = [probe[place] for place in places]
    if not mine:
        raise UserError(f"shard {shard[0]}/{shard[1]} of {len(probe)} probe images is empty; make fewer shards.")
    device = parallel.device_of(experiment.device)
    provenance: dict[str, Any] = {
        "run": record["run"],
        "definition": record["definition"],
        "experiment": experiment.name,
        "settings": value_digest(experiment.model_dump(mode="json")),
        "probe": {"split": settings.split, "images": len(probe), "data": dataset.digest},
        "points": list(settings.points),
        "heads": settings.heads,
        "precision": PRECISION,
        store.CODE: versions(),
    }
    folder_of_parts = output.with_name(f"{output.name}.parts")
    written = []
    for step in tqdm(record["snapshots"], unit="snapshot", disable=None):
        part = folder_of_parts / f"step_{step:07d}.h5"
        written.append(part)
        if store.holds(part, provenance, mine):
            logger.info("%s: complete already", part)
            continue
        blocks = min(settings.jackknife or 1, len(probe)) if step == record["snapshots"][-1] else 1
        pieces = [
            Piece(part.with_name(f"{part.stem}_{block}_{process}.h5"), block, process, seen)
            for block in range(blocks)
            for process in range(processes.size())
            if (seen := [probe[place] for place in places if place % blocks == block][process :: processes.size()])
        ]
        _, model, _ = read_snapshot(snapshot_path(folder, step))
        model.to(device)
        for piece in pieces:
            if piece.process != processes.rank() or store.holds(piece.path, provenance, piece.seen):
                continue
            # The first image fixes the shifts, everywhere alike; where it comes first it is counted too.
            first = None if piece.seen[0] == probe[0] else Images(dataset, probe, device)[0]
            taps = observed_taps(model, settings, Images(dataset, piece.seen, device), first)
            store.write_covariances(piece.path, [(step, taps)], provenance, piece.seen, single=settings.single)
        processes.wait()
        if processes.rank() > 0:
            continue
        if blocks == len(pieces) == 1:
            pieces[0].path.replace(part)
            continue
        merging.merge(part, [piece.path for piece in pieces], [piece.block for piece in pieces] * (blocks > 1))
        for piece in pieces:
            piece.path.unlink()
    if processes.rank() == 0:
        merging.join_steps(output, written)
        shutil.rmtree(folder_of_parts)


class Piece(NamedTuple):
    """What one process sees of one block of the images, all of which are merged."""

    path: Path
    block: int  # for the jackknife
    process: int
    seen: list[int]


def observed_taps(
    model: nn.Module, settings: CovarianceSettings, images: Sequence[list[Tensor]], first: list[Tensor] | None = None
) -> Iterator[Tap]:
    """The taps of a detector over images; `first` is the one from which shifts are taken, see `covariances`."""
    prefix = f"{model.backbone_path}."
    pyramids = [path for path, module in model.named_modules() if point_of(module) == "fpn"]
    memory = None if settings.memory is None else settings.memory * 2**30
    modules = "*" if settings.heads else [f"{prefix}*", *pyramids]
    for tap in covariances(
        model, images, settings.points, modules=modules, memory=memory, calibration=first, image_means=True
    ):
        yield replace(tap, key=replace(tap.key, module=tap.key.module.removeprefix(prefix)))


class Images(Sequence[list[Tensor]]):
    """Some images of a data set, each as a batch of its own for a detector."""

    def __init__(self, dataset: Detection, indices: Sequence[int], device: torch.device) -> None:
        self.dataset, self.indices, self.device = dataset, indices, device

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return [as_float(self.dataset[self.indices[index]][0]).to(self.device)]


def probe_indices(available: int, wanted: int, name: str) -> list[int]:
    """The same `wanted` images in every run, spread over the data set."""
    if wanted > available:
        raise UserError(f"covariance.images is {wanted}; {name} has {available} images, so at most that many.")
    return sorted(np.random.default_rng(0).permutation(available)[:wanted].tolist())
