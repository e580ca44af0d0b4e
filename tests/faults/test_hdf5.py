"""Covariance files and similarity files that someone damaged, changed, locked, or made of links."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from eigendet.observe import merging, store
from eigendet.observe.keys import TapKey
from eigendet.spectra import tables
from tests.faults.covariances import read_all
from tests.faults.refusal import one_line_or_nothing, refused

TAP = "step_0000004/layer1.relu#0:act"
KEY = TapKey("layer1.relu", 0, "act")


def replaced(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[h5py.File], None]:
    """Put another array in the place of one."""

    def edit(file: h5py.File) -> None:
        values = change(file[name][()])
        del file[name]
        file[name] = values

    return edit


def attribute(name: str, key: str, value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file[name].attrs[key] = value

    return edit


def without(name: str, key: str = "") -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        if key:
            del file[name].attrs[key]
        else:
            del file[name]

    return edit


def linked(name: str, link: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return edit


def stored_elsewhere(file: h5py.File) -> None:
    del file[f"{TAP}/mean"]
    file[TAP].create_dataset("mean", (6,), "f8", external=[("/etc/passwd", 0, 48)])


def made_of_others(file: h5py.File) -> None:
    del file[f"{TAP}/mean"]
    layout = h5py.VirtualLayout((6,), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (6,))
    file[TAP].create_virtual_dataset("mean", layout)


def without_content(file: h5py.File) -> None:
    del file[f"{TAP}/scatter"]
    file[TAP].create_dataset("scatter", (21,), "f8", chunks=(21,))


def of_any_size(file: h5py.File) -> None:
    del file[f"{TAP}/image_means"]
    file[TAP].create_dataset("image_means", (10**9, 6), "f4", chunks=(10**6, 6))


def with_nan(values: np.ndarray) -> np.ndarray:
    values.flat[0] = np.nan
    return values


def with_infinity(values: np.ndarray) -> np.ndarray:
    values.flat[-1] = np.inf
    return values


def negative_diagonal(values: np.ndarray) -> np.ndarray:
    values[0] = -values[0]
    return values


EDITS: dict[str, Callable[[h5py.File], None]] = {
    "count negative": replaced(f"{TAP}/count", lambda count: np.int64(-5)),
    "count a fraction": replaced(f"{TAP}/count", lambda count: 2.5),
    "count an array": replaced(f"{TAP}/count", lambda count: np.array([count, count])),
    "count a text": replaced(f"{TAP}/count", lambda count: "many"),
    "count missing": without(f"{TAP}/count"),
    "count a group": linked(f"{TAP}/count", h5py.SoftLink("/step_0000000")),
    "count other than parts": replaced(f"{TAP}/count", lambda count: count + 1),
    "mean too short": replaced(f"{TAP}/mean", lambda mean: mean[:-1]),
    "mean too long": replaced(f"{TAP}/mean", lambda mean: np.append(mean, 0.0)),
    "mean one number": replaced(f"{TAP}/mean", lambda mean: mean[0]),
    "mean a matrix": replaced(f"{TAP}/mean", lambda mean: mean[None]),
    "mean complex": replaced(f"{TAP}/mean", lambda mean: mean.astype(complex)),
    "mean integers": replaced(f"{TAP}/mean", lambda mean: mean.astype(int)),
    "mean NaN": replaced(f"{TAP}/mean", with_nan),
    "mean infinite": replaced(f"{TAP}/mean", with_infinity),
    "mean other than parts": replaced(f"{TAP}/mean", lambda mean: mean + 1.0),
    "mean missing": without(f"{TAP}/mean"),
    "mean stored elsewhere": stored_elsewhere,
    "mean made of other files": made_of_others,
    "mean in another file": linked(f"{TAP}/mean", h5py.ExternalLink("other.h5", "/mean")),
    "scatter broadcast": replaced(f"{TAP}/scatter", lambda scatter: scatter[:1]),
    "scatter square": replaced(f"{TAP}/scatter", lambda scatter: np.zeros((6, 6))),
    "scatter too short": replaced(f"{TAP}/scatter", lambda scatter: scatter[:-1]),
    "scatter complex": replaced(f"{TAP}/scatter", lambda scatter: scatter * 1j),
    "scatter truths": replaced(f"{TAP}/scatter", lambda scatter: scatter > 0),
    "scatter NaN": replaced(f"{TAP}/scatter", with_nan),
    "scatter infinite": replaced(f"{TAP}/scatter", with_infinity),
    "scatter below 0": replaced(f"{TAP}/scatter", negative_diagonal),
    "scatter other than parts": replaced(f"{TAP}/scatter", lambda scatter: 2 * scatter),
    "scatter empty": replaced(f"{TAP}/scatter", lambda scatter: h5py.Empty("f8")),
    "scatter without content": without_content,
    "scatter of objects": replaced(f"{TAP}/scatter", lambda scatter: np.array([b"x"] * 21, dtype=object)),
    "image means of fewer images": replaced(f"{TAP}/image_means", lambda means: means[:-1]),
    "image means of fewer channels": replaced(f"{TAP}/image_means", lambda means: means[:, :-1]),
    "image means infinite": replaced(f"{TAP}/image_means", with_infinity),
    "image means partly NaN": replaced(f"{TAP}/image_means", with_nan),
    "image means of any size": of_any_size,
    "parts a number": linked(f"{TAP}/parts", np.float64(3)),
    "parts without counts": without(f"{TAP}/parts/count"),
    "parts twice the same": replaced(f"{TAP}/parts/block", lambda block: np.zeros_like(block)),
    "parts of negative number": replaced(f"{TAP}/parts/block", lambda block: block - 1),
    "parts fewer": replaced(f"{TAP}/parts/block", lambda block: block[:-1]),
    "parts of other counts": replaced(f"{TAP}/parts/count", lambda count: count + 1),
    "parts of negative count": replaced(f"{TAP}/parts/count", lambda count: np.array([-36, 72, 72])),
    "parts of other means": replaced(f"{TAP}/parts/mean", lambda mean: mean * 2 + 1),
    "parts of other scatters": replaced(f"{TAP}/parts/scatter", lambda scatter: 3 * scatter),
    "parts NaN": replaced(f"{TAP}/parts/scatter", with_nan),
    "parts in another order of dimensions": replaced(f"{TAP}/parts/scatter", np.transpose),
    "gradient a number": linked(f"{TAP}/gradient", np.float64(3)),
    "gradient without passes": without(f"{TAP}/gradient", "passes"),
    "gradient of negative passes": attribute(f"{TAP}/gradient", "passes", -1),
    "gradient NaN": replaced(f"{TAP}/gradient/mean", with_nan),
    "gradient of another size": replaced(f"{TAP}/gradient/scatter", lambda scatter: scatter[:3]),
    "gradient of negative count": replaced(f"{TAP}/gradient/count", lambda count: np.int64(-1)),
    "channels missing": without(TAP, "channels"),
    "channels other": attribute(TAP, "channels", 5),
    "channels negative": attribute(TAP, "channels", -6),
    "channels a text": attribute(TAP, "channels", "six"),
    "channels a fraction": attribute(TAP, "channels", 6.0),
    "channels an array": attribute(TAP, "channels", [6, 6]),
    "channels no memory holds": attribute(TAP, "channels", 2**40),
    "call missing": without(TAP, "call"),
    "call another": attribute(TAP, "call", 1),
    "call negative": attribute(TAP, "call", -1),
    "module missing": without(TAP, "module"),
    "module another": attribute(TAP, "module", "layer9"),
    "module a number": attribute(TAP, "module", 3),
    "point missing": without(TAP, "point"),
    "position missing": without(TAP, "position"),
    "position a text": attribute(TAP, "position", "first"),
    "padding missing": without(TAP, "padding"),
    "padding unheard of": attribute(TAP, "padding", "\x1b[31mred"),
    "tap a number": linked(TAP, np.float64(3)),
    "tap in another file": linked(TAP, h5py.ExternalLink("/etc/passwd", "/x")),
    "tap a soft link": linked(TAP, h5py.SoftLink("/step_0000000/layer1.relu#0:act")),
    "step a number": linked("step_0000004", np.float64(3)),
    "step in another file": linked("step_0000004", h5py.ExternalLink("other.h5", "/step_0000004")),
    "step without its number": without("step_0000004", "step"),
    "step of another number": attribute("step_0000004", "step", 5),
    "step negative": attribute("step_0000004", "step", -4),
    "something else": attribute("/step_0000004", "step", "four"),
    "images missing": without("images"),
    "images numbers": replaced("images", lambda images: np.arange(12)),
    "images fewer": replaced("images", lambda images: images[:-1]),
    "images twice": replaced("images", lambda images: np.array([b"a"] * 12)),
    "images no text": replaced("images", lambda images: np.array([b"\xff\xfe%d" % n for n in range(12)])),
    "images a group": linked("images", h5py.SoftLink("/step_0000000")),
    "provenance missing": without("/", "provenance"),
    "provenance no JSON": attribute("/", "provenance", "{"),
    "provenance deep": attribute("/", "provenance", "[" * 20_000),
    "provenance a list": attribute("/", "provenance", "[]"),
    "provenance a number": attribute("/", "provenance", 3),
    "format missing": without("/", "format"),
    "format another": attribute("/", "format", "eigendet spectra"),
    "version later": attribute("/", "version", 9),
    "version a text": attribute("/", "version", "4"),
    "version an array": attribute("/", "version", [4, 4]),
}  # fmt: skip


@pytest.mark.fault(kind="changed HDF5", stage="covariance")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_covariance_file_that_cannot_be_so_is_refused(
    whole: Path, tmp_path: Path, edit: Callable[[h5py.File], None], request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "changed.h5"
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    if request.node.callspec.id == "images missing":  # then nobody knows which they are
        assert store.images(path) is None
        with refused(path, "does not say which images"):
            merging.merge(tmp_path / "merged.h5", [path])
        return
    with refused(path):
        read_all(path)
    with refused(path):
        merging.join_steps(tmp_path / "joined.h5", [path])


@pytest.mark.fault(kind="changed HDF5", stage="covariance")
def test_a_file_without_a_fault_is_read(whole: Path) -> None:
    read_all(whole)
    assert one_line_or_nothing(lambda: read_all(whole)) == ""


SIMILARITY: dict[str, Callable[[h5py.File], None]] = {
    "directions missing": without(f"{TAP}/directions"),
    "directions of fewer channels": replaced(f"{TAP}/directions", lambda values: values[:-1]),
    "directions NaN": replaced(f"{TAP}/directions", with_nan),
    "directions integers": replaced(f"{TAP}/directions", lambda values: values.astype(int)),
    "directions in another file": linked(f"{TAP}/directions", h5py.ExternalLink("other.h5", "/x")),
    "features of fewer images": replaced(f"{TAP}/images", lambda values: values[:-1]),
    "features infinite": replaced(f"{TAP}/images", with_infinity),
    "features of one dimension": replaced(f"{TAP}/images", lambda values: values[0]),
    "map missing": without(TAP),
    "step missing": without("step_0000004"),
    "images missing": without("/", "images"),
    "images no JSON": attribute("/", "images", "["),
    "images numbers": attribute("/", "images", "[1, 2]"),
    "images an object": attribute("/", "images", "{}"),
    "format missing": without("/", "format"),
    "version later": attribute("/", "version", 99),
}


def similarity(folder: Path) -> Path:
    """Write a file of what comparisons need."""
    images = [f"image_{number}" for number in range(5)]
    values = np.random.default_rng(0).normal(size=(5, 6))
    with tables.writing_similarity(folder, tables.Provenance("mine"), images) as file:
        tables.write_map(file, 4, KEY, values.T[:, :2], values)
    return folder / "similarity.h5"


def read_similarity(folder: Path) -> None:
    with tables.reading_similarity(folder) as file:
        assert tables.read_images(file) == [f"image_{number}" for number in range(5)]
        directions, features = tables.read_map(file, 4, KEY, channels=6)
        assert directions.shape == (6, 2) and features is not None and features.shape == (5, 6)


@pytest.mark.fault(kind="changed HDF5", stage="comparison")
@pytest.mark.parametrize("edit", SIMILARITY.values(), ids=SIMILARITY)
def test_a_similarity_file_that_cannot_be_so_is_refused(tmp_path: Path, edit: Callable[[h5py.File], None]) -> None:
    path = similarity(tmp_path)
    read_similarity(tmp_path)
    with h5py.File(path, "r+") as file:
        edit(file)
    with refused(path):
        read_similarity(tmp_path)


def of_another_kind(path: Path) -> None:
    path.write_bytes(b"no HDF5 at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.fault(kind="no HDF5", stage="covariance")
@pytest.mark.parametrize("change", [of_another_kind, empty, a_folder, Path.unlink])
def test_what_is_no_hdf5_is_refused(whole: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "changed.h5"
    shutil.copy(whole, path)
    change(path)
    with refused(path, "expected a file written by 'eigendet covariance'"):
        read_all(path)


@pytest.mark.fault(kind="truncated HDF5", stage="covariance")
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_file_that_was_cut_off_is_refused(whole: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.h5"
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with refused(path):
        read_all(path)


@pytest.mark.fault(kind="flipped bits", stage="covariance")
def test_a_flipped_bit_is_found(whole: Path, tmp_path: Path) -> None:
    """It is in at least 95 of 100 places; bytes that nothing reads are the others."""
    path, content, places = tmp_path / "flipped.h5", whole.read_bytes(), random.Random(0)
    refusals = 0
    for _ in range(100):
        flipped = bytearray(content)
        flipped[places.randrange(len(content))] ^= 1 << places.randrange(8)
        path.write_bytes(flipped)
        refusals += bool(one_line_or_nothing(lambda: read_all(path)))
    assert refusals >= 95


@pytest.mark.fault(kind="files of earlier versions", stage="covariance")
def test_a_file_of_an_earlier_version_without_checksums_is_read(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "earlier.h5"
    with h5py.File(whole) as source, h5py.File(path, "w", libver="earliest") as file:
        copy_as_version_3(source, file)
        file.attrs["version"] = 3
    for own, earlier in zip(store.read(whole), store.read(path), strict=True):
        assert own.key == earlier.key and np.array_equal(own.scatter, earlier.scatter)
        assert own.parts.keys() == earlier.parts.keys()
    assert store.images(path) == store.images(whole) and store.provenance(path) == store.provenance(whole)


def copy_as_version_3(source: h5py.Group, target: h5py.Group) -> None:
    for name, value in source.attrs.items():
        target.attrs[name] = value.decode() if isinstance(value, bytes) else value
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            copy_as_version_3(item, target.create_group(name))
        else:
            target[name] = item[()]
