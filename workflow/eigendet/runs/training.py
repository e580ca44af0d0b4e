"""One loop for classifiers and detectors, which can stop at any moment and goes on to the same weights.

A run is a folder:

    run.json                    what was run and what came of it; written last, so its presence means complete
    log.csv                     losses, learning rate and throughput, a row every `log_every` steps
    checkpoints/step_0000000.pt snapshots: step, weights and definition, tensors and plain values only
    last.ckpt                   what resuming needs; removed when the run is complete

Every random choice is drawn from a stream fixed by the seed and the step, so a resumed run draws the same ones. Several
processes share each batch (see `parallel`); the first writes the files.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eigendet import processes
from eigendet.config.sections import Optimization
from eigendet.data.batches import stream_seed
from eigendet.errors import UserError
from eigendet.files import read_json, write_json, write_text
from eigendet.networks.models import Definition
from eigendet.networks.weights import save
from eigendet.runs import parallel

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What a run learns: batches from a step on, and the losses of one batch on a device."""

    batches: Callable[[int], Iterable[Any]]
    losses: Callable[[nn.Module, Any, torch.device], Losses]


def classification_losses(model: nn.Module, batch: Any, device: torch.device) -> Losses:
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return {"loss_classifier": nn.functional.cross_entropy(model(images), labels)}


def detection_losses(model: nn.Module, batch: Any, device: torch.device) -> Losses:
    images, targets = batch
    images = [image.to(device, non_blocking=True) for image in images]
    targets = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
    losses: Losses = model(images, targets)
    return losses


def fit(
    folder: Path,
    model: nn.Module,
    definition: Definition,
    task: Task,
    settings: Optimization,
    seed: int,
    identity: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Train `model` for `settings.steps` updates, or go on from the folder's last checkpoint.

    On SIGTERM the step under way is finished, a checkpoint written, and the process ends with status 143.

    Args:
        identity: plain values that fix the outcome; a checkpoint or a finished run of another identity is refused.

    Returns:
        The content of run.json, which the caller completes and writes with `finish`.

    Raises:
        UserError: the folder holds another run, or a loss is not finite.
    """
    model.to(device).train()
    optimizer = _optimizer(model, settings)
    half = settings.precision != "float32" and device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half and settings.precision == "float16")
    progress = _resume(folder, identity, model, optimizer, scaler)
    snapshots = snapshot_steps(settings)
    first, together = processes.rank() == 0, processes.size()
    if progress.step == 0 and first:
        for stale in (folder / "checkpoints").glob("step_*.pt"):
            stale.unlink()
        if 0 in snapshots:
            _snapshot(folder, 0, model, definition)

    network = _distributed(model, device) if together > 1 else model
    clock = time.perf_counter()
    with (
        parallel.stopping() as asked_to_stop,
        tqdm(total=settings.steps, initial=progress.step, unit="step", disable=None if first else True) as bar,
    ):
        for batch in task.batches(progress.step):
            seed_everything(stream_seed(seed, "step" if first else f"step, process {processes.rank()}", progress.step))
            rate = learning_rate(settings, progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, getattr(torch, settings.precision), enabled=half):
                losses = task.losses(network, batch, device)
                total = torch.stack(list(losses.values())).sum()
            values, stop = _over_processes(losses, asked_to_stop(), progress.step)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
            if settings.clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()

            progress.add(values, len(batch[0]) * together, time.perf_counter() - clock)
            clock = time.perf_counter()
            bar.update()
            done = progress.step == settings.steps
            if first and (progress.step % settings.log_every == 0 or done):
                _log(folder, progress, rate, settings.steps, bar)
            if first and progress.step in snapshots:
                _snapshot(folder, progress.step, model, definition)
            if first and (stop or progress.step % settings.checkpoint_every == 0) and not done:
                _checkpoint(folder, identity, model, optimizer, scaler, progress)
            if stop and not done:
                logger.info("asked to stop after step %d, from which the same command goes on", progress.step)
                processes.wait()  # whoever ends first ends all
                raise SystemExit(parallel.STOPPED)
    return {
        "identity": identity,
        "definition": definition.plain(),
        "snapshots": snapshots,
        "seconds": round(progress.seconds, 1),
        "images_per_second": round(progress.images / progress.seconds, 1),
        "processes": together,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def finish(folder: Path, result: dict[str, Any]) -> None:
    """Write run.json, which marks the run as complete, and remove what only resuming needed."""
    write_json(folder / "run.json", result)
    (folder / "last.ckpt").unlink(missing_ok=True)


def is_complete(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, complete.

    Raises:
        UserError: it holds another complete run.
    """
    if not (folder / "run.json").is_file():
        return False
    record = read_json(folder / "run.json", "a run's record")
    _same(folder / "run.json", record.get("identity", {}) if isinstance(record, dict) else {}, identity)
    return True


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:07d}.pt"


