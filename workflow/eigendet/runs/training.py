"""One loop for classifiers and detectors, which can stop at any moment and goes on to the same weights.

Every random choice is drawn from a stream fixed by the seed and the step, so a resumed run draws the same ones. Several
processes share each batch (see `parallel`); the first writes the files, which `folder` lists. Losses are read one step
late, so that a GPU always has work (see `losses`), but before a file is written: none holds what diverged.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from eigendet import processes
from eigendet.config.sections import DetectorTraining, Optimization, Pretraining
from eigendet.data.batches import classification_batches, detection_batches, stream_seed
from eigendet.data.datasets import Classification, Detection
from eigendet.errors import UserError
from eigendet.files import write_text
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.progress import Reporter
from eigendet.report import events
from eigendet.runs import parallel
from eigendet.runs.folder import Identity, RunFolder
from eigendet.runs.losses import Losses, Sent, receive, send
from eigendet.runs.resuming import Progress, Stateful, resume, write_checkpoint

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Task:
    """What a run learns: batches from a step on, and the losses of one batch on a device."""

    batches: Callable[[int], Iterable[Any]]
    losses: Callable[[nn.Module, Any, torch.device], Losses]


class Outcome(TypedDict):
    """What came of training, as the run's record has it."""

    snapshots: list[int]
    seconds: float
    images_per_second: float
    processes: int
    device: str


def classification_task(data: Classification, settings: Pretraining, seed: int, device: torch.device = CPU) -> Task:
    """Return the task of telling the classes of images apart, on a device."""
    batches = partial(classification_batches, data, settings, seed, pinned=device.type == "cuda")
    return Task(batches, classification_losses)


def detection_task(
    model: nn.Module, data: Detection, settings: DetectorTraining, seed: int, device: torch.device = CPU
) -> Task:
    """Return the task of detecting objects on a device, with masks if the detector learns them."""
    masks, pinned = learns_masks(model), device.type == "cuda"
    return Task(partial(detection_batches, data, settings, seed, masks=masks, pinned=pinned), detection_losses)


def classification_losses(model: nn.Module, batch: Any, device: torch.device) -> Losses:
    """Return the cross-entropy of a batch."""
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return {"loss_classifier": nn.functional.cross_entropy(model(images), labels)}


def detection_losses(model: nn.Module, batch: Any, device: torch.device) -> Losses:
    """Return the losses that a detector computes for a batch."""
    images, targets = batch
    images = [image.to(device, non_blocking=True) for image in images]
    targets = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
    losses: Losses = model(images, targets)
    return losses


def _alone_in_folder(
    train: Callable[Concatenate[RunFolder, Arguments], Outcome],
) -> Callable[Concatenate[RunFolder, Arguments], Outcome]:
    """Let no other job train in a folder meanwhile."""

    @wraps(train)
    def alone(folder: RunFolder, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Outcome:
        with parallel.alone(folder.path / ".lock", "trains this run"):
            return train(folder, *arguments, **options)

    return alone


@_alone_in_folder
def fit(
    folder: RunFolder,
    model: nn.Module,
    definition: Definition,
    task: Task,
    settings: Optimization,
    seed: int,
    identity: Identity,
    device: torch.device,
    job: str = "train",
) -> Outcome:
    """Train `model` for `settings.steps` updates, or go on from the folder's last checkpoint; `job` opens its reports.

    On SIGTERM or Ctrl-C the step under way and the next are finished, a checkpoint written, and the process ends with
    status 143.

    Raises:
        UserError: the checkpoint has another identity or is damaged, a loss is not finite, or another job
            trains there.
    """
    learner = _Learner(model, settings, device)
    progress = resume(folder, identity, learner.stateful, settings.steps)
    snapshots = snapshot_steps(settings)
    first, together = processes.rank() == 0, processes.size()
    if first and progress.step == 0:
        folder.remove_snapshots()
        if 0 in snapshots:
            folder.write_snapshot(0, model, definition)
    if together > 1:
        learner.share_gradients()

    reporter = Reporter(job, "step", settings.steps, progress.step)
    with parallel.stopping() as asked_to_stop, _scalars(folder, settings, progress.step) as scalars, reporter:
        unread = _Unread(progress, reporter)
        for step, batch in enumerate(task.batches(progress.step), start=progress.step + 1):
            seed_everything(_step_seed(seed, step - 1))
            rate = learner.set_rate(step - 1)
            losses, total = _losses(learner, task, batch, unread)
            unread.sent.append(send(losses, len(batch[0]), asked_to_stop()))
            learner.update(total)

            done = step == settings.steps
            row = done or step % settings.log_every == 0
            checkpoint = step % settings.checkpoint_every == 0
            stop = unread.read(but=0 if row or checkpoint or step in snapshots else 1)
            if stop:
                unread.read()
            if first and row:
                scalars(progress.new_row(rate))
                write_text(folder.log, _csv(progress.rows))
            if first and step in snapshots:
                folder.write_snapshot(step, model, definition)
            if first and (checkpoint or stop) and not done:
                write_checkpoint(folder, identity, learner.stateful, progress)
            if stop and not done:
                logger.info("asked to stop after step %d, from which the same command goes on", step)
                processes.wait()  # whoever ends first ends all
                raise SystemExit(parallel.STOPPED)
    return _outcome(progress, snapshots, device)


def snapshot_steps(settings: Optimization) -> list[int]:
    """Return the steps at which weights are kept, ascending; the last step is always among them.

    They are those configured, or, of a number of them, 0, logarithmically spaced ones, and the last.

    >>> snapshot_steps(Optimization(steps=1000, snapshots=5))
    [0, 1, 10, 100, 1000]
    >>> snapshot_steps(Optimization(steps=1000, snapshots=[0, 7]))
    [0, 7, 1000]
    """
    if isinstance(settings.snapshots, list):
        return sorted({*settings.snapshots, settings.steps})
    spaced = np.geomspace(1, settings.steps, settings.snapshots - 1) if settings.snapshots > 2 else [settings.steps]
    return sorted({0, *(round(float(step)) for step in spaced), settings.steps})


def learning_rate(settings: Optimization, step: int) -> float:
    """Return the learning rate of the update that follows `step` updates.

    It warms up linearly, then falls as a cosine to 0, or to a tenth at each milestone.

    >>> settings = Optimization(steps=100, learning_rate=1.0, warmup_steps=10)
    >>> [round(learning_rate(settings, step), 3) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rate = settings.learning_rate
    if step < settings.warmup_steps:
        return rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "cosine":
        share = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
        return rate * (1 + math.cos(math.pi * share)) / 2
    passed = [milestone for milestone in settings.milestones if step >= milestone * settings.steps]
    return rate * 0.1 ** len(passed)


def seed_everything(seed: int) -> None:
    """Seed every generator that a plugin may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global state is what a plugin would use)
    torch.manual_seed(seed)


