"""Eigenvalues and leading eigenvectors from the device, against LAPACK in float64 on the CPU, with both times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from eigendet.spectra.spectrum import CPU, GPU_CHANNELS, eigen, leading
from tests.gpu.figures import Figure, guarded, seconds

CHANNELS = (2048, 1024, 512, 256, 4096)  # the longest last
LIMIT = 1e-12  # relative to the largest eigenvalue


class Fallbacks(logging.Handler):
    """Keeps what the library says when it turns to the CPU instead of the device."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield errors and times for each number of channels."""
    fallbacks, logger = Fallbacks(), logging.getLogger("eigendet.spectra.spectrum")
    logger.addHandler(fallbacks)
    for channels in (256, 64) if small else CHANNELS:
        yield from guarded(f"{channels} channels", decomposed(channels, device))
    logger.removeHandler(fallbacks)
    number, note = len(fallbacks.messages), "; ".join(fallbacks.messages)
    yield Figure("decompositions that the CPU took over from the device", number, limit=0, note=note)


def covariance(channels: int, device: torch.device) -> np.ndarray:
    """Return a covariance (C, C) in float64 whose eigenvalues fall over about eight decades."""
    torch.manual_seed(channels)
    samples = torch.randn(2 * channels, channels, dtype=torch.float64, device=device)
    samples *= torch.logspace(0, -4, channels, dtype=torch.float64, device=device)
    mirror = torch.randn(channels, dtype=torch.float64, device=device)
    mirror /= mirror.norm()
    samples -= 2 * torch.outer(samples @ mirror, mirror)  # so that every channel varies with every other
    return (samples.T @ samples / len(samples)).cpu().numpy()


def decomposed(channels: int, device: torch.device) -> Iterator[Figure]:
    """Yield how far eigenvalues and leading eigenvectors of a matrix are off, and how long they take."""
    title, matrix, directions = f"{channels} channels", covariance(channels, device), leading(channels)
    values, vectors = eigen(matrix, directions, device)
    exact: list[np.ndarray] = []
    numpy_seconds = seconds(CPU, lambda: exact.append(np.linalg.eigvalsh(matrix)[::-1]))
    expected, largest = exact[0], exact[0][0]
    error = np.abs(values - expected).max() / largest
    yield Figure(f"{title}: worst error of an eigenvalue", float(error), limit=LIMIT, note="relative to the largest")
    residual = np.linalg.norm(matrix @ vectors - vectors * expected[:directions], axis=0).max() / largest
    yield Figure(f"{title}: worst residual of {directions} eigenvectors", float(residual), limit=LIMIT)
    askew = np.abs(vectors.T @ vectors - np.eye(directions)).max()
    yield Figure(f"{title}: eigenvectors, worst difference from orthonormal", float(askew), limit=LIMIT)
    note = f"eigenvalues and {directions} eigenvectors"
    yield Figure(f"{title}: CPU", seconds(CPU, eigen, matrix, directions, CPU), "s", note=note)
    yield Figure(f"{title}: CPU, numpy", numpy_seconds, "s", note="eigenvalues alone")
    if device.type == "cuda":
        yield Figure(f"{title}: device", seconds(device, _on_device, matrix, directions, device), "s", note=note)


def _on_device(matrix: np.ndarray, directions: int, device: torch.device) -> None:
    """Decompose on the device also what is so small that the library would do it on the CPU."""
    if len(matrix) >= GPU_CHANNELS:
        eigen(matrix, directions, device)
    else:
        values, vectors = torch.linalg.eigh(torch.from_numpy(matrix).to(device))
        values.cpu(), vectors[:, -directions:].cpu()
