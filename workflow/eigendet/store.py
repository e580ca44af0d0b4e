"""The HDF5 file of covariances: one file a run, written whole or not at all, checked when read.

    /                        attributes: format, version, provenance (JSON)
    /step_0000000            attribute: step
        /<module#call:point> attributes: module, call, point, channels, position (order of execution)
            count            int64: samples, that is images times positions
            mean             float64 (C,)
            scatter          float64 (C (C + 1) / 2,): upper triangle by rows of the sum of (x - mean)(x - mean)ᵀ

Covariance is scatter / count; the raw second moment adds mean meanᵀ. So both can be read later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eigendet.covariance import Covariance
from eigendet.errors import UserError
from eigendet.files import replacing
from eigendet.taps import TapKey

FORMAT, VERSION = "eigendet covariance", 1


@dataclass(frozen=True)
class Record:
    """One tap at one step."""

    step: int
    key: TapKey
    count: int
    mean: np.ndarray  # (C,)
    scatter: np.ndarray  # (C, C)

    def moment(self, centred: bool) -> np.ndarray:
        """Covariance, or the raw second moment, (C, C)."""
        covariance: np.ndarray = self.scatter / self.count
        return covariance if centred else covariance + np.outer(self.mean, self.mean)


def write(
    path: Path, snapshots: Iterable[tuple[int, Mapping[TapKey, Covariance]]], provenance: Mapping[str, Any]
) -> None:
    """Write the taps of every snapshot, one snapshot in memory at a time; equal input gives equal bytes."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {"format": FORMAT, "version": VERSION, "provenance": json.dumps(provenance, indent=1, sort_keys=True)}
        )
        for step, taps in snapshots:
            group = file.create_group(f"step_{step:07d}")
            group.attrs["step"] = step
            for position, (key, covariance) in enumerate(taps.items()):
                tap = group.create_group(str(key))
                tap.attrs.update(
                    {
                        "module": key.module,
                        "call": key.call,
                        "point": key.point,
                        "channels": covariance.channels,
                        "position": position,
                    }
                )
                upper = np.triu_indices(covariance.channels)
                tap.create_dataset("count", data=np.int64(covariance.count))
                tap.create_dataset("mean", data=covariance.mean.cpu().numpy())
                tap.create_dataset("scatter", data=covariance.scatter.cpu().numpy()[upper])


def provenance(path: Path) -> dict[str, Any]:
    """What the file was made from."""
    with _open(path) as file:
        content: dict[str, Any] = json.loads(file.attrs["provenance"])
        return content


def read(path: Path) -> Iterator[Record]:
    """Every tap of every step, steps ascending, taps in order of execution.

    Raises:
        UserError: the file is missing, truncated, of another kind or another version.
    """
    with _open(path) as file:
        for group in sorted(file.values(), key=lambda group: int(group.attrs["step"])):
            for tap in sorted(group.values(), key=lambda tap: int(tap.attrs["position"])):
                channels = int(tap.attrs["channels"])
                scatter = np.zeros((channels, channels))
                scatter[np.triu_indices(channels)] = tap["scatter"][()]
                scatter += np.triu(scatter, 1).T
                key = TapKey(str(tap.attrs["module"]), int(tap.attrs["call"]), str(tap.attrs["point"]))
                yield Record(int(group.attrs["step"]), key, int(tap["count"][()]), tap["mean"][()], scatter)


def _open(path: Path) -> h5py.File:
    wanted = f"expected a file written by 'eigendet dump' (format '{FORMAT}', version {VERSION})"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wanted}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not HDF5, or truncated ({error}); {wanted}. Dump it again.") from None
    found = file.attrs.get("format"), file.attrs.get("version")
    if found != (FORMAT, VERSION):
        file.close()
        raise UserError(f"{path}: format '{found[0]}', version {found[1]}; {wanted}.")
    return file
