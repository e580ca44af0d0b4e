"""Turn the tables of comparisons and spectra into what the figures and the page show."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pandas as pd

from eigendet import plugins
from eigendet.report.layers import layer_name, layer_names, set_apart
from eigendet.spectra.metric_table import dimension_descriptions, metric_descriptions
from eigendet.spectra.tables import TAP, joined

POINTS_A_SPECTRUM = 48  # drawn of each spectrum; the tables hold all
DECADES, LEVELS = 14, 2**16 - 1  # of the spectra on the page: 10 ** (DECADES * (level / LEVELS - 1)), and 0

Grid = list[list[float | None]]  # a row for each layer, a column for each snapshot


class Quantity(TypedDict):
    """What a heat map can show."""

    title: str
    text: str


class CoursesOfArm(TypedDict):
    """The heat maps of one arm, by quantity."""

    steps: list[int]
    values: dict[str, Grid]


class Courses(TypedDict):
    """The heat maps of a network for the page: of each arm, and by quantity of what lies between two arms, "a|b".

    `rows` are the layers with stages set apart; `images` are the fewest that any CKA of a layer rests on.
    """

    layers: list[str]
    rows: list[str]
    images: list[int | None]
    arms: dict[str, CoursesOfArm]
    between: dict[str, dict[str, Grid]]
    snapshots: list[int]


class PackedRun(TypedDict):
    """A run whose spectra are on the page."""

    arm: str
    seed: int
    steps: list[int]


class PackedSpectra(TypedDict):
    """The spectra of one layer of one run at all its steps; `run` is the run's place among all."""

    run: int
    width: int
    packed: str


class PackedLayer(TypedDict):
    """A layer, and its spectra in every run."""

    name: str
    runs: list[PackedSpectra]


class Packed(TypedDict):
    """The spectra of a network for the page; `index` says by width which eigenvalues, counted from 1, are kept."""

    runs: list[PackedRun]
    layers: list[PackedLayer]
    index: dict[int, list[int]]


def quantities() -> dict[str, Quantity]:
    """Return what the heat maps over training can show: every metric, and measures between feature maps.

    >>> quantities()["overlap own start"]["title"]
    'overlap with its own first snapshot'
    """
    rules = plugins.summaries("rule")
    channels = dimension_descriptions(rules)
    described = {
        name: Quantity(title=name.replace("_", " ") + (" / width" if name in channels else ""), text=text)
        for name, text in metric_descriptions(rules).items()
    }
    places = {"own start": "its own first snapshot", "pre-trained": "the pre-trained backbone", "arms": "the other arm"}
    between_maps = {
        "jensen_shannon": (
            "spectral distance from",
            "Jensen-Shannon distance of the normalized spectra, 0 to 1.",
        ),
        "overlap": (
            "overlap with",
            "Mean squared cosine of the principal angles between the leading eigenvectors, 0 to 1.",
        ),
        "cka": (
            "CKA with",
            "Linear centered kernel alignment of the images' means (unbiased), 1: the same but for rotation. The fewer "
            "the images (they stand beside each value) and the more the channels, the more it scatters.",
        ),
    }
    for relation, place in places.items():
        for measure, (title, text) in between_maps.items():
            described[f"{measure} {relation}"] = Quantity(title=f"{title} {place}", text=text)
    return described


def tested(tests: pd.DataFrame) -> pd.DataFrame:
    """Return the tests of spectra at the last snapshot, a row for each layer and pair of arms; None for NaN."""
    if tests.empty:  # without columns
        return tests
    last = tests[(tests["snapshot"] == tests["snapshot"].max()) & (tests["measure"] == "jensen_shannon")]
    return last.astype(object).where(last.notna(), None).assign(layer=layer_names(last))


def spread_of_spectra(distances: pd.DataFrame) -> pd.DataFrame:
    """Return the distances of spectra between runs at the last snapshot: columns layer, pair, relation, value."""
    last = distances[
        (distances["snapshot"] == distances["snapshot"].max())
        & (distances["measure"] == "jensen_shannon")
        & distances["relation"].isin(["arms", "seeds"])
    ]
    pairs = (
        last["arm"] + " " + last["seed"].astype(str) + ", " + last["other_arm"] + " " + last["other_seed"].astype(str)
    )
    return pd.DataFrame(
        {"layer": layer_names(last), "pair": pairs, "relation": last["relation"], "value": last["value"]}
    )


