from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance
from eigendet.observe import merging, store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Tap


def snapshots(seed: int = 0, steps: tuple[int, ...] = (0, 10, 2)) -> Iterator[tuple[int, list[Tap]]]:
    generator = torch.Generator().manual_seed(seed)
    for step in steps:
        relu = Tap(TapKey("z.relu", 1, "act"), 0, "excluded", Covariance(3))
        conv = Tap(TapKey("a.conv", 0, "conv"), 1, "unknown", Covariance(5))
        for tap in (relu, conv):
            tap.covariance.update(torch.randn(2, tap.covariance.channels, 4, 4, generator=generator))
        yield step, [relu, conv]


def test_what_is_written_reads_back_steps_ascending_taps_in_order_of_execution(tmp_path: Path) -> None:
    store.write_covariances(tmp_path / "c.h5", snapshots(), {"run": {"arm": "scratch"}})
    records = list(store.read(tmp_path / "c.h5"))
    assert [(record.step, str(record.key)) for record in records] == [
        (step, key) for step in (0, 2, 10) for key in ("z.relu#1:act", "a.conv#0:conv")
    ]
    written = {(step, tap.key): tap.covariance for step, taps in snapshots() for tap in taps}
    for record in records:
        covariance = written[record.step, record.key]
        assert record.count == covariance.count
        np.testing.assert_array_equal(record.mean, covariance.mean.numpy())
        np.testing.assert_array_equal(record.scatter, covariance.scatter.numpy())
        for centered in (True, False):
            np.testing.assert_allclose(record.moment(centered), covariance.covariance(centered).numpy(), rtol=1e-14)
    assert store.provenance(tmp_path / "c.h5") == {"run": {"arm": "scratch"}}


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        store.write_covariances(tmp_path / name, snapshots(), {"b": 1, "a": 2})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_single_precision_reads_back(tmp_path: Path) -> None:
    store.write_covariances(tmp_path / "full.h5", snapshots(), {})
    for name in ("a.h5", "b.h5"):
        store.write_covariances(tmp_path / name, snapshots(), {}, single=True)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    for full, record in zip(store.read(tmp_path / "full.h5"), store.read(tmp_path / "a.h5"), strict=True):
        np.testing.assert_allclose(record.scatter, full.scatter, rtol=2e-7)


@pytest.mark.parametrize("single", [False, True])
def test_a_file_compressed_by_an_earlier_version_reads_and_merges_as_a_plain_one(tmp_path: Path, single: bool) -> None:
    plain, compressed = tmp_path / "plain.h5", tmp_path / "compressed.h5"
    for path in (plain, compressed):
        store.write_covariances(path, snapshots(), {}, [1], single=single)
    with h5py.File(compressed, "r+") as file:
        for tap in (tap for name in file if name != "images" for tap in file[name].values()):
            scatter = tap["scatter"][()]
            del tap["scatter"]
            tap.create_dataset("scatter", data=scatter, compression="gzip", shuffle=True)
    for full, record in zip(store.read(plain), store.read(compressed), strict=True):
        np.testing.assert_array_equal(record.scatter, full.scatter)
    for path in (plain, compressed):
        merging.merge(tmp_path / f"merged_{path.name}", [path])
    assert (tmp_path / "merged_plain.h5").read_bytes() == (tmp_path / "merged_compressed.h5").read_bytes()


def shards(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"{number}.h5" for number in range(count)]
    for number, path in enumerate(paths):
        images = range(10 * number, 10 * number + 2)
        store.write_covariances(path, snapshots(number), {"run": 1, store.CODE: {"revision": number}}, list(images))
    return paths


