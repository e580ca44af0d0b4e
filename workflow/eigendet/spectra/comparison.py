"""What arms have in common and what sets them apart, for every feature map at every snapshot, as tidy tables.

What the tables hold is said in `tables`. Snapshots are those steps that all runs have, and the last of each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from eigendet.errors import UserError, some
from eigendet.observe.keys import TapKey
from eigendet.spectra import significance, similarity, tables
from eigendet.spectra.metric_table import metric_table
from eigendet.spectra.metrics import Rule
from eigendet.spectra.significance import PermutationTest
from eigendet.spectra.tables import TAP, Comparison, Provenance

Tap = tuple[str, int, str]  # module, call, point
FINETUNE = "finetune"  # the arm that starts from the pre-trained backbone

TEST_COLUMNS = (
    "between", "within", "statistic", "p", "corrected", "overall", "dispersion", "smallest", "relabelings", "paired"
)  # fmt: skip


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


def write_comparison(folders: Sequence[Path], output: Path, rules: Mapping[str, Rule]) -> list[str]:
    """Compare runs by their folders of spectra, write the folder `output`, and return the notes.

    Args:
        folders: what `eigendet spectra` wrote, of each run.
        output: the folder to write.
        rules: width rules by name; each is a metric too.

    Raises:
        UserError: a folder holds no spectra; runs are of several networks, or two of them the same.
    """
    runs = [read_spectra_of_run(folder) for folder in folders]
    _check_together(runs)
    compared, notes = comparable(runs)
    metrics = pd.concat([metric_table(run.eigenvalues, rules) for run in runs], ignore_index=True)
    distances = distance_table(compared)
    tests = significance_table(compared, distances, metrics)
    network = {"backbone": runs[0].backbone, "detector": runs[0].detector}
    metrics, distances, tests = (table.assign(**network) for table in (metrics, distances, tests))
    Comparison(metrics, distances, tests, notes).write(output)
    return notes


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


def _check_together(runs: Sequence[RunSpectra]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for name in ("backbone", "detector"):
            own, expected = getattr(run, name), getattr(first, name)
            if own != expected:
                raise UserError(f"{run.folder}: of the {name} '{own}'; {first.folder} is of '{expected}'.")
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise UserError(f"{run.folder}: {run.name} is given twice; each run counts once.")


def comparable(runs: Sequence[RunSpectra]) -> tuple[list[RunSpectra], list[str]]:
    """Return the runs whose maps may be compared, and in a sentence each what is left out or doubtful."""
    compared, notes = _observed_alike(runs)
    taps = set.intersection(*({tap for _, tap in run.spectra} for run in compared))
    for run in compared:
        notes += _notes_on_maps(run, taps)
    undersampled = {label for run in compared for label in _undersampled(run)}
    few = [label for label in _labels(iter(taps)) if label in undersampled]
    if few:
        notes.append(
            f"Maps with fewer effective samples than channels in some run: {len(few)} of {len(taps)} ({some(few)}). "
            "Their smallest eigenvalues say more of the images than of the network; more images would tell."
        )
    if len({tuple(run.steps) for run in compared}) > 1:
        steps = ", ".join(str(step) for step in _moments(compared)[:-1])
        common = (
            f"compared are those at {steps} and the last of each" if steps else "compared is the last of each alone"
        )
        notes.append(f"The runs have snapshots at different steps; {common}.")
    tuned = [run for run in compared if run.arm == FINETUNE]
    if tuned and not any(run.steps[0] == 0 and run.provenance.backbone for run in tuned):
        notes.append(
            "Nothing is compared with the pre-trained backbone: no run of finetune has a snapshot at step 0 that says "
            "which maps are of the backbone."
        )
    unnamed = [run.name for run in compared if run.images is None]
    if unnamed:
        notes.append(f"{some(unnamed)}: no CKA, since the images are not named.")
    return compared, notes


def _observed_alike(runs: Sequence[RunSpectra]) -> tuple[list[RunSpectra], list[str]]:
    """Return the runs that saw the same images, of the same moment, as most did, and a note on each other."""
    kinds = [(run.provenance.probe, run.images, run.centered) for run in runs]
    first, alike, notes = runs[kinds.index(max(kinds, key=kinds.count))], [], []
    for run in runs:
        other_images = (run.provenance.probe, run.images) != (first.provenance.probe, first.images)
        other_moment = run.centered != first.centered
        if other_images:
            notes.append(
                f"{run.name} was observed on other images than {first.name}, so it is compared with no other run."
            )
        if other_moment:
            notes.append(f"{run.name} has spectra of another moment (centered or raw), so it is compared with none.")
        if not (other_images or other_moment):
            alike.append(run)
    return alike, notes


def _notes_on_maps(run: RunSpectra, taps: set[Tap]) -> list[str]:
    """Say which maps of a run cannot be compared; `taps` are those that all runs have."""
    missing = _labels(tap for _, tap in run.spectra if tap not in taps)
    dead = _labels(tap for (_, tap), values in run.spectra.items() if not values.any())
    notes = []
    if missing:
        notes.append(f"Only {run.name} and perhaps others, not all, have the maps {some(missing)}: left out.")
    if dead:
        notes.append(
            f"{run.name} has maps that do not vary in some snapshot, so that they have no spectrum there: {some(dead)}."
        )
    return notes


def _labels(taps: Iterator[Tap]) -> list[str]:
    return sorted({str(TapKey(*tap)) for tap in taps})


def _undersampled(run: RunSpectra) -> list[str]:
    """Name maps with fewer effective samples than channels at the last step; without these, with fewer samples."""
    table = run.eigenvalues
    last = table[(table["step"] == run.steps[-1]) & (table["index"] == 0)]
    few = last[last["effective_samples"].fillna(last["samples"]) < last["channels"]]
    return [str(TapKey(*tap)) for tap in few[TAP].itertuples(index=False, name=None)]


@dataclass(frozen=True)
class FeatureMap:
    """One feature map of one run at one step."""

    run: RunSpectra
    step: int
    spectrum: np.ndarray  # (C,)
    directions: np.ndarray  # (C, k)
    gram: np.ndarray | None  # of the images, see `similarity.gram_of_images`
    is_pretrained: bool  # in no detector's training yet, with weights from the pre-trained backbone


class DistanceRow(NamedTuple):
    """A row of the table of distances."""

    module: str
    call: int
    point: str
    snapshot: int
    relation: str
    arm: str
    seed: int
    step: int
    other_arm: str
    other_seed: int
    other_step: int
    measure: str
    value: float
    chance: float
    images: float  # that the value rests on; nan where it is of spectra or directions


def distance_table(runs: Sequence[RunSpectra]) -> pd.DataFrame:
    """Return how far each map is from the same map in other runs, at its own start, and in the pre-trained backbone."""
    rows: list[DistanceRow] = []
    with contextlib.ExitStack() as stack:
        files = {run.name: stack.enter_context(tables.reading_similarity(run.folder)) for run in runs}
        for tap in _taps(runs):
            starts = [_map(files[run.name], run, run.steps[0], tap) for run in runs]
            for snapshot, moment in enumerate(_moments(runs)):
                maps = [_map(files[run.name], run, _step(run, moment), tap) for run in runs]
                for relation, first, second in _pairs(maps, starts):
                    rows += _distances(tap, snapshot, relation, first, second)
    return pd.DataFrame(rows, columns=DistanceRow._fields)


def _map(file: h5py.File, run: RunSpectra, step: int, tap: Tap) -> FeatureMap:
    directions, features = tables.read_map(file, step, TapKey(*tap), len(run.spectra[step, tap]))
    gram = None if run.images is None or features is None else similarity.gram_of_images(features)
    is_pretrained = step == 0 and run.arm == FINETUNE and run.is_in_backbone(tap)
    return FeatureMap(run, step, run.spectra[step, tap], directions, gram, is_pretrained)


def _pairs(maps: Sequence[FeatureMap], starts: Sequence[FeatureMap]) -> Iterator[tuple[str, FeatureMap, FeatureMap]]:
    """Yield the relation of two maps of one tap, and both; `starts` are those of the same runs at their first step."""
    for first, second in itertools.combinations(maps, 2):
        yield "seeds" if first.run.arm == second.run.arm else "arms", first, second
    # All fine-tuned runs start from the same backbone, so that the first will do.
    pretrained = next((start for start in starts if start.is_pretrained), None)
    for own, start in zip(maps, starts, strict=True):
        yield "own start", own, start
        if pretrained is not None:
            yield "pre-trained", own, pretrained


def _distances(tap: Tap, snapshot: int, relation: str, first: FeatureMap, second: FeatureMap) -> Iterator[DistanceRow]:
    """Yield a row for every measure of two maps."""
    channels, kept = first.directions.shape
    overlap = np.nan  # a map that never varies has no directions
    if first.spectrum.any() and second.spectrum.any():
        overlap = similarity.subspace_overlap(first.directions, second.directions)
    measures = [
        ("jensen_shannon", similarity.jensen_shannon(first.spectrum, second.spectrum), np.nan, np.nan),
        ("overlap", overlap, kept / channels, np.nan),
    ]
    if first.gram is not None and second.gram is not None:
        images = float(np.isfinite(np.diag(first.gram) + np.diag(second.gram)).sum())
        measures.append(("cka", similarity.cka_of_grams(first.gram, second.gram), 0.0, images))
    for measure, value, chance, images in measures:
        yield DistanceRow(
            *tap, snapshot, relation,
            first.run.arm, first.run.seed, first.step, second.run.arm, second.run.seed, second.step,
            measure, value, chance, images,
        )  # fmt: skip


def significance_table(runs: Sequence[RunSpectra], distances: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Test every two arms against the spread of their seeds: by distances and by metrics, at every snapshot.

    Args:
        runs: those that are compared.
        distances: the table of these runs; similarities in it count as the distance √(1 - similarity).
        metrics: the table of these runs, and perhaps of others. A map that does not vary in some run has no test, as it
            has none by distances.
    """
    taps, tests = _taps(runs), []
    for snapshot, moment in enumerate(_moments(runs)):
        spectra = [[run.spectra[_step(run, moment), tap] for run in runs] for tap in taps]
        vary = np.array(
            [all(values.any() and np.isfinite(values).all() for values in of_tap) for of_tap in spectra], bool
        )
        at = distances[(distances["snapshot"] == snapshot) & distances["relation"].isin(["arms", "seeds"])]
        for measure, rows in at.groupby("measure", sort=False):
            matrices = _distance_matrices(rows, runs, taps)
            tests += [
                table.assign(snapshot=snapshot, measure=measure) for table in _tests(runs, moment, taps, matrices)
            ]
        for metric, rows in metrics.groupby("metric", sort=False):
            values = _metric_values(rows, runs, [_step(run, moment) for run in runs], taps)
            with np.errstate(invalid="ignore"):
                matrices = np.abs(values[:, :, None] - values[:, None, :])
            matrices[~vary] = np.nan
            for table in _tests(runs, moment, taps, matrices):
                means = [values[:, [run.arm == arm for run in runs]].mean(1) for arm in _arms_of(table)]
                tests.append(table.assign(snapshot=snapshot, measure=metric, mean=means[0], other_mean=means[1]))
    return pd.concat(tests, ignore_index=True) if tests else pd.DataFrame(columns=tables.COLUMNS["tests"])


