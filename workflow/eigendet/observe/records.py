"""One tap at one step of a covariance file: its moments, and their group in HDF5 (see `store` for the format)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
import torch

from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance, merged
from eigendet.observe.keys import TapKey, node_name
from eigendet.observe.tap import Gradient, Tap

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

    @property
    def undersampled(self) -> bool:
        """Whether there are fewer samples than channels."""
        return self.count < len(self.mean)

    @property
    def accumulator(self) -> Covariance:
        """The moments as an accumulator, which more samples can be added to."""
        return _accumulator(self.count, self.mean, self.scatter)

    def moment(self, centered: bool) -> np.ndarray:
        """Return the covariance, or the raw second moment, (C, C).

        >>> record = TapRecord(0, TapKey("fc", 0, "linear"), "none", 2, np.array([1.0, 3.0]), np.diag([2.0, 0.0]))
        >>> record.moment(centered=True).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        >>> record.moment(centered=False).tolist()
        [[2.0, 3.0], [3.0, 9.0]]
        """
        covariance: np.ndarray = self.scatter / max(self.count, 1)
        return covariance if centered else covariance + np.outer(self.mean, self.mean)

    def leaving_one_out(self) -> Iterator[TapRecord]:
        """Yield the tap without each of its parts in turn: what a merge adds (Chan et al. 1979) is subtracted."""
        if not self.parts:
            return
        whole = merged(self.parts.values())
        count, mean, scatter = whole.count, _mean(whole), whole.scatter.numpy()
        for part in self.parts.values():
            rest, apart = count - part.count, _mean(part) - mean
            between = part.count * count / max(rest, 1) * np.outer(apart, apart) if part.count else 0.0
            rest_mean = mean - part.count / max(rest, 1) * apart
            yield replace(self, count=rest, mean=rest_mean, scatter=scatter - part.scatter.numpy() - between, parts={})

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
    count, mean, scatter = covariance.count, _mean(covariance), covariance.scatter.cpu().numpy()
    if not (np.isfinite(scatter).all() and np.isfinite(mean).all()):
        raise UserError(f"{key}: its moments hold NaN or infinity; nothing was written to {group.file.filename}.")
    node = group.create_group(node_name(key))
    node.attrs.update(
        {
            "module": key.module,
            "call": key.call,
            "point": key.point,
            "channels": covariance.channels,
            "position": tap.position,
            "padding": tap.padding,
            "undersampled": count < covariance.channels,
        }
    )
    node.create_dataset("count", data=np.int64(count))
    node.create_dataset("mean", data=mean)
    node.create_dataset("scatter", data=_packed(scatter).astype(dtype))
    if tap.image_means is not None:
        node.create_dataset("image_means", data=tap.image_means.cpu().numpy().astype(np.float32))
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
            f"the gradient at {node.attrs['module']}#{node.attrs['call']}:{node.attrs['point']}: its moments hold NaN "
            f"or infinity; nothing was written to {node.file.filename}."
        )
    if np.abs(scatter).max(initial=0) < SMALL:
        dtype = np.float64
    group = node.create_group("gradient")
    group.attrs["passes"] = gradient.passes
    group.create_dataset("count", data=np.int64(moments.count))
    group.create_dataset("mean", data=mean)
    group.create_dataset("scatter", data=_packed(scatter).astype(dtype))


def _write_parts(group: h5py.Group, parts: Mapping[int, Covariance]) -> None:
    group.create_dataset("block", data=np.array(list(parts), np.int64))
    group.create_dataset("count", data=np.array([part.count for part in parts.values()], np.int64))
    group.create_dataset("mean", data=np.array([_mean(part) for part in parts.values()]))
    scatters = [_packed(part.scatter.cpu().numpy()).astype(np.float32) for part in parts.values()]
    group.create_dataset("scatter", data=np.array(scatters))


def read_tap(node: h5py.Group, step: int, gradients: bool = False) -> TapRecord:
    """Read the group of one tap, and if asked for what it holds of the gradient there."""
    channels = int(node.attrs["channels"])
    record = TapRecord(
        step=step,
        key=TapKey(str(node.attrs["module"]), int(node.attrs["call"]), str(node.attrs["point"])),
        padding=str(node.attrs["padding"]),
        count=int(node["count"][()]),
        mean=node["mean"][()],
        scatter=_unpacked(node["scatter"][()], channels),
        image_means=node["image_means"][()] if "image_means" in node else None,
        gradient=_read_gradient(node["gradient"], channels) if gradients and "gradient" in node else None,
    )
    if "parts" not in node:
        return record
    columns = [node["parts"][name] for name in ("block", "count", "mean", "scatter")]
    parts = {
        int(block): replace(record, count=int(count), mean=mean, scatter=_unpacked(scatter, channels)).accumulator
        for block, count, mean, scatter in zip(*columns, strict=True)
    }
    return replace(record, parts=parts)


def _read_gradient(group: h5py.Group, channels: int) -> Gradient:
    scatter = _unpacked(group["scatter"][()], channels)
    moments = _accumulator(int(group["count"][()]), group["mean"][()], scatter)
    return Gradient(moments, int(group.attrs["passes"]))


def _accumulator(count: int, mean: np.ndarray, scatter: np.ndarray) -> Covariance:
    """Return the accumulator with these moments; an empty one where there are no samples."""
    if not count:
        return Covariance(len(mean))
    return Covariance.from_moments(count, torch.from_numpy(mean), torch.from_numpy(scatter))


def _mean(covariance: Covariance) -> np.ndarray:
    """Return the mean, or zeros where there are no samples."""
    mean: np.ndarray = covariance.mean.cpu().numpy() if covariance.count else np.zeros(covariance.channels)
    return mean


@functools.lru_cache(maxsize=4)  # finding them takes longer than using them
def _triangle(channels: int) -> np.ndarray:
    """Return which entries of a matrix (C, C) are stored: the upper triangle."""
    return np.triu(np.ones((channels, channels), bool))


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