def test_merging_equals_seeing_all_images_and_does_not_depend_on_the_order(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    merging.merge(tmp_path / "all.h5", paths)
    merging.merge(tmp_path / "reversed.h5", paths[::-1])
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "reversed.h5").read_bytes()
    assert store.images(tmp_path / "all.h5") == ["0", "1", "10", "11", "20", "21"]
    merged = {(record.step, record.key): record for record in store.read(tmp_path / "all.h5")}
    assert [record.padding for record in merged.values()] == ["excluded", "unknown"] * 3
    for (step, key), record in merged.items():
        whole = Covariance(len(record.mean), "cpu")
        for number in range(3):
            for other, taps in snapshots(number):
                for tap in taps:
                    if (other, tap.key) == (step, key):
                        whole.merge(tap.covariance)
        assert record.count == whole.count == 96
        np.testing.assert_allclose(record.scatter, whole.scatter.numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(record.mean, whole.mean.numpy(), rtol=1e-12, atol=1e-14)


def test_merging_refuses_what_does_not_belong_together_and_names_it(tmp_path: Path) -> None:
    first, second, _ = shards(tmp_path)
    target = tmp_path / "all.h5"
    other = {"run": 2, store.CODE: {}}
    store.write_covariances(tmp_path / "other.h5", snapshots(), other, [7])
    store.write_covariances(tmp_path / "fewer.h5", snapshots(steps=(0, 2)), {"run": 1, store.CODE: {}}, [7])
    store.write_covariances(tmp_path / "single.h5", snapshots(), {"run": 1, store.CODE: {}}, [7], single=True)
    store.write_covariances(tmp_path / "silent.h5", snapshots(), {"run": 1, store.CODE: {}})
    for parts, message in [
        ([first, first], "saw image '0', which .*0.h5 saw too; each may be merged once"),
        ([first, second, tmp_path / "other.h5"], "of another experiment than .*: run is 2, not 1"),
        ([first, tmp_path / "fewer.h5"], "step 10 is only in the latter"),
        ([first, tmp_path / "single.h5"], "stored as is 'float32', not 'float64'"),
        ([first, tmp_path / "silent.h5"], "silent.h5: does not say which images it saw"),
        ([first, tmp_path / "none.h5"], "none.h5: no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            merging.merge(target, parts)
        assert not target.exists()


def test_an_image_recorded_twice_and_moments_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image '3' would be recorded twice"):
        store.write_covariances(tmp_path / "c.h5", snapshots(), {}, [1, 3, 3])
    broken = Tap(
        TapKey("m", 0, "act"), 0, "none", Covariance.from_moments(2, torch.zeros(1), torch.full((1, 1), torch.nan))
    )
    with pytest.raises(UserError, match="m#0:act: its moments hold NaN or infinity"):
        store.write_covariances(tmp_path / "c.h5", [(0, [broken])], {})
    assert not list(tmp_path.iterdir())


def test_fewer_samples_than_channels_are_flagged(tmp_path: Path) -> None:
    few = Covariance(4)
    few.update(torch.eye(4)[:3])
    store.write_covariances(tmp_path / "c.h5", [(0, [Tap(TapKey("fc", 0, "linear"), 0, "none", few)])], {})
    (record,) = store.read(tmp_path / "c.h5")
    assert record.undersampled
    assert "fc#0:linear         4           3  none      0.667     fewer samples than channels" in list(
        store.describe(tmp_path / "c.h5")
    )


def test_a_full_disk_leaves_the_earlier_file_and_no_half_one(tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk: the same failed write, without privileges."""
    path = tmp_path / "c.h5"
    store.write_covariances(path, snapshots(), {})
    before = path.read_bytes()
    code = f"""
import resource, signal, torch
from pathlib import Path
from eigendet.observe import store
from eigendet.moments.covariance import Covariance
from eigendet.observe.tap import Tap
from eigendet.errors import UserError
from eigendet.observe.keys import TapKey
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    store.write_covariances(Path({str(path)!r}), [(0, [Tap(TapKey("m", 0, "act"), 0, "none", Covariance(512))])], {{}})
except UserError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith(f"refused: {path}: cannot be written"), result.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_writing_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    store.write_covariances(path, snapshots(), {})
    before = path.read_bytes()
    code = f"""
import os, signal
from pathlib import Path
from eigendet.observe import store
def taps():
    os.kill(os.getpid(), signal.SIGKILL)
    yield 0, []
store.write_covariances(Path({str(path)!r}), taps(), {{}})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    store.write_covariances(path, snapshots(1), {})
    assert list(store.read(path))


def test_a_failure_while_writing_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    store.write_covariances(path, snapshots(), {})
    before = path.read_bytes()

    def failing() -> Iterator[tuple[int, list[Tap]]]:
        yield next(snapshots())
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError):
        store.write_covariances(path, failing(), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_truncated_foreign_and_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "good.h5"
    store.write_covariances(good, snapshots(), {})
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs.update({"format": store.FORMAT, "version": 1})
    for name, message in [
        ("none.h5", "no such file"),
        ("cut.h5", "not HDF5, or truncated"),
        ("text.h5", "not HDF5, or truncated"),
        ("foreign.h5", "format 'None'"),
        ("old.h5", "version 1; expected a file written by 'eigendet covariance'"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            list(store.read(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
