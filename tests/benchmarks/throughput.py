"""Training through the library beside each framework's own loop: same network, same batches, in turns.

    python -m tests.benchmarks.throughput          writes tests/benchmarks/throughput.md

Every round runs each loop for some steps, in random order, from the same weights. A step is what lies between two
batches' being asked for, so it holds all that a loop does; the first of a round do not count. The library's loop also
checks every loss, writes its log, and keeps snapshots. detectron2's own loop is its `SimpleTrainer`, on the network
inside the plugin's wrapper, with batches in its own format; torchvision and DETR have none in their packages, so theirs
is the plain loop that their examples come to.
"""

from __future__ import annotations

import contextlib
import io
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eigendet.config.sections import BackboneChoice, DetectorTraining, PluginChoice
from eigendet.data.batches import detection_batches
from eigendet.data.samples import Rectangles
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.runs import training
from eigendet.runs.folder import RunFolder
from tests.watching import watched

ROUNDS, STEPS, WARM_UP = 12, 10, 2
SIDE = 192  # pixels
CPU = torch.device("cpu")
BACKBONE = BackboneChoice(plugin="resnet", depth=18, norm="group")
SETTINGS = DetectorTraining(
    steps=STEPS, batch_size=2, learning_rate=1e-4, min_size=SIDE, max_size=SIDE, snapshots=2, log_every=STEPS
)

Loop = Callable[[nn.Module, Callable[[list[Any]], Iterable[Any]], list[Any]], None]


def through_the_library(definition: Definition) -> Loop:
    def run(model: nn.Module, timed: Callable[[list[Any]], Iterable[Any]], batches: list[Any]) -> None:
        task = training.Task(lambda start: timed(batches), training.detection_losses)
        with tempfile.TemporaryDirectory() as folder:
            training.fit(RunFolder(Path(folder)), model, definition, task, SETTINGS, 0, {}, CPU)

    return run


def plain_loop(model: nn.Module, timed: Callable[[list[Any]], Iterable[Any]], batches: list[Any]) -> None:
    """Losses, their sum checked, one update."""
    optimizer = _sgd(model)
    model.train()
    for images, targets in timed(batches):
        losses = model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total).item():
            raise SystemExit("the plain loop diverged")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def detectron2_loop(model: Any, timed: Callable[[list[Any]], Iterable[Any]], batches: list[Any]) -> None:
    from detectron2.engine import SimpleTrainer

    own: list[Any] = []  # what the wrapper gives to detectron2's network
    hook = model.model.register_forward_pre_hook(lambda module, inputs: own.append(inputs[0]))
    with torch.no_grad():
        for images, targets in batches:
            model.train()(images, targets)
    hook.remove()

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return iter(timed(own))

    SimpleTrainer(model.model.train(), Loader(), _sgd(model.model)).train(0, STEPS)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)


CONTENDERS: dict[str, tuple[dict[str, Any], Loop]] = {
    "torchvision, Faster R-CNN": ({"plugin": "faster_rcnn"}, plain_loop),
    "torchvision, RetinaNet": ({"plugin": "retinanet"}, plain_loop),
    "detectron2, Faster R-CNN": ({"plugin": "detectron2"}, detectron2_loop),
    "detectron2, RetinaNet": ({"plugin": "detectron2", "model": "retinanet"}, detectron2_loop),
    "transformers, DETR": ({"plugin": "detr", "layers": 2}, plain_loop),
}


def measure(detector: dict[str, Any], own: Loop) -> dict[str, list[float]]:
    """Milliseconds a step of every counted step, through the library and by the framework's own loop."""
    data = Rectangles(SIDE)
    definition = Definition(BACKBONE, data.classes, (SIDE, SIDE), PluginChoice(**detector))
    torch.manual_seed(0)
    model = definition.build()
    batches = list(detection_batches(data, SETTINGS, 0, 0, learns_masks(model)))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    loops = {"library": through_the_library(definition), "own": own}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in watched(range(ROUNDS), " ".join(map(str, detector.values()))):
        for name in random.Random(number).sample(list(loops), len(loops)):
            model.load_state_dict(start)

            def timed(given: list[Any], name: str = name) -> Iterator[Any]:
                for step, batch in enumerate(given):
                    before = time.perf_counter()
                    yield batch
                    if step >= WARM_UP:
                        times[name].append(1000 * (time.perf_counter() - before))

            with contextlib.redirect_stderr(io.StringIO()):
                loops[name](model, timed, batches)
    return times


def main() -> int:
    from tests.detectron2 import unavailable

    lines = ["# Training through the library, and by each framework's own loop", ""]
    lines += [*(__doc__ or "").strip().split("\n\n", 2)[2].split("\n"), ""]
    lines += [
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
    ]
    lines += [
        f"ResNet-18 backbone, two images of {SIDE}x{SIDE} a step, {ROUNDS} rounds of {STEPS - WARM_UP} steps.",
        "",
    ]
    lines += [
        "| network | library, ms a step | own loop, ms a step | throughput, library to own |",
        "| --- | --- | --- | --- |",
    ]
    for name, (detector, own) in CONTENDERS.items():
        if detector["plugin"] == "detectron2" and unavailable():
            lines.append(f"| {name} | | | {unavailable()} |")
            continue
        times = measure(detector, own)
        library, theirs = (statistics.median(times[which]) for which in ("library", "own"))
        lines.append(f"| {name} | {library:.0f} | {theirs:.0f} | {theirs / library:.3f} |")
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
