"""One tap at one step of a covariance file: its moments, and their group in HDF5 (see `store` for the format)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance, merged
from eigendet.observe import hdf5
from eigendet.observe.keys import TapKey, node_name
from eigendet.observe.tap import Gradient, Tap

PADDING = ("excluded", "none", "unknown")
WEIGHTINGS = ("positions", "images", "entries")
SUMS = 1e-4  # how far sums over parts, which are in float32, may be from those of the whole, as a share
SMALL = 1e-25  # the largest entry of a scatter whose others float32 might not hold with all digits


@dataclass(frozen=True)
class TapRecord:
    """One tap at one step, as read."""

    step: int
    key: TapKey
    padding: str
    count: int
    mean: np.ndarray  # (C,)
    scatter: np.ndarray  # (C, C)
    image_means: np.ndarray | None = None  # (images, C), where they were kept
    parts: Mapping[int, Covariance] = field(default_factory=dict)  # of the images, by number, where they were kept
    gradient: Gradient | None = None  # of the loss, where it was asked for and is there
    weighting: str = "positions"  # what counts alike, see `tap.Tap`
    own_weight: float | None = None  # of all samples; None: each has a weight of 1

    @property
    def weight(self) -> float:
        """Weight of all samples."""
        return float(self.count) if self.own_weight is None else self.own_weight

    @property
    def undersampled(self) -> bool:
        """Whether there are fewer samples than channels."""
        return self.count < len(self.mean)

    @property
    def accumulator(self) -> Covariance:
        """The moments as an accumulator, which more samples can be added to."""
        return _accumulator(self.count, self.mean, self.scatter, self.weight)

    def moment(self, centered: bool) -> np.ndarray:
        """Return the covariance, or the raw second moment, (C, C).

        >>> record = TapRecord(0, TapKey("fc", 0, "linear"), "none", 2, np.array([1.0, 3.0]), np.diag([2.0, 0.0]))
        >>> record.moment(centered=True).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        >>> record.moment(centered=False).tolist()
        [[2.0, 3.0], [3.0, 9.0]]
        """
        covariance: np.ndarray = self.scatter / (self.weight or 1)
        return covariance if centered else covariance + np.outer(self.mean, self.mean)

    def leaving_one_out(self) -> Iterator[TapRecord]:
        """Yield the tap without each of its parts in turn: what a merge adds (Chan et al. 1979) is subtracted."""
        if not self.parts:
            return
        whole = merged(self.parts.values())
        weight, mean, scatter = whole.weight, _mean(whole), whole.scatter.numpy()
        for part in self.parts.values():
            count = whole.count - part.count
            rest, apart = (weight - part.weight if count else 0.0), _mean(part) - mean
            between = part.weight * weight / (rest or 1) * np.outer(apart, apart) if part.count else 0.0
            rest_mean, rest_scatter = mean - part.weight / (rest or 1) * apart, scatter - part.scatter.numpy() - between
            yield replace(self, count=count, own_weight=rest, mean=rest_mean, scatter=rest_scatter, parts={})

    def equals(self, other: TapRecord | None) -> bool:
        """Return whether both are of one tensor: a block's output is that of its last activation."""
        if other is None or (self.step, self.count, len(self.mean)) != (other.step, other.count, len(other.mean)):
            return False
        return np.array_equal(self.mean, other.mean) and np.array_equal(self.scatter, other.scatter)


def write_tap(group: h5py.Group, tap: Tap, dtype: Any, parts: Mapping[int, Covariance] | None = None) -> None:
    """Write one tap into the group of its step.

    Args:
        group: the group of the step.
        tap: what is written.
        dtype: of the scatter.
        parts: moments of parts of the images by number.

    Raises:
        UserError: a moment is not finite.
    """
    covariance, key = tap.covariance, tap.key
    mean, scatter = _mean(covariance), covariance.scatter.cpu().numpy()
    if not (np.isfinite(scatter).all() and np.isfinite(mean).all()):
        raise UserError(f"{key}: its moments hold NaN or infinity; nothing was written to {group.file.filename}.")
    node = group.create_group(node_name(key))
    hdf5.write_attributes(
        node,
        module=key.module,
        call=key.call,
        point=key.point,
        channels=covariance.channels,
        position=tap.position,
        padding=tap.padding,
        weighting=tap.weighting,
        undersampled=int(covariance.count < covariance.channels),
    )
    _write_moments(node, covariance.count, covariance.weight, mean, _packed(scatter).astype(dtype))
    if tap.image_means is not None:
        hdf5.write_array(node, "image_means", tap.image_means.cpu().numpy().astype(np.float32))
    if parts:
        _write_parts(node.create_group("parts"), parts)
    if tap.gradient is not None:
        write_gradient(node, tap.gradient, dtype)


