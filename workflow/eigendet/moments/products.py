"""The one expensive operation, samples times their transpose: exact to float32, and at most half of the arithmetic.

A float32 product that adds many positions one after another loses what a float32 sum of so many terms loses, and a
tensor core, which rounds towards zero, loses more. So positions are cut into slabs: each is a product of its own in
float32, and slabs are added in float64, or on a GPU, where that would be a copy of them all, in float32 as a tree. On a
CPU, blocks on and above the diagonal are computed alone.

Products do not see the settings of the process: autocast, TF32 and the reduced precisions of
`torch.set_float32_matmul_precision` are for the network alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Bytes of samples that are multiplied at once, memory that every tap of a model shares; a GPU needs larger products.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}
# Positions that a float32 product sums. Shorter slabs keep more of a GPU busy; a CPU adds those of few channels one
# after another, so that errors grow with the length.
SLAB = {"cpu": 4096, "cuda": 1024}
FEW, SLAB_OF_FEW = 12, 128


class Workspace:
    """Memory for one chunk of samples and its products, reused by every accumulator that takes it.

    On a GPU nothing is kept: torch's allocator hands out the same memory again, and knows which stream may use it.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory whose content is arbitrary, the same at every call for one use."""
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        if use not in self._memory or self._memory[use].numel() < size:
            self._memory[use] = torch.empty(size, dtype=torch.uint8)
        return self._memory[use][:size].view(dtype).view(shape)


def positions_of_chunk(channels: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many samples fit in a chunk, at least one.

    >>> positions_of_chunk(256, torch.float32, torch.device("cpu"))
    16384
    """
    return max(1, CHUNK_BYTES[device.type] // (channels * dtype.itemsize))


def slabs_of(channels: int, positions: int, device: torch.device) -> tuple[int, int]:
    """Return into how many slabs positions are cut, and how long these are; the last may be filled up with zeros.

    >>> slabs_of(256, 950, torch.device("cpu")), slabs_of(256, 60800, torch.device("cpu"))
    ((1, 950), (15, 4056))
    """
    count = -(-positions // (SLAB_OF_FEW if channels <= FEW else SLAB[device.type]))
    if count == 1:
        return 1, positions
    return count, -(-positions // (8 * count)) * 8  # aligned as vectors are loaded


def row_blocks(channels: int) -> Iterator[tuple[int, int]]:
    """Return rows (begin, end) whose products with the rows from `begin` on make up the upper triangle.

    A quarter of the rows leaves 5/8 of the arithmetic; smaller products than these lose more speed than that gains.

    >>> list(row_blocks(400))
    [(0, 100), (100, 200), (200, 300), (300, 400)]
    """
    block = max(64, min(channels // 4, 256))
    return ((begin, min(begin + block, channels)) for begin in range(0, channels, block))


def gram(slabs: Tensor, workspace: Workspace) -> Tensor:
    """Return the sum over slabs of X Xᵀ, each in the precision of its dtype.

    Args:
        slabs: (S, C, L), X being (C, L), float32 or float64.
        workspace: what lends memory.

    Returns:
        (C, C), in float64 or the dtype of the slabs; on a CPU, what is below the blocks of `row_blocks` is arbitrary.

    Examples:
        >>> gram(torch.tensor([[[1.0], [0.0]], [[2.0], [3.0]]]), Workspace()).tolist()
        [[5.0, 6.0], [6.0, 9.0]]
    """
    device, channels = slabs.device, slabs.shape[1]
    with _full_precision(device):
        if device.type == "cpu" and channels > FEW:
            return _upper(slabs, workspace)
        at_once = max(1, CHUNK_BYTES[device.type] // (slabs.dtype.itemsize * channels**2))
        products = (
            torch.bmm(group, group.mT, out=workspace.take("products", (len(group), channels, channels), *_kind(slabs)))
            for group in slabs.split(at_once)
        )
        first, *others = (product.sum(0, dtype=torch.float64 if device.type == "cpu" else None) for product in products)
        for other in others:
            first += other
        return first


def _upper(slabs: Tensor, workspace: Workspace) -> Tensor:
    """Do the same, slab by slab and on and above the diagonal's blocks alone."""
    count, channels, _ = slabs.shape
    product = workspace.take("products", (channels, channels), *_kind(slabs))
    if count == 1:
        for begin, end in row_blocks(channels):
            torch.mm(slabs[0, begin:end], slabs[0, begin:].mT, out=product[begin:end, begin:])
        return product
    total = workspace.take("total", (channels, channels), torch.float64, slabs.device)
    for number, slab in enumerate(slabs):
        for begin, end in row_blocks(channels):
            block = torch.mm(slab[begin:end], slab[begin:].mT, out=product[begin:end, begin:])
            if number == 0:
                total[begin:end, begin:] = block
            else:
                total[begin:end, begin:] += block
    return total


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Take float32 products in full, whatever the process has chosen for its network."""
    backend: Any = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else _UNCHANGED:
        backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.fp32_precision = before


_UNCHANGED = contextlib.nullcontext()
