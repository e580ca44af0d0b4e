"""Samples gathered in packs that fit a chunk of memory: small maps together, large ones cut, padding left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor


def without_padding(samples: Tensor, channel_dim: int, sizes: Sequence[tuple[int, ...]] | None) -> list[Tensor]:
    """Return views (C, ...) of what is not padding, for each entry of the first dimension, or of all at once.

    Args:
        samples: any shape with the channels in `channel_dim`.
        channel_dim: the dimension of the channels.
        sizes: for each entry of the first dimension, how much of the further ones is not padding; None: all of them.

    Examples:
        >>> import torch
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


def by_weight(parts: list[Tensor], together: bool, channel_dim: int) -> list[tuple[float, list[Tensor]]]:
    """Return tensors (C, ...) by the weight of a position in them: 1 over those of its entry of the first dimension.

    Args:
        parts: what `without_padding` returned.
        together: whether these are all entries in one tensor, or a tensor for each.
        channel_dim: that of the channels before they came first; 0: a tensor without such entries is one itself.

    Examples:
        >>> import torch
        >>> by_weight([torch.zeros(3, 2, 4, 4)], True, 1)[0][0]
        0.0625
        >>> [weight for weight, _ in by_weight([torch.zeros(3, 2, 5), torch.zeros(3, 4, 5)], False, 1)]
        [0.1, 0.05]
    """
    alike: dict[float, list[Tensor]] = {}
    for part in parts:
        entries = part.shape[1] if together and channel_dim != 0 else 1
        if part.numel():
            alike.setdefault(entries / part[0].numel(), []).append(part)
    return list(alike.items())


def packs(parts: list[Tensor], fits: int) -> Iterator[list[Tensor]]:
    """Yield lists of views (C, ...) with at most `fits` positions each: small ones together, large ones cut.

    >>> import torch
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
