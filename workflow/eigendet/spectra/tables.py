"""The files that this engine leaves: what they hold, and how they are written and read.

`eigendet spectra` leaves a folder for each run:

    eigenvalues.parquet   a row an eigenvalue, at every snapshot: the run's columns (arm, backbone, detector, seed), the
                          map's (step, module, call, point, channels, samples, effective_samples: see `metrics`, NaN
                          where no parts of the images were kept, as before the last snapshot; centered: of the
                          covariance or of the raw second moment), index (0 is the largest) and value
    jackknife.parquet     the same at the last snapshot without one part of the images, whose number is `left_out`
    similarity.h5         what comparisons with other maps need, at every snapshot: step_0000000/<module#call:point>/
        directions        float32 (C, k): eigenvectors of the k largest eigenvalues, see `spectrum.leading`
        images            float32 (N, at most N or C): features of the N images, whose products with one another are
                          those of the means over positions, centered; NaN for an image without samples

`eigendet comparison` leaves a folder for all runs of one detector over one backbone:

    metrics.parquet       a row a number of every run, step and map; `metric` names it, see `metric_table`
    distances.parquet     a row a pair of maps, of a run and of another at the same snapshot (relation `arms`, or
                          `seeds` of one arm), at the run's own start (`own start`), or in the pre-trained backbone,
                          before any detector was trained (`pre-trained`, for the backbone's own maps alone). `measure`
                          is jensen_shannon, overlap or cka, see `similarity`; `chance` is what unrelated maps would
                          have; `images`, of cka alone, are those of which both maps have samples.
    tests.parquet         a row a test of two arms, for one map at one snapshot, see `significance`. `measure` is what
                          differs: one of the measures of distances, or a metric. `p` is of one map and pair of arms,
                          `corrected`, `overall`, `dispersion` and `smallest` for all pairs of one measure and snapshot.
    matched.parquet       the same tests of arms where they are equally accurate, see `matching`: at each `level`, of
                          the accuracy `score`; `between` and `within` are distances, of a similarity √(1 - similarity)
    places.parquet        a row a run and level of a pair of arms: the snapshots `before` and `after` that its accuracy
                          lies between, and the step at which it is `reached`
    notes.json            what could not be compared, and why; `unmatched` is what cannot be at equal accuracy

Each file is marked with the version of its format; the tables of a run, and similarity.h5, also say what the run was.
Beside each table stands its SHA-256, as `sha256sum --check` takes it; similarity.h5 has checksums of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Self

import h5py
import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from eigendet.errors import UserError, first_line, kind, some
from eigendet.files import Format, Plain, check_digest, read_json, replacing, write_json
from eigendet.observe import hdf5
from eigendet.observe.hdf5 import NewFile
from eigendet.observe.keys import TapKey, node_name, step_name

SPECTRA, COMPARISON = Format("eigendet spectra", 2), Format("eigendet comparison", 2)

TAP = ["module", "call", "point"]
RUN_COLUMNS = ["arm", "backbone", "detector", "seed"]
TAP_COLUMNS = ["step", *TAP, "channels", "samples", "effective_samples", "centered"]
COMPARED = ("metrics", "distances", "tests", "matched", "places")  # tables of a comparison
P_VALUES = ["p", "corrected", "overall"]
OTHER_RUN = ["other_arm", "other_seed", "other_step"]
COLUMNS = {
    "eigenvalues": [*RUN_COLUMNS, *TAP_COLUMNS, "index", "value"],
    "jackknife": [*RUN_COLUMNS, *TAP_COLUMNS, "left_out", "index", "value"],
    "metrics": [*RUN_COLUMNS, *TAP_COLUMNS, "metric", "value"],
    "distances": [
        *RUN_COLUMNS,
        *TAP,
        "snapshot",
        "relation",
        "step",
        *OTHER_RUN,
        "measure",
        "value",
        "chance",
        "images",
    ],
    "tests": ["backbone", "detector", *TAP, "snapshot", "measure", "arm", "other_arm", "step", *P_VALUES],
    "matched": ["backbone", "detector", *TAP, "level", "measure", "arm", "other_arm", "score", *P_VALUES],
    "places": [*RUN_COLUMNS, "other_arm", "level", "score", "before", "after", "reached"],
}
# What columns of a name hold, in each table: texts, truths, numbers from 0 on; all others are of any number.
TEXTS = {"arm", "backbone", "detector", "module", "point", "metric", "relation", "measure", "other_arm"}
MEASURED = {"value", "chance", "images", "effective_samples", "score", "before", "after", "reached"}
MEASURED |= {*P_VALUES}  # no part of what a row is of
COUNTS = {"seed", "step", "call", "channels", "samples", "index", "left_out", "snapshot", "other_seed", "other_step"}
COUNTS |= {"level", "before", "after"}


@dataclass(frozen=True)
class Provenance:
    """What a run was, as its covariance file says it."""

    experiment: str | None = None
    definition: Plain | None = None  # of its network, in plain values
    probe: dict[str, object] | None = None  # the images on which it was observed, in plain values
    backbone: list[str] | None = None  # paths of its modules: those that a pre-trained backbone brings weights for

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Take what belongs here from plain values, which may hold more.

        >>> Provenance.of({"experiment": "digits", "run": {"seed": 0}})
        Provenance(experiment='digits', definition=None, probe=None, backbone=None)
        """
        return cls(*(content.get(name) for name in ("experiment", "definition", "probe", "backbone")))


