"""Samples gathered in packs that fit a chunk of memory, and shifted: small maps together, large ones cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eigendet.observe.products import Workspace, slabs_of

_EXPONENT = 0x7F800000  # bits of a float32 number


def without_padding(samples: Tensor, channel_dim: int, sizes: Sequence[tuple[int, ...]] | None) -> list[Tensor]:
    """Return views (C, ...) of what is not padding, for each entry of the first dimension, or of all at once.

    Args:
        samples: any shape with the channels in `channel_dim`.
        channel_dim: the dimension of the channels.
        sizes: for each entry of the first dimension, how much of the further ones is not padding; None: all of them.

    Examples:
        >>> [tuple(view.shape) for view in without_padding(torch.zeros(2, 3, 8, 8), 1, [(8, 5), (4, 8)])]
        [(3, 8, 5), (3, 4, 8)]
        >>> [tuple(view.shape) for view in without_padding(torch.zeros(2, 3, 8, 8), 1, None)]
        [(3, 2, 8, 8)]
    """
    moved = samples.movedim(channel_dim, 0)
    if sizes is None:
        return [moved if moved.dim() > 1 else moved.unsqueeze(1)]
    views = []
    for entry, size in enumerate(sizes):
        view = moved[:, entry]
        for dim, extent in enumerate(size, start=1):
            view = view.narrow(dim, 0, extent)
        views.append(view)
    return views


def packs(parts: list[Tensor], fits: int) -> Iterator[list[Tensor]]:
    """Yield lists of views (C, ...) with at most `fits` positions each: small ones together, large ones cut.

    >>> [[tuple(piece.shape) for piece in pack] for pack in packs([torch.zeros(3, 4), torch.zeros(3, 15)], fits=10)]
    [[(3, 4)], [(3, 10)], [(3, 5)]]
    """
    pack: list[Tensor] = []
    room = fits
    for part in parts:
        for piece in _pieces(part, fits):
            positions = piece[0].numel()
            if positions > room:
                yield pack
                pack, room = [], fits
            if positions:
                pack.append(piece)
                room -= positions
    if pack:
        yield pack


def _pieces(part: Tensor, fits: int) -> Iterator[Tensor]:
    """Yield views of a tensor (C, ...) with at most `fits` positions each, in order."""
    positions = part[0].numel()
    if positions <= fits:
        yield part
        return
    longest = next(dim for dim in range(1, part.dim()) if part.shape[dim] > 1)
    step = max(1, fits * part.shape[longest] // positions)
    for piece in part.split(step, longest):
        yield from _pieces(piece, fits)


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
    return mean.add_(first).squeeze(1).add_(coarse).sub_(coarse)


def _thinned(part: Tensor) -> Tensor:
    """Return a few rows of a large tensor (C, ...), evenly spread, or all of a small one."""
    dims = range(1, part.dim())
    dim = max(dims[:-1] or dims, key=lambda dim: part.shape[dim])
    if part.shape[dim] < 8:
        dim = max(dims, key=lambda dim: part.shape[dim])
    step = max(1, min(part.shape[dim] // 4, part[0].numel() // 128))
    return part[(slice(None),) * dim + (slice(step // 2, None, step),)]


def shifted(pack: list[Tensor], shift: Tensor, dtype: torch.dtype, workspace: Workspace) -> tuple[int, Tensor]:
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
