"""How long networks take for one image, all measured in turns in one process, so that they meet the same machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from eigendet.config import Experiment, layout
from eigendet.data.batches import as_float
from eigendet.data.datasets import open_split
from eigendet.networks.backbones import backbone_of
from eigendet.networks.snapshots import read_snapshot
from eigendet.progress import Reporter
from eigendet.runs import parallel
from eigendet.runs.folder import RunFolder, job_name

WARM_UP, ROUNDS = 3, 25


class Quartiles(TypedDict):
    """Milliseconds."""

    low: float
    median: float
    high: float


class RunLatency(TypedDict):
    """Times of a run's detector and of the backbone in it."""

    arm: str
    backbone: Quartiles
    detector: Quartiles
    seed: int


class Latency(TypedDict):
    """What the JSON file of times holds."""

    version: int
    device: str
    threads: int
    image: list[int]  # height and width, before the detector resizes it
    rounds: int
    runs: list[RunLatency]


class _Part(NamedTuple):
    """A network that is measured: what is called, and what it took each time, in milliseconds."""

    call: Callable[[], object]
    times: list[float]

    def quartiles(self) -> Quartiles:
        low, median, high = np.quantile(self.times, (0.25, 0.5, 0.75))
        return {"low": float(low), "median": float(median), "high": float(high)}


def measure_latency(experiment: Experiment, folders: Sequence[Path], rounds: int = ROUNDS) -> Latency:
    """Return quartiles of the time for the first validation image, of detectors and of their backbones.

    Each round runs every network once, in a random order; weights are those of the last snapshot.

    Args:
        experiment: names the validation images and the device.
        folders: of complete runs.
        rounds: so many count, after some that do not.

    Raises:
        UserError: a folder holds no complete run of a detector.
    """
    device = parallel.device_of(experiment.device)
    image = as_float(open_split(experiment, "detection", "val")[0][0]).to(device)
    runs = [RunFolder(folder) for folder in folders]
    records = [run.read_detector_run() for run in runs]
    detectors, backbones = [], []
    for run, record in zip(runs, records, strict=True):
        _, model, _ = read_snapshot(run.snapshot(record.last_step))
        model.to(device)
        backbone = backbone_of(model)
        detectors.append(_Part(partial(model, [image]), []))
        backbones.append(_Part(partial(backbone, _input(model, backbone, image)), []))
    in_turns = [part for pair in zip(detectors, backbones, strict=True) for part in pair]
    network = records[0].run
    job = job_name(experiment, "latency", {"backbone": network["backbone"], "detector": network["detector"]})
    _measure(in_turns, rounds, device, job)
    return {
        "version": layout.LATENCY_VERSION,
        "device": parallel.hardware_name(device),
        "threads": torch.get_num_threads(),
        "image": list(image.shape[1:]),
        "rounds": rounds,
        "runs": [
            {
                "arm": record.run["arm"],
                "backbone": backbone.quartiles(),
                "detector": detector.quartiles(),
                "seed": record.run["seed"],
            }
            for record, detector, backbone in zip(records, detectors, backbones, strict=True)
        ],
    }


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, with what it leaves to a GPU.

    >>> 0 <= timed(lambda: None, torch.device("cpu")) < 1
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _measure(parts: list[_Part], rounds: int, device: torch.device, job: str) -> None:
    """Run every part once a round, in a random order, and note the times after the warm-up."""
    shuffle = random.Random(0).shuffle
    with torch.inference_mode(), Reporter(job, "round", WARM_UP + rounds) as reporter:
        for number in range(WARM_UP + rounds):
            shuffle(parts)
            for part in parts:
                seconds = timed(part.call, device)
                if number >= WARM_UP:
                    part.times.append(1000 * seconds)
            reporter.reach(number + 1)


def _input(model: nn.Module, backbone: nn.Module, image: Tensor) -> Tensor:
    """Return what the backbone sees when the detector sees the image: resized, padded, in a batch."""
    inputs: list[Tensor] = []
    hook = backbone.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    with torch.inference_mode():
        model([image])
    hook.remove()
    return inputs[0]
