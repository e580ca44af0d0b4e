"""Training on the device: repeated, interrupted, beside a plain loop, in half precision, and over processes.

How far apart two trainings end is told as a share of the way: the norm of the difference of their weights, over the
norm of what training changed in them. On a CPU that is 0 for one seed. On a GPU some kernels add up in an order that
changes from run to run (scattered sums, cuDNN's gradients of kernels), which training amplifies from step to step.
RetinaNet's losses depend smoothly on its weights, so it has the limit `WAY`, below what a mistake in going on costs:
momentum that is lost half way costs 0.15 on a CPU, and a batch that is seen twice 0.04. A detector with proposals draws
other regions once a single one has moved, and is only told.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor, distributed, nn

from eigendet.config.sections import BackboneChoice, DetectorTraining, PluginChoice
from eigendet.data.samples import COLORS, Rectangles
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.runs import parallel, training
from eigendet.runs.folder import RunFolder
from tests.gpu.figures import Figure, error, guarded, synchronize

WAY = 0.01  # of the way at most, between what should be one training
FALL = 0.8  # of the first losses at most, at the end of some steps
RATE = 0.98  # of the plain loop's images a second at least
FIRST = 5  # step of the first snapshot, at which a run is asked to stop
WARM_UP, STEPS = 2, 8  # of a loop whose time is taken
PATIENCE = 60.0  # seconds for a process
CHILD = "import sys; from tests.gpu import training; training.child(*sys.argv[1:])"

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
Loop = Callable[[nn.Module, Iterable[Batch]], None]


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield what training does on the device."""
    if small:
        torch.set_num_threads(1)  # to networks this small several bring nothing but waiting
    with TemporaryDirectory() as name:
        folder = Path(name)
        yield from guarded("resuming", _again(device, small, folder))
        yield from guarded("speed", _beside_a_plain_loop(device, small))
        other = _start("shared", device, small, folder)  # which begins meanwhile
        try:
            for precision in ("float16", "bfloat16"):
                yield from guarded(precision, _in_half_precision(device, small, folder / precision, precision))
            yield from guarded("one process", _alone_among_processes(device, small))
            yield from guarded("two processes", _over_two_processes(device, small, folder, other))
        finally:
            other.kill()
            other.wait()
        if device.type == "cuda":
            yield from guarded("repeating", _told(device, small, folder))


