"""One process or several that work together: which one this is, and what they tell one another.

`eigendet.runs.parallel` starts them. A process alone has rank 0 of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rank() -> int:
    """Return which of the processes this is, from 0 on."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """Return how many processes work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Wait until all processes have come here."""
    if size() > 1:
        distributed.all_reduce(torch.zeros(1))  # on the CPU; a barrier would block a GPU


def sums(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, on the tensor's device; the tensor is overwritten by it.

    >>> sums(torch.tensor([1.0, 2.0])).tolist()  # a process alone
    [1.0, 2.0]
    """
    if size() > 1:
        distributed.all_reduce(values)
    return values
