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
    notes.json            what could not be compared, and why

Each file is marked with the version of its format; the tables of a run, and similarity.h5, also say what the run was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import h5py
import numpy as np
import pandas as pd

from eigendet.errors import UserError
from eigendet.files import Format, Plain, read_json, replacing, write_json
from eigendet.observe.keys import TapKey, node_name, step_name

SPECTRA, COMPARISON = Format("eigendet spectra", 2), Format("eigendet comparison", 1)

TAP = ["module", "call", "point"]
RUN_COLUMNS = ["arm", "backbone", "detector", "seed"]
TAP_COLUMNS = ["step", *TAP, "channels", "samples", "effective_samples", "centered"]
COLUMNS = {
    "eigenvalues": [*RUN_COLUMNS, *TAP_COLUMNS, "index", "value"],
    "jackknife": [*RUN_COLUMNS, *TAP_COLUMNS, "left_out", "index", "value"],
}


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
        UserError: the file is missing, broken or of another format.
    """
    table = _read(folder / f"{name}.parquet", SPECTRA, COLUMNS[name])
    return table, Provenance.of(table.attrs)


@contextlib.contextmanager
def writing_similarity(folder: Path, provenance: Provenance, images: Sequence[str] | None) -> Iterator[h5py.File]:
    """Yield a new similarity.h5 for `write_map`; `images` are their identifiers, where these are known."""
    with replacing(folder / "similarity.h5") as part, h5py.File(part, "w") as file:
        content = {"provenance": json.dumps(asdict(provenance), sort_keys=True), "images": json.dumps(images)}
        file.attrs.update(SPECTRA.mark | content)
        yield file


@contextlib.contextmanager
def reading_similarity(folder: Path) -> Iterator[h5py.File]:
    """Yield a run's similarity.h5 for `read_map` and `read_images`.

    Raises:
        UserError: the file is missing, broken or of another format.
    """
    path = folder / "similarity.h5"
    _check_exists(path, SPECTRA)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _broken(path, "HDF5", error, SPECTRA) from None
    with file:
        SPECTRA.check(path, file.attrs)
        yield file


def write_map(file: h5py.File, step: int, key: TapKey, directions: np.ndarray, features: np.ndarray | None) -> None:
    """Write a map's leading directions, (C, k), and its features of the images where they are known, (N, D)."""
    node = file.create_group(f"{step_name(step)}/{node_name(key)}")
    node["directions"] = directions.astype(np.float32)
    if features is not None:
        node["images"] = features.astype(np.float32)


def read_map(file: h5py.File, step: int, key: TapKey) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what `write_map` wrote, in float64."""
    node = file[step_name(step)][node_name(key)]
    features = node["images"][()].astype(np.float64) if "images" in node else None
    return node["directions"][()].astype(np.float64), features


def read_images(file: h5py.File) -> list[str] | None:
    """Return the identifiers of the images in a similarity.h5, or None if it does not say."""
    images: list[str] | None = json.loads(file.attrs["images"])
    return images


class Comparison(NamedTuple):
    """The tables of a folder of comparisons, and its notes."""

    metrics: pd.DataFrame
    distances: pd.DataFrame
    tests: pd.DataFrame
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Write the folder; notes come last, so that where they are, the tables are too."""
        for name, table in zip(("metrics", "distances", "tests"), self[:3], strict=True):
            _write(folder / f"{name}.parquet", table, COMPARISON.mark)
        write_json(folder / "notes.json", COMPARISON.mark | {"notes": self.notes})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the folder.

        Raises:
            UserError: a file is missing, broken or of another format.
        """
        metrics, distances, tests = (
            _read(folder / f"{name}.parquet", COMPARISON) for name in ("metrics", "distances", "tests")
        )
        content = read_json(folder / "notes.json", "notes")
        COMPARISON.check(folder / "notes.json", content if isinstance(content, dict) else {})
        return cls(metrics, distances, tests, content["notes"])


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
    table = table.copy(deep=False)
    table.attrs = dict(attributes)
    with replacing(file) as part:
        table.to_parquet(part, index=False)


def _read(file: Path, written_as: Format, columns: Sequence[str] = ()) -> pd.DataFrame:
    _check_exists(file, written_as)
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise _broken(file, "a table", error, written_as) from None
    written_as.check(file, table.attrs)
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"{file}: without the columns {', '.join(missing)}; run '{written_as.command}' again.")
    return table


def _check_exists(file: Path, written_as: Format) -> None:
    if not file.exists():
        raise UserError(f"{file}: no such file; '{written_as.command}' writes it.")


def _broken(file: Path, kind: str, error: Exception, written_as: Format) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(f"{file}: cannot be read as {kind} ({reason}); run '{written_as.command}' again.")