def definition(small: bool, plugin: str = "retinanet", norm: str = "group") -> Definition:
    """Return a detector that trains in seconds."""
    side, width, channels = (64, 0.125, 16) if small else (192, 0.5, 64)
    options: dict[str, Any] = {"fpn_channels": channels, "anchor_sizes": [side * n // 8 for n in (1, 2, 4, 6, 8)]}
    if plugin == "faster_rcnn":
        options |= {"head_channels": 2 * channels, "proposals": 20, "box_samples": 16}
    backbone = BackboneChoice(plugin="resnet", depth=18, width=width, norm=norm, norm_groups=4)
    return Definition(backbone, COLORS, (side, side), PluginChoice(plugin=plugin, **options))


def train(folder: Path, device: torch.device, network: Definition, **changes: Any) -> None:
    """Train a detector through the library, from a seed or from where `folder` was left."""
    side = network.size[0]
    settings = {
        "steps": 40, "batch_size": 2, "learning_rate": 3e-3, "min_size": side, "max_size": side, "scale_jitter": (1, 1),
        "snapshots": [0, FIRST], "log_every": 5,
    }  # fmt: skip
    chosen = DetectorTraining(**(settings | changes))
    training.seed_everything(0)
    model = network.build()
    task = training.detection_task(model, Rectangles(side), chosen, 0, device)
    training.fit(RunFolder(folder), model, network, task, chosen, 0, {}, device)


def apart(one: Path, other: Path, step: int = 40) -> float:
    """Return how far apart two trainings ended, as a share of the way of the first."""
    start, end, end_of_other = (_weights(run, at) for run, at in ((one, 0), (one, step), (other, step)))
    return float((end - end_of_other).norm() / (end - start).norm())


def child(role: str, kind: str, small: str, folder: str) -> None:
    """Do what a process of its own is started for: a run that will be asked to stop, or half of a shared one."""
    device, place = torch.device(kind), Path(folder)
    if role == "interrupted":
        train(place, device, definition(small == "small"))
    else:
        _share(1, device, small == "small", place)


def _again(device: torch.device, small: bool, folder: Path) -> Iterator[Figure]:
    """Train twice from one seed, and a third time with a stop in between."""
    network, limit = definition(small), 0.0 if device.type == "cpu" else WAY
    for name in ("whole", "repeated"):
        train(folder / name, device, network)
    yield Figure("training repeated: apart, of the way", apart(folder / "whole", folder / "repeated"), limit=limit)
    process = _start("interrupted", device, small, folder / "stopped")
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not RunFolder(folder / "stopped").snapshot(FIRST).exists():
        time.sleep(0.005)
        if time.monotonic() > end:
            process.kill()
    process.send_signal(signal.SIGTERM)
    asked = time.perf_counter()
    _, said = process.communicate(timeout=PATIENCE)
    yield Figure("seconds from SIGTERM to the end of the process", time.perf_counter() - asked, "s")
    wrong = int(process.returncode != parallel.STOPPED)
    note = said.strip().rpartition("\n")[2] if wrong else ""
    yield Figure("statuses other than 143 after SIGTERM", wrong, limit=0, note=note)
    if wrong:
        return
    step = torch.load(RunFolder(folder / "stopped").checkpoint, weights_only=True)["progress"]["step"]
    train(folder / "stopped", device, network)
    ended = apart(folder / "whole", folder / "stopped")
    yield Figure("training resumed: apart, of the way", ended, limit=limit, note=f"stopped after step {step} of 40")


def _beside_a_plain_loop(device: torch.device, small: bool) -> Iterator[Figure]:
    """Take the time of the library's loop and of a plain one, in turns, on the same network and batches."""
    height, width = (64, 96) if small else (800, 1216)
    depth, share, options = (18, 0.125, {"fpn_channels": 16, "head_channels": 32}) if small else (50, 1.0, {})
    backbone = BackboneChoice(plugin="resnet", depth=depth, width=share, norm="frozen_batch")
    classes = [str(number) for number in range(90)]
    network = Definition(backbone, classes, (height, width), PluginChoice(plugin="faster_rcnn", **options))
    model = network.build().to(device)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [_batch(height, width, device) for _ in range(STEPS + 1)]
    loops: dict[str, Loop] = {"library": _library(network, device), "plain": _plain(device)}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(1 if small else 4):
        for name in sorted(loops, reverse=bool(number % 2)):
            model.load_state_dict(start)
            times[name].append(_seconds(loops[name], model, batches, device))
    library, plain = (statistics.median(times[name]) for name in ("library", "plain"))
    limit = RATE if device.type == "cuda" and not small else None
    note = f"Faster R-CNN over ResNet-{depth}, two images of {height}x{width} a step"
    yield Figure("throughput, library to plain loop", plain / library, limit=limit, at_least=True, note=note)
    yield Figure("training step, library", 1000 * library, "ms")
    yield Figure("training step, plain loop", 1000 * plain, "ms")
    if device.type == "cpu":
        return
    torch.backends.cudnn.benchmark = True
    seconds = min(_seconds(loops["library"], model, batches, device) for _ in range(2))
    torch.backends.cudnn.benchmark = False
    yield Figure("training step, library, with cudnn.benchmark", 1000 * seconds, "ms")
    model.to(memory_format=torch.channels_last)
    yield Figure(
        "training step, library, channels last", 1000 * _seconds(loops["library"], model, batches, device), "ms"
    )


def _library(network: Definition, device: torch.device) -> Loop:
    side, longest = network.size
    settings = DetectorTraining(
        steps=STEPS + 1, batch_size=2, learning_rate=1e-4, min_size=side, max_size=longest, snapshots=[]
    )

    def run(model: nn.Module, batches: Iterable[Batch]) -> None:
        with TemporaryDirectory() as folder:
            task = training.Task(lambda start: batches, training.detection_losses)
            training.fit(RunFolder(Path(folder)), model, network, task, settings, 0, {}, device)

    return run


def _plain(device: torch.device) -> Loop:
    """Return a loop of what torchvision's reference does in a step: losses, their sum looked at, one update."""

    def run(model: nn.Module, batches: Iterable[Batch]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        model.train()
        for images, targets in batches:
            images = [image.to(device, non_blocking=True) for image in images]
            targets = [{key: value.to(device, non_blocking=True) for key, value in one.items()} for one in targets]
            total = sum(model(images, targets).values())
            if not math.isfinite(total.item()):
                raise UserError("the plain loop diverged")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    return run


def _batch(height: int, width: int, device: torch.device) -> Batch:
    """Return two images of noise with eight boxes each, as a loader would give them."""
    images, targets = [], []
    for _ in range(2):
        corner = torch.rand(8, 2) * torch.tensor([width / 2, height / 2])
        size = (0.1 + 0.4 * torch.rand(8, 2)) * torch.tensor([width, height])
        images.append(torch.rand(3, height, width))
        targets.append({"boxes": torch.cat([corner, corner + size], 1), "labels": torch.randint(1, 91, (8,))})
    if device.type == "cuda":
        images = [image.pin_memory() for image in images]
        targets = [{key: value.pin_memory() for key, value in one.items()} for one in targets]
    return images, targets


def _seconds(loop: Loop, model: nn.Module, batches: list[Batch], device: torch.device) -> float:
    """Return the seconds a step of a loop: from when a batch is asked for after the warm-up to when the last one is."""
    marks: list[float] = []

    def timed() -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number in (WARM_UP, STEPS):
                synchronize(device)
                marks.append(time.perf_counter())
            yield batch

    loop(model, timed())
    return (marks[1] - marks[0]) / (STEPS - WARM_UP)


def _in_half_precision(device: torch.device, small: bool, folder: Path, precision: str) -> Iterator[Figure]:
    """Train in a precision: losses fall and are finite, and the scaler is in the checkpoint."""
    network = definition(small, "faster_rcnn")
    changes = {"optimizer": "adamw", "learning_rate": 1e-3, "precision": precision, "checkpoint_every": 39}
    try:
        train(folder, device, network, **changes)
    except UserError as diverged:
        yield Figure(f"{precision}: last losses to first", math.nan, limit=FALL, note=str(diverged))
        return
    losses = pd.read_csv(folder / "log.csv")["loss"].tolist()
    used = "" if device.type == "cuda" else "a CPU computes in float32"
    yield Figure(f"{precision}: last losses to first", losses[-1] / losses[0], limit=FALL, note=used)
    state = torch.load(RunFolder(folder).checkpoint, weights_only=True)["scaler"]
    scaled = precision == "float16" and device.type == "cuda"
    right = state.get("scale", 0.0) > 0 and "_growth_tracker" in state if scaled else state == {}
    note = f"scale {state['scale']:g}" if state else "not in use"
    yield Figure(f"{precision}: wrong states of the scaler in the checkpoint", float(not right), limit=0, note=note)


def _alone_among_processes(device: torch.device, small: bool) -> Iterator[Figure]:
    """Wrap a network for several processes, of which there is one, and compare its gradients with the bare one's."""
    found: list[Figure] = []
    names = "NCCL" if device.type == "cuda" else "gloo"

    def work() -> None:
        ones = torch.ones(3, device=device)
        distributed.all_reduce(ones)
        found.append(Figure(f"{names} alone: wrong sums", float((ones != 1).sum()), limit=0))
        for norm in _norms(device):
            network = definition(small, norm=norm)
            training.seed_everything(0)
            model = network.build().to(device).train()
            batch = next(
                iter(training.detection_task(model, Rectangles(network.size[0]), _two_images(network), 0).batches(0))
            )
            bare = _gradients(model, model, batch, device)
            shared = _gradients(training._distributed(model, device), model, batch, device)
            limit = 0.0 if device.type == "cpu" else 1e-4
            found.append(Figure(f"{names} alone, {norm} norm: error of gradients", error(shared, bare), limit=limit))
        if device.type == "cpu":
            found.append(_refusal(small))

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with patch.dict(os.environ, variables):
        parallel.run(work, "cpu" if device.type == "cpu" else "cuda", 1)
    yield from found


def _refusal(small: bool) -> Figure:
    """Say whether batch norm over processes is refused on a CPU, where torch has none."""
    name, accepted = "batch norms over processes accepted on a CPU", 0
    with contextlib.suppress(UserError):
        training._distributed(definition(small, norm="sync_batch").build(), torch.device("cpu"))
        accepted = 1
    return Figure(name, accepted, limit=0)


def _over_two_processes(
    device: torch.device, small: bool, folder: Path, other: subprocess.Popen[str]
) -> Iterator[Figure]:
    """Train in two processes on this device, which gloo allows and NCCL does not, and in one with the whole batch."""
    said = ""
    try:
        _share(0, device, small, folder)
    except (RuntimeError, UserError) as error:
        said = str(error)
        other.kill()
    said += other.communicate(timeout=PATIENCE)[1]
    for norm in _norms(device):
        name = f"two processes to one, {norm} norm: apart, of the way"
        train(folder / f"one-{norm}", device, definition(small, norm=norm), steps=FIRST)
        if RunFolder(folder / f"two-{norm}").snapshot(FIRST).exists():
            yield Figure(name, apart(folder / f"one-{norm}", folder / f"two-{norm}", FIRST), limit=WAY)
        else:
            yield Figure(name, math.nan, limit=WAY, note=said.strip().rpartition("\n")[2])


def _share(rank: int, device: torch.device, small: bool, folder: Path) -> None:
    """Train as one of two processes."""
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=PATIENCE)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    try:
        for norm in _norms(device):
            train(folder / f"two-{norm}", device, definition(small, norm=norm), steps=FIRST)
    finally:
        distributed.destroy_process_group()


def _told(device: torch.device, small: bool, folder: Path) -> Iterator[Figure]:
    """Tell how far from repeatable else a GPU is."""
    for name in ("rcnn", "rcnn-repeated"):
        train(folder / name, device, definition(small, "faster_rcnn"))
    ended = apart(folder / "rcnn", folder / "rcnn-repeated")
    yield Figure("Faster R-CNN repeated: apart, of the way", ended, note="it draws regions among its proposals")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(action="ignore"):
        for name in ("set", "set-repeated"):
            train(folder / name, device, definition(small))
    torch.use_deterministic_algorithms(False)
    ended = apart(folder / "set", folder / "set-repeated")
    yield Figure("training repeated, with deterministic algorithms: apart, of the way", ended)


def _norms(device: torch.device) -> list[str]:
    return ["group", "sync_batch"] if device.type == "cuda" else ["group"]


def _two_images(network: Definition) -> DetectorTraining:
    return DetectorTraining(steps=1, batch_size=2, min_size=network.size[0], max_size=network.size[1])


def _gradients(wrapped: nn.Module, model: nn.Module, batch: Any, device: torch.device) -> Tensor:
    """Return all gradients of a batch's losses in one vector."""
    model.zero_grad(set_to_none=True)
    torch.stack(list(training.detection_losses(wrapped, batch, device).values())).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _weights(run: Path, step: int) -> Tensor:
    """Return all parameters and statistics of a snapshot in one vector."""
    state: dict[str, Tensor] = torch.load(RunFolder(run).snapshot(step), weights_only=True, map_location="cpu")["model"]
    return torch.cat([value.flatten().double() for value in state.values() if value.is_floating_point()])


def _start(role: str, device: torch.device, small: bool, folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs `child`."""
    arguments = [role, str(device), "small" if small else "whole", str(folder)]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if device.type == "cpu":
        variables["OMP_NUM_THREADS"] = "1"  # beside others, and so that sums have the order that they have alone
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, *arguments], env=os.environ | variables, text=True, stderr=subprocess.PIPE
    )
