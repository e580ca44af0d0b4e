"""One self-contained page of everything that an experiment found, its summary, and its figures as files.

Everything is read from the experiment's folder, so a page can be made of whatever is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from eigendet import config as configuration
from eigendet.config import ARMS, Experiment, layout
from eigendet.errors import UserError, unknown
from eigendet.files import read_json, write_text
from eigendet.report import figures, findings, results, views

QUANTITY = "effective_rank"  # drawn first, and in files

BOUNDS = {
    "macs": "the cap on MACs",
    "parameters": "the cap on parameters",
    "activations": "the cap on activations",
    "least": "its least width",
    "most": "its largest width",
    "target": "its share, rounded",
}


def write_page(folder: Path) -> str:
    """Write `summary.csv`, `report.html` and `figures/` in an experiment's folder; returns a line that says where."""
    experiment = configuration.load([folder / layout.CONFIGURATION])
    runs = results.summary(folder, experiment)
    write_text(folder / layout.SUMMARY, runs.to_csv(index=False))
    page = _page(folder, experiment, runs)
    write_text(folder / layout.PAGE, page)
    write_figures(folder, folder / layout.FIGURES)
    return f"{folder / 'report.html'}: {len(runs)} runs, {len(page.encode()) / 1e6:.1f} MB"


def write_figures(folder: Path, output: Path, suffix: str = "svg", quantity: str = QUANTITY) -> list[Path]:
    """Write the page's figures as files; returns their paths.

    Args:
        suffix: svg or png.
        quantity: what the heat maps over training show, a metric or a measure of `quantities`.
    """
    experiment = configuration.load([folder / layout.CONFIGURATION])
    written = []
    for name, chart in _static(folder, experiment, quantity):
        written.append(output / f"{figures.file_name(name)}.{suffix}")
        figures.save(chart, written[-1])
    return written


def _static(folder: Path, experiment: Experiment, quantity: str) -> Iterator[tuple[str, Any]]:
    known = views.quantities()
    if quantity not in known:
        raise UserError(f"--quantity: {unknown('quantity', quantity, known)}")
    colors, runs = figures.colors(experiment), results.summary(folder, experiment)
    for cost in ("backbone_parameters", "backbone_macs"):
        yield f"scores {cost}", figures.scores(runs, cost, colors)
    for entry in results.widths(folder, experiment):
        network = f"{entry['detector']} {entry['backbone']}"
        yield f"widths {network}", figures.widths(entry, colors)
        if entry["front"] is not None and not entry["front"].empty:
            yield f"front {network}", figures.front(entry, colors)
    for backbone, detector in experiment.networks:
        network = f"{detector} {backbone}"
        tables = results.comparison(folder, backbone, detector)
        if not tables:
            continue
        if not tables["distances"].empty:
            yield f"spread {network}", figures.spread(views.spread(tables))
        title = known[quantity]["title"]
        table = views.courses_of_arms(tables)
        by_arm = dict(list(table[table["quantity"] == quantity].groupby("arm", sort=False)))
        for arm, rows in by_arm.items():
            yield f"course {quantity} {arm} {network}", figures.course(rows, f"{title}: {arm}")
        layer, spectra = views.last_spectra(folder, experiment, backbone, detector)
        if layer:
            yield f"spectra {layer} {network}", figures.spectra(spectra, colors)


