"""Read what was observed of a run: its spectra, and its feature maps as far as they are compared with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from eigendet.errors import UserError
from eigendet.observe.keys import TapKey
from eigendet.spectra import similarity, tables
from eigendet.spectra.tables import TAP, Provenance

Tap = tuple[str, int, str]  # module, call, point
SIMILARITIES = ("overlap", "cka")  # measures that are 1 for equal maps; all others are distances


@dataclass(frozen=True)
class RunSpectra:
    """The spectra of one run, as `eigendet spectra` wrote them."""

    folder: Path
    arm: str
    backbone: str
    detector: str
    seed: int
    centered: bool
    eigenvalues: pd.DataFrame
    spectra: dict[tuple[int, Tap], np.ndarray]  # by step and tap, descending, none negative
    provenance: Provenance
    images: list[str] | None  # identifiers of those on which it was observed

    @property
    def steps(self) -> list[int]:
        """Steps of its snapshots, ascending."""
        return sorted({step for step, _ in self.spectra})

    def is_in_backbone(self, tap: Tap) -> bool:
        """Return whether a map is of a module of the backbone; one of several outputs ends in its name in brackets."""
        return tap[0].partition("[")[0] in (self.provenance.backbone or ())

    @property
    def name(self) -> str:
        """Its arm and seed, in words."""
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class FeatureMap:
    """One feature map of one run at one step."""

    run: RunSpectra
    step: int
    spectrum: np.ndarray  # (C,)
    directions: np.ndarray  # (C, k)
    gram: np.ndarray | None  # of the images, see `similarity.gram_of_images`


class Measured(NamedTuple):
    """How far apart or how similar two feature maps are."""

    measure: str
    value: float
    chance: float  # what unrelated maps would have
    images: float  # that the value rests on; nan where it is of spectra or directions


def read_spectra_of_run(folder: Path) -> RunSpectra:
    """Read a folder that `eigendet spectra` wrote.

    Raises:
        UserError: a file is missing, broken, empty or of another format.
    """
    table, provenance = tables.read_run(folder, "eigenvalues")
    with tables.reading_similarity(folder) as similarities:
        images = tables.read_images(similarities)
    if table.empty:
        raise UserError(f"{folder}: has no spectra, since its covariance file has no feature maps.")
    spectra = {
        (int(step), (str(module), int(call), str(point))): np.clip(values.to_numpy(), 0.0, None)
        for (step, module, call, point), values in table.groupby(["step", *TAP], sort=False)["value"]
    }
    first = table.iloc[0]
    arm, backbone, detector = (str(first[column]) for column in ("arm", "backbone", "detector"))
    seed, centered = int(first["seed"]), bool(first["centered"])
    return RunSpectra(folder, arm, backbone, detector, seed, centered, table, spectra, provenance, images)


def read_map(file: h5py.File, run: RunSpectra, step: int, tap: Tap) -> FeatureMap:
    """Read one map from a run's open similarity.h5.

    Raises:
        UserError: it is missing, or damaged.
    """
    directions, features = tables.read_map(file, step, TapKey(*tap), len(run.spectra[step, tap]))
    gram = None if run.images is None or features is None else similarity.gram_of_images(features)
    return FeatureMap(run, step, run.spectra[step, tap], directions, gram)


def common_taps(runs: Sequence[RunSpectra]) -> list[Tap]:
    """Return those that all runs have at all their steps, in order of execution."""
    held = [{tap for _, tap in run.spectra} for run in runs]
    return [tap for tap in dict.fromkeys(tap for _, tap in runs[0].spectra) if all(tap in taps for taps in held)]


def measures_between(first: FeatureMap, second: FeatureMap) -> Iterator[Measured]:
    """Yield every measure of two maps; see `similarity`."""
    channels, kept = first.directions.shape
    yield Measured("jensen_shannon", similarity.jensen_shannon(first.spectrum, second.spectrum), np.nan, np.nan)
    overlap = np.nan  # a map that never varies has no directions
    if first.spectrum.any() and second.spectrum.any():
        overlap = similarity.subspace_overlap(first.directions, second.directions)
    yield Measured("overlap", overlap, kept / channels, np.nan)
    if first.gram is not None and second.gram is not None:
        images = float(np.isfinite(np.diag(first.gram) + np.diag(second.gram)).sum())
        yield Measured("cka", similarity.cka_of_grams(first.gram, second.gram), 0.0, images)


def as_distances(measure: str, values: np.ndarray) -> np.ndarray:
    """Return values of a measure as distances: of a similarity √(1 - similarity).

    >>> as_distances("cka", np.array([1.0, 0.75])), as_distances("jensen_shannon", np.array([0.2]))
    (array([0. , 0.5]), array([0.2]))
    """
    return np.sqrt(np.clip(1 - values, 0, None)) if measure in SIMILARITIES else values
