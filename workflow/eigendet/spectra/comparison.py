"""What arms have in common and what sets them apart, for every feature map at every snapshot, as tidy tables.

A folder of comparisons, of all runs of one detector over one backbone, holds

    metrics.parquet     a row a number: of every run, step and tap; `metric` names it, see `measures`
    distances.parquet   a row a pair of maps: a run's and another's at the same snapshot (relation `arms` or `seeds`,
                        these of one arm), at the run's own start (`own start`), or in the pre-trained backbone, before
                        any detector was trained (`pre-trained`). `measure` is jensen_shannon, overlap or cka, see
                        `similarity`; `chance` is what unrelated maps would have.
    tests.parquet       a row a test of two arms: of the distances between spectra or maps, or of one metric, for one
                        tap at one snapshot, see `significance`
    notes.json          what could not be compared, and why

Snapshots are those steps that all runs have, and the last of each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from eigendet.errors import UserError, some
from eigendet.files import replacing, write_json
from eigendet.observe.keys import TapKey, node_name, step_name
from eigendet.spectra import metric_tables, significance, similarity
from eigendet.spectra.metric_tables import Rule

TAP = ["module", "call", "point"]
Tap = tuple[str, int, str]


@dataclass(frozen=True)
class Run:
    """The spectra of one run, as they were written by `spectrum`."""

    arm: str
    seed: int
    folder: Path
    table: pd.DataFrame  # of eigenvalues
    spectra: dict[tuple[int, Tap], np.ndarray]  # by step and tap, descending, none negative
    about: dict[str, Any]  # of the network and the probe images

    @property
    def steps(self) -> list[int]:
        return sorted({step for step, _ in self.spectra})

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"


def write_comparison(folders: Sequence[Path], output: Path, rules: Mapping[str, Rule]) -> list[str]:
    """Compare the runs whose folders of spectra these are; returns the notes.

    Args:
        rules: width rules by name; each is a metric too.

    Raises:
        UserError: a folder holds no spectra; runs are of several networks, or two of them the same.
    """
    runs = [read(folder) for folder in folders]
    for run in runs[1:]:
        for name in ("backbone", "detector"):
            own, first = (str(one.table[name].iloc[0]) for one in (run, runs[0]))
            if own != first:
                raise UserError(f"{run.folder}: of the {name} '{own}'; {runs[0].folder} is of '{first}'.")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{folders[names.index(twice)]}: {twice} is given twice; each run counts once.")
    compared, notes = comparable(runs)
    tables = {
        "metrics": pd.concat([metric_tables.table(run.table, rules) for run in runs], ignore_index=True),
        "distances": distances(compared),
    }
    tables["tests"] = tests(compared, tables["distances"], tables["metrics"])
    network = {name: str(runs[0].table[name].iloc[0]) for name in ("backbone", "detector")}
    for name, table in tables.items():
        table = table.assign(**network)
        with replacing(output / f"{name}.parquet") as part:
            table.to_parquet(part, index=False)
    write_json(output / "notes.json", notes)
    return notes


def read(folder: Path) -> Run:
    """The spectra in a folder that `eigendet spectra` wrote."""
    eigenvalues, similarity_file = folder / "eigenvalues.parquet", folder / "similarity.h5"
    for file in (eigenvalues, similarity_file):
        if not file.exists():
            raise UserError(f"{file}: no such file; 'eigendet spectra' writes it.")
    try:
        table = pd.read_parquet(eigenvalues)
        with h5py.File(similarity_file) as similarities:
            about = json.loads(similarities.attrs["about"])
        arm, seed = str(table["arm"].iloc[0]), int(table["seed"].iloc[0])
        rows = table.groupby(["step", *TAP], sort=False)["value"]
        spectra = {
            (int(step), (str(module), int(call), str(point))): np.clip(values.to_numpy(), 0.0, None)
            for (step, module, call, point), values in rows
        }
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: no spectra of this 'eigendet spectra' ({reason}); run it again.") from None
    return Run(arm, seed, folder, table, spectra, about)


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs whose maps may be compared, and what is left out, each in a sentence."""
    notes = []
    probe = runs[0].about
    same = [run for run in runs if all(run.about[part] == probe[part] for part in ("probe", "images"))]
    for run in runs:
        if run not in same:
            notes.append(
                f"{run.name} was observed on other images than {runs[0].name}, so it is compared with no other run."
            )
        if run.table["centered"].iloc[0] != runs[0].table["centered"].iloc[0]:
            notes.append(f"{run.name} has spectra of another moment (centered or raw), so it is compared with none.")
            same = [other for other in same if other is not run]
    taps = set.intersection(*({tap for _, tap in run.spectra} for run in same))
    for run in same:
        missing = sorted({_label(tap) for _, tap in run.spectra if tap not in taps})
        if missing:
            notes.append(f"Only {run.name} and perhaps others, not all, have the maps {some(missing)}: left out.")
        spoilt = sorted({_label(tap) for (_, tap), values in run.spectra.items() if not np.isfinite(values).all()})
        if spoilt:
            notes.append(f"{run.name} has NaN or infinity in the spectra of {some(spoilt)}.")
        dead = sorted({_label(tap) for (_, tap), values in run.spectra.items() if not values.any()})
        if dead:
            notes.append(f"{run.name} has maps that never vary, so that they have no spectrum: {some(dead)}.")
    few = list(dict.fromkeys(label for run in same for label in _undersampled(run)))
    if few:
        notes.append(
            f"{len(few)} of {len(taps)} maps have fewer effective samples than channels ({some(few)}): their smallest "
            "eigenvalues say more of the images than of the network; more images would tell."
        )
    if len({tuple(run.steps) for run in same}) > 1:
        shown = ", ".join(str(step) for step in _moments(same)[:-1])
        notes.append(f"The runs have snapshots at different steps; compared are those at {shown} and the last of each.")
    without = [run.name for run in same if run.about["images"] is None]
    if without:
        notes.append(f"{some(without)}: no CKA, since the images are not named.")
    return same, notes