def _tests(
    runs: Sequence[RunSpectra], moment: int | None, taps: Sequence[Tap], distances: np.ndarray
) -> Iterator[pd.DataFrame]:
    """Yield the tests of every two arms by one measure at one moment, corrected for the number of pairs.

    Args:
        runs: those that are compared.
        moment: the step, or None for the last of each run.
        taps: the maps.
        distances: of the runs, (taps, runs, runs).
    """
    pairs = list(itertools.combinations(dict.fromkeys(run.arm for run in runs), 2))
    chosen = [[index for index, run in enumerate(runs) if run.arm in arms] for arms in pairs]
    tests = [
        significance.permutation_test(
            distances[:, indices][:, :, indices],
            [runs[index].arm for index in indices],
            [runs[index].seed for index in indices],
        )
        for indices in chosen
    ]
    for arms, indices, test in zip(pairs, chosen, significance.over_pairs(tests), strict=True):
        step = _step(runs[indices[0]], moment)
        yield _test_rows({"arm": arms[0], "other_arm": arms[1], "step": step}, taps, test)


def _test_rows(common: Mapping[str, object], taps: Sequence[Tap], test: PermutationTest) -> pd.DataFrame:
    table = pd.DataFrame(taps, columns=TAP).assign(**common)
    table = table.assign(**{column: getattr(test, column) for column in TEST_COLUMNS})
    return table.assign(spread=test.spread[:, 0], other_spread=test.spread[:, 1])