def courses_of_arms(metrics: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds of every quantity: columns arm, quantity, layer, step, value.

    It is NaN where a run of the arm has no value: a mean over the others would be of other runs than its neighbors are.
    Numbers of channels become shares of the width, so that layers compare.
    """
    counted = metrics["metric"].isin(dimension_descriptions(plugins.summaries("rule")))
    own = metrics.assign(value=metrics["value"] / metrics["channels"].where(counted, 1), quantity=metrics["metric"])
    tables = [own]
    if not distances.empty:
        moved = distances[distances["relation"].isin(["own start", "pre-trained"])]
        tables.append(moved.assign(quantity=moved["measure"] + " " + moved["relation"]))
    means = pd.concat([_means_over_seeds(table) for table in tables], ignore_index=True)
    return means.assign(layer=layer_names(means))


def _means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of every quantity over all seeds that the table has of an arm at that step, NaN if one lacks."""
    groups = table.groupby(["arm", "quantity", *TAP, "step"], sort=False)
    means = groups.agg(value=("value", "mean"), present=("value", "count")).reset_index()
    runs = table.groupby(["arm", "step"]).agg(runs=("seed", "nunique")).reset_index()
    means = means.merge(runs, on=["arm", "step"])
    means.loc[means["present"] < means["runs"], "value"] = np.nan
    return means.drop(columns=["present", "runs"])


def courses(metrics: pd.DataFrame, distances: pd.DataFrame) -> Courses:
    """Return the same for the page, with what lies between arms: a row for each layer, a column for each snapshot."""
    table = courses_of_arms(metrics, distances)
    layers, quantities = list(dict.fromkeys(table["layer"])), list(dict.fromkeys(table["quantity"]))
    arms = {}
    for arm, of_arm in table.groupby("arm", sort=False):
        steps = sorted(set(of_arm["step"]))
        values = {}
        for quantity in quantities:  # one that no layer of the arm has is empty, so that any two arms can be chosen
            cells = of_arm[of_arm["quantity"] == quantity]
            values[quantity] = _grid(cells, layers, "step", steps)
        arms[arm] = CoursesOfArm(steps=[int(step) for step in steps], values=values)
    if distances.empty:
        none: list[int | None] = [None] * len(layers)
        return Courses(layers=layers, rows=set_apart(layers), images=none, arms=arms, between={}, snapshots=[])
    snapshots = [int(step) for step in distances.groupby("snapshot")["step"].max()]
    fewest = distances.assign(layer=layer_names(distances)).groupby("layer")["images"].min().dropna()
    images = [int(fewest[layer]) if layer in fewest else None for layer in layers]
    between = _between(distances, layers)
    rows = set_apart(layers)
    return Courses(layers=layers, rows=rows, images=images, arms=arms, between=between, snapshots=snapshots)


def _between(distances: pd.DataFrame, layers: Sequence[str]) -> dict[str, dict[str, Grid]]:
    """Return the measures between two arms, by quantity and pair."""
    apart = distances[distances["relation"] == "arms"]
    snapshots = sorted(set(distances["snapshot"]))
    between: dict[str, dict[str, Grid]] = {}
    for (measure, arm, other), rows in apart.groupby(["measure", "arm", "other_arm"], sort=False):
        cells = rows.assign(layer=layer_names(rows))
        pair = "|".join(sorted([arm, other]))
        between.setdefault(f"{measure} arms", {})[pair] = _grid(cells, layers, "snapshot", snapshots)
    return between


def _grid(cells: pd.DataFrame, layers: Sequence[str], column: str, columns: Sequence[int]) -> Grid:
    """Return the means of a cell's values to four digits; None, since JSON knows no NaN, where one or all are missing.

    Args:
        cells: columns layer, value, and the one that is named.
        layers: the rows.
        column: what the columns are, `step` or `snapshot`.
        columns: of these.
    """
    means = cells.groupby(["layer", column])["value"].agg(lambda values: values.mean(skipna=False)).to_dict()
    rows = [[means.get((layer, place), np.nan) for place in columns] for layer in layers]
    return [[float(f"{value:.4g}") if np.isfinite(value) else None for value in row] for row in rows]


def packed(tables: Sequence[pd.DataFrame]) -> Packed:
    """Pack spectra for the page: relative to the largest eigenvalue, at points spaced logarithmically.

    A point is 16 bits on a logarithmic scale, exact to 0.05 %.

    Args:
        tables: the eigenvalues of each run of a network.
    """
    runs: list[PackedRun] = []
    layers: dict[str, list[PackedSpectra]] = {}
    index: dict[int, np.ndarray] = {}
    for number, table in enumerate(tables):
        steps = [int(step) for step in sorted(set(table["step"]))]
        runs.append(PackedRun(arm=str(table["arm"].iloc[0]), seed=int(table["seed"].iloc[0]), steps=steps))
        for tap, rows in table.groupby(TAP, sort=False):
            width = int(rows["channels"].iloc[0])
            index[width] = np.unique(np.geomspace(1, width, POINTS_A_SPECTRUM).round().astype(int))
            levels = _levels(rows["value"].to_numpy().reshape(-1, width)[:, index[width] - 1])
            text = base64.b64encode(levels.astype("<u2").tobytes()).decode()
            layers.setdefault(layer_name(*tap[:2]), []).append(PackedSpectra(run=number, width=width, packed=text))
    return Packed(
        runs=runs,
        layers=[PackedLayer(name=name, runs=of_layer) for name, of_layer in layers.items()],
        index={width: places.tolist() for width, places in index.items()},
    )


def _levels(values: np.ndarray) -> np.ndarray:
    """Return whole numbers from 0 to LEVELS for spectra (steps, points) that begin with the largest eigenvalue."""
    values = np.clip(values, 0, None)
    relative = values / np.where(values[:, :1] > 0, values[:, :1], 1)
    logarithms = np.zeros(values.shape)
    np.log10(relative, out=logarithms, where=relative > 0)
    levels = np.where(relative > 0, np.round((logarithms / DECADES + 1) * LEVELS), 0)
    return np.clip(levels, 0, LEVELS)


def last_spectra(tables: Sequence[pd.DataFrame]) -> tuple[str, pd.DataFrame]:
    """Return the name of the last layer, and its spectra at the last snapshot of each run.

    Args:
        tables: the eigenvalues of each run of a network, at least one.

    Returns:
        The name, and columns arm, seed, x (share of the width), value (relative to the largest eigenvalue).
    """
    last = tables[0][TAP].iloc[-1]
    spectra = []
    for table in tables:
        rows = table[(table[TAP] == last).all(axis=1) & (table["step"] == table["step"].max())]
        values = np.clip(rows["value"], 0, None)
        place = (rows["index"] + 1) / len(rows)
        spectra.append(rows[["arm", "seed"]].assign(x=place, value=values / (values.max() or 1.0)))
    table = joined(spectra)
    return layer_name(*last.iloc[:2]), table[table["value"] > 10**-DECADES]
