"""What users write themselves: a hook on every activation, and an accumulator for each of its calls."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Accumulator(Protocol):
    """What takes samples (P, C)."""

    def update(self, rows: Tensor) -> None:
        """Add samples."""

    def covariance(self) -> Tensor:
        """Return the population covariance."""


class Naive:
    """Plain sums of samples and of their products."""

    dtype = torch.float32

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count, self.sum = 0, torch.zeros(channels, dtype=self.dtype, device=device)
        self.product = torch.zeros(channels, channels, dtype=self.dtype, device=device)

    def update(self, rows: Tensor) -> None:
        """Add samples."""
        rows = rows.to(self.dtype)
        self.sum += rows.sum(0)
        self.product += rows.T @ rows
        self.count += len(rows)

    def covariance(self) -> Tensor:
        """Return the population covariance."""
        mean = self.sum / self.count
        return self.product / self.count - torch.outer(mean, mean)


class Float64(Naive):
    """The same in float64."""

    dtype = torch.float64


class Welford:
    """Each batch centered by its own mean in float32, batches merged as by Chan and others (1979)."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count, self.mean = 0, torch.zeros(channels, device=device)
        self.scatter = torch.zeros(channels, channels, device=device)

    def update(self, rows: Tensor) -> None:
        """Add samples."""
        rows = rows.float()
        mean = rows.mean(0)
        centered, apart = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self.scatter += centered.T @ centered + torch.outer(apart, apart) * (self.count * len(rows) / total)
        self.mean += apart * (len(rows) / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Return the population covariance."""
        return self.scatter / self.count


class Delve:
    """The accumulator of the package delve, called directly."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.matrix = importlib.import_module("delve.torch_utils").TorchCovarianceMatrix(device=str(device))

    def update(self, rows: Tensor) -> None:
        """Add samples."""
        self.matrix.update(rows, vae=False)

    def covariance(self) -> Tensor:
        """Return the population covariance."""
        covariance: Tensor = self.matrix.fix()
        return covariance


def others() -> dict[str, Callable[[int, torch.device], Accumulator]]:
    """Return the makers of accumulators by name; delve's where it is installed."""
    makers: dict[str, Callable[[int, torch.device], Accumulator]] = {
        "act by a float64 hook": Float64,
        "act by float32 Welford": Welford,
    }
    with contextlib.suppress(ImportError):
        importlib.import_module("delve.torch_utils")
        makers["act by delve's accumulator"] = Delve
    return makers


@contextlib.contextmanager
def hooked(
    model: nn.Module,
    make: Callable[[int, torch.device], Accumulator],
    chosen: Callable[[nn.Module], bool] = lambda module: isinstance(module, nn.ReLU),
) -> Iterator[dict[int, Accumulator]]:
    """Accumulate the output (N, C, H, W) of every call of every ReLU, or other modules, by its place in a pass."""
    accumulators: dict[int, Accumulator] = {}
    place = 0

    def start(module: nn.Module, inputs: Any) -> None:
        nonlocal place
        place = 0

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal place
        channels = output.shape[1]
        if place not in accumulators:
            accumulators[place] = make(channels, output.device)
        with torch.autocast(output.device.type, enabled=False):
            accumulators[place].update(output.permute(0, 2, 3, 1).reshape(-1, channels))
        place += 1

    with contextlib.ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(start).remove)
        for module in model.modules():
            if chosen(module):
                stack.callback(module.register_forward_hook(hook).remove)
        yield accumulators
