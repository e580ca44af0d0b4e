"""The moments of a map on a GPU in two kernels that read it where it lies: optional, and checked on the very device.

Plain torch reads a map about ten times, in 16 launches: for the shift, to subtract it, to sum, to multiply. Here each
tile of the product loads its samples, subtracts the shift in registers, and multiplies on tensor cores by three TF32
products of samples split in two, which together are as exact as a float32 one. Tensor cores add with rounding towards
zero, an error that grows with the number of terms: so every `SLAB` positions what they have added up goes to float64.

Needs Triton, which comes with torch's builds for CUDA, and a GPU with TF32 (compute capability 8.0).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SLAB = 128  # positions that tensor cores add up; simulated, rounding towards zero costs 4e-7
TOLERANCE = 1e-6  # relative error of a product and of sums, at which the kernels are not used
LOOKED_AT = 1024  # positions from which the shift is taken
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class _Layout(NamedTuple):
    """How the positions of a tensor (C, ...) lie in memory: images of rows of columns."""

    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]
    channel: int  # stride

    @property
    def contiguous(self) -> int:
        """1: along positions; 2: along channels; 0: along neither."""
        return 1 if self.strides[2] == 1 else 2 if self.channel == 1 else 0


def moments(part: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the shift of a tensor (C, ...), and sums and product of its samples less the shift.

    Args:
        part: of one of `DTYPES`, on a device for which `is_right`; with at least one position.

    Returns:
        (C,) float32, (C,) float64 and (C, C) float64, of which only the upper triangle counts. None: its positions
        have too many strides.
    """
    layout = _layout_of(part)
    if layout is None:
        return None
    with torch.cuda.device(part.device) if part.is_cuda else contextlib.nullcontext():  # whose stream Triton takes
        return _moments(part, layout)


def _moments(part: Tensor, layout: _Layout) -> tuple[Tensor, Tensor, Tensor]:
    from eigendet.moments import kernels  # here, since Triton takes a while to import, and builds for a CPU have none

    channels, positions = len(part), part[0].numel()
    shift = torch.empty(channels, device=part.device)
    step = -(-positions // LOOKED_AT)
    kernels.shift_kernel[(channels,)](
        part, shift, *layout.sizes[1:], positions, step, *layout.strides, layout.channel,
        LOOKED_AT=LOOKED_AT,
    )  # fmt: skip
    block = 16 if channels <= 16 else 32 if channels <= 32 else 64
    tiles = -(-channels // block)
    shares = max(1, min(-(-positions // (4 * SLAB)), 4 * _processors(part.device) // (tiles * (tiles + 1) // 2)))
    share = -(-positions // (shares * SLAB)) * SLAB
    shares = -(-positions // share)
    out = torch.empty(shares, channels + 1, channels, dtype=torch.float64, device=part.device)
    kernels.gram_kernel[(tiles, tiles, shares)](
        part, shift, out, channels, *layout.sizes[1:], positions, share, *layout.strides, layout.channel,
        CONTIGUOUS=layout.contiguous, BLOCK=block, STEP=32, SLAB=SLAB, num_warps=8 if block == 64 else 4,
    )  # fmt: skip
    total = out.sum(0) if shares > 1 else out[0]
    return shift, total[channels], total[:channels]


@functools.cache
def is_right(device: torch.device) -> bool:
    """Return whether the kernels run on a device and agree there with float64, tried once on small maps."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        errors = [_error(part) for part in _trials(device)]
    except Exception as error:  # no Triton, or whatever a compiler, a driver or another version of it may raise
        logger.warning("observing on %s in plain torch, since Triton raises: %s", device, str(error).split("\n")[0])
        return False
    if all(error <= TOLERANCE for error in errors):  # which NaN is not
        return True
    logger.warning("observing on %s in plain torch, since Triton's products are off by %s", device, errors)
    return False


def _layout_of(part: Tensor) -> _Layout | None:
    """Return how positions lie in memory, neighbors in dimension joined where one stride does for both."""
    joined: list[tuple[int, int]] = []
    for size, stride in zip(part.shape[1:], part.stride()[1:], strict=True):
        if size == 1:
            continue
        if joined and joined[-1][1] == size * stride:
            joined[-1] = (joined[-1][0] * size, stride)
        else:
            joined.append((size, stride))
    if len(joined) > 3:
        return None
    padded = [(1, 0)] * (3 - len(joined)) + joined
    (images, image), (rows, row), (columns, column) = padded
    return _Layout((images, rows, columns), (image, row, column), part.stride(0))


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _trials(device: torch.device) -> list[Tensor]:
    """Return maps (C, ...) in all layouts, one long, with a spectrum over six decades and means far from zero."""
    generator = torch.Generator().manual_seed(0)

    def drawn(channels: int, *shape: int) -> Tensor:
        mixed = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
        spread = torch.logspace(0, -3, channels)[:, None]
        samples = mixed @ (torch.randn(channels, math.prod(shape), generator=generator) * spread) + 5
        return samples.relu().view(channels, *shape).to(device)

    image = drawn(96, 2, 60, 70)
    channels_last = image.movedim(0, -1).contiguous().movedim(-1, 0)
    views = [image, image[:, :, 3:, :-9], channels_last, image[:, :, ::2, ::2], image.half(), image.bfloat16()]
    return [*views, drawn(24, 1, 100_000), drawn(8, 1, 1, 5000)]


def _error(part: Tensor) -> float:
    """Return the larger relative error of the product and of the sums of a tensor, against float64."""
    results = moments(part)
    assert results is not None
    shift, sums, product = results
    exact = part.double().flatten(1) - shift.double()[:, None]
    expected = (exact @ exact.T).triu()
    least = torch.finfo(torch.float64).tiny  # samples that never vary have products of exactly 0
    apart: Any = (product.triu() - expected).norm() / expected.norm().clamp(least)
    scale = exact.abs().sum(1).clamp(least)
    return max(float(apart), float(((sums - exact.sum(1)).abs() / scale).max()))
