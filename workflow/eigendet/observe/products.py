"""The one expensive operation, samples times their transpose: exact to float32, half the arithmetic, no allocation.

The product is symmetric, so only blocks on and above the diagonal are computed. It does not see the settings of the
process: autocast, TF32 and the reduced precisions of `torch.set_float32_matmul_precision` are for the network alone.
On a GPU with TF32 tensor cores the float32 product is taken as two TF32 products of split samples, where a check
against float64 on that very device says that this is precise enough.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Bytes of samples that are multiplied at once, memory that every tap of a model shares; a GPU needs larger products.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}
SPLIT_TOLERANCE = 2e-7  # relative Frobenius error at which the split product is as good as the float32 one
_TF32_BITS, _TF32_HALF = ~0x1FFF, 0x1000  # TF32 keeps the sign, 8 exponent and 10 mantissa bits of float32


class Workspace:
    """Memory for one chunk of samples and its product on one device, reused by every accumulator that takes it.

    On a GPU, products run on a stream of their own beside the network's. There the chunk's memory is two halves that
    take turns, so the network's stream fills one while the other is multiplied, and nobody waits on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers = 1 if self.stream is None else 2
        self._done: list[torch.cuda.Event | None] = [None] * self._buffers
        self._turn = 0
        self._memory: dict[tuple[str, int], Tensor] = {}

    def positions(self, channels: int, dtype: torch.dtype) -> int:
        """Return how many samples fit in a chunk."""
        return max(1, CHUNK_BYTES[self.device.type] // self._buffers // (channels * dtype.itemsize))

    def chunk(self, channels: int, positions: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
        """Return memory of shape (channels, positions), arbitrary in content, to be filled on the current stream."""
        self._turn = (self._turn + 1) % self._buffers
        done = self._done[self._turn]
        if done is not None:
            torch.cuda.current_stream(self.device).wait_event(done)
        flat = self._take("chunk", channels * positions, dtype)
        return flat.view(positions, channels).T if channels_last else flat.view(channels, positions)

    def square(self, channels: int, dtype: torch.dtype) -> Tensor:
        """Return memory of shape (channels, channels) for a product; its content is arbitrary."""
        return self._take("square", channels * channels, dtype).view(channels, channels)

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Run the block after what the current stream holds so far, without making that stream wait."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield
            self._done[self._turn] = self.stream.record_event()

    def join(self) -> None:
        """Make the current stream wait for all products begun."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _take(self, use: str, elements: int, dtype: torch.dtype) -> Tensor:
        key, size = (use, self._turn if use == "chunk" else 0), elements * dtype.itemsize
        if key not in self._memory or self._memory[key].numel() < size:
            self.join()  # the smaller memory may still be in use
            self._memory[key] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._memory[key][:size].view(dtype)


def row_blocks(channels: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Return rows (begin, end) whose products with the rows from `begin` on make up the upper triangle.

    A quarter of the rows leaves 5/8 of the arithmetic; smaller products than these lose more speed than that gains.

    >>> list(row_blocks(400, torch.device("cpu")))
    [(0, 100), (100, 200), (200, 300), (300, 400)]
    """
    block = max(64, min(channels // 4, 256)) if device.type == "cpu" else max(512, channels // 4)
    return ((begin, min(begin + block, channels)) for begin in range(0, channels, block))


def gram(samples: Tensor, out: Tensor) -> Tensor:
    """Write `samples @ samples.T` to `out`, in the precision of its dtype, on and above the diagonal's blocks only.

    Args:
        samples: (C, P) float32 or float64.
        out: (C, C) of the same dtype; what is below the blocks of `row_blocks` is left as it is.

    Returns:
        `out`.

    Examples:
        >>> gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.empty(2, 2)).tolist()
        [[5.0, 6.0], [6.0, 9.0]]
    """
    if samples.is_cuda and samples.dtype == torch.float32 and split_is_precise(samples.device):
        return split_gram(samples, out)
    with _precision("ieee", samples.device):
        for begin, end in row_blocks(samples.shape[0], samples.device):
            torch.mm(samples[begin:end], samples[begin:].T, out=out[begin:end, begin:])
    return out


def split_gram(samples: Tensor, out: Tensor, multiply: Callable[..., Tensor] = torch.mm) -> Tensor:
    """Do the same as `gram` by TF32 products of samples split as X = H + L, H being X rounded to TF32.

    X Xᵀ = H Hᵀ + H Lᵀ + (H Lᵀ)ᵀ + L Lᵀ, whose last term is below float32's rounding and left out.

    Args:
        samples: (C, P) float32.
        out: (C, C) float32; what is below the blocks of `row_blocks` is left as it is.
        multiply: a product that may round its operands to TF32 and nothing else: H is unchanged by that, and L keeps
            11 of its 12 bits.

    Returns:
        `out`.

    Examples:
        >>> split_gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.empty(2, 2)).tolist()
        [[5.0, 6.0], [6.0, 9.0]]
    """
    # To the nearest, not towards zero: L would have the signs of X then, and L Lᵀ would not average out.
    high = ((samples.view(torch.int32) + _TF32_HALF) & _TF32_BITS).view(torch.float32)
    low = samples - high
    with _precision("tf32", samples.device):
        cross = multiply(high, low.T)
        for begin, end in row_blocks(samples.shape[0], samples.device):
            block = out[begin:end, begin:]
            multiply(high[begin:end], high[begin:].T, out=block)
            block += cross[begin:end, begin:]
            block += cross[begin:, begin:end].T
    return out


@functools.cache
def split_is_precise(device: torch.device) -> bool:
    """Return whether the split product on this GPU is both a fast one and within SPLIT_TOLERANCE of float64's.

    Tried once for each device, on samples with eigenvalues over eight decades.
    """
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False  # no TF32
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(256, 8192, generator=generator) * torch.logspace(0, -4, 256)[:, None]
    mixed = (torch.linalg.qr(torch.randn(256, 256, generator=generator))[0] @ samples).to(device)
    return split_error(mixed) < SPLIT_TOLERANCE


def split_error(samples: Tensor, multiply: Callable[..., Tensor] = torch.mm) -> float:
    """Return the relative Frobenius error of the split product of (C, P) samples, against float64.

    >>> split_error(torch.arange(12.0).view(3, 4))
    0.0
    """
    exact = samples.double() @ samples.double().T
    product = split_gram(samples, torch.zeros_like(exact, dtype=torch.float32), multiply).double()
    product = product.triu() + product.triu(1).T
    return float((product - exact).norm() / exact.norm())


@contextlib.contextmanager
def _precision(precision: str, device: torch.device) -> Iterator[None]:
    """Take float32 products in this precision, whatever the process has chosen for its network."""
    backend: Any = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    with torch.autocast(device.type, enabled=False):
        backend.fp32_precision = precision if device.type == "cuda" else "ieee"
        try:
            yield
        finally:
            backend.fp32_precision = before