def _arms_of(table: pd.DataFrame) -> tuple[str, str]:
    return table["arm"].iloc[0], table["other_arm"].iloc[0]


def _distance_matrices(rows: pd.DataFrame, runs: Sequence[RunSpectra], taps: Sequence[Tap]) -> np.ndarray:
    """Return the distances by one measure, (taps, runs, runs), symmetric."""
    is_distance = (rows["measure"] == "jensen_shannon").all()
    run_index = {(run.arm, run.seed): index for index, run in enumerate(runs)}
    tap_index = {tap: index for index, tap in enumerate(taps)}
    matrices = np.full((len(taps), len(runs), len(runs)), np.nan)
    matrices[:, range(len(runs)), range(len(runs))] = 0.0 if is_distance else 1.0  # of a map with itself
    columns = [*TAP, "arm", "seed", "other_arm", "other_seed", "value"]
    for module, call, point, arm, seed, other_arm, other_seed, value in rows[columns].itertuples(index=False):
        first, second = run_index.get((arm, seed)), run_index.get((other_arm, other_seed))
        if first is not None and second is not None:
            matrices[tap_index[module, call, point], [first, second], [second, first]] = value
    return matrices if is_distance else np.sqrt(np.clip(1 - matrices, 0, None))


def _metric_values(
    rows: pd.DataFrame, runs: Sequence[RunSpectra], steps: Sequence[int], taps: Sequence[Tap]
) -> np.ndarray:
    """Return one metric at each run's step, (taps, runs)."""
    keys = [(*tap, run.arm, run.seed, step) for tap in taps for run, step in zip(runs, steps, strict=True)]
    series = rows.set_index([*TAP, "arm", "seed", "step"])["value"]
    return series.reindex(pd.MultiIndex.from_tuples(keys)).to_numpy().reshape(len(taps), len(runs))


def _taps(runs: Sequence[RunSpectra]) -> list[Tap]:
    """Return those that all runs have at all their steps, in order of execution."""
    held = [{tap for _, tap in run.spectra} for run in runs]
    return [tap for tap in dict.fromkeys(tap for _, tap in runs[0].spectra) if all(tap in taps for taps in held)]


def _moments(runs: Sequence[RunSpectra]) -> list[int | None]:
    """Return the steps that all runs have, and then the last of each, None."""
    common = set.intersection(*(set(run.steps[:-1]) for run in runs))
    return [*sorted(common), None]


def _step(run: RunSpectra, moment: int | None) -> int:
    return run.steps[-1] if moment is None else moment
