"""What an interrupted run goes on from: the states of its network and optimizer, and what it has done so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from eigendet.errors import UserError, first_line, kind
from eigendet.networks.checkpoints import load, save
from eigendet.runs.folder import Identity, RunFolder, require_same

logger = logging.getLogger(__name__)

Stateful = nn.Module | torch.optim.Optimizer | torch.amp.GradScaler


@dataclass
class Progress:
    """What a run has done so far; plain values, so that a checkpoint can hold it."""

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)  # of the losses, since the last row
    since: list[float] = field(default_factory=lambda: [0, 0, 0.0])  # steps, images and seconds since the last row
    images: int = 0
    seconds: float = 0.0

    def add(self, losses: dict[str, float], images: int, seconds: float) -> None:
        """Count one step."""
        self.step += 1
        self.images += images
        self.seconds += seconds
        self.since = [self.since[0] + 1, self.since[1] + images, self.since[2] + seconds]
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def new_row(self, rate: float) -> dict[str, float]:
        """Close the interval, and return means of the losses over its steps."""
        steps, images, seconds = self.since
        means = {name: value / steps for name, value in self.sums.items()}
        row = {"step": self.step, "learning_rate": rate, "loss": sum(means.values())} | means
        row["images_per_second"] = images / seconds
        self.rows.append(row)
        self.sums, self.since = {}, [0, 0, 0.0]
        return row


def write_checkpoint(
    folder: RunFolder, identity: Identity, stateful: Mapping[str, Stateful], progress: Progress
) -> None:
    """Write what a run goes on from: the states of what is trained, by name, and what was done."""
    states = {name: part.state_dict() for name, part in stateful.items()}
    save(folder.checkpoint, {"identity": identity, **states, "progress": vars(progress)})


def resume(folder: RunFolder, identity: Identity, stateful: Mapping[str, Stateful], steps: int) -> Progress:
    """Load the folder's checkpoint, if there is one, into what is trained; return what was done of so many steps.

    Raises:
        UserError: it cannot be loaded, or is of another run or network, or beyond the last step.
    """
    path, remedy = folder.checkpoint, "delete it to train from the start"
    if not path.is_file():
        return Progress()
    content = load(path, {"identity", "progress", *stateful}, "what training goes on from", remedy)
    if not isinstance(content["identity"], dict):
        raise UserError(f"{path}: identity is {kind(content['identity'])}; expected a dict: {remedy}.")
    require_same(path, content["identity"], identity)
    progress = _checked_progress(path, content["progress"], steps, remedy)
    try:
        for name, part in stateful.items():
            if content[name]:  # a scaler that was not in use has no state: on a CPU, say, where the run began
                part.load_state_dict(content[name])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the state of the {name} is not that of this network ({reason}); {remedy}.") from None
    logger.info("resuming from step %d (%s)", progress.step, path)
    return progress


def _checked_progress(path: Path, plain: Any, steps: int, remedy: str) -> Progress:
    """Return what a checkpoint says was done.

    Raises:
        UserError: that cannot be so: there are no more steps to do, say.
    """
    try:
        TypeAdapter(Progress).validate_python(plain)
        progress = Progress(**plain)  # as it was written: validation would make all numbers of rows floats
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, ("progress", *fault["loc"])))
        raise UserError(f"{path}: {place} is {str(fault['input'])[:40]!r} ({fault['msg']}); {remedy}.") from None
    except TypeError as error:
        raise UserError(f"{path}: progress cannot be read ({first_line(error)}); {remedy}.") from None
    numbers = [progress.images, progress.seconds, *progress.since, *progress.sums.values()]
    if not 0 < progress.step < steps or len(progress.since) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"{path}: says that {progress.step} of {steps} steps are done, in {progress.seconds} s; expected 1 to "
            f"{steps - 1}: {remedy}."
        )
    return progress
