"""What taps hold and how high they drive the peak, against what docs/covariance-engine.md promises.

That is 8 C² bytes for each accumulator, one chunk of samples with its products, and the weights of the shortcuts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.moments.products import CHUNK_BYTES
from eigendet.observe.keys import Point
from eigendet.observe.taps import Taps, tap
from tests.gpu.figures import Figure, guarded, synchronize
from tests.gpu.networks import canvas, classifier, detector

MIB = 2**20
PASSES = 20
SHARE, SLACK = 1.05, 16  # MiB: fragments of the allocator, sums and means, checks of shortcuts in the first pass
GROWTH = 1  # MiB


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield, for a classifier and a detector, what is held, the peak on a GPU, and what grows."""
    side = 64 if small else 224
    title = f"{'ResNet-18' if small else 'ResNet-50'}, 4 images of {side}x{side}, conv, act, block"
    images = torch.randn(4, 3, side, side, device=device)
    yield from guarded(title, measured(title, classifier(device, small), images, ("conv", "act", "block")))
    height, width = canvas(small)
    title = f"Faster R-CNN R-{18 if small else 50}-FPN, {height}x{width}, act"
    image = torch.rand(3, height, width, device=device)
    yield from guarded(title, measured(title, detector("Faster R-CNN", device, small), [image], ("act",)))


def measured(title: str, model: nn.Module, images: Any, points: tuple[Point, ...]) -> Iterator[Figure]:
    """Yield the figures of one model."""
    device = next(model.parameters()).device
    with torch.no_grad():
        _multiply(device)
        model(images)  # loads and keeps what the first pass does
        bare_peak = peak(device, partial(model, images))
        bare = held(device)
        with tap(model, points) as taps:
            first = max(peak(device, partial(model, images)) for _ in range(2))
            settle(taps)
            second, tensors = held(device), len(alive())
            later = [peak(device, partial(model, images)) for _ in range(PASSES - 2)]
            between = held(device)
            settle(taps)
            last, more_tensors = held(device), len(alive()) - tensors
            promise = promised(taps, model, device)
        del taps
        after = held(device)
    total = sum(promise.values())
    limit = SHARE * total + SLACK
    note = " + ".join(f"{part} {size:.0f}" for part, size in promise.items())
    note = f"promised: {note} = {total:.0f} MiB; the limit is {SHARE} of it and {SLACK} MiB"
    if device.type == "cuda":
        yield Figure(f"{title}: peak above the bare pass", max(first, *later) - bare_peak, "MiB", limit, note=note)
        yield Figure(f"{title}: peak of the bare pass", bare_peak, "MiB")
    yield Figure(f"{title}: held between passes", between - bare, "MiB", limit, note=note)
    yield Figure(f"{title}: more held after pass {PASSES} than after pass 2", last - second, "MiB", GROWTH)
    yield Figure(f"{title}: more tensors after pass {PASSES} than after pass 2", more_tensors, "", 0)
    yield Figure(f"{title}: still held when the taps are dropped", after - bare, "MiB", GROWTH)


def promised(taps: Taps, model: nn.Module, device: torch.device) -> dict[str, float]:
    """Return what the taps of a model may take, MiB by part."""
    widths = [channels for channels, _ in taps.roots().values()]
    maps = [observed.covariance for observed in taps.taps()]
    largest = max(4 * moments.count // taps.passes * moments.channels for moments in maps)
    chunk, product = min(CHUNK_BYTES[device.type], largest), 4 * max(widths) ** 2
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    affine = [layer for layer in layers if isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)]
    sizes = {
        f"{len(widths)} accumulators": 8 * sum(channels**2 for channels in widths),
        "a chunk of samples": chunk,
        "products, as much again or one of the widest": max(chunk, product),
        "weights of layers that can have shortcuts": 4 * sum(layer.weight.numel() for layer in affine),
    }
    return {part: size / MIB for part, size in sizes.items()}


def settle(taps: Taps) -> None:
    """Read every tap, so that what waits to be added together is added."""
    for observed in taps.taps():
        observed.covariance.mean  # noqa: B018


def peak(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the most memory of a GPU that was in use while `work` ran, MiB; without a GPU NaN."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else float("nan")


def held(device: torch.device) -> float:
    """Return the memory in use, MiB: on a GPU all of it, else that of the tensors that Python knows."""
    tensors = alive()
    if device.type == "cuda":
        synchronize(device)
        return torch.cuda.memory_allocated(device) / MIB
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values()) / MIB


def alive() -> list[Tensor]:
    """Return all tensors that Python knows, after what nothing refers to is gone."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


def _multiply(device: torch.device) -> None:
    """Take some products, since cuBLAS keeps memory of its own from its first one on."""
    for dtype in (torch.float32, torch.float64):
        square = torch.ones(1, 64, 64, dtype=dtype, device=device)
        torch.bmm(square, square)
        torch.mm(square[0], square[0])
