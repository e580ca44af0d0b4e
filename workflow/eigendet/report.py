"""One self-contained page, and one table, of everything that an experiment found.

Everything is read from the experiment's folder, so a page can be made of whatever is there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from eigendet import config as configuration
from eigendet.config import ARMS, Experiment
from eigendet.errors import UserError
from eigendet.files import read_json, write_text
from eigendet.spectrum import RUN_COLUMNS

# Okabe and Ito's colours, told apart by colour-blind readers; one an arm, in every figure.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
POINTS_A_SPECTRUM = 64  # drawn of each spectrum; the tables hold all


def write(folder: Path) -> str:
    """Write `summary.csv` and `report.html` in an experiment's folder; returns a line that says where."""
    experiment = configuration.load([folder / "config.yaml"])
    runs = summary(folder, experiment)
    write_text(folder / "summary.csv", runs.to_csv(index=False))
    page = _page(folder, experiment, runs)
    write_text(folder / "report.html", page)
    return f"{folder / 'report.html'}: {len(runs)} runs, {len(page.encode()) / 1e6:.1f} MB"


def summary(folder: Path, experiment: Experiment) -> pd.DataFrame:
    """A row a run: arm, backbone, detector, seed; AP in percent; parameters; multiply-accumulates; time.

    Raises:
        UserError: no run has been evaluated.
    """
    rows = []
    for path in _runs(experiment, experiment.all_arms):
        file = folder / "evaluation" / f"{path}.json"
        if not file.is_file():
            continue
        scores = read_json(file, "an evaluation")
        record = read_json(folder / "runs" / path / "run.json", "the record of a run")
        row = {**scores["run"]}
        for kind, prefix in (("boxes", ""), ("masks", "mask_")):
            row |= {prefix + name: value for name, value in scores.get(kind, {}).items()}
        row |= record["costs"] | {key: record[key] for key in ("seconds", "images_per_second", "device")}
        rows.append(row)
    if not rows:
        raise UserError(
            f"{folder / 'evaluation'}: holds no evaluation of this experiment; run 'eigendet evaluate' first."
        )
    table = pd.DataFrame(rows)
    table["arm"] = pd.Categorical(table["arm"], experiment.all_arms, ordered=True)
    return table.sort_values(["backbone", "detector", "arm", "seed"], ignore_index=True).astype({"arm": str})


def averages(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each arm: mean and standard deviation over seeds, costs relative to the arm scratch."""
    rows = []
    for (backbone, detector), group in runs.groupby(["backbone", "detector"], sort=False):
        usual = group[group["arm"].isin(["scratch", "finetune"])]
        for arm, seeds in group.groupby("arm", sort=False):
            row: dict[str, Any] = {"backbone": backbone, "detector": detector, "arm": arm, "seeds": len(seeds)}
            for score in [name for name in ("AP", "AP50", "AP75", "mask_AP") if name in seeds]:
                values = 100 * seeds[score].astype(float)
                spread = f" ± {values.std():.1f}" if len(seeds) > 1 else ""
                row[score] = f"{values.mean():.1f}{spread}" if values.notna().all() else ""
            for cost in ("parameters", "backbone_parameters", "backbone_macs"):
                row[cost] = int(seeds[cost].iloc[0])
                row[f"{cost}_ratio"] = row[cost] / int(usual[cost].iloc[0]) if len(usual) else None
            rows.append(row)
    return rows


def _page(folder: Path, experiment: Experiment, runs: pd.DataFrame) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eigendet", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["millions"] = lambda number: f"{number / 1e6:,.3g} M"
    colours = _colours(experiment)
    widths = _widths(folder, experiment)
    data = _data(folder, experiment)
    records = [folder / "pretrained" / name / "run.json" for name in experiment.backbones]
    pretrained = [read_json(file, "a record") for file in records if file.is_file()]
    first = runs.iloc[0]
    path = Path(first["arm"]) / first["backbone"] / first["detector"] / f"seed_{first['seed']}"
    record = read_json(folder / "runs" / path / "run.json", "the record of a run")
    return environment.get_template("report.html.j2").render(
        experiment=experiment,
        arms={arm: _text(arm, experiment) for arm in runs["arm"].unique()},
        differences=_differences(experiment),
        averages=averages(runs),
        has_masks="mask_AP" in runs,
        seeds=sorted(set(runs["seed"])),
        scores=_div(_score_figure(runs, colours)),
        widths=[entry | {"figure": _div(_width_figure(entry, colours))} for entry in widths],
        data=data,
        pretrained=pretrained,
        record=record,
        configuration=configuration.dump_yaml(experiment),
        plotly=get_plotlyjs(),
        spectra=_script_json(_spectra(folder, experiment)),
        colours=_script_json(colours),
    )


def _runs(experiment: Experiment, arms: Sequence[str]) -> Iterator[Path]:
    """Paths of an experiment's runs below `runs/`, `evaluation/` and `spectra/`; others are from earlier settings."""
    for backbone, detector in itertools.product(experiment.backbones, experiment.detectors):
        for arm, seed in itertools.product(arms, experiment.seeds):
            yield Path(arm) / backbone / detector / f"seed_{seed}"


def _colours(experiment: Experiment) -> dict[str, str]:
    """Arm -> colour: always the same for those that most experiments have."""
    usual = ["scratch", "finetune", "derived"]
    others = [arm for arm in experiment.all_arms if arm not in usual]
    return dict(zip([*usual, *others], itertools.cycle(PALETTE), strict=False))


def _text(arm: str, experiment: Experiment) -> str:
    """What sets an arm apart."""
    if arm in ARMS:
        return ARMS[arm]
    if arm in experiment.derived:
        return f"as derived, from the spectra of {experiment.spectra_for(arm)}"
    return f"with the widths of {experiment.arms[arm]['widths']}"


def _data(folder: Path, experiment: Experiment) -> dict[str, Any]:
    """Summaries of the data sets that this experiment names, those that were checked."""
    found = {}
    for task, splits in (("classification", experiment.data.classification), ("detection", experiment.data.detection)):
        for split in ("train", "val") if splits else ():
            file = folder / "data" / f"{task}_{split}_{getattr(splits, split).digest}.json"
            if file.is_file():
                found[f"{task} {split}"] = read_json(file, "a summary")
    return found


def _differences(experiment: Experiment) -> list[str]:
    """What the arms do not have in common, besides start and widths."""
    usual = experiment.training.model_dump()
    lines = []
    for arm in experiment.all_arms:
        changed = {key: value for key, value in experiment.training_of(arm).model_dump().items() if usual[key] != value}
        lines += [f"{arm}: {key} is {value} instead of {usual[key]}" for key, value in changed.items()]
    return lines


def _score_figure(runs: pd.DataFrame, colours: dict[str, str]) -> go.Figure:
    """AP of every run against parameters and multiply-accumulates of its backbone."""
    costs = {"backbone_parameters": "backbone parameters", "backbone_macs": "backbone multiply-accumulates"}
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05)
    networks = runs.groupby(["backbone", "detector"]).groups
    symbols = dict(zip(networks, itertools.cycle(["circle", "square", "diamond", "cross", "x"]), strict=False))
    for (arm, backbone, detector), group in runs.groupby(["arm", "backbone", "detector"], sort=False):
        several = len(symbols) > 1
        name = f"{arm}, {detector} on {backbone}" if several else str(arm)
        for column, (cost, title) in enumerate(costs.items(), start=1):
            hover = f"{name}, seed %{{customdata}}<br>AP %{{y:.2f}}<br>{title} %{{x:.3s}}<extra></extra>"
            marker = {"color": colours[str(arm)], "size": 11, "symbol": symbols[backbone, detector]}
            figure.add_scatter(
                x=group[cost], y=100 * group["AP"], mode="markers", name=name, legendgroup=name, marker=marker,
                showlegend=column == 1, customdata=group["seed"], hovertemplate=hover, row=1, col=column,
            )  # fmt: skip
    for column, title in enumerate(costs.values(), start=1):
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    figure.update_yaxes(title_text="box AP, percent", row=1, col=1)
    return _styled(figure, 380)


