"""How long networks take for one image, all measured in turns in one process, so that they meet the same machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eigendet.config import Experiment
from eigendet.data.batches import as_float
from eigendet.data.datasets import open_splits
from eigendet.errors import UserError
from eigendet.networks import models
from eigendet.runs import parallel
from eigendet.runs.stages import read_run
from eigendet.runs.training import snapshot_path

WARM_UP, ROUNDS = 3, 25


def measure(experiment: Experiment, folders: Sequence[Path], rounds: int = ROUNDS) -> dict[str, Any]:
    """Median and quartiles of the time for the first validation image, in milliseconds, of detectors and backbones.

    Each round runs every network once, in a random order; weights are those of the last snapshot.

    Args:
        folders: of complete runs.
    """
    device = parallel.device_of(experiment.device)
    image = as_float(open_splits(experiment, "detection")["val"][0][0]).to(device)
    calls: dict[tuple[int, str], Callable[[], object]] = {}
    records = [read_run(folder) for folder in folders]
    for number, (folder, record) in enumerate(zip(folders, records, strict=True)):
        if record["definition"]["detector"] is None:
            raise UserError(f"{folder}: a run of a classifier; expected folders of detectors' runs.")
        _, model, _ = models.read_snapshot(snapshot_path(folder, record["snapshots"][-1]))
        model.to(device)
        backbone = models.backbone_of(model)
        canvas = _input(model, backbone, image)
        calls[number, "detector"] = partial(model, [image])
        calls[number, "backbone"] = partial(backbone, canvas)
    times: dict[tuple[int, str], list[float]] = {key: [] for key in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    with torch.inference_mode():
        for number in tqdm(range(WARM_UP + rounds), unit="round", disable=None):
            shuffle(order)
            for key in order:
                taken = timed(calls[key], device)
                if number >= WARM_UP:
                    times[key].append(1000 * taken)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "image": list(image.shape[1:]),
        "rounds": rounds,
        "runs": [
            record["run"]
            | {
                part: dict(
                    zip(("low", "median", "high"), np.quantile(times[number, part], (0.25, 0.5, 0.75)), strict=True)
                )
                for part in ("detector", "backbone")
            }
            for number, record in enumerate(records)
        ],
    }


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with what it leaves to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _input(model: nn.Module, backbone: nn.Module, image: Tensor) -> Tensor:
    """What the backbone is given when the detector sees the image: resized, padded, in a batch."""
    given: list[Tensor] = []
    hook = backbone.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.inference_mode():
        model([image])
    hook.remove()
    return given[0]
