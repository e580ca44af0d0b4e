"""The streaming accumulator: first and second moments of channels, exact to float32's rounding.

Feature maps after an activation have means far from zero, and the plain sum of products then loses the small
eigenvalues first, which are the ones that widths are read from. So samples go in chunks, each shifted by about its own
mean before the product; products are taken in float32, sums over chunks are kept in float64, about one common shift.

Every position counts alike, or every image, whose positions then share a weight of 1 (`Weighting`). A sum of products
is multiplied by its weight after it was taken, so that exactness and cost are the same.

On a GPU everything runs on the current stream and nothing waits: a dozen launches a chunk, and the memory of all
intermediates is the allocator's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigendet.moments.chunks import UNDERFLOW, Moments, moments_of, precision_of
from eigendet.moments.packs import by_weight, without_padding
from eigendet.moments.products import Workspace, positions_of_chunk, row_blocks
from eigendet.moments.weighting import Weighting

PENDING = 32  # chunks whose shifts are made one at once
NOT_FINITE = "NaN, infinity, or numbers whose squares overflow float32"


class NonFiniteError(ValueError):
    """Samples hold NaN, infinity, or numbers whose squares overflow; none of their chunk has been added."""


@dataclass(frozen=True)
class _Chunk:
    """Samples whose product about their own shift has been added, and is to be made one about the common shift."""

    update: int
    count: int
    weight: float  # of all samples
    shift: Tensor  # (C,) float32
    total: Tensor  # of the samples less their shift, each times its weight, (C,)


class Covariance:
    """Count, mean and scatter of samples with `channels` entries each, accumulated batch by batch.

    Memory is O(channels²) whatever the number of samples, on the device of the samples. Nothing waits for a GPU
    before a result is read. `merge` adds other samples; `affine` gives the moments of mapped ones.

    Products are taken in float32 (float64 if the samples are), so the covariance has a relative error of about 1e-7 in
    the Frobenius norm, and eigenvalues far below 1e-7 of the largest are rounding. Moments cannot be subtracted again.

    >>> covariance = Covariance(channels=2)
    >>> covariance.update(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))  # two samples
    >>> covariance.update(torch.ones(1, 2, 1, 2))  # an image of two positions
    >>> covariance.count
    4
    >>> covariance.mean.tolist()
    [1.0, 1.5]
    >>> covariance.covariance().tolist()
    [[0.5, 1.0], [1.0, 2.25]]
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self.channels = channels
        self._updates = 0
        self._count, self._weight = 0, 0.0  # but for pending chunks
        self._pending: list[_Chunk] = []
        self._recent: list[_Chunk] | None = None  # since `take_sum`; None: it was never called
        self._shift: Tensor | None = None  # (C,) float64; what sum and product are about
        self._workspace: Workspace | None = None
        self._stream: torch.cuda.Stream | None = None  # which was given the last work here
        with torch.inference_mode(False):
            self._rejected = torch.full((), -1, dtype=torch.int64, device=device)  # first update not finite
            self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
            self._product = torch.zeros(channels, channels, dtype=torch.float64, device=device)  # its upper triangle

    @classmethod
    def from_moments(cls, count: int, mean: Tensor, scatter: Tensor, weight: float | None = None) -> Covariance:
        """Return the accumulator of `count` samples with this mean, (C,), and scatter, (C, C) and symmetric.

        `weight` is that of all samples; without it each has a weight of 1.

        >>> Covariance.from_moments(4, torch.tensor([1.0, 2.0]), 8 * torch.eye(2)).covariance().tolist()
        [[2.0, 0.0], [0.0, 2.0]]
        """
        covariance = cls(len(mean), mean.device)
        covariance._count, covariance._weight = count, float(count if weight is None else weight)
        covariance._shift = mean.double()
        covariance._product += scatter
        return covariance

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Covariance:
        """Return the accumulator whose `state_dict` this is."""
        covariance = cls(len(state["sum"]), state["sum"].device)
        covariance._count, covariance._rejected = int(state["count"]), state["rejected"].clone()
        covariance._weight = float(state.get("weight", state["count"]))
        covariance._sum, covariance._product = state["sum"].clone(), state["product"].clone()
        covariance._shift = state["shift"].clone() if "shift" in state else None
        return covariance

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors that `torch.save` takes; going on from them equals never having stopped."""
        self._settle()
        counts = {"count": torch.tensor(self._count), "weight": torch.tensor(self._weight, dtype=torch.float64)}
        state = counts | {"rejected": self._rejected, "sum": self._sum, "product": self._product}
        return state if self._shift is None else state | {"shift": self._shift}

    def update(
        self,
        samples: Tensor,
        channel_dim: int = 1,
        sizes: Sequence[tuple[int, ...]] | None = None,
        workspace: Workspace | None = None,
        weighting: Weighting = "positions",
    ) -> None:
        """Add one sample for each position of a tensor.

        Args:
            samples: floating point, of any shape and memory layout: (N, C, H, W), (N, C), (N, T, C).
            channel_dim: the dimension of the channels; -1 for (N, T, C).
            sizes: for each entry of the first dimension, how much of the further ones is not padding: (h, w) of every
                image in a padded batch. What lies beyond is left out.
            workspace: memory to share with other accumulators; None: what this one had before.
            weighting: what has a weight of 1: each position, or each entry of the first dimension that has any.

        Raises:
            ValueError: the dimension does not hold `channels` channels.
            NonFiniteError: a sample is not finite; nothing is added. On a GPU, which is not waited for, it is raised
                when a result is read, and no result is left.
        """
        if samples.dim() < 1 + (channel_dim > 0) or samples.shape[channel_dim] != self.channels:
            raise ValueError(
                f"expected {self.channels} channels in dimension {channel_dim}, got samples of shape "
                f"{tuple(samples.shape)}"
            )
        self._workspace = workspace or self._workspace or Workspace()
        with torch.inference_mode(False), torch.no_grad():
            self._use_stream()
            parts = without_padding(samples.detach(), channel_dim, sizes)
            weighted = by_weight(parts, sizes is None, channel_dim) if weighting == "images" else [(1.0, parts)]
            chunks = ((weight, chunk) for weight, alike in weighted for chunk in moments_of(alike, self._workspace))
            fits = positions_of_chunk(self.channels, precision_of(parts[0]), samples.device) if parts else 1
            is_large = len(weighted) > 1 or samples.numel() > fits * self.channels
            if _answers_at_once(samples.device) and is_large:
                whole = Covariance(self.channels)  # so that all of several chunks is added, or nothing
                for weight, chunk in chunks:
                    whole._add(chunk, weight)
                self.merge(whole)
                if self._recent is not None and whole._shift is not None:
                    self._recent.append(_Chunk(self._updates, whole._count, whole._weight, whole._shift, whole._sum))
            else:
                for weight, chunk in chunks:
                    self._add(chunk, weight)
        self._updates += 1

    def _add(self, chunk: Moments, weight: float) -> None:
        """Add the moments of a chunk, about its own shift, whose samples have this weight each."""
        total, product = chunk.total if weight == 1 else chunk.total * weight, chunk.product
        if _answers_at_once(total.device) and not math.isfinite(float(total.sum())):
            raise NonFiniteError(NOT_FINITE)  # a GPU is not asked: a sum that has met NaN stays so
        for begin, end in row_blocks(self.channels) if total.device.type == "cpu" else [(0, self.channels)]:
            self._product[begin:end, begin:].add_(product[begin:end, begin:], alpha=weight)
        self._pending.append(_Chunk(self._updates, chunk.count, weight * chunk.count, chunk.shift, total))
        if self._recent is not None:
            self._recent.append(self._pending[-1])
        if len(self._pending) >= PENDING:
            self._settle()

    def _settle(self) -> None:
        """Add up pending chunks: make sum and product, to which each added its own about its own shift, about one.

        With apart = its shift less the common one, and u = its total + weight / 2 apart, the product about the common
        shift has u apartᵀ + apart uᵀ more (Chan et al. 1979).
        """
        self._use_stream()
        if not self._pending:
            return
        with torch.inference_mode(False), torch.no_grad():
            shifts = torch.stack([chunk.shift for chunk in self._pending]).double()
            totals = torch.stack([chunk.total for chunk in self._pending]).double()
            weights, updates = (
                torch.tensor(numbers, dtype=torch.float64).to(self.device, non_blocking=True)
                for numbers in zip(*((chunk.weight, chunk.update) for chunk in self._pending), strict=True)
            )
            if self._shift is None:
                self._shift = shifts[0].where(shifts[0].isfinite(), 0)
            apart = shifts - self._shift
            offsets = weights[:, None] / 2 * apart
            inner = totals + offsets
            self._product.addmm_(inner.T, apart).addmm_(apart.T, inner)
            self._sum += (inner + offsets).sum(0)
            if not _answers_at_once(self.device):
                first = torch.where(totals.isfinite().all(1), torch.inf, updates).min()
                now = first.isfinite() & (self._rejected < 0)
                self._rejected = torch.where(now, first.nan_to_num(posinf=0).long(), self._rejected)
            self._count, self._weight = self.count, self.weight
            self._pending.clear()

    def _use_stream(self) -> None:
        """Let the GPU's current stream wait for what another was given to do here."""
        if self.device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
            shift = [] if self._shift is None else [self._shift]
            chunks = [*self._pending, *(self._recent or [])]
            kept = [tensor for chunk in chunks for tensor in (chunk.shift, chunk.total)]
            for tensor in (self._sum, self._product, self._rejected, *shift, *kept):
                tensor.record_stream(stream)
        self._stream = stream

    def merge(self, other: Covariance) -> None:
        """Add the samples of another accumulator, which must be others than those seen here (Chan et al. 1979).

        The other one stays as it is.

        Raises:
            ValueError: the numbers of channels differ.
        """
        if other.channels != self.channels:
            raise ValueError(f"cannot merge {other.channels} channels into {self.channels}")
        self._settle()
        other._settle()
        if other._shift is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            weight = other._weight
            shift, total, product = (tensor.to(self.device) for tensor in (other._shift, other._sum, other._product))
            if self._shift is None:
                self._shift = shift
            apart = shift - self._shift
            inner = total + weight / 2 * apart
            self._product += product
            self._product.addr_(inner, apart).addr_(apart, inner)
            self._sum += total + weight * apart
            self._count, self._weight = self._count + other._count, self._weight + weight
            self._rejected = torch.maximum(self._rejected, other._rejected.to(self.device))

    def affine(self, weight: Tensor | None, bias: Tensor | None = None) -> Covariance:
        """Return the moments of W x + b for the samples x seen here, without seeing them again: Σ_y = W Σ_x Wᵀ.

        Args:
            weight: (C', C), or (C,) for one factor a channel, or None for the identity.
            bias: (C',), or None for 0.

        Examples:
            >>> source = Covariance.from_moments(4, torch.tensor([1.0, 2.0]), 4 * torch.eye(2))
            >>> mapped = source.affine(torch.tensor([[1.0, 1.0]]), torch.tensor([10.0]))
            >>> mapped.mean.tolist(), mapped.covariance().tolist()
            ([13.0], [[2.0]])
        """
        self._settle()
        with torch.inference_mode(False), torch.no_grad():
            diagonal = weight is None or weight.dim() == 1
            factor = torch.ones((), dtype=torch.float64, device=self.device) if weight is None else weight.double()
            mapped = Covariance(self.channels if diagonal else factor.shape[0], self.device)
            mapped._count, mapped._weight, mapped._rejected = self._count, self._weight, self._rejected
            if self._shift is None:
                return mapped
            product = _symmetric(self._product.clone())
            mapped._shift = factor * self._shift if diagonal else factor @ self._shift
            mapped._sum = factor * self._sum if diagonal else factor @ self._sum
            if diagonal:
                mapped._product = factor[..., None] * product * factor
            else:
                mapped._product = factor @ product @ factor.T
            if bias is not None:
                mapped._shift = mapped._shift + bias.double()
            return mapped

    @property
    def device(self) -> torch.device:
        """The device of the moments."""
        return self._sum.device

    def forget(self) -> None:
        """Drop all samples."""
        self._pending.clear()
        self._recent = None
        self._count, self._weight, self._updates = 0, 0.0, 0
        for state in (self._sum, self._product):
            state.zero_()
        self._rejected.fill_(-1)

    @property
    def first_rejected(self) -> int | None:
        """Index of the first update, on a GPU, whose samples were not finite; None: there is none."""
        self._settle()
        first = int(self._rejected)
        return None if first < 0 else first

    @property
    def underflows(self) -> bool:
        """Whether samples vary so little that, on a GPU, their squares have lost digits in float32, or all."""
        self._settle()
        if _answers_at_once(self.device) or not self.channels:
            return False  # there such products are taken in float64
        largest = float(self._product.diagonal().max())
        return largest < UNDERFLOW * self.weight and (largest > 0 or bool(self._sum.any()))

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._count + sum(chunk.count for chunk in self._pending)

    @property
    def weight(self) -> float:
        """Weight of all samples: their number, or with equal weights that of images."""
        return self._weight + math.fsum(chunk.weight for chunk in self._pending)

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,) float64.

        Raises:
            ValueError: there are no samples yet.
            NonFiniteError: some samples, on a GPU, were not finite.
        """
        if self.first_rejected is not None:
            raise NonFiniteError(f"update {self.first_rejected}: {NOT_FINITE}")
        if self._shift is None or not self.count:
            raise ValueError("no samples yet: the mean is not defined")
        return self._shift + self._sum / self.weight

    @property
    def scatter(self) -> Tensor:
        """Sum over samples of weight (x - mean)(x - mean)ᵀ, (C, C) float64, symmetric."""
        self._settle()
        return _symmetric(torch.addr(self._product, self._sum, self._sum, alpha=-1 / self.weight if self.count else 0))

    def covariance(self, centered: bool = True) -> Tensor:
        """Return the population covariance, scatter / weight, (C, C) float64.

        Args:
            centered: False: the raw second moment, which adds mean meanᵀ.

        Raises:
            ValueError: there are no samples yet.
            NonFiniteError: some samples, on a GPU, were not finite.
        """
        mean = self.mean
        centered_moment = self.scatter / self.weight
        return centered_moment if centered else centered_moment + torch.outer(mean, mean)

    def take_sum(self) -> tuple[float, Tensor]:
        """Return the weight of the samples since the last call, and their sum, (C,) float64, without waiting for a GPU.

        The first call is about all samples. It adds up what is pending; later ones look at the chunks since alone.
        """
        chunks = self._recent
        self._recent = []
        if chunks is None:
            self._settle()
            return self._weight, self._sum.clone() if self._shift is None else self._sum + self._weight * self._shift
        self._use_stream()
        sums = [torch.add(chunk.total, chunk.shift.double(), alpha=chunk.weight) for chunk in chunks]
        if not sums:
            return 0.0, torch.zeros_like(self._sum)
        total = torch.stack(sums).sum(0) if len(sums) != 1 else sums[0]
        return math.fsum(chunk.weight for chunk in chunks), total


def merged(accumulators: Iterable[Covariance]) -> Covariance:
    """Return all samples of several accumulators, which stay as they are, on the device of the first; at least one.

    >>> parts = [Covariance(2), Covariance(2)]
    >>> for part in parts:
    ...     part.update(torch.ones(5, 2))
    >>> merged(parts).count
    10
    """
    first, *others = accumulators
    total = Covariance(first.channels, first.device)
    for accumulator in (first, *others):
        total.merge(accumulator)
    return total


def _answers_at_once(device: torch.device) -> bool:
    """Return whether to ask the device for a value takes no waiting for what it was given to do before."""
    return device.type == "cpu"


def _symmetric(matrix: Tensor) -> Tensor:
    """Mirror the upper triangle of a matrix to the lower, in place and without a second matrix."""
    for begin, end in row_blocks(len(matrix)):
        block = matrix[begin:end, begin:end]
        block.copy_(block.triu() + block.triu(1).mT)
        matrix[end:, begin:end] = matrix[begin:end, end:].mT
    return matrix
