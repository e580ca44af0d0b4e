from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from eigendet import store
from eigendet.covariance import Covariance
from eigendet.errors import UserError
from eigendet.taps import TapKey


def snapshots() -> Iterator[tuple[int, dict[TapKey, Covariance]]]:
    generator = torch.Generator().manual_seed(0)
    for step in (0, 10, 2):
        taps = {TapKey("z.relu", 1, "act"): Covariance(3), TapKey("a.conv", 0, "conv"): Covariance(5)}
        for covariance in taps.values():
            covariance.update(torch.randn(2, covariance.channels, 4, 4, generator=generator))
        yield step, taps


def test_what_is_written_reads_back_steps_ascending_taps_in_order_of_execution(tmp_path: Path) -> None:
    store.write(tmp_path / "c.h5", snapshots(), {"run": {"arm": "scratch"}})
    records = list(store.read(tmp_path / "c.h5"))
    assert [(record.step, str(record.key)) for record in records] == [
        (step, key) for step in (0, 2, 10) for key in ("z.relu#1:act", "a.conv#0:conv")
    ]
    written = {(step, key): covariance for step, taps in snapshots() for key, covariance in taps.items()}
    for record in records:
        covariance = written[record.step, record.key]
        assert record.count == covariance.count
        np.testing.assert_array_equal(record.mean, covariance.mean.numpy())
        np.testing.assert_array_equal(record.scatter, covariance.scatter.numpy())
        for centred in (True, False):
            np.testing.assert_allclose(record.moment(centred), covariance.covariance(centred).numpy(), rtol=1e-14)
    assert store.provenance(tmp_path / "c.h5") == {"run": {"arm": "scratch"}}


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        store.write(tmp_path / name, snapshots(), {"b": 1, "a": 2})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_failure_while_writing_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    store.write(path, snapshots(), {})
    before = path.read_bytes()

    def failing() -> Iterator[tuple[int, dict[TapKey, Covariance]]]:
        yield next(snapshots())
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError):
        store.write(path, failing(), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_truncated_foreign_and_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "good.h5"
    store.write(good, snapshots(), {})
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs.update({"format": store.FORMAT, "version": 0})
    for name, message in [
        ("none.h5", "no such file"),
        ("cut.h5", "not HDF5, or truncated"),
        ("text.h5", "not HDF5, or truncated"),
        ("foreign.h5", "format 'None'"),
        ("old.h5", "version 0; expected a file written by 'eigendet dump'"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            list(store.read(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
