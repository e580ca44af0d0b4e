"""The formats of what `eigendet spectra` and `eigendet comparison` write, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import pandas as pd
import pytest

import eigendet
from eigendet import config
from eigendet.errors import UserError
from eigendet.report import results
from eigendet.spectra import comparison, tables
from tests.simulated import compare, rewrite, simulate

RUN, NETWORK = "spectra/finetune/tiny/rcnn/seed_0", "comparison/tiny/rcnn"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    simulate(tmp_path, seeds=(0, 1), layers=2, channels=8)
    compare(tmp_path)
    return tmp_path


def without_version(file: Path) -> None:
    table = pd.read_parquet(file)
    table.attrs = {key: value for key, value in table.attrs.items() if key not in ("format", "version")}
    rewrite(file, table)


def of_another_version(file: Path) -> None:
    table = pd.read_parquet(file)
    table.attrs |= {"version": 9}
    rewrite(file, table)


def with_an_old_column(file: Path) -> None:
    table = pd.read_parquet(file)
    rewrite(file, table.rename(columns={"centered": "centred"}))


EARLIER = (
    r"of an earlier format, without a version; expected version {1} of what 'eigendet {0}' writes: run 'eigendet {0}'"
)
OTHER = (
    r"of the format 'eigendet {0}', version 9; expected version {1} of what 'eigendet {0}' writes: run 'eigendet {0}'"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_version, EARLIER.format("spectra", tables.SPECTRA.version)),
        (of_another_version, OTHER.format("spectra", tables.SPECTRA.version)),
        (with_an_old_column, "without the columns centered; run 'eigendet spectra' again"),
        (Path.unlink, "no such file; 'eigendet spectra' writes it"),
    ],
)
def test_a_run_of_another_format_is_refused_wherever_it_is_read(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    experiment = config.load([folder / "config.yaml"])
    change(folder / RUN / "eigenvalues.parquet")
    with pytest.raises(UserError, match=f"seed_0/eigenvalues.parquet: {message}"):
        tables.read_run(folder / RUN, "eigenvalues")
    with pytest.raises(UserError, match=f"seed_0/eigenvalues.parquet: {message}"):
        comparison.write_comparison([folder / RUN], folder / "out", {})
    if change is not Path.unlink:  # the report shows what is there
        with pytest.raises(UserError, match=f"seed_0/eigenvalues.parquet: {message}"):
            eigendet.read_spectra(folder)
        with pytest.raises(UserError, match=f"seed_0/eigenvalues.parquet: {message}"):
            results.read_eigenvalues(folder, experiment, "tiny", "rcnn")


@pytest.mark.parametrize(("version", "message"), [(None, EARLIER), (9, OTHER)])
def test_a_similarity_file_of_another_format_is_refused(folder: Path, version: int | None, message: str) -> None:
    file = folder / RUN / "similarity.h5"
    with h5py.File(file, "r+") as similarity:
        del similarity.attrs["version"]
        if version is not None:
            similarity.attrs["version"] = version
    with pytest.raises(UserError, match=f"seed_0/similarity.h5: {message.format('spectra', tables.SPECTRA.version)}"):
        comparison.write_comparison([folder / RUN], folder / "out", {})
    file.write_bytes(b"cut")
    with pytest.raises(
        UserError, match=r"similarity.h5: not HDF5, or truncated .*; expected what 'eigendet spectra' writes"
    ):
        comparison.write_comparison([folder / RUN], folder / "out", {})
    file.unlink()
    with pytest.raises(UserError, match=r"similarity.h5: no such file; expected what 'eigendet spectra' writes"):
        comparison.write_comparison([folder / RUN], folder / "out", {})


@pytest.mark.parametrize("table", ["metrics", "distances", "tests"])
@pytest.mark.parametrize(("change", "message"), [(without_version, EARLIER), (of_another_version, OTHER)])
def test_a_comparison_of_another_format_is_refused(
    folder: Path, table: str, change: Callable[[Path], None], message: str
) -> None:
    change(folder / NETWORK / f"{table}.parquet")
    with pytest.raises(
        UserError, match=f"rcnn/{table}.parquet: {message.format('comparison', tables.COMPARISON.version)}"
    ):
        results.read_comparison(folder, "tiny", "rcnn")


@pytest.mark.parametrize(
    ("notes", "message"), [([], EARLIER), ({"format": "eigendet comparison", "version": 9, "notes": []}, OTHER)]
)
def test_notes_of_another_format_are_refused(folder: Path, notes: object, message: str) -> None:
    (folder / NETWORK / "notes.json").write_text(json.dumps(notes))
    with pytest.raises(UserError, match=f"rcnn/notes.json: {message.format('comparison', tables.COMPARISON.version)}"):
        results.read_comparison(folder, "tiny", "rcnn")


def test_what_is_written_is_read_again_with_what_the_run_was(folder: Path) -> None:
    table, provenance = tables.read_run(folder / RUN, "jackknife")
    assert provenance == tables.Provenance("minimal", None, {"split": "train"}, ["layer0.relu", "layer1.relu"])
    assert table.empty and list(table) == tables.COLUMNS["jackknife"]
    with tables.reading_similarity(folder / RUN) as similarity:
        assert tables.read_images(similarity) == [str(image) for image in range(12)]
    found = tables.Comparison.read(folder / NETWORK)
    found.write(folder / "again")
    for name, again in zip(found._fields, tables.Comparison.read(folder / "again"), strict=True):
        if name in ("notes", "unmatched"):
            assert again == getattr(found, name)
        else:
            pd.testing.assert_frame_equal(again, getattr(found, name))


@pytest.mark.parametrize(
    ("pattern", "command"),
    [("evaluation/*/*/*/*.json", "evaluate"), ("runs/*/*/*/*/run.json", "train")],
)
def test_the_page_refuses_what_was_written_without_a_version(folder: Path, pattern: str, command: str) -> None:
    file = next(folder.glob(pattern))
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "version"}))
    with pytest.raises(
        UserError, match=rf"{file.name}: without a version.* what 'eigendet {command}' writes: delete it"
    ):
        results.read_results(folder)