def _widths(folder: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """Contents of the widths files, a dict for each backbone and detector: their names, and the file of each arm."""
    found = []
    for backbone, detector in itertools.product(experiment.backbones, experiment.detectors):
        files = sorted((folder / "widths" / backbone / detector).glob("*.json"))
        contents = {file.stem: read_json(file, "widths") for file in files if file.stem in experiment.all_arms}
        if "derived" in contents:
            found.append({"backbone": backbone, "detector": detector, "files": contents})
    return found


def _width_figure(entry: dict[str, Any], colours: dict[str, str]) -> go.Figure:
    derived = entry["files"]["derived"]
    groups = list(derived["widths"])
    figure = go.Figure()
    figure.add_bar(
        x=groups, y=[derived["reference"][group] for group in groups], name="reference", marker_color="#999999"
    )
    for arm, content in entry["files"].items():
        figure.add_bar(x=groups, y=[content["widths"][group] for group in groups], name=arm, marker_color=colours[arm])
    figure.update_layout(
        barmode="group", xaxis_title="channel group, named after its first layer", yaxis_title="channels"
    )
    return _styled(figure, 420)


def _spectra(folder: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """Centred spectra of every run for the page: relative to the largest eigenvalue, thinned on a logarithmic scale."""
    found: list[dict[str, Any]] = []
    for path in _runs(experiment, experiment.dumped):
        file = folder / "spectra" / path / "eigenvalues.parquet"
        if not file.is_file():
            continue
        table = pd.read_parquet(file)
        taps: dict[str, list[dict[str, Any]]] = {}
        centred = table[table["centred"]]
        for (module, call, point, _), spectrum in centred.groupby(["module", "call", "point", "step"], sort=False):
            values = np.clip(spectrum["value"].to_numpy(), 0, None)
            largest = values.max() or 1.0
            index = np.unique(np.geomspace(1, values.size, POINTS_A_SPECTRUM).round().astype(int))
            shares = [float(f"{value:.3g}") for value in values[index - 1] / largest]
            label = f"{module}, call {call}, {point}" if call else f"{module}, {point}"
            taps.setdefault(label, []).append({"index": index.tolist(), "width": values.size, "value": shares})
        arm, backbone, detector, seed = (table[column].iloc[0] for column in RUN_COLUMNS)
        steps = sorted(table["step"].unique().tolist())
        found.append(
            {"arm": arm, "seed": int(seed), "network": f"{detector} on {backbone}", "steps": steps, "taps": taps}
        )
    return found


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": 1.12}, font={"family": "system-ui, sans-serif", "size": 13},
    )  # fmt: skip
    return figure


def _div(figure: go.Figure) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(value, separators=(",", ":")).replace("</", "<\\/")
