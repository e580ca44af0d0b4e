"""The losses of a step on their way from the device to this process, which reads them without keeping the device idle.

A GPU works off a queue. A value is there once all that was queued before it is done, so a process that asks for the
losses of each step at once leaves the queue empty until it has prepared the next step. Here losses are sent with their
step, and may be read when the next one is queued. What processes agree on goes with them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eigendet import processes
from eigendet.errors import UserError

Losses = dict[str, Tensor]


class Sent(NamedTuple):
    """The losses of a step, on their way.

    Attributes:
        names: of the losses.
        told: on the CPU: means of the losses over all processes, then the share of processes that were asked to stop.
        images: that the step looked at, in all processes.
        there: what happens on a GPU when the values are there; None: they are.
    """

    names: list[str]
    told: Tensor
    images: int
    there: torch.cuda.Event | None


def send(losses: Losses, images: int, stop: bool) -> Sent:
    """Send the losses of a step, of so many images in this process, which was asked to stop or not.

    >>> receive(send({"loss": torch.tensor(0.5)}, images=2, stop=False), step=0)
    ({'loss': 0.5}, False)
    """
    own = [loss.detach().float() for loss in losses.values()]
    # Not by `new_tensor`: a number that is copied from pageable memory waits for the device, one that is filled in not.
    told = processes.sums(torch.stack([*own, torch.full_like(own[0], float(stop))])) / processes.size()
    images *= processes.size()
    if told.device.type == "cpu":
        return Sent(list(losses), told, images, None)
    told = told.to("cpu", non_blocking=True)  # to pinned memory
    there = torch.cuda.Event()
    there.record()
    return Sent(list(losses), told, images, there)


def receive(sent: Sent, step: int) -> tuple[dict[str, float], bool]:
    """Wait for the losses of a step, and return them, and whether any process was asked to stop.

    Raises:
        UserError: a loss is not finite, in any process; it is raised in all. `step` is what it is called.
    """
    if sent.there is not None:
        sent.there.synchronize()
    *means, stopped = sent.told.tolist()
    values = dict(zip(sent.names, means, strict=True))
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"training diverged at step {step}: {', '.join(broken)}. Earlier snapshots are kept. "
            "Lower learning_rate, lengthen warmup_steps, or set clip_norm."
        )
    return values, stopped > 0
