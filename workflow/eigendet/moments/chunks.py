"""The moments of a chunk of samples, about a shift that is about its own mean: exact to float32's rounding.

The shift is about the mean, not the mean itself, because many maps hold one value again and again: the zeros of a ReLU.
Adding the same number many times rounds the same way many times, and that bias, not the random part, is then the error
of a float32 product (5e-7 instead of 1e-8). A shift with few bits makes those products exact. Any other number that is
held as often, as that of an image's background, is itself the shift, and then adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eigendet.moments import fused
from eigendet.moments.packs import packs
from eigendet.moments.products import Workspace, gram, positions_of_chunk, slabs_of

UNDERFLOW = 1e-30  # a variance below which squares are so small that float32 does not hold their digits
LONG = 64  # positions looked at, from which on repeated values are looked for
OFTEN = 0.35  # share of positions that hold one value, from which on it is the shift
_EXPONENT = 0x7F800000  # bits of a float32 number


@dataclass(frozen=True)
class Moments:
    """Sums of a chunk of samples, and of their products, each less a shift."""

    count: int
    shift: Tensor  # (C,) float32
    total: Tensor  # (C,); NaN where a sample was not finite, or its square overflowed
    product: Tensor  # (C, C), of which only the upper triangle counts; memory that the next chunk's takes


def moments_of(parts: list[Tensor], workspace: Workspace) -> Iterator[Moments]:
    """Yield the moments of tensors (C, ...), of small ones together, of large ones in chunks.

    >>> [chunk] = moments_of([torch.tensor([[1.0, 2.0], [4.0, 4.0]])], Workspace())
    >>> chunk.count, chunk.shift.tolist(), chunk.total.tolist(), chunk.product.triu().tolist()
    (2, [1.5, 4.0], [0.0, 0.0], [[0.5, 0.0], [0.0, 0.0]])
    """
    parts = [part for part in parts if part.numel()]
    if not parts:
        return
    channels, dtype, device = len(parts[0]), precision_of(parts[0]), parts[0].device
    if dtype == torch.float32 and parts[0].dtype in fused.DTYPES and fused.is_right(device):
        while parts and (result := fused.moments(parts[0])) is not None:
            yield _checked(parts.pop(0)[0].numel(), *result)
    for pack in packs(parts, positions_of_chunk(channels, dtype, device)):
        shift = shift_of(pack)
        positions, slabs = _shifted(pack, shift, dtype, workspace)
        product = gram(slabs, workspace)
        if device.type == "cpu" and float(product.trace()) < UNDERFLOW * positions and slabs.any():
            positions, slabs = _shifted(pack, shift, torch.float64, workspace)
            product = gram(slabs, workspace)
        yield _checked(positions, shift, slabs.sum((0, 2)), product)


def precision_of(part: Tensor) -> torch.dtype:
    """Return the dtype in which the products of a tensor (C, ...) are taken: float32, or float64 if it is.

    So are those of one or two channels, which a CPU would add one after another, and which cost nothing.
    """
    return torch.float64 if part.dtype == torch.float64 or len(part) <= 2 else torch.float32


def _checked(count: int, shift: Tensor, total: Tensor, product: Tensor) -> Moments:
    return Moments(count, shift, total.add(product.diagonal(), alpha=0), product)


def shift_of(pack: list[Tensor]) -> Tensor:
    """Return about the mean of tensors (C, ...), from some of their positions: (C,) float32.

    It is rounded to a multiple of a power of two, 1/16 to 1/4 of the mean deviation, by adding what leaves no finer
    bits and taking it away. A channel that never varies is shifted by its value, so that it stays exactly 0.

    >>> shift_of([torch.tensor([[0.0, 1.0, 2.0, 2.9], [7.3, 7.3, 7.3, 7.3]])]).tolist()
    [1.5, 7.300000190734863]
    """
    some = _thinned(pack[0]) if len(pack) == 1 else torch.cat([_thinned(part).flatten(1) for part in pack], 1)
    some = some.float().flatten(1)
    first = some[:, :1]
    apart = some - first
    mean = apart.mean(1, keepdim=True)
    spread = torch.linalg.vector_norm(apart.sub_(mean), ord=1, dim=1)  # which has no square that could overflow
    coarse = (spread.view(torch.int32) & _EXPONENT).view(torch.float32)
    coarse.mul_(1.5 * 2**23 / 4 / 2 ** some.shape[1].bit_length())
    shift = mean.add_(first).squeeze(1).add_(coarse).sub_(coarse)
    if some.device.type != "cpu" or some.shape[1] < LONG:
        return shift
    few = some.numpy()[:, :: some.shape[1] // LONG]
    value = _repeated(few)
    return shift if value is None else torch.from_numpy(value).where(torch.from_numpy(value != 0), shift)


def _repeated(samples: np.ndarray) -> np.ndarray | None:
    """Return what each channel of samples (C, P) holds often, or 0; None: no channel holds anything but 0 often.

    >>> _repeated(np.array([[3.0, 7.0, 7.0, 7.0, 1.0, 2.0, 4.0, 5.0], [0.0] * 4 + [1.0, 2.0, 3.0, 4.0]])).tolist()
    [7.0, 0.0]
    """
    ordered = np.sort(samples, 1)
    apart = int(OFTEN * samples.shape[1])
    is_often = ordered[:, apart:] == ordered[:, :-apart]
    channels, places = np.arange(len(samples)), is_often.argmax(1)
    values = np.where(is_often[channels, places], ordered[channels, places], 0)
    return values if values.any() else None


def _thinned(part: Tensor) -> Tensor:
    """Return a few rows of a large tensor (C, ...), evenly spread, or all of a small one."""
    dims = range(1, part.dim())
    dim = max(dims[:-1] or dims, key=lambda dim: part.shape[dim])
    if part.shape[dim] < 8:
        dim = max(dims, key=lambda dim: part.shape[dim])
    step = max(1, min(part.shape[dim] // 4, part[0].numel() // 128))
    return part[(slice(None),) * dim + (slice(step // 2, None, step),)]


def _shifted(pack: list[Tensor], shift: Tensor, dtype: torch.dtype, workspace: Workspace) -> tuple[int, Tensor]:
    """Return how many positions tensors (C, ...) have, and these less the shift as slabs (S, C, L) in their layout."""
    channels, device = len(shift), shift.device
    positions = sum(part[0].numel() for part in pack)
    count, length = slabs_of(channels, positions, device)
    if pack[0].stride(0) == 1:
        chunk = workspace.take("chunk", (count * length, channels), dtype, device).T
    else:
        chunk = workspace.take("chunk", (channels, count * length), dtype, device)
    begin = 0
    for part in pack:
        end = begin + part[0].numel()
        target = chunk[:, begin:end].unflatten(1, part.shape[1:])
        torch.sub(part, shift.view(-1, *[1] * (part.dim() - 1)), out=target)
        begin = end
    if positions < count * length:
        chunk[:, positions:] = 0
    return positions, chunk.unflatten(1, (count, length)).transpose(0, 1)
