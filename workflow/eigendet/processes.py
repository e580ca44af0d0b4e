"""One process or several that work together: which one this is, and what they tell one another (see `parallel`)."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rank() -> int:
    """Which of the processes this is, from 0 on."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Return when all processes have come here."""
    if size() > 1:
        distributed.all_reduce(torch.zeros(1))  # on the CPU; a barrier would block a GPU


def sums(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the tensor's device."""
    if size() > 1:
        distributed.all_reduce(values)
    return values