class _Learner:
    """A model, and what changes its weights: an optimizer, and a scaler of gradients in half precision."""

    def __init__(self, model: nn.Module, settings: Optimization, device: torch.device) -> None:
        self.model, self.settings, self.device = model.to(device).train(), settings, device
        self.network = self.model  # what computes the losses
        self.optimizer = _optimizer(model, settings)
        self.half = settings.precision != "float32" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half and settings.precision == "float16")

    def share_gradients(self) -> None:
        """Make gradients the means over all processes."""
        self.network = _distributed(self.model, self.device)

    def set_rate(self, step: int) -> float:
        """Set the learning rate of the update that follows `step` updates, and return it."""
        rate = learning_rate(self.settings, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def losses(self, task: Task, batch: Any) -> tuple[Losses, Tensor]:
        """Return the losses of a batch, and their sum."""
        with torch.autocast(self.device.type, getattr(torch, self.settings.precision), enabled=self.half):
            losses = task.losses(self.network, batch, self.device)
            return losses, torch.stack(list(losses.values())).sum()

    def update(self, total: Tensor) -> None:
        """Update the weights once."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @property
    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint holds the state of, by name."""
        return {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}


class _Unread:
    """Steps whose losses are not read yet; to read them is what moves progress on."""

    def __init__(self, progress: Progress, reporter: Reporter) -> None:
        self.progress, self.reporter = progress, reporter
        self.sent: deque[Sent] = deque()
        self.clock = time.perf_counter()

    def read(self, but: int = 0) -> bool:
        """Read the losses of all steps but the last few, and return whether a process was asked to stop.

        Raises:
            UserError: one is not finite.
        """
        stop = False
        while len(self.sent) > but:
            sent = self.sent.popleft()
            values, asked = receive(sent, self.progress.step)
            before, self.clock = self.clock, time.perf_counter()
            self.progress.add(values, sent.images, self.clock - before)
            self.reporter.reach(self.progress.step, sent.images, sum(values.values()))
            stop = stop or asked
        return stop


def _losses(learner: _Learner, task: Task, batch: Any, unread: _Unread) -> tuple[Losses, Tensor]:
    """Return the losses of a batch, and their sum; where a network fails on NaN, say instead which step made it."""
    try:
        return learner.losses(task, batch)
    except Exception:
        unread.read()
        raise


def _outcome(progress: Progress, snapshots: list[int], device: torch.device) -> Outcome:
    """Return what the run's record has of its training."""
    return {
        "snapshots": snapshots,
        "seconds": round(progress.seconds, 1),
        "images_per_second": round(progress.images / progress.seconds, 1),
        "processes": processes.size(),
        "device": parallel.hardware_name(device),
    }


def _step_seed(seed: int, step: int) -> int:
    """Return the seed of a step in this process."""
    rank = processes.rank()
    return stream_seed(seed, f"step, process {rank}" if rank else "step", step)


@contextlib.contextmanager
def _scalars(folder: RunFolder, settings: Optimization, done: int) -> Iterator[Callable[[events.Row], None]]:
    """Yield what writes a row of the log for TensorBoard, if that is wanted and this process the first.

    What an earlier process wrote of steps that are done again is not shown.
    """
    if not settings.tensorboard or processes.rank() > 0:
        yield lambda row: None
        return
    with events.writer(folder.path, purge_step=done + 1) as writer:
        yield lambda row: events.write(writer, events.of_row(row))


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with gradients that are means over all processes."""
    if device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UserError("norm is 'sync_batch', which needs GPUs where several processes train; expected 'group', say.")
    # A detector leaves out parameters in some steps: of a head, say, for images without objects.
    return nn.parallel.DistributedDataParallel(
        model, device_ids=None if device.type == "cpu" else [device], find_unused_parameters=True
    )


def _optimizer(model: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """Return SGD or AdamW, with weight decay on matrices and kernels, not on biases and normalization."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
