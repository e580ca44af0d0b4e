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
from plotly.offline import get_plotlyjs

from eigendet import config as configuration
from eigendet import figures
from eigendet.config import ARMS, Experiment
from eigendet.errors import UserError
from eigendet.files import read_json, write_text
from eigendet.spectrum import RUN_COLUMNS

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
    """A row a run: arm, backbone, detector, seed; AP; parameters; multiply-accumulates; latency; time of training.

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
        rows.append(row | _latency(folder, path))
    if not rows:
        raise UserError(
            f"{folder / 'evaluation'}: holds no evaluation of this experiment; run 'eigendet evaluate' first."
        )
    table = pd.DataFrame(rows)
    table["arm"] = pd.Categorical(table["arm"], experiment.all_arms, ordered=True)
    return table.sort_values(["backbone", "detector", "arm", "seed"], ignore_index=True).astype({"arm": str})


def _latency(folder: Path, run: Path) -> dict[str, float]:
    """Milliseconds for an image, of an arm's first seed: its other seeds have the same network."""
    arm, backbone, detector, _ = run.parts
    file = folder / "latency" / backbone / f"{detector}.json"
    for entry in read_json(file, "latencies")["runs"] if file.is_file() else ():
        if entry["arm"] == arm:
            return {f"{part}_ms": entry[part]["median"] for part in ("detector", "backbone")}
    return {}


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
            for cost in [c for c in ("parameters", "backbone_parameters", "backbone_macs", "macs") if c in seeds]:
                row[cost] = int(seeds[cost].iloc[0])
                row[f"{cost}_ratio"] = row[cost] / int(usual[cost].iloc[0]) if len(usual) else None
            for time in [name for name in ("detector_ms", "backbone_ms") if name in seeds]:
                row[time] = float(seeds[time].iloc[0])
                row[f"{time}_ratio"] = row[time] / float(usual[time].iloc[0]) if len(usual) else None
            rows.append(row)
    return rows


def _page(folder: Path, experiment: Experiment, runs: pd.DataFrame) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eigendet", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["millions"] = lambda number: f"{number / 1e6:,.3g} M"
    colours = figures.colours(experiment)
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
        has_whole="macs" in runs,
        has_latency="detector_ms" in runs,
        has_masks="mask_AP" in runs,
        seeds=sorted(set(runs["seed"])),
        scores=figures.div(figures.scores(runs, colours)),
        widths=[_width_section(entry, colours) for entry in widths],
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


def _widths(folder: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """Contents of the widths files, a dict for each backbone and detector: of every arm, and the front."""
    found = []
    for backbone, detector in itertools.product(experiment.backbones, experiment.detectors):
        place = folder / "widths" / backbone / detector
        files = [place / f"{arm}.json" for arm in experiment.all_arms]
        contents = {file.stem: read_json(file, "widths") for file in files if file.is_file()}
        derived = [contents[arm] for arm in experiment.derived if arm in contents]
        if derived:
            front = pd.read_csv(place / "front.csv") if (place / "front.csv").is_file() else None
            entry = {"backbone": backbone, "detector": detector, "files": contents, "derived": derived, "front": front}
            found.append(entry | {"settled": settled(derived)})
    return found


def settled(derived: Sequence[dict[str, Any]]) -> str:
    """Whether widths still move from round to round, in a sentence; nothing for a single round."""
    if len(derived) < 2:
        return ""
    changes = []
    for before, after in itertools.pairwise(entry["widths"] for entry in derived):
        changes.append({group: abs(after[group] - before[group]) for group in after})
    moved = [
        sum(change.values()) / sum(entry["widths"].values()) for change, entry in zip(changes, derived, strict=False)
    ]
    course = ", ".join(f"{100 * share:.1f} %" for share in moved)
    last = changes[-1]
    farthest = max(last, key=last.__getitem__)
    steps = derived[-1]["multiples"]
    still = all(change <= steps[group] for group, change in last.items())
    verdict = "The widths have settled" if still else "The widths have not settled"
    return (
        f"{verdict}: in the last round {sum(map(bool, last.values()))} of {len(last)} groups changed, the farthest, "
        f"{farthest}, by {last[farthest]} channels (its steps are of {steps[farthest]}). "
        f"Share of all channels that moved, round by round: {course}."
    )


def _width_section(entry: dict[str, Any], colours: dict[str, str]) -> dict[str, Any]:
    shown = entry["front"] is not None and not entry["front"].empty
    return entry | {
        "figure": figures.div(figures.widths(entry, colours)),
        "front_figure": figures.div(figures.front(entry, colours)) if shown else None,
        "bounds": {
            "macs": "the cap on MACs", "parameters": "the cap on parameters", "activations": "the cap on activations",
            "least": "its least width", "most": "its largest width", "target": "its share, rounded",
        },
    }  # fmt: skip


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


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(value, separators=(",", ":")).replace("</", "<\\/")
