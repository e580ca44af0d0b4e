"""Compute the covariances of a run: every snapshot over one fixed set of probe images, to one file.

Weights are fixed and the network is in evaluation mode. Images pass one by one, so that none is padded to the size of
another; the few pixels to a multiple of the network's stride are padding and left out. Backbone taps are named as in
the backbone alone, so that they compare across detectors and with a classifier; all others as in the detector.

If settings ask for it, the gradient of the detector's loss is observed at the same maps, see `gradients`.

The network runs in full float32 on every device. Images are decoded once for all snapshots, see `images`.

Finished snapshots are kept beside the output until all are there, so a computation that was stopped goes on
with the next. Several processes share the images of each snapshot (see `processes`), and the first merges their parts.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eigendet import processes
from eigendet.channels.groups import Channels
from eigendet.config import Experiment
from eigendet.config.sections import IMMATERIAL, CovarianceSettings
from eigendet.data.datasets import open_split
from eigendet.errors import UserError, first_line
from eigendet.files import Plain, value_digest
from eigendet.networks.backbones import backbone_of
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import merging, store
from eigendet.observe.taps import PRECISION
from eigendet.progress import Reporter
from eigendet.runs import gradients, parallel
from eigendet.runs.folder import RunFolder, RunRecord, code_versions, job_name
from eigendet.runs.images import Decoded, Images
from eigendet.runs.observation import observed_taps
from eigendet.runs.precision import full_float32

logger = logging.getLogger(__name__)

LACK_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of torch; of CUDA's libraries; of a CPU


def compute_covariance(
    experiment: Experiment, folder: Path, output: Path, shard: tuple[int, int] = (1, 1), *, last_alone: bool = False
) -> None:
    """Write the covariance of every tap at every snapshot of the run in `folder` to `output`.

    Args:
        experiment: says which taps, and of which images.
        folder: of a complete run of a detector.
        output: the HDF5 file.
        shard: (k, n): the k-th of n parts of the probe images. `merging.merge` makes one file of all n.
        last_alone: observe the last snapshot and no other.

    Raises:
        UserError: the run is not complete or of a classifier, there are too few images, a value is not finite, a
            device has too little memory, or another job computes the same file.
    """
    run = RunFolder(folder)
    record = run.read_detector_run()
    if last_alone:
        record = replace(record, snapshots=[record.last_step])
    settings = experiment.covariance
    dataset = open_split(experiment, "detection", settings.split)
    name = f"data.detection.{settings.split}"
    indices = probe_indices(len(dataset), settings.images, name)
    labeled = gradients.with_objects(dataset, indices, name) if settings.gradients else []
    probe = _Probe(Decoded(dataset), dataset.digest, indices, labeled, shard)
    if not probe.seen:
        raise UserError(
            f"shard {shard[0]}/{shard[1]} of {len(probe.indices)} probe images is empty; make fewer shards."
        )
    device = parallel.device_of(experiment.device)
    provenance = _provenance(experiment, record, probe, _backbone_modules(record.definition))
    groups, _ = replace(record.definition, heads=experiment.widths.heads).reference()
    folder_of_parts = output.with_name(f"{output.name}.parts")
    with parallel.alone(folder_of_parts / ".lock", f"computes {output}"):
        _compute(experiment, run, record, output, folder_of_parts, probe, provenance, groups, device)
        if processes.rank() == 0:
            shutil.rmtree(folder_of_parts)


def _compute(
    experiment: Experiment,
    run: RunFolder,
    record: RunRecord,
    output: Path,
    folder_of_parts: Path,
    probe: _Probe,
    provenance: Plain,
    groups: Channels,
    device: torch.device,
) -> None:
    """Compute the snapshots that are not in the folder of parts yet, and join all."""
    settings = experiment.covariance
    parts = [folder_of_parts / f"step_{step:07d}.h5" for step in record.snapshots]
    missing = [
        (step, part)
        for step, part in zip(record.snapshots, parts, strict=True)
        if not store.holds(part, provenance, probe.seen)
    ]
    before = len(parts) - len(missing)
    if before:
        logger.info("%d of %d snapshots are there already", before, len(parts))
    with Reporter(_job(experiment, record, probe.shard), "snapshot", len(parts), before) as reporter:
        for number, (step, part) in enumerate(missing, start=before + 1):
            blocks = min(settings.jackknife or 1, len(probe.indices)) if step == record.last_step else 1
            pieces = _pieces(part, probe, blocks)
            own = _left_to_do(pieces, provenance)
            looked = _reporting(reporter, number, sum(len(piece.seen) + len(piece.labeled) for piece in own), settings)
            _observe(run.snapshot(step), own, probe, settings, groups, provenance, device, looked)
            processes.wait()
            if processes.rank() == 0:
                _merge(part, pieces, keep_blocks=blocks > 1)
            reporter.reach(number)
    if processes.rank() == 0:
        merging.join_steps(output, parts)


def probe_indices(available: int, count: int, name: str) -> list[int]:
    """Return the numbers of `count` images out of those available: the same in every run, spread over the data set.

    Raises:
        UserError: there are fewer, in the data set of that name.

    >>> probe_indices(100, 5, "data.detection.val")
    [5, 20, 36, 82, 93]
    """
    if count > available:
        raise UserError(f"covariance.images is {count}; {name} has {available} images, so at most that many.")
    return sorted(np.random.default_rng(0).permutation(available)[:count].tolist())


@dataclass(frozen=True)
class _Probe:
    """The probe images, and the part of them that a shard sees."""

    decoded: Decoded
    digest: str
    indices: list[int]
    labeled: list[int]  # those whose loss is computed
    shard: tuple[int, int]

    @property
    def places(self) -> range:
        """Places among all probe images, which do not depend on shards, of those that are seen here."""
        number, count = self.shard
        return range(len(self.indices) * (number - 1) // count, len(self.indices) * number // count)

    @property
    def seen(self) -> list[int]:
        """The images that are seen here."""
        return [self.indices[place] for place in self.places]


class _Piece(NamedTuple):
    """What one process sees of one block of the images, all of which are merged."""

    path: Path
    block: int  # for the jackknife
    process: int
    seen: list[int]
    labeled: list[int]  # those whose loss is computed


def _job(experiment: Experiment, record: RunRecord, shard: tuple[int, int]) -> str:
    """Return what reports of progress call this."""
    name = job_name(experiment, "covariance", record.run)
    return name if shard == (1, 1) else f"{name} shard {shard[0]}/{shard[1]}"


def _reporting(reporter: Reporter, number: int, images: int, settings: CovarianceSettings) -> Callable[[], None]:
    """Return what to call with each of so many images of a snapshot, counted from 1.

    How often all images are looked at is known where there is no limit of memory, and only there do they tell how far
    the snapshot is.
    """
    share = 1 / images if settings.memory is None and images else 0.0

    def looked() -> None:
        reporter.reach(min(reporter.done + share, number), images=processes.size())

    return looked


def _backbone_modules(definition: Definition) -> list[str]:
    """Return the paths of a detector's backbone and of all modules in it, as their taps are named."""
    with torch.random.fork_rng(devices=[]):
        model = definition.build()
    return [str(model.backbone_path), *(path for path, _ in backbone_of(model).named_modules() if path)]