def write_gradient(node: h5py.Group, gradient: Gradient, dtype: Any) -> None:
    """Write the moments of a tap's gradient into its group.

    Args:
        node: the group of the tap.
        gradient: what is written.
        dtype: of the scatter; float64 where that is so small that float32 would lose digits.

    Raises:
        UserError: a moment is not finite.
    """
    moments = gradient.moments
    mean, scatter = _mean(moments), moments.scatter.cpu().numpy()
    if not (np.isfinite(scatter).all() and np.isfinite(mean).all()):
        raise UserError(
            f"the gradient at {read_key(node)}: its moments hold NaN or infinity; nothing was written to "
            f"{node.file.filename}."
        )
    if np.abs(scatter).max(initial=0) < SMALL:
        dtype = np.float64
    group = node.create_group("gradient")
    hdf5.write_attributes(group, passes=gradient.passes)
    _write_moments(group, moments.count, moments.count, mean, _packed(scatter).astype(dtype))


def _write_moments(group: h5py.Group, count: Any, weight: Any, mean: np.ndarray, scatter: np.ndarray) -> None:
    counts, weights = np.asarray(count, np.int64), np.asarray(weight, np.float64)
    if (weights != counts).any():
        hdf5.write_array(group, "weight", weights)
    for name, values in (("count", counts), ("mean", mean), ("scatter", scatter)):
        hdf5.write_array(group, name, values)


def _write_parts(group: h5py.Group, parts: Mapping[int, Covariance]) -> None:
    hdf5.write_array(group, "block", np.array(list(parts), np.int64))
    scatters = [_packed(part.scatter.cpu().numpy()).astype(np.float32) for part in parts.values()]
    means = np.array([_mean(part) for part in parts.values()])
    counts, weights = zip(*((part.count, part.weight) for part in parts.values()), strict=True)
    _write_moments(group, counts, weights, means, np.array(scatters))


def read_key(node: h5py.Group) -> TapKey:
    """Return whose group this is."""
    return TapKey(hdf5.text(node, "module"), hdf5.number(node, "call"), hdf5.text(node, "point"))


def read_tap(node: h5py.Group, step: int, gradients: bool = False) -> TapRecord:
    """Read and check the group of one tap, and if asked for what it holds of the gradient there.

    Raises:
        UserError: something is missing, or cannot be so: of another type or shape, not finite, or not the sum of parts.
    """
    channels, padding, key = hdf5.number(node, "channels"), hdf5.text(node, "padding"), read_key(node)
    if padding not in PADDING:
        raise hdf5.damaged(node, "padding", f"is {padding[:40]!r}; expected one of {', '.join(PADDING)}")
    if node.name.rpartition("/")[2] != node_name(key):
        raise hdf5.damaged(node, "", f"is of {key!r} by what it says itself")
    weighting = str(hdf5.attributes(node, ["weighting"]).get("weighting", WEIGHTINGS[0]))
    if weighting not in WEIGHTINGS:
        raise hdf5.damaged(node, "weighting", f"is {weighting[:40]!r}; expected one of {', '.join(WEIGHTINGS)}")
    count, weight, mean, scatter = _read_moments(node, channels)
    images = len(hdf5.array(node.file, "images", (None,), "S")) if hdf5.has(node.file, "images") else None
    record = TapRecord(
        step=step,
        key=key,
        padding=padding,
        count=int(count[0]),
        mean=mean[0],
        scatter=_unpacked(scatter[0], channels),
        image_means=_read_image_means(node, images, channels) if hdf5.has(node, "image_means") else None,
        gradient=_read_gradient(node, channels) if gradients and hdf5.has(node, "gradient") else None,
        weighting=weighting,
        own_weight=float(weight[0]),
    )
    return replace(record, parts=_read_parts(node, record)) if hdf5.has(node, "parts") else record


class _Stored(NamedTuple):
    """Moments as they are stored, of one or several accumulators."""

    counts: np.ndarray  # (K,)
    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, C)
    scatters: np.ndarray  # (K, C (C + 1) / 2)