def write_run(folder: Path, provenance: Provenance, eigenvalues: pd.DataFrame, jackknife: pd.DataFrame) -> None:
    """Write the tables of a run's spectra; eigenvalues come last, so that where they are, the rest is too."""
    for name, table in (("jackknife", jackknife), ("eigenvalues", eigenvalues)):
        _write(folder / f"{name}.parquet", table, SPECTRA.mark | asdict(provenance))


def read_run(folder: Path, name: Literal["eigenvalues", "jackknife"]) -> tuple[pd.DataFrame, Provenance]:
    """Read a table of a run's spectra, and what the run was.

    Raises:
        UserError: the file is missing, broken or of another format, or its rows are not all those of whole spectra.
    """
    file = folder / f"{name}.parquet"
    table = _read(file, SPECTRA, COLUMNS[name])
    _check_spectra(file, table)
    return table, Provenance.of(table.attrs)


@contextlib.contextmanager
def writing_similarity(folder: Path, provenance: Provenance, images: Sequence[str] | None) -> Iterator[NewFile]:
    """Yield a new similarity.h5 for `write_map`; `images` are their identifiers, where these are known."""
    with hdf5.writing(folder / "similarity.h5") as file:
        content = {"provenance": json.dumps(asdict(provenance), sort_keys=True), "images": json.dumps(images)}
        hdf5.write_attributes(file, **SPECTRA.mark | content)
        yield file


@contextlib.contextmanager
def reading_similarity(folder: Path) -> Iterator[h5py.File]:
    """Yield a run's similarity.h5 for `read_map` and `read_images`.

    Raises:
        UserError: the file is missing, broken or of another format.
    """
    path = folder / "similarity.h5"
    with hdf5.opened(path, f"expected what '{SPECTRA.command}' writes") as file:
        SPECTRA.check(path, hdf5.attributes(file, SPECTRA.mark))
        yield file


def write_map(file: NewFile, step: int, key: TapKey, directions: np.ndarray, features: np.ndarray | None) -> None:
    """Write a map's leading directions, (C, k), and its features of the images where they are known, (N, D)."""
    node = file.create_group(f"{step_name(step)}/{node_name(key)}")
    hdf5.write_array(node, "directions", directions.astype(np.float32))
    if features is not None:
        hdf5.write_array(node, "images", features.astype(np.float32))
    file.check()


