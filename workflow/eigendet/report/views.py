"""Tables of comparisons and spectra as the figures show them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eigendet import plugins
from eigendet.config import Experiment, layout
from eigendet.observe.keys import TapKey
from eigendet.spectra import metric_tables
from eigendet.spectra.comparison import TAP
from eigendet.spectra.tables import joined, read_table

POINTS_A_SPECTRUM = 48  # drawn of each spectrum; the tables hold all
DECADES, LEVELS = 14, 2**16 - 1  # of the spectra on the page: 10 ** (DECADES * (level / LEVELS - 1)), and 0


def quantities() -> dict[str, dict[str, str]]:
    """What the heat maps over training show: name -> title and text."""
    rules = plugins.summaries("rule")
    channels = metric_tables.dimensions(rules)
    found = {
        name: {"title": name.replace("_", " ") + (" / width" if name in channels else ""), "text": text}
        for name, text in metric_tables.descriptions(rules).items()
    }
    places = {"own start": "its own start", "pre-trained": "the pre-trained backbone", "arms": "the other arm"}
    between_maps = {
        "jensen_shannon": ("spectral distance", "Jensen-Shannon distance of the normalized spectra, 0 to 1."),
        "overlap": ("overlap", "Mean squared cosine of the principal angles between the leading eigenvectors, 0 to 1."),
        "cka": (
            "CKA",
            "Linear centered kernel alignment of the images' means (unbiased), 1: the same but for rotation.",
        ),
    }
    for relation, place in places.items():
        for measure, (title, text) in between_maps.items():
            word = "from" if measure == "jensen_shannon" else "with"
            found[f"{measure} {relation}"] = {"title": f"{title} {word} {place}", "text": text}
    return found


def tested(tests: pd.DataFrame) -> list[dict[str, Any]]:
    """The tests at the last snapshot, of spectra, a row a layer."""
    if tests.empty:
        return []
    last = tests[(tests["snapshot"] == tests["snapshot"].max()) & (tests["measure"] == "jensen_shannon")]
    rows = last.assign(layer=[_layer(row) for _, row in last[TAP].iterrows()])
    return [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in rows.to_dict("records")
    ]


def spread(tables: dict[str, Any]) -> pd.DataFrame:
    """Distances of spectra between runs at the last snapshot."""
    distances = tables["distances"]
    last = distances[
        (distances["snapshot"] == distances["snapshot"].max())
        & (distances["measure"] == "jensen_shannon")
        & distances["relation"].isin(["arms", "seeds"])
    ]
    names = (
        last["arm"] + " " + last["seed"].astype(str) + ", " + last["other_arm"] + " " + last["other_seed"].astype(str)
    )
    return pd.DataFrame({"layer": _layers(last), "pair": names, "relation": last["relation"], "value": last["value"]})


def courses_of_arms(tables: dict[str, Any]) -> pd.DataFrame:
    """Mean over seeds of every quantity: columns arm, quantity, layer, step, value.

    Numbers of channels become shares of the width, so that layers compare.
    """
    numbers, distances = tables["metrics"], tables["distances"]
    counted = numbers["metric"].isin(metric_tables.dimensions(plugins.summaries("rule")))
    numbers = numbers.assign(value=numbers["value"] / numbers["channels"].where(counted, 1))
    own = numbers.rename(columns={"metric": "quantity"})[["arm", "seed", *TAP, "step", "quantity", "value"]]
    kept = [own]
    if not distances.empty:
        moved = distances[distances["relation"].isin(["own start", "pre-trained"])]
        moved = moved.assign(quantity=moved["measure"] + " " + moved["relation"])
        kept.append(moved[["arm", "seed", *TAP, "step", "quantity", "value"]])
    table = pd.concat(kept, ignore_index=True)
    means = table.groupby(["arm", "quantity", *TAP, "step"], sort=False)["value"].mean().reset_index()
    return means.assign(layer=_layers(means))


def courses(tables: dict[str, Any]) -> dict[str, Any]:
    """The same for the page: by arm and quantity, a row a layer, a column a snapshot."""
    table = courses_of_arms(tables)
    layers = list(dict.fromkeys(table["layer"]))
    arms = {}
    for arm, rows in table.groupby("arm", sort=False):
        steps = sorted(set(rows["step"]))
        values = {}
        for quantity, numbers in rows.groupby("quantity", sort=False):
            grid = numbers.pivot_table(index="layer", columns="step", values="value").reindex(
                index=layers, columns=steps
            )
            values[quantity] = _rounded(grid.to_numpy())
        arms[arm] = {"steps": [int(step) for step in steps], "values": values}
    between: dict[str, dict[str, Any]] = {}
    distances, snapshots = tables["distances"], []
    if not distances.empty:
        apart = distances[distances["relation"] == "arms"]
        snapshots = [int(step) for step in distances.groupby("snapshot")["step"].max()]
        for (measure, arm, other), rows in apart.groupby(["measure", "arm", "other_arm"], sort=False):
            grid = rows.assign(layer=_layers(rows)).pivot_table(index="layer", columns="snapshot", values="value")
            pair = "|".join(sorted([str(arm), str(other)]))
            between.setdefault(f"{measure} arms", {})[pair] = _rounded(grid.reindex(layers).to_numpy())
    return {"layers": layers, "arms": arms, "between": between, "snapshots": snapshots}


def _rounded(grid: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{value:.4g}") if np.isfinite(value) else None for value in row] for row in grid]


def eigenvalues(folder: Path, experiment: Experiment, backbone: str, detector: str) -> Iterator[pd.DataFrame]:
    for run in layout.runs(experiment, experiment.observed):
        file = layout.path(folder, layout.EIGENVALUES, **run._asdict())
        if (run.backbone, run.detector) == (backbone, detector) and file.is_file():
            yield read_table(file)


def packed(tables: list[pd.DataFrame]) -> dict[str, Any]:
    """Spectra of every run for the page: relative to the largest eigenvalue, at points spaced logarithmically.

    A spectrum is 16 bits a point, on a logarithmic scale: exact to 0.05 %.
    """
    runs: list[dict[str, Any]] = []
    layers: dict[str, list[dict[str, Any]]] = {}
    index: dict[int, np.ndarray] = {}
    for number, table in enumerate(tables):
        steps = sorted(set(table["step"]))
        runs.append(
            {"arm": str(table["arm"].iloc[0]), "seed": int(table["seed"].iloc[0]), "steps": list(map(int, steps))}
        )
        for tap, rows in table.groupby(TAP, sort=False):
            width = int(rows["channels"].iloc[0])
            index[width] = np.unique(np.geomspace(1, width, POINTS_A_SPECTRUM).round().astype(int))
            grid = np.clip(rows["value"].to_numpy().reshape(-1, width), 0, None)[:, index[width] - 1]
            relative = grid / np.where(grid[:, :1] > 0, grid[:, :1], 1)
            levels = np.zeros(grid.shape)
            np.log10(relative, out=levels, where=relative > 0)
            levels = np.where(relative > 0, np.round((levels / DECADES + 1) * LEVELS), 0)
            packed = base64.b64encode(np.clip(levels, 0, LEVELS).astype("<u2").tobytes()).decode()
            layer = layers.setdefault(_layer(pd.Series(tap, TAP)), [])
            layer.append({"run": number, "width": width, "packed": packed})
    if not runs:
        return {}
    return {
        "runs": runs,
        "layers": [{"name": name, "runs": of_layer} for name, of_layer in layers.items()],
        "index": {width: found.tolist() for width, found in index.items()},
    }


def _layers(table: pd.DataFrame) -> list[str]:
    return [str(TapKey(*tap)) for tap in table[TAP].itertuples(index=False, name=None)]


def _layer(tap: pd.Series) -> str:
    return str(TapKey(str(tap["module"]), int(tap["call"]), str(tap["point"])))


def last_spectra(folder: Path, experiment: Experiment, backbone: str, detector: str) -> tuple[str, pd.DataFrame]:
    """Of the last layer at the last snapshot: its name, and columns arm, seed, x (share of the width), value."""
    tables = list(eigenvalues(folder, experiment, backbone, detector))
    if not tables:
        return "", pd.DataFrame()
    last = tables[0][TAP].iloc[-1]
    rows = []
    for table in tables:
        found = table[(table[TAP] == last).all(axis=1) & (table["step"] == table["step"].max())]
        values = np.clip(found["value"], 0, None)
        place = (found["index"] + 1) / len(found)
        rows.append(found[["arm", "seed"]].assign(x=place, value=values / (values.max() or 1.0)))
    shown = joined(rows)
    return _layer(last), shown[shown["value"] > 10**-DECADES]
