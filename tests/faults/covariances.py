"""A small file of covariances with everything that one can hold, and what reads all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eigendet.moments.covariance import Covariance
from eigendet.observe import merging, store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Gradient, Tap


def moments(channels: int, seed: int) -> Covariance:
    covariance = Covariance(channels)
    covariance.update(torch.randn(4, channels, 3, 3, generator=torch.Generator().manual_seed(seed)))
    return covariance


def taps(seed: int) -> Iterator[Tap]:
    for place, channels in enumerate((6, 4)):
        means = torch.randn(4, channels, generator=torch.Generator().manual_seed(seed))
        key = TapKey(f"layer{place + 1}.relu", 0, "act")
        gradient = Gradient(moments(channels, seed + 7), passes=4)
        yield Tap(key, place, "excluded", moments(channels, seed), means, gradient)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of covariances with everything that one can hold."""
    return write_whole(tmp_path_factory.mktemp("whole"))


def write_whole(folder: Path) -> Path:
    """Write one into a folder."""
    parts = [folder / f"part_{number}.h5" for number in range(3)]
    for number, part in enumerate(parts):
        snapshots = [(step, taps(10 * number + step)) for step in (0, 4)]
        images = [f"image_{4 * number + place}" for place in range(4)]
        store.write_covariances(part, snapshots, {"run": {"arm": "scratch", "seed": 0}}, images)
    merging.merge(folder / "covariance.h5", parts, [0, 1, 2])
    return folder / "covariance.h5"


def read_all(path: Path) -> None:
    store.provenance(path)
    store.images(path)
    for record in store.read(path):
        assert len(record.mean) in (4, 6)
    for step in (0, 4):
        assert len(list(store.with_gradients(path, step))) == 2