def _provenance(experiment: Experiment, record: RunRecord, probe: _Probe, backbone: list[str]) -> Plain:
    """Return what the file says it was made from; `backbone` are the paths of its modules, as taps are named."""
    settings = experiment.covariance
    immaterial = {"training": IMMATERIAL, "pretraining": IMMATERIAL, "covariance": {"memory"}}
    material = experiment.model_dump(mode="json", exclude=immaterial)
    return {
        "run": record.run,
        "definition": record.definition.plain(),
        "experiment": experiment.name,
        "settings": value_digest(material),
        "probe": {"split": settings.split, "images": len(probe.indices), "data": probe.digest},
        "points": list(settings.points),
        "weighting": settings.weighting,
        "backbone": backbone,
        "heads": settings.heads,
        "gradients": settings.gradients,
        "precision": f"{PRECISION}; network in float32",
        store.CODE: code_versions(),
    }


def _pieces(part: Path, probe: _Probe, blocks: int) -> list[_Piece]:
    """Divide the images of a snapshot among blocks, and those of each block among the processes."""
    pieces, labeled = [], set(probe.labeled)
    for block in range(blocks):
        images = [probe.indices[place] for place in probe.places if place % blocks == block]
        for process in range(processes.size()):
            seen = images[process :: processes.size()]
            if seen:
                path = part.with_name(f"{part.stem}_{block}_{process}.h5")
                pieces.append(_Piece(path, block, process, seen, [index for index in seen if index in labeled]))
    return pieces


def _left_to_do(pieces: list[_Piece], provenance: Plain) -> list[_Piece]:
    """Return this process's pieces that an earlier computation has not left."""
    own = [piece for piece in pieces if piece.process == processes.rank()]
    return [piece for piece in own if not store.holds(piece.path, provenance, piece.seen)]


def _observe(
    snapshot: Path,
    pieces: list[_Piece],
    probe: _Probe,
    settings: CovarianceSettings,
    groups: Channels,
    provenance: Plain,
    device: torch.device,
    looked: Callable[[], None],
) -> None:
    """Write the covariances of a snapshot, a file for each piece."""
    step, model, _ = read_snapshot(snapshot)
    with _lack_of_memory_named(step, settings), full_float32():
        model.to(device)
        for piece in pieces:
            # The first image decides which maps follow from others; where it comes first it is counted too.
            starts_here = piece.seen[0] == probe.indices[0]
            first = None if starts_here else Images(probe.decoded, probe.indices, device)[0]
            taps = observed_taps(model, settings, Images(probe.decoded, piece.seen, device, looked), first, groups)
            samples = gradients.Samples(probe.decoded, piece.labeled, learns_masks(model), device, looked)
            with store.create(piece.path, provenance, piece.seen) as file:
                written = store.write_step(file, step, taps, single=settings.single)
                if settings.gradients:
                    moments = gradients.loss_gradients(model, settings, samples, written, groups)
                    store.write_gradients(file, step, moments, single=settings.single)


@contextlib.contextmanager
def _lack_of_memory_named(step: int, settings: CovarianceSettings) -> Iterator[None]:
    """Say which setting helps where a device has too little memory."""
    try:
        yield
    except RuntimeError as error:
        lack = first_line(error).partition(" Including")[0]
        if not any(sign in lack for sign in LACK_OF_MEMORY):
            raise
        limit = "null, no limit" if settings.memory is None else f"{settings.memory:g}"
        raise UserError(
            f"step {step}: {lack.rstrip('.')}. covariance.memory is {limit}: give the GiB that accumulators may take "
            "beside the network, and the images are gone over as often as it needs. Snapshots before this one are kept."
        ) from None


def _merge(part: Path, pieces: list[_Piece], keep_blocks: bool) -> None:
    """Write one file of all pieces of a snapshot, and remove these."""
    if len(pieces) == 1 and not keep_blocks:
        pieces[0].path.replace(part)
        return
    blocks = [piece.block for piece in pieces] if keep_blocks else []
    merging.merge(part, [piece.path for piece in pieces], blocks)
    for piece in pieces:
        piece.path.unlink()
