"""How near an update comes to what the device could do: reading the map once, or half of a symmetric product."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch

from eigendet.moments.covariance import Covariance
from tests.gpu.figures import Figure, seconds, synchronize
from tests.gpu.networks import float32_products

# Activations of ResNet-50 for one image of 800x1216, (C, H, W), the narrow and the wide of every stage.
MAPS = (
    (64, 200, 304), (256, 200, 304), (128, 100, 152), (512, 100, 152),
    (256, 50, 76), (1024, 50, 76), (512, 25, 38), (2048, 25, 38),
)  # fmt: skip
SMALL_MAPS = ((16, 24, 40), (64, 12, 20))
CACHE = 256 * 2**20  # bytes, several times what a GPU's cache holds
UPDATES = 24


class Device(NamedTuple):
    """What a device does in a second."""

    bytes: float  # read, or written
    operations: float  # of products as exact as float32's; a multiplication and an addition are two


class Cost(NamedTuple):
    """Seconds of a call."""

    device: float
    host: float


def roofline(device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield what the device can do, and the share of it that an update of maps of each shape reaches."""
    capacity = yield from measured(device, small)
    for shape in SMALL_MAPS if small else MAPS:
        channels, height, width = shape
        size = 4 * channels * height * width
        maps = [torch.randn(1, *shape, device=device).relu_() for _ in range(2 if small else -(-CACHE // size))]
        covariance = Covariance(channels, device)
        cost = costs(device, [partial(covariance.update, feature_map) for feature_map in maps], UPDATES)
        reading, computing = size / capacity.bytes, channels**2 * height * width / capacity.operations
        yield Figure(
            f"roofline: share that an update of {channels}x{height}x{width} reaches",
            max(reading, computing) / cost.device,
            note=f"{1e6 * cost.device:.0f} µs; at least {1e6 * reading:.0f} to read the map once, and "
            f"{1e6 * computing:.0f} for half of the product; the host is busy for {1e6 * cost.host:.0f}",
        )


def measured(device: torch.device, small: bool) -> Generator[Figure, None, Device]:
    """Yield the rates of a device, and return them."""
    source = torch.ones((2**22 if small else 2**28), device=device)
    target = torch.empty_like(source)
    copied = 2 * 4 * len(source) / costs(device, [partial(target.copy_, source)], 10).device
    del source, target
    yield Figure("roofline: copy, read and written", copied / 1e9, "GB/s")
    size = 512 if small else 8192
    left, out = torch.randn(size, size, device=device), torch.empty(size, size, device=device)
    rates: dict[str, float] = {}
    for precision in ("ieee", "tf32") if device.type == "cuda" else ("ieee",):
        with float32_products(precision):
            rates[precision] = 2 * size**3 / costs(device, [partial(torch.mm, left, left, out=out)], 10).device
        yield Figure(f"roofline: product of {size}x{size}, {precision}", rates[precision] / 1e12, "TFLOP/s")
    # Three TF32 products of split samples are as exact as a float32 one.
    return Device(copied, max(rates["ieee"], rates.get("tf32", 0) / 3))


def costs(device: torch.device, calls: Sequence[Callable[[], Any]], repeats: int) -> Cost:
    """Return the mean seconds of calls that take turns, once all have run; on a GPU without waits for the host.

    The GPU is kept busy while the calls are queued, so that it then goes from one to the next.
    """
    for call in calls:
        call()
    taking_turns = partial(_run, list(islice(cycle(calls), repeats)))
    if device.type != "cuda":
        mean = seconds(device, taking_turns) / repeats
        return Cost(mean, mean)
    busy = torch.ones(8192, 8192, device=device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    synchronize(device)
    for _ in range(2):  # 20 to 100 ms in float32
        busy @ busy
    begin.record()
    start = time.thread_time()
    taking_turns()
    host = time.thread_time() - start
    end.record()
    synchronize(device)
    return Cost(begin.elapsed_time(end) / 1e3 / repeats, host / repeats)


def _run(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()
