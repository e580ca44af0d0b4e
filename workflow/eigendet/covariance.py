"""The streaming accumulator: exact first and second moments of channels, from float32 products.

Feature maps after an activation have means far from zero, and the plain sum of products then loses the small
eigenvalues first, which are the ones that widths are read from. So every sample is shifted by the mean of the first
batch before the product; the product of a batch is taken in float32, the sums over batches are kept in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class Covariance:
    """Count, mean and scatter of samples with `channels` entries each, accumulated batch by batch.

    Memory is O(channels²) whatever the number of samples. `merge` makes the union of disjoint samples.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self.channels = channels
        self.count = 0
        self._shift: Tensor | None = None  # (C,) float64, the first batch's mean; representable in float32
        self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._product = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def update(self, samples: Tensor) -> None:
        """Add samples of shape (N, C) or (N, C, ...): N times the product of the further dimensions.

        Raises:
            ValueError: the second dimension is not the number of channels.
        """
        if samples.dim() < 2 or samples.shape[1] != self.channels:
            raise ValueError(f"expected samples of shape (N, {self.channels}, ...), got {tuple(samples.shape)}")
        if samples.numel() == 0:
            return
        with torch.no_grad(), _exact_float32(samples.device.type):
            batch = samples.detach().flatten(2) if samples.dim() > 2 else samples.detach().unsqueeze(2)
            if self._shift is None:
                self._shift = batch.mean((0, 2), dtype=torch.float64).float().double()
            shifted = batch.float() - self._shift.float()[:, None]
            self._sum += shifted.sum((0, 2), dtype=torch.float64)
            self._product += torch.bmm(shifted, shifted.mT).sum(0, dtype=torch.float64)
        self.count += batch.shape[0] * batch.shape[2]

    def merge(self, other: Covariance) -> None:
        """Add the samples of another accumulator, which must be others than those seen here (Chan et al. 1979).

        Raises:
            ValueError: the numbers of channels differ.
        """
        if other.channels != self.channels:
            raise ValueError(f"cannot merge {other.channels} channels into {self.channels}")
        if other._shift is None:
            return
        if self._shift is None:
            self._shift = other._shift.to(self._sum.device, copy=True)
        apart = other._shift.to(self._sum.device) - self._shift
        total, product = other._sum.to(self._sum.device), other._product.to(self._sum.device)
        cross = torch.outer(total, apart)
        self._product += product + cross + cross.T + other.count * torch.outer(apart, apart)
        self._sum += total + other.count * apart
        self.count += other.count

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,) float64.

        Raises:
            ValueError: there are no samples yet.
        """
        if self._shift is None:
            raise ValueError("no samples yet: the mean is not defined")
        return self._shift + self._sum / self.count

    @property
    def scatter(self) -> Tensor:
        """Sum over samples of (x - mean)(x - mean)ᵀ, (C, C) float64, symmetric."""
        scatter = self._product - torch.outer(self._sum, self._sum) / max(self.count, 1)
        return (scatter + scatter.T) / 2

    def covariance(self, centred: bool = True) -> Tensor:
        """Population covariance, scatter / count; with `centred=False` the second moment, which adds mean meanᵀ."""
        mean = self.mean
        centred_moment = self.scatter / self.count
        return centred_moment if centred else centred_moment + torch.outer(mean, mean)


@contextlib.contextmanager
def _exact_float32(device: str) -> Iterator[None]:
    """Float32 products in float32, whatever autocast and TF32 settings the process has chosen for its network."""
    before = torch.backends.cuda.matmul.fp32_precision
    with torch.autocast(device, enabled=False):
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
