"""Tables of spectra and of comparisons that someone damaged or changed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet.files import digest_file
from eigendet.spectra import tables
from tests.faults.refusal import one_line_or_nothing, refused
from tests.simulated import compare, rewrite, simulate


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    simulate(folder, seeds=(0, 1), layers=2, channels=4, steps=(0, 4))
    compare(folder)
    return folder


def with_value(column: str, value: Any, row: int = 3) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Put a value into a row of a column, whatever type that needs."""

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        values = table[column].tolist()
        values[row] = value
        return table.assign(**{column: pd.Series(values)})

    return edit


def of_type(column: str, kind: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**{column: table[column].astype(kind)})


def without(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(columns=column)


def without_rows(*rows: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(list(rows))


def doubled(row: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: pd.concat([table, table.iloc[[row]]], ignore_index=True)


def otherwise(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[::-1].reset_index(drop=True)


EDITS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    **{f"without {column}": without(column) for column in tables.COLUMNS["eigenvalues"]},
    "a row lost": without_rows(1),
    "a map's last row lost": without_rows(3),
    "a map lost at one step": without_rows(0, 1, 2, 3),
    "a row doubled": doubled(0),
    "a row doubled with another value": lambda table: pd.concat([table, table.iloc[[0]].assign(value=-1.0)]),
    "rows the other way": otherwise,
    "rows in another order": lambda table: table.sample(frac=1, random_state=1).reset_index(drop=True),
    "eigenvalue NaN": with_value("value", np.nan),
    "eigenvalue infinite": with_value("value", np.inf, 0),
    "eigenvalues ascend": lambda table: table.assign(value=-table["value"]),
    "eigenvalues texts": of_type("value", "str"),
    "eigenvalues complex": lambda table: table.assign(value=[str(value) + "j" for value in table["value"]]),
    "eigenvalues truths": lambda table: table.assign(value=True),
    "arm missing in a row": with_value("arm", None),
    "arm a number": lambda table: table.assign(arm=3),
    "two arms": with_value("arm", "other"),
    "two seeds": with_value("seed", 7),
    "seed negative": lambda table: table.assign(seed=-1),
    "seed a fraction": lambda table: table.assign(seed=0.5),
    "two backbones": with_value("backbone", "other"),
    "step negative": lambda table: table.assign(step=-1),
    "step NaN": with_value("step", np.nan),
    "step a text": of_type("step", "str"),
    "channels other in a row": with_value("channels", 5),
    "channels fewer": lambda table: table.assign(channels=3),
    "channels more": lambda table: table.assign(channels=2**40),
    "channels negative": lambda table: table.assign(channels=-4),
    "samples other in a row": with_value("samples", 5),
    "samples negative": lambda table: table.assign(samples=-1),
    "effective samples 0": lambda table: table.assign(effective_samples=0.0),
    "centered numbers": of_type("centered", "int"),
    "centered both": with_value("centered", False),
    "index twice": with_value("index", 0),
    "index from 1": lambda table: table.assign(index=table["index"] + 1),
    "module another in a row": with_value("module", "layer9"),
    "call a text": of_type("call", "str"),
}  # fmt: skip


@pytest.mark.fault(kind="changed tables", stage="spectra")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_table_of_spectra_that_cannot_be_so_is_refused(
    results: Path, tmp_path: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    table = pd.read_parquet(results / "spectra/scratch/tiny/rcnn/seed_0/eigenvalues.parquet")
    changed = edit(table)
    changed.attrs = table.attrs
    rewrite(tmp_path / "eigenvalues.parquet", table)
    assert len(tables.read_run(tmp_path, "eigenvalues")[0]) == 16  # as it was, also without a digest
    rewrite(tmp_path / "eigenvalues.parquet", changed)
    with refused(tmp_path / "eigenvalues.parquet", "run 'eigendet spectra' again"):
        tables.read_run(tmp_path, "eigenvalues")


COMPARED: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "metrics without values": ("metrics", lambda table: table.drop(columns="value")),
    "metrics doubled": ("metrics", doubled(0)),
    "metrics of texts": ("metrics", of_type("value", "str")),
    "metrics of no name": ("metrics", with_value("metric", None)),
    "distances without measure": ("distances", lambda table: table.drop(columns="measure")),
    "distances doubled": ("distances", doubled(5)),
    "distances at no step": ("distances", with_value("step", -1)),
    "distances of a number": ("distances", lambda table: table.assign(relation=1)),
    "tests without p": ("tests", lambda table: table.drop(columns="p")),
    "tests doubled": ("tests", doubled(2)),
    "tests with texts": ("tests", of_type("corrected", "str")),
}


@pytest.mark.fault(kind="changed tables", stage="comparison")
@pytest.mark.parametrize(("name", "edit"), COMPARED.values(), ids=COMPARED)
def test_a_table_of_a_comparison_that_cannot_be_so_is_refused(
    results: Path, tmp_path: Path, name: str, edit: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    folder = tmp_path / "comparison"
    shutil.copytree(results / "comparison/tiny/rcnn", folder)
    tables.Comparison.read(folder)
    table = pd.read_parquet(folder / f"{name}.parquet")
    changed = edit(table)
    changed.attrs = table.attrs
    rewrite(folder / f"{name}.parquet", changed)
    with refused(folder / f"{name}.parquet", "run 'eigendet comparison' again"):
        tables.Comparison.read(folder)


@pytest.mark.fault(kind="changed records", stage="comparison")
@pytest.mark.parametrize("key", ["notes", "unmatched"])
@pytest.mark.parametrize("notes", [None, "text", [1], {"a": "b"}], ids=str)
def test_notes_that_are_no_texts_are_refused(results: Path, tmp_path: Path, notes: object, key: str) -> None:
    folder = tmp_path / "comparison"
    shutil.copytree(results / "comparison/tiny/rcnn", folder)
    content = json.loads((folder / "notes.json").read_text())
    (folder / "notes.json").write_text(json.dumps(content | {key: notes}))
    with refused(folder / "notes.json", f"{key} is .*; expected a list of texts"):
        tables.Comparison.read(folder)


@pytest.mark.fault(kind="no tables", stage="spectra")
@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"a,b\n1,2\n", b"\0" * 1000], ids=repr)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "eigenvalues.parquet"
    file.write_bytes(content)
    with refused(file, "cannot be read as a table"):
        tables.read_run(tmp_path, "eigenvalues")


@pytest.mark.fault(kind="truncated tables", stage="spectra")
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "none"])
def test_a_table_that_was_cut_off_is_refused(results: Path, tmp_path: Path, share: float, digest: bool) -> None:
    file = copied(results, tmp_path, digest)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with refused(file):
        tables.read_run(tmp_path, "eigenvalues")


@pytest.mark.fault(kind="flipped bits", stage="spectra")
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "none"])
def test_a_flipped_bit_is_found_by_the_digest_and_never_a_crash_without(
    results: Path, tmp_path: Path, digest: bool
) -> None:
    file, places = copied(results, tmp_path, digest), random.Random(0)
    content, refusals = file.read_bytes(), 0
    for _ in range(100):
        flipped = bytearray(content)
        flipped[places.randrange(len(content))] ^= 1 << places.randrange(8)
        file.write_bytes(flipped)
        refusals += bool(one_line_or_nothing(lambda: tables.read_run(tmp_path, "eigenvalues")))
    assert refusals == 100 if digest else refusals > 30


def copied(results: Path, folder: Path, digest: bool) -> Path:
    source, file = results / "spectra/scratch/tiny/rcnn/seed_0/eigenvalues.parquet", folder / "eigenvalues.parquet"
    shutil.copy(source, file)
    if digest:
        shutil.copy(digest_file(source), digest_file(file))
    return file