@dataclass(frozen=True)
class Map:
    """One feature map of one run at one step."""

    run: Run
    step: int
    spectrum: np.ndarray  # (C,)
    directions: np.ndarray  # (C, k)
    gram: np.ndarray | None  # of the images, see `similarity`


def _undersampled(run: Run) -> list[str]:
    """Maps with fewer effective samples than channels at the last step; where those are not known, fewer samples."""
    last = run.table[(run.table["step"] == run.steps[-1]) & (run.table["index"] == 0)]
    few = last[last["effective_samples"].fillna(last["samples"]) < last["channels"]]
    return [_label(tap) for tap in few[TAP].itertuples(index=False, name=None)]


def distances(runs: Sequence[Run]) -> pd.DataFrame:
    """Of every map from the same map in other runs, at its own start, and in the pre-trained backbone."""
    rows: list[dict[str, Any]] = []
    pretrained = [run for run in runs if run.arm == "finetune"][:1]  # the first: all start from the same backbone
    with contextlib.ExitStack() as stack:
        files = {run.name: stack.enter_context(h5py.File(run.folder / "similarity.h5")) for run in runs}
        for tap in _taps(runs):
            starts = [_map(files, run, run.steps[0], tap) for run in runs]
            origin = [start for start in starts if start.run in pretrained]
            for snapshot, moment in enumerate(_moments(runs)):
                maps = [_map(files, run, run.steps[-1] if moment is None else moment, tap) for run in runs]
                for first, second in itertools.combinations(maps, 2):
                    relation = "seeds" if first.run.arm == second.run.arm else "arms"
                    rows += _alike(tap, snapshot, relation, first, second)
                for found, start in zip(maps, starts, strict=True):
                    rows += _alike(tap, snapshot, "own start", found, start)
                    rows += [row for other in origin for row in _alike(tap, snapshot, "pre-trained", found, other)]
    return pd.DataFrame(rows)


def _map(files: dict[str, h5py.File], run: Run, step: int, tap: Tap) -> Map:
    node = files[run.name][step_name(step)][node_name(TapKey(*tap))]
    named = run.about["images"] is not None and "images" in node
    gram = similarity.gram(node["images"][()].astype(np.float64)) if named else None
    return Map(run, step, run.spectra[step, tap], node["directions"][()].astype(np.float64), gram)


def _alike(tap: Tap, snapshot: int, relation: str, first: Map, second: Map) -> list[dict[str, Any]]:
    """A row for every measure of two maps."""
    channels, kept = first.directions.shape
    chance = {"overlap": kept / channels, "cka": 0.0}
    values = {
        "jensen_shannon": similarity.jensen_shannon(first.spectrum, second.spectrum),
        "overlap": similarity.subspace_overlap(first.directions, second.directions),
    }
    if not (first.spectrum.any() and second.spectrum.any()):
        values["overlap"] = np.nan  # a map that never varies has no directions
    if first.gram is not None and second.gram is not None:
        values["cka"] = similarity.cka_of_grams(first.gram, second.gram)
    common = dict(zip(TAP, tap, strict=True)) | {"snapshot": snapshot, "relation": relation}
    common |= {"arm": first.run.arm, "seed": first.run.seed, "step": first.step}
    common |= {"other_arm": second.run.arm, "other_seed": second.run.seed, "other_step": second.step}
    return [
        common | {"measure": measure, "value": value, "chance": chance.get(measure, np.nan)}
        for measure, value in values.items()
    ]


