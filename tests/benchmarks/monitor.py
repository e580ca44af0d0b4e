"""What it costs to watch spectra in a training loop: `make benchmark NAME=monitor` writes monitor.md.

A step is a forward and a backward pass and an update by SGD. Contenders take their steps in turns, each with a model of
its own that starts from the same weights, so that a noisy machine is noisy to all; on a CPU, times are those of one
thread's processor. Read the ratios to a bare step, of medians. *Observing* is such a step with hooks and products;
*measuring* is what follows once: eigenvalues, metrics, a row a layer in a CSV file. *Per step* is what both add to a
step on average if one step in 100 is observed. Between observed steps there is nothing but a call of `step`; delve
keeps a hook in every layer, which counts.

delve reads convolutions and linear layers, in float64; its saturation is `energy_share` here.
"""

from __future__ import annotations

import copy
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import delve
import torch
from torch import Tensor, nn
from torchvision import models

from eigendet import monitor
from eigendet.observe.keys import Point

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NETWORKS = {
    "ResNet-18, 16 images of 96x96": (partial(models.resnet18, num_classes=100), (16, 3, 96, 96)),
    "ResNet-50, 16 images of 96x96": (partial(models.resnet50, num_classes=100), (16, 3, 96, 96)),
}
ROUNDS, EVERY, CALLS = 5, 100, 100_000
Seconds = tuple[float, float]  # of a step, and of what follows it


class Training:
    """A model and its optimizer."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = copy.deepcopy(model).to(DEVICE), images
        self.labels = torch.zeros(len(images), dtype=torch.long, device=DEVICE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3)

    def step(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()


class Contender(NamedTuple):
    """A name, and a function that takes one step of training and says how long that took."""

    name: str
    run: Callable[[], Seconds]
    is_observing: bool = True


def seconds(function: Callable[[], object]) -> float:
    """Return how long a function takes."""
    if DEVICE.type == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def bare(training: Training) -> Seconds:
    return seconds(training.step), 0.0


def between(training: Training, folder: Path) -> Seconds:
    """Take a step that is not observed."""
    watched = monitor(training.model, writer=folder / "between.csv", every=EVERY, start=1)

    def step() -> None:
        training.step()
        watched.step()

    return seconds(step), 0.0


def observed(training: Training, folder: Path, points: tuple[Point, ...]) -> Seconds:
    """Take a step that is observed, and measure."""
    watched = monitor(training.model, points, writer=folder / "observed.csv", every=EVERY)
    return seconds(training.step), seconds(watched.close)


def by_delve(tracker: delve.SaturationTracker, training: Training) -> Seconds:
    """Take a step and measure, if the tracker is recording."""
    taken = seconds(training.step)
    return taken, seconds(partial(tracker.add_saturations, save=True)) if tracker.interval == 1 else 0.0


def contenders(model: nn.Module, images: Tensor, folder: Path) -> list[Contender]:
    """Return all contenders; the first is a bare step."""

    def delve_contender(interval: int) -> Callable[[], Seconds]:
        training = Training(model, images)
        tracker = delve.SaturationTracker(
            str(folder / f"delve_{interval}"), save_to="csv", modules=training.model, log_interval=interval,
            stats=["lsat"], device=str(DEVICE),
        )  # fmt: skip
        return partial(by_delve, tracker, training)

    new = partial(Training, model, images)
    return [
        Contender("bare", partial(bare, new()), False),
        Contender("monitor, a step that is not observed", partial(between, new(), folder), False),
        Contender("monitor, activations", partial(observed, new(), folder, ("act",))),
        Contender("monitor, convolutions and linear layers", partial(observed, new(), folder, ("conv", "linear"))),
        Contender("delve, a step that is not observed", delve_contender(10**9), False),
        Contender("delve, convolutions and linear layers", delve_contender(1)),
    ]


def rows(name: str) -> list[str]:
    """Return the rows of one network."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, images = build(), torch.rand(shape, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        taking_part = contenders(model, images, Path(folder))
        times: list[list[Seconds]] = [[] for _ in taking_part]
        for _ in range(ROUNDS + 1):
            for own, contender in zip(times, taking_part, strict=True):
                own.append(contender.run())
    medians = [[statistics.median(part) for part in zip(*own[1:], strict=True)] for own in times]  # the first warms up
    unit = medians[0][0]
    lines = [f"| **{name}**: {unit * 1e3:.0f} ms | | | |"]
    for contender, (step, after) in zip(taking_part, medians, strict=True):
        if contender.is_observing:
            per_step = (step - unit + after) / EVERY / unit
            lines.append(f"| {contender.name} | {step / unit:.2f} | {after / unit:.2f} | {per_step:.1%} |")
        else:
            lines.append(f"| {contender.name} | {step / unit:.2f} | | |")
    return lines


def nanoseconds_of_a_call() -> float:
    """Return how long `step` takes where nothing is observed."""
    watched = monitor(nn.Sequential(nn.ReLU()), writer=list, every=10**9, start=1)

    def call() -> None:
        for _ in range(CALLS):
            watched.step()

    return seconds(call) / CALLS * 1e9


def main() -> int:
    logging.disable(logging.INFO)  # delve names every layer
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{platform.machine()}, CPU"
    lines = [
        "# What watching spectra costs", "", *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, delve {delve.__version__}. A call of "
        f"`step` where nothing is observed: {nanoseconds_of_a_call():.0f} ns.", "",
        "| | observing | measuring | per step |", "| --- | --- | --- | --- |",
        *(row for name in NETWORKS for row in rows(name)),
    ]  # fmt: skip
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