def _read_moments(node: h5py.Group, channels: int, shape: tuple[int, ...] = ()) -> _Stored:
    """Return count, weight, mean and scatter, of `shape` accumulators, each of which can be what its name says."""
    count = hdf5.array(node, "count", shape, "i")
    weight = hdf5.array(node, "weight", shape) if hdf5.has(node, "weight") else count.astype(np.float64)
    mean = hdf5.array(node, "mean", (*shape, channels))
    scatter = hdf5.array(node, "scatter", (*shape, channels * (channels + 1) // 2))
    if (count < 0).any():
        raise hdf5.damaged(node, "count", f"is {count.min()}; expected a number of samples")
    if not np.isfinite(weight).all() or ((weight <= 0) != (count == 0)).any() or (weight > count * (1 + SUMS)).any():
        raise hdf5.damaged(node, "weight", "is none of so many samples, each of at most 1")
    for name, values in (("mean", mean), ("scatter", scatter)):
        if not np.isfinite(values).all():
            raise hdf5.damaged(node, name, "holds NaN or infinity")
    number = count.size
    counts, weights = count.reshape(number), weight.reshape(number)
    stored = _Stored(counts, weights, mean.reshape(number, channels), scatter.reshape(number, scatter.shape[-1]))
    # Sums of squares; those of a channel that does not vary may be rounded below 0.
    squares = stored.scatters[:, _diagonal(channels)]
    with np.errstate(over="ignore"):
        raw = stored.weights.max(initial=0) * np.abs(mean).max(initial=0) ** 2
        allowed = 1e-3 * np.abs(squares).max(initial=0) + 1e-6 * raw
    if (squares < -allowed).any():
        raise hdf5.damaged(node, "scatter", f"has a variance below 0, {squares.min():.3g}")
    return stored


def _read_image_means(node: h5py.Group, images: int | None, channels: int) -> np.ndarray:
    means = hdf5.array(node, "image_means", (images, channels))
    empty = np.isnan(means)
    if np.isinf(means).any() or (empty.any(1) != empty.all(1)).any():
        raise hdf5.damaged(node, "image_means", "holds infinity, or NaN for a part of an image")
    return means


def _read_parts(node: h5py.Group, whole: TapRecord) -> dict[int, Covariance]:
    """Return the parts by number, whose sums are those of the whole."""
    group, channels = hdf5.child(node, "parts"), len(whole.mean)
    blocks = hdf5.array(group, "block", (None,), "i")
    count, weight, mean, scatter = _read_moments(group, channels, blocks.shape)
    if len(set(blocks.tolist())) != len(blocks) or (blocks < 0).any():
        raise hdf5.damaged(group, "block", f"is {blocks.tolist()}; expected numbers from 0 on, each once")
    if count.sum() != whole.count:
        raise hdf5.damaged(group, "count", f"adds up to {count.sum()}; the map has {whole.count}")
    if abs(weight.sum() - whole.weight) > SUMS * whole.weight:
        raise hdf5.damaged(group, "weight", f"adds up to {weight.sum()}; the map has {whole.weight}")
    apart = mean - whole.mean
    squares = scatter[:, _diagonal(channels)] + weight[:, None] * apart**2
    variances = whole.scatter.diagonal()
    for name, sums, expected, size in (
        ("mean", weight @ apart, np.zeros(channels), weight @ np.abs(mean)),
        ("scatter", squares.sum(0), variances, np.abs(variances) + weight @ mean**2),
    ):
        if (np.abs(sums - expected) > SUMS * size.max(initial=0)).any():
            raise hdf5.damaged(group, name, "does not add up to that of the map")
    return {
        int(block): _accumulator(int(count[k]), mean[k], _unpacked(scatter[k], channels), float(weight[k]))
        for k, block in enumerate(blocks)
    }


def _read_gradient(node: h5py.Group, channels: int) -> Gradient:
    group = hdf5.child(node, "gradient")
    count, weight, mean, scatter = _read_moments(group, channels)
    moments = _accumulator(int(count[0]), mean[0], _unpacked(scatter[0], channels), float(weight[0]))
    return Gradient(moments, hdf5.number(group, "passes"))


def _accumulator(count: int, mean: np.ndarray, scatter: np.ndarray, weight: float) -> Covariance:
    """Return the accumulator with these moments; an empty one where there are no samples."""
    if not count:
        return Covariance(len(mean))
    return Covariance.from_moments(count, torch.from_numpy(mean), torch.from_numpy(scatter), weight)


def _mean(covariance: Covariance) -> np.ndarray:
    """Return the mean, or zeros where there are no samples."""
    mean: np.ndarray = covariance.mean.cpu().numpy() if covariance.count else np.zeros(covariance.channels)
    return mean


@functools.lru_cache(maxsize=4)  # finding them takes longer than using them
def _triangle(channels: int) -> np.ndarray:
    """Return which entries of a matrix (C, C) are stored: the upper triangle."""
    return np.triu(np.ones((channels, channels), bool))


def _diagonal(channels: int) -> np.ndarray:
    """Return where the diagonal of a matrix (C, C) is in its upper triangle by rows, (C,).

    >>> _diagonal(3).tolist()
    [0, 3, 5]
    """
    rows = np.arange(channels)
    places: np.ndarray = rows * channels - rows * (rows - 1) // 2
    return places


def _packed(matrix: np.ndarray) -> np.ndarray:
    """Return the upper triangle of a matrix (C, C) by rows, (C (C + 1) / 2,)."""
    triangle: np.ndarray = matrix[_triangle(len(matrix))]
    return triangle


def _unpacked(triangle: np.ndarray, channels: int) -> np.ndarray:
    """Return the symmetric matrix (C, C), float64, whose upper triangle this is."""
    matrix = np.zeros((channels, channels))
    matrix[_triangle(channels)] = triangle
    matrix += np.triu(matrix, 1).T
    return matrix
