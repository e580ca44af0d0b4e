"""The streaming accumulator: first and second moments of channels, exact to float32's rounding.

Feature maps after an activation have means far from zero, and the plain sum of products then loses the small
eigenvalues first, which are the ones that widths are read from. So every sample is shifted by about the mean of the
first ones before the product; products are taken in float32 chunk by chunk, the sums over chunks are kept in float64.

The shift is about the mean, not the mean itself, because many maps hold one value again and again: the zeros of a ReLU.
Adding the same number many times rounds the same way many times, and that bias, not the random part, is then the error
of a float32 product (1.2e-6 instead of 1e-7). A shift with few bits makes those products exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigendet.observe.keys import TapKey
from eigendet.observe.packs import packs, without_padding
from eigendet.observe.products import Workspace, gram, row_blocks

NOT_FINITE = "NaN, infinity, or numbers whose squares overflow float32"


class NonFiniteError(ValueError):
    """Samples hold NaN, infinity, or numbers whose squares overflow; none of their chunk has been added."""


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
        self._shift: Tensor | None = None  # (C,) float64, but a float32 number, so that samples subtract it exactly
        self._rounded = True  # whether the shift is one: that of computed moments is not, until an update
        self._updates = 0
        self._workspace: Workspace | None = None  # whose stream may hold updates still under way
        with torch.inference_mode(False):
            self._count = torch.zeros((), dtype=torch.int64, device=device)
            self._rejected = torch.full((), -1, dtype=torch.int64, device=device)  # first update not finite
            self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
            self._product = torch.zeros(channels, channels, dtype=torch.float64, device=device)  # its upper triangle

    @classmethod
    def from_moments(cls, count: int, mean: Tensor, scatter: Tensor) -> Covariance:
        """Return the accumulator of `count` samples with this mean, (C,), and scatter, (C, C) and symmetric.

        >>> Covariance.from_moments(4, torch.tensor([1.0, 2.0]), 8 * torch.eye(2)).covariance().tolist()
        [[2.0, 0.0], [0.0, 2.0]]
        """
        covariance = cls(len(mean), mean.device)
        covariance._count += count
        covariance._shift, covariance._rounded = mean.double(), False
        covariance._product += scatter
        return covariance

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Covariance:
        """Return the accumulator whose `state_dict` this is."""
        covariance = cls(len(state["sum"]), state["sum"].device)
        covariance._count, covariance._rejected = state["count"].clone(), state["rejected"].clone()
        covariance._sum, covariance._product = state["sum"].clone(), state["product"].clone()
        if "shift" in state:
            covariance._shift, covariance._rounded = state["shift"].clone(), False
        return covariance

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors that `torch.save` takes; going on from them equals never having stopped."""
        self._join()
        state = {"count": self._count, "rejected": self._rejected, "sum": self._sum, "product": self._product}
        return state if self._shift is None else state | {"shift": self._shift}

    def update(
        self,
        samples: Tensor,
        channel_dim: int = 1,
        sizes: Sequence[tuple[int, ...]] | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        """Add one sample for each position of a tensor.

        Args:
            samples: floating point, of any shape and memory layout: (N, C, H, W), (N, C), (N, T, C).
            channel_dim: the dimension of the channels; -1 for (N, T, C).
            sizes: for each entry of the first dimension, how much of the further ones is not padding: (h, w) of every
                image in a padded batch. What lies beyond is left out.
            workspace: memory to share with other accumulators.

        Raises:
            ValueError: the dimension does not hold `channels` channels.
            NonFiniteError: a sample is not finite (on a GPU: when a result is read, with these samples left out).
        """
        if samples.dim() < 1 + (channel_dim > 0) or samples.shape[channel_dim] != self.channels:
            raise ValueError(
                f"expected {self.channels} channels in dimension {channel_dim}, got samples of shape "
                f"{tuple(samples.shape)}"
            )
        workspace = workspace or Workspace(samples.device)
        with torch.inference_mode(False), torch.no_grad():
            self._workspace = workspace
            if not self._rounded:
                self._round_shift()
            dtype = torch.float64 if samples.dtype == torch.float64 else torch.float32
            fits = workspace.positions(self.channels, dtype)
            if samples.numel() > fits * self.channels and not samples.is_cuda and not samples.sum().isfinite():
                raise NonFiniteError(NOT_FINITE)  # before the first of several chunks is added
            for pack in packs(without_padding(samples.detach(), channel_dim, sizes), fits):
                self._add(pack, dtype, workspace)
        self._updates += 1

    def _add(self, pack: list[Tensor], dtype: torch.dtype, workspace: Workspace) -> None:
        """Add tensors (C, ...) that together fit in one chunk."""
        positions = sum(part[0].numel() for part in pack)
        chunk = workspace.chunk(self.channels, positions, dtype, channels_last=pack[0].stride(0) == 1)
        has_shift = self._shift is not None
        shift = self._shift.to(dtype) if self._shift is not None else chunk.new_zeros(1)
        begin = 0
        for part in pack:
            end = begin + part[0].numel()
            target = chunk[:, begin:end].unflatten(1, part.shape[1:])
            torch.sub(part, shift.view(-1, *[1] * (part.dim() - 1)), out=target)
            begin = end
        if not has_shift:
            self._shift = _shift(chunk).double()
            chunk -= self._shift.to(dtype)[:, None]
        with workspace.beside():
            total = chunk.sum(1)
            product = gram(chunk, workspace.square(self.channels, dtype))
            finite = (total + product.diagonal()).isfinite().all()
            if chunk.is_cuda:  # without asking the GPU: what is not finite is replaced by nothing
                first = ~finite & (self._rejected < 0)
                self._rejected = torch.where(first, self._updates, self._rejected)
                self._count += finite * positions
                total, product = torch.where(finite, total, 0), torch.where(finite, product, 0)
            elif finite:
                self._count += positions
            else:
                self._shift = self._shift if has_shift else None
                raise NonFiniteError(NOT_FINITE)
            self._sum += total
            for begin, end in row_blocks(self.channels, chunk.device):
                self._product[begin:end, begin:] += product[begin:end, begin:]

    def merge(self, other: Covariance) -> None:
        """Add the samples of another accumulator, which must be others than those seen here (Chan et al. 1979).

        The other one stays as it is.

        Raises:
            ValueError: the numbers of channels differ.
        """
        if other.channels != self.channels:
            raise ValueError(f"cannot merge {other.channels} channels into {self.channels}")
        self._join()
        other._join()
        if other._shift is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            count, shift, total, product = (
                tensor.to(self.device) for tensor in (other._count, other._shift, other._sum, other._product)
            )
            if self._shift is None:
                self._shift = shift.float().double()
            apart = shift - self._shift
            cross = torch.outer(total, apart)
            self._product += product + cross + cross.T + count * torch.outer(apart, apart)
            self._sum += total + count * apart
            self._count += count
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
        self._join()
        with torch.inference_mode(False), torch.no_grad():
            diagonal = weight is None or weight.dim() == 1
            factor = torch.ones((), dtype=torch.float64, device=self.device) if weight is None else weight.double()
            mapped = Covariance(self.channels if diagonal else factor.shape[0], self.device)
            mapped._count += self._count
            if self._shift is None:
                return mapped
            product = _symmetric(self._product.clone())
            mapped._shift = factor * self._shift if diagonal else factor @ self._shift
            mapped._rounded = False
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
        """Drop all samples but not the shift, so that accumulators of other samples can start from the same one.

        Products of the same samples shifted alike are the same to the last bit. So accumulators that forgot the same
        first samples merge to what one accumulator over all would hold, up to the order of float64 sums.
        """
        self._join()
        for state in (self._count, self._sum, self._product):
            state.zero_()

    @property
    def first_rejected(self) -> int | None:
        """Index of the first update, on a GPU, whose samples were not finite; None: there is none."""
        self._join()
        first = int(self._rejected)
        return None if first < 0 else first

    @property
    def count(self) -> int:
        """Number of samples."""
        self._join()
        return int(self._count)

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,) float64.

        Raises:
            ValueError: there are no samples yet.
            NonFiniteError: some samples, on a GPU, were not finite.
        """
        count = self.count
        if self.first_rejected is not None:
            raise NonFiniteError(f"update {self.first_rejected}: {NOT_FINITE}")
        if self._shift is None or not count:
            raise ValueError("no samples yet: the mean is not defined")
        return self._shift + self._sum / count

    @property
    def scatter(self) -> Tensor:
        """Sum over samples of (x - mean)(x - mean)ᵀ, (C, C) float64, symmetric."""
        self._join()
        return _symmetric(torch.addr(self._product, self._sum, self._sum, alpha=-1 / max(self.count, 1)))

    def covariance(self, centered: bool = True) -> Tensor:
        """Return the population covariance, scatter / count, (C, C) float64.

        Args:
            centered: False: the raw second moment, which adds mean meanᵀ.

        Raises:
            ValueError: there are no samples yet.
            NonFiniteError: some samples, on a GPU, were not finite.
        """
        mean = self.mean
        centered_moment = self.scatter / self.count
        return centered_moment if centered else centered_moment + torch.outer(mean, mean)

    def _round_shift(self) -> None:
        """Make the shift a float32 number, so that samples subtract it exactly."""
        rounded = Covariance(self.channels, self.device)
        rounded.merge(self)
        self._shift, self._sum, self._product = rounded._shift, rounded._sum, rounded._product
        self._rounded = True

    def count_and_sum(self) -> tuple[Tensor, Tensor]:
        """Return the number of samples, (), and their sum, (C,) float64, as they are now, without waiting for a GPU."""
        self._join()
        shift = 0 if self._shift is None else self._count * self._shift
        return self._count.clone(), self._sum + shift

    def _join(self) -> None:
        """Make the current stream wait for updates under way."""
        if self._workspace is not None:
            self._workspace.join()


@dataclass(frozen=True)
class Tap:
    """One observed tensor, as it is stored.

    Attributes:
        key: its module, call and point.
        position: its place in the order of execution.
        padding: its positions that are padding: "excluded"; "none" in maps that are not images; "unknown": the model
            did not say which are.
        covariance: its moments.
        image_means: mean over the positions of each image, (images, C); see `taps.Taps.end_image`.
    """

    key: TapKey
    position: int
    padding: str
    covariance: Covariance
    image_means: Tensor | None = None


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


def _shift(samples: Tensor) -> Tensor:
    """Return the mean of (C, P) samples to the nearest multiple of a power of two, 1/8 to 1/4 of their spread.

    A channel that never varies is shifted by its value, so that it stays exactly 0.
    """
    mean, spread = samples.mean(1).float(), samples.std(1, correction=0).float()
    unit = torch.exp2(spread.log2().floor() - 2)
    shift = torch.where(spread > 0, (mean / unit).round() * unit, mean)
    return torch.where(shift.isfinite(), shift, 0)


def _symmetric(matrix: Tensor) -> Tensor:
    """Mirror the upper triangle of a matrix to the lower, in place and without a second matrix."""
    for begin, end in row_blocks(len(matrix), matrix.device):
        block = matrix[begin:end, begin:end]
        block.copy_(block.triu() + block.triu(1).mT)
        matrix[end:, begin:end] = matrix[begin:end, end:].mT
    return matrix