def _page(folder: Path, experiment: Experiment, runs: pd.DataFrame) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eigendet.report", "template"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["millions"] = lambda number: f"{number / 1e6:,.3g} M"
    colors = figures.colors(experiment)
    widths = [
        entry | {"name": figures.file_name(entry["detector"], entry["backbone"]),
                 "settled": findings.settled(entry["derived"]), "bounds": BOUNDS}
        for entry in results.widths(folder, experiment)
    ]  # fmt: skip
    compared = {
        f"{detector} on {backbone}": results.comparison(folder, backbone, detector)
        for backbone, detector in experiment.networks
    }
    compared = {network: tables for network, tables in compared.items() if tables}
    charts: dict[str, Any] = {
        f"scores-{cost}": figures.scores(runs, f"backbone_{cost}", colors) for cost in ("parameters", "macs")
    }
    for network, tables in compared.items():
        if not tables["distances"].empty:
            charts[f"spread-{figures.file_name(network)}"] = figures.spread(views.spread(tables))
    for entry in widths:
        charts[f"widths-{entry['name']}"] = figures.widths(entry, colors)
        if entry["front"] is not None and not entry["front"].empty:
            charts[f"front-{entry['name']}"] = figures.front(entry, colors)
    spectra = {
        f"{detector} on {backbone}": packed
        for backbone, detector in experiment.networks
        if (packed := views.packed(list(views.eigenvalues(folder, experiment, backbone, detector))))
    }
    courses = {network: views.courses(tables) for network, tables in compared.items()}
    shown = {name for course in courses.values() for arm in course["arms"].values() for name in arm["values"]}
    shown |= {name for course in courses.values() for name in course["between"]}
    example = pd.DataFrame({"layer": ["a"], "step": [0], "value": [1.0]})
    line = pd.DataFrame({"arm": list(colors), "seed": 0, "x": 1.0, "value": 1.0})
    observed = {arm: colors[arm] for arm in experiment.observed}
    content = {
        "figures": {name: figures.specification(chart) for name, chart in charts.items()},
        "specs": {
            "course": figures.specification(figures.course(example, "")),
            "spectrum_log": figures.specification(figures.spectra(line[line["arm"].isin(observed)], observed)),
            "spectrum_linear": figures.specification(
                figures.spectra(line[line["arm"].isin(observed)], observed, False)
            ),
        },
        "quantities": {name: text for name, text in views.quantities().items() if name in shown},
        "quantity": QUANTITY,
        "courses": courses,
        "spectra": spectra,
        "levels": {"decades": views.DECADES, "largest": views.LEVELS},
    }
    first = runs.iloc[0]
    record = layout.path(folder, layout.RUN_RECORD, **first[list(layout.Run._fields)])
    return environment.get_template("page.html.j2").render(
        experiment=experiment,
        arms={arm: _text(arm, experiment) for arm in runs["arm"].unique()},
        differences=_differences(experiment),
        findings=_findings(experiment, runs, compared, widths),
        missing=results.missing(folder, experiment),
        averages=results.averages(runs),
        runs=_settings(folder, experiment, runs),
        has_whole="macs" in runs,
        has_latency="detector_ms" in runs,
        has_masks="mask_AP" in runs,
        seeds=sorted(set(runs["seed"])),
        charts=list(charts),
        file_name=figures.file_name,
        compared=compared,
        tests={network: views.tested(tables["tests"]) for network, tables in compared.items()},
        has_spectra=bool(spectra),
        widths=widths,
        data=_data(folder, experiment),
        pretrained=[
            read_json(file, "a record")
            for name in experiment.backbones
            if (file := layout.path(folder, layout.PRETRAINED_RECORD, backbone=name)).is_file()
        ],
        record=read_json(record, "the record of a run"),
        configuration=configuration.dump_yaml(experiment),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        content=_script_json(content),
    )


def _findings(
    experiment: Experiment, runs: pd.DataFrame, compared: dict[str, dict[str, Any]], widths: list[dict[str, Any]]
) -> list[tuple[str, list[str]]]:
    """The answers, in sentences, for each detector on each backbone."""
    found = []
    for backbone, detector in experiment.networks:
        network = f"{detector} on {backbone}"
        own = runs[(runs["backbone"] == backbone) & (runs["detector"] == detector)]
        sentences = [findings.accuracy(own)]
        sentences += findings.spectra(compared[network]) if network in compared else []
        for entry in widths:
            sentences += (
                findings.widths(entry) if (entry["backbone"], entry["detector"]) == (backbone, detector) else []
            )
        found.append((network, [sentence for sentence in sentences if sentence]))
    return found


def _text(arm: str, experiment: Experiment) -> str:
    """What sets an arm apart."""
    if arm in ARMS:
        return ARMS[arm]
    if arm in experiment.derived:
        return f"as derived, from the spectra of {experiment.spectra_for(arm)}"
    return f"with the widths of {experiment.arms[arm].widths}"


def _data(folder: Path, experiment: Experiment) -> dict[str, Any]:
    """Summaries of the data sets that this experiment names, those that were checked."""
    found = {}
    for task, splits in (("classification", experiment.data.classification), ("detection", experiment.data.detection)):
        for split in ("train", "val") if splits else ():
            file = folder / layout.data_check(experiment, task, split)
            if file.is_file():
                found[f"{task} {split}"] = read_json(file, "a summary")
    return found


def _differences(experiment: Experiment) -> list[str]:
    """What the arms do not have in common, besides start and widths."""
    usual = experiment.training.model_dump(exclude={"snapshots"})
    lines = []
    for arm in experiment.all_arms:
        own = experiment.training_of(arm).model_dump()
        changed = {key: own[key] for key, value in usual.items() if own[key] != value}
        lines += [f"{arm}: {key} is {value} instead of {usual[key]}" for key, value in changed.items()]
    return lines


def _settings(folder: Path, experiment: Experiment, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a run: its scores, how it was trained, and by what."""
    rows = []
    for run in runs.to_dict("records"):
        training = experiment.training_of(run["arm"])
        named = {name: run[name] for name in layout.Run._fields}
        record = read_json(layout.path(folder, layout.RUN_RECORD, **named), "the record of a run")
        rows.append(
            run | {"steps": training.steps, "batch_size": training.batch_size, "learning_rate": training.learning_rate,
                   "snapshots": len(record["snapshots"]), "revision": record["revision"], "torch": record["torch"]}
        )  # fmt: skip
    return rows


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
