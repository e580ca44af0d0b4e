"""What torch's profiler says of one piece of work: launches, waits, and the kernels that take longest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.figures import synchronize

Events = list[Any]  # one for each name, with its number of calls


def profiled(device: torch.device, work: Callable[[], Any]) -> Events:
    """Return what ran in a call, on the host and on the device, by name."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    synchronize(device)
    with profile(activities=activities) as profiler:
        work()
        synchronize(device)
    return list(profiler.key_averages())


def launches(events: Events) -> int:
    """Return how many kernels the host launched, through CUDA's runtime or its driver."""
    return sum(event.count for event in events if event.key.startswith("cu") and "Launch" in event.key)


def waits(events: Events) -> int:
    """Return how often the host waited for the device."""
    return sum(event.count for event in events if event.key.startswith("cu") and "Synchronize" in event.key)


def write_kernels(path: Path, events: Events, rows: int = 25) -> None:
    """Write the kernels that took longest; without a GPU, the operators on the CPU."""
    kernels = [(event.self_device_time_total, event) for event in events if event.device_type.name == "CUDA"]
    if not kernels:
        kernels = [(event.self_cpu_time_total, event) for event in events]
    kernels.sort(key=lambda kernel: -kernel[0])
    total = sum(duration for duration, _ in kernels)
    lines = [f"{len(kernels)} names, {sum(event.count for _, event in kernels)} calls, {total / 1e3:.3f} ms"]
    lines += [f"{'ms':>9} {'share':>6} {'calls':>6}  name"]
    for duration, event in kernels[:rows]:
        lines.append(f"{duration / 1e3:9.3f} {duration / max(total, 1):6.1%} {event.count:6}  {event.key[:160]}")
    path.write_text("\n".join(lines) + "\n")