def tests(runs: Sequence[Run], distances: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """Every two arms against the spread of their seeds: distances of maps, and metrics; at every snapshot.

    Similarities count as the distance √(1 - similarity).
    """
    taps, moments = _taps(runs), _moments(runs)
    found: list[pd.DataFrame] = []
    for arms in itertools.combinations(dict.fromkeys(run.arm for run in runs), 2):
        chosen = [run for run in runs if run.arm in arms]
        labels = [run.arm for run in chosen]
        for snapshot, moment in enumerate(moments):
            steps = [run.steps[-1] if moment is None else moment for run in chosen]
            common = {"arm": arms[0], "other_arm": arms[1], "snapshot": snapshot, "step": steps[0]}
            at = distances[(distances["snapshot"] == snapshot) & distances["relation"].isin(["arms", "seeds"])]
            for measure, rows in at.groupby("measure", sort=False):
                apart = _matrices(rows, chosen, taps)
                apart = apart if measure == "jensen_shannon" else np.sqrt(np.clip(1 - apart, 0, None))
                found.append(_rows(common | {"measure": measure}, taps, significance.test(apart, labels)))
            for metric, rows in numbers.groupby("metric", sort=False):
                values = _values(rows, chosen, steps, taps)
                test = significance.differences(values, labels)
                means = [np.mean(values[:, [arm == label for label in labels]], axis=1) for arm in arms]
                table = _rows(common | {"measure": metric}, taps, test)
                found.append(table.assign(mean=means[0], other_mean=means[1]))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["arm", "other_arm", "measure"])


def _rows(common: dict[str, Any], taps: Sequence[Tap], test: significance.Test) -> pd.DataFrame:
    table = pd.DataFrame(taps, columns=TAP).assign(**common)
    columns = ("between", "within", "statistic", "p", "corrected", "overall", "smallest", "relabelings")
    return table.assign(**{column: getattr(test, column) for column in columns})


def _matrices(rows: pd.DataFrame, runs: Sequence[Run], taps: Sequence[Tap]) -> np.ndarray:
    """(taps, runs, runs), symmetric; the diagonal is that of identical maps."""
    number = {(run.arm, run.seed): place for place, run in enumerate(runs)}
    rank = {tap: place for place, tap in enumerate(taps)}
    found = np.full((len(taps), len(runs), len(runs)), np.nan)
    place = np.arange(len(runs))
    found[:, place, place] = 0.0 if (rows["measure"] == "jensen_shannon").all() else 1.0
    columns = [*TAP, "arm", "seed", "other_arm", "other_seed", "value"]
    for module, call, point, arm, seed, other_arm, other_seed, value in rows[columns].itertuples(index=False):
        first, second = number.get((arm, seed)), number.get((other_arm, other_seed))
        if first is not None and second is not None:
            found[rank[module, call, point], [first, second], [second, first]] = value
    return found


def _values(rows: pd.DataFrame, runs: Sequence[Run], steps: Sequence[int], taps: Sequence[Tap]) -> np.ndarray:
    """(taps, runs): one metric at each run's step."""
    wanted = pd.MultiIndex.from_tuples(
        [(*tap, run.arm, run.seed, step) for tap in taps for run, step in zip(runs, steps, strict=True)]
    )
    series = rows.set_index([*TAP, "arm", "seed", "step"])["value"]
    return series.reindex(wanted).to_numpy().reshape(len(taps), len(runs))


def _taps(runs: Sequence[Run]) -> list[Tap]:
    """Those that all runs have at all their steps, in order of execution."""
    held = [{tap for _, tap in run.spectra} for run in runs]
    return [tap for tap in dict.fromkeys(tap for _, tap in runs[0].spectra) if all(tap in taps for taps in held)]


def _moments(runs: Sequence[Run]) -> list[int | None]:
    """Steps that all runs have, and then the last of each, None."""
    common = set.intersection(*(set(run.steps[:-1]) for run in runs))
    return [*sorted(common), None]


def _label(tap: Tap) -> str:
    return str(TapKey(*tap))