def snapshot_steps(settings: Optimization) -> list[int]:
    """Steps at which weights are kept, ascending: those configured, or 0, logarithmically spaced ones, and the last.

    The last step is always among them.
    """
    if isinstance(settings.snapshots, list):
        return sorted({*settings.snapshots, settings.steps})
    spaced = np.geomspace(1, settings.steps, settings.snapshots - 1) if settings.snapshots > 2 else [settings.steps]
    return sorted({0, *(round(float(step)) for step in spaced), settings.steps})


def learning_rate(settings: Optimization, step: int) -> float:
    """Learning rate of the update that follows `step` updates: linear warm-up, then cosine to 0 or steps of a tenth."""
    rate = settings.learning_rate
    if step < settings.warmup_steps:
        return rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "cosine":
        share = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
        return rate * (1 + math.cos(math.pi * share)) / 2
    return rate * 0.1 ** sum(step >= milestone * settings.steps for milestone in settings.milestones)


def seed_everything(seed: int) -> None:
    """Seed every generator that a plugin may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global state is what a plugin would use)
    torch.manual_seed(seed)


class _Progress:
    """What a run has done so far; plain values, so that a checkpoint can hold it."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {"step": 0, "rows": [], "sums": {}, "since": [0, 0, 0.0], "images": 0, "seconds": 0.0}
        self.step: int = state["step"]
        self.rows: list[dict[str, float]] = state["rows"]
        self.sums: dict[str, float] = state["sums"]
        self.since: list[float] = state["since"]  # steps, images and seconds since the last row
        self.images: int = state["images"]
        self.seconds: float = state["seconds"]

    def add(self, losses: dict[str, float], images: int, seconds: float) -> None:
        self.step += 1
        self.images += images
        self.seconds += seconds
        self.since = [self.since[0] + 1, self.since[1] + images, self.since[2] + seconds]
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def new_row(self, rate: float) -> dict[str, float]:
        """Close the interval: means of the losses over its steps."""
        steps, images, seconds = self.since
        means = {name: value / steps for name, value in self.sums.items()}
        row = {"step": self.step, "learning_rate": rate, "loss": sum(means.values())} | means
        row["images_per_second"] = images / seconds
        self.rows.append(row)
        self.sums, self.since = {}, [0, 0, 0.0]
        return row


def _log(folder: Path, progress: _Progress, rate: float, steps: int, bar: Any) -> None:
    row = progress.new_row(rate)
    bar.set_postfix_str(f"loss {row['loss']:.4g}")
    if bar.disable:
        speed = row["images_per_second"]
        logger.info("step %d of %d: loss %.4g, %.3g images/s", progress.step, steps, row["loss"], speed)
    write_text(folder / "log.csv", _csv(progress.rows))


def _over_processes(losses: Losses, stop: bool, step: int) -> tuple[dict[str, float], bool]:
    """Means of the losses over all processes, and whether any was asked to stop.

    Raises:
        UserError: a loss is not finite, in any process; it is raised in all.
    """
    own = [loss.detach().float() for loss in losses.values()]
    *means, stopped = (processes.sums(torch.stack([*own, own[0].new_tensor(float(stop))])) / processes.size()).tolist()
    values = dict(zip(losses, means, strict=True))
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"training diverged at step {step}: {', '.join(broken)}. Earlier snapshots are kept. "
            "Lower learning_rate, lengthen warmup_steps, or set clip_norm."
        )
    return values, stopped > 0


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, with gradients that are means over all processes."""
    if device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UserError("norm is 'sync_batch', which needs GPUs where several processes train; expected 'group', say.")
    # A detector leaves out parameters in some steps: of a head, say, for images without objects.
    return nn.parallel.DistributedDataParallel(
        model, device_ids=None if device.type == "cpu" else [device], find_unused_parameters=True
    )


def _optimizer(model: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and kernels, not on biases and normalization."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _snapshot(folder: Path, step: int, model: nn.Module, definition: Definition) -> None:
    content = {"step": step, "model": model.state_dict(), "definition": definition.plain()}
    save(snapshot_path(folder, step), content)


def _checkpoint(
    folder: Path, identity: dict[str, Any], model: nn.Module, optimizer: Any, scaler: Any, progress: _Progress
) -> None:
    content = {
        "identity": identity,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "progress": vars(progress),
    }
    save(folder / "last.ckpt", content)


def _resume(folder: Path, identity: dict[str, Any], model: nn.Module, optimizer: Any, scaler: Any) -> _Progress:
    path = folder / "last.ckpt"
    if not path.is_file():
        return _Progress()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers raise
        raise UserError(f"{path}: cannot be loaded ({error}); delete it to train from the start.") from None
    _same(path, content["identity"], identity)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    progress = _Progress(content["progress"])
    logger.info("resuming from step %d (%s)", progress.step, path)
    return progress


def _same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError naming every key in which two identities differ."""
    before, now = _flat(found), _flat(wanted)
    apart = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if apart:
        differences = "; ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} now" for key in apart)
        raise UserError(
            f"{path}: belongs to another run: {differences}. Delete it to train anew, or use another folder."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