def read_map(file: h5py.File, step: int, key: TapKey, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what `write_map` wrote of a map with so many channels, in float64.

    Raises:
        UserError: it is missing, or cannot be so.
    """
    node = hdf5.child(hdf5.child(file, step_name(step)), node_name(key))
    directions = hdf5.array(node, "directions", (channels, None)).astype(np.float64)
    if not np.isfinite(directions).all():
        raise hdf5.damaged(node, "directions", "holds NaN or infinity")
    if not hdf5.has(node, "images"):
        return directions, None
    images = read_images(file)
    features = hdf5.array(node, "images", (None if images is None else len(images), None)).astype(np.float64)
    if np.isinf(features).any():
        raise hdf5.damaged(node, "images", "holds infinity")
    return directions, features


def read_images(file: h5py.File) -> list[str] | None:
    """Return the identifiers of the images in a similarity.h5, or None if it does not say."""
    try:
        images = json.loads(hdf5.text(file, "images"))
    except (ValueError, RecursionError) as error:
        raise hdf5.damaged(file, "images", f"is not JSON ({first_line(error)})") from None
    if images is not None and not (isinstance(images, list) and all(isinstance(image, str) for image in images)):
        raise hdf5.damaged(file, "images", f"is {kind(images)}; expected a list of names")
    return images


class Comparison(NamedTuple):
    """The tables of a folder of comparisons, and its notes."""

    metrics: pd.DataFrame
    distances: pd.DataFrame
    tests: pd.DataFrame
    matched: pd.DataFrame
    places: pd.DataFrame
    notes: list[str]
    unmatched: list[str]

    def write(self, folder: Path) -> None:
        """Write the folder; notes come last, so that where they are, the tables are too."""
        for name, table in zip(COMPARED, self[: len(COMPARED)], strict=True):
            _write(folder / f"{name}.parquet", table, COMPARISON.mark)
        write_json(folder / "notes.json", COMPARISON.mark | {"notes": self.notes, "unmatched": self.unmatched})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the folder.

        Raises:
            UserError: a file is missing, broken or of another format.
        """
        metrics, distances, tests, matched, places = (
            _read(folder / f"{name}.parquet", COMPARISON, COLUMNS[name]) for name in COMPARED
        )
        file = folder / "notes.json"
        content = read_json(file, "notes")
        COMPARISON.check(file, content if isinstance(content, dict) else {})
        for name in ("notes", "unmatched"):
            texts = content.get(name)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UserError(
                    f"{file}: {name} is {kind(texts)}; expected a list of texts: run '{COMPARISON.command}' again."
                )
        return cls(metrics, distances, tests, matched, places, content["notes"], content["unmatched"])


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all tables; what single files say of themselves is left out.

    >>> joined([pd.DataFrame({"seed": [0]}), pd.DataFrame({"seed": [1]})])["seed"].tolist()
    [0, 1]
    """
    plain = [table.copy(deep=False) for table in tables]
    for table in plain:
        table.attrs = {}
    return pd.concat(plain, ignore_index=True) if plain else pd.DataFrame()


def _write(file: Path, table: pd.DataFrame, attributes: Mapping[str, object]) -> None:
    """Write a table, whole or not at all, with a digest beside it; it is composed in memory, being small."""
    table = table.copy(deep=False)
    table.attrs = dict(attributes)
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    with replacing(file, digest=True) as part:
        part.write_bytes(content.getbuffer())


def _read(file: Path, written_as: Format, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table, and check that it has these columns, each of its kind.

    Raises:
        UserError: the file is missing, broken or of another format.
    """
    if not file.exists():
        raise UserError(f"{file}: no such file; '{written_as.command}' writes it.")
    check_digest(file, f"run '{written_as.command}' again")
    from pyarrow import parquet  # here, so that what writes no table need not have it

    try:
        content = io.BytesIO(file.read_bytes())
        parquet.read_table(content).validate(full=True)  # its texts are text
        table = pd.read_parquet(content)
    except Exception as error:  # whatever its readers raise
        raise UserError(
            f"{file}: cannot be read as a table ({first_line(error)}); run '{written_as.command}' again."
        ) from None
    written_as.check(file, table.attrs)
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"{file}: without the columns {', '.join(missing)}; run '{written_as.command}' again.")
    for column in columns if len(table) else ():
        _check_column(file, table[column], written_as)
    twice = table.duplicated([column for column in columns if column not in MEASURED])
    if twice.any():
        raise UserError(f"{file}: row {int(twice.argmax())} is there twice; run '{written_as.command}' again.")
    return table


def _check_column(file: Path, column: pd.Series, written_as: Format) -> None:
    """Raise UserError unless all values of a column are of its kind."""
    if column.name in TEXTS:
        expected, right = "texts", column.map(lambda value: isinstance(value, str)).all()
    elif column.name == "centered":
        expected, right = "true or false", is_bool_dtype(column)
    elif column.name in COUNTS:
        expected, right = "integers from 0 on", is_integer_dtype(column) and (column >= 0).all()
    else:
        expected, right = "numbers", is_numeric_dtype(column) and not is_bool_dtype(column)
    if not right:
        raise UserError(
            f"{file}: the column '{column.name}' holds other than {expected}; run '{written_as.command}' again."
        )


def _check_spectra(file: Path, table: pd.DataFrame) -> None:
    """Check that a table of a run holds whole spectra.

    Raises:
        UserError: it is of several runs, or of some map rows are lost, doubled, out of order or not finite.
    """

    def refuse(what: str) -> NoReturn:
        raise UserError(f"{file}: {what}; the file is damaged, or was changed: run '{SPECTRA.command}' again.")

    for column in (*RUN_COLUMNS, "centered"):
        there = sorted(map(str, set(table[column])))
        if len(there) > 1:
            refuse(f"holds several values of {column}, {some(there)}; expected one run")
    values = table["value"].to_numpy()
    if not np.isfinite(values).all():
        refuse(f"row {int(np.argmin(np.isfinite(values)))} has the eigenvalue {values[~np.isfinite(values)][0]}")
    if (table["effective_samples"] <= 0).any():
        refuse("has effective samples of 0 or below")
    keys = ["step", *TAP, *(["left_out"] if "left_out" in table else [])]
    for key, spectrum in table.groupby(keys, sort=False):
        name = f"step {key[0]}, {TapKey(*key[1:4])}"
        if spectrum[["channels", "samples"]].nunique().max() > 1:
            refuse(f"{name}: differs from row to row in its channels or samples")
        channels = spectrum["channels"].iloc[0]
        if len(spectrum) != channels or not np.array_equal(spectrum["index"], np.arange(len(spectrum))):
            refuse(f"{name}: {len(spectrum)} rows that are not the {channels} eigenvalues in order")
        if (np.diff(spectrum["value"]) > 0).any():
            refuse(f"{name}: eigenvalues that do not descend")
    maps = [set(taps.itertuples(index=False, name=None)) for _, taps in table.groupby("step")[TAP]]
    lost = sorted(str(TapKey(*tap)) for tap in set().union(*maps) if not all(tap in own for own in maps))
    if lost:
        refuse(f"not every step has the maps {some(lost)}")
