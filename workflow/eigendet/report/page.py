"""Write one self-contained page of everything that an experiment found, its summary, and its figures as files.

Everything is read from the experiment's folder, so a page can be made of whatever is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import jinja2
import pandas as pd
import vl_convert

from eigendet import config as configuration
from eigendet.config import ARMS, Experiment, layout
from eigendet.errors import UserError, unknown
from eigendet.files import write_text
from eigendet.report import (
    accuracy,
    curves,
    differences,
    equal_accuracy,
    examples,
    figures,
    findings,
    forecast,
    readings,
    results,
    views,
    wording,
)
from eigendet.report.figures import file_name
from eigendet.report.records import CONFIDENT, FEW, MOST
from eigendet.report.results import Network, Results
from eigendet.spectra.matching import LEVELS

QUANTITY = "effective_rank"  # drawn first, and in files
SENTENCES = 12  # on a network that are read at once; of many arms the rest unfolds

BOUNDS = {
    "macs": "the cap on MACs",
    "parameters": "the cap on parameters",
    "activations": "the cap on activations",
    "least": "its least width",
    "most": "its largest width",
    "target": "its share, rounded",
}


class Figure(NamedTuple):
    """A figure, its id on the page, and the name of its file."""

    id: str
    file: str
    chart: figures.Chart


class Levels(TypedDict):
    """How `page.js` unpacks spectra, see `views.packed`."""

    decades: int
    largest: int


class PageData(TypedDict):
    """What `page.js` draws; figures are by id, courses and spectra by network."""

    figures: dict[str, figures.Specification]
    specs: dict[str, figures.Specification]
    quantities: dict[str, views.Quantity]
    quantity: str
    courses: dict[str, views.Courses]
    spectra: dict[str, views.Packed]
    levels: Levels


def write_page(folder: Path) -> str:
    """Write `summary.csv`, `report.html` and `figures/` in an experiment's folder; returns a line that says where."""
    shown = results.read_results(folder)
    write_text(folder / layout.SUMMARY, shown.runs.to_csv(index=False))
    page = _page(shown)
    write_text(folder / layout.PAGE, page)
    _save(shown, folder / layout.FIGURES, "svg", QUANTITY)
    return f"{folder / layout.PAGE}: {len(shown.runs)} runs, {len(page.encode()) / 1e6:.1f} MB"


def write_figures(folder: Path, output: Path, suffix: str = "svg", quantity: str = QUANTITY) -> list[Path]:
    """Write the page's figures as files; returns their paths.

    Args:
        folder: results/EXPERIMENT.
        output: the folder for the files.
        suffix: svg or png.
        quantity: what the heat maps over training show, a key of `views.quantities`.

    Raises:
        UserError: there is no such quantity; no run has been evaluated.
    """
    quantities = views.quantities()
    if quantity not in quantities:
        raise UserError(f"--quantity: {unknown('quantity', quantity, quantities)}")
    return _save(results.read_results(folder), output, suffix, quantity)


def _save(shown: Results, output: Path, suffix: str, quantity: str) -> list[Path]:
    charts = {figure.file: figure.chart for figure in _figures(shown)} | dict(_choices(shown, quantity))
    paths = []
    for name, chart in charts.items():
        paths.append(output / f"{name}.{suffix}")
        figures.save_chart(chart, paths[-1])
    return paths


def _figures(shown: Results) -> Iterator[Figure]:
    """Yield the figures that are both on the page and in files."""
    colors = figures.colors(shown.experiment)
    for cost in ("parameters", "macs"):
        chart = figures.draw_scores(shown.runs, f"backbone_{cost}", colors)
        yield Figure(f"scores-{cost}", f"scores-backbone_{cost}", chart)
    scored = results.accuracy_over_training(shown.folder, shown.experiment)
    if not scored.empty and scored.groupby(list(layout.Run._fields)).size().max() > 1:
        yield Figure("accuracy-steps", "accuracy-over-training", figures.draw_accuracy(scored, colors))
    if not shown.precision.empty:
        for (kind, overlap), rows in shown.precision.groupby(["kind", "overlap"], sort=False):
            name = f"precision-{kind}-{overlap}"
            yield Figure(name, name, figures.draw_precision(rows, f"precision, {overlap}", colors))
    for term, name in _names_of_losses(shown).items():
        yield Figure(name, name, figures.draw_losses(shown.losses.table, term, colors))
    for network, comparison in shown.comparisons.items():
        if not comparison.distances.empty:
            chart = figures.draw_spread(views.spread_of_spectra(comparison.distances))
            yield Figure(file_name("spread", str(network)), _file_name("spread", network), chart)
        matched = equal_accuracy.distances_by_accuracy(comparison)
        if not matched.empty:
            chart = figures.draw_equal_accuracy(matched)
            yield Figure(file_name("equal", str(network)), _file_name("equal accuracy", network), chart)
    for entry in shown.widths:
        name = _file_name("widths", entry.network)
        yield Figure(name, name, figures.draw_widths(entry, colors))
        if entry.front is not None and not entry.front.empty:
            name = _file_name("front", entry.network)
            yield Figure(name, name, figures.draw_front(entry.front, entry.files, colors))


def _names_of_losses(shown: Results) -> dict[str, str]:
    """Return the name of each loss's figure; terms that differ in signs alone have theirs too."""
    names: dict[str, str] = {}
    for term in shown.losses.table["term"].unique() if not shown.losses.table.empty else ():
        name = file_name("losses", term[:60])
        names[term] = f"{name}-{len(names)}" if name in names.values() else name
    return names


def _choices(shown: Results, quantity: str) -> Iterator[tuple[str, figures.Chart]]:
    """Yield one choice, by the name of its file, of what the page lets its reader choose: heat maps, and spectra."""
    colors, title = figures.colors(shown.experiment), views.quantities()[quantity]["title"]
    for network, comparison in shown.comparisons.items():
        courses = views.courses_of_arms(comparison.metrics, comparison.distances)
        for arm, rows in courses[courses["quantity"] == quantity].groupby("arm", sort=False):
            yield _file_name(f"course {quantity} {arm}", network), figures.draw_course(rows, f"{title}: {arm}")
        tables = results.read_eigenvalues(shown.folder, shown.experiment, *network)
        if tables:
            layer, spectra = views.last_spectra(tables)
            yield _file_name(f"spectra {layer}", network), figures.draw_spectra(spectra, colors)


def _file_name(kind: str, network: Network) -> str:
    return file_name(kind, network.detector, network.backbone)


def _page(shown: Results) -> str:
    folder, experiment, runs = shown.folder, shown.experiment, shown.runs
    content, settings = _content(shown), _settings(folder, experiment, runs)
    pictures = examples.read(folder, experiment)
    return _template().render(
        experiment=experiment,
        arms={arm: _text(arm, experiment) for arm in runs["arm"].unique()},
        differences=_differences(experiment),
        findings=_findings(shown),
        at_once=SENTENCES,
        missing=results.missing(folder, experiment),
        averages=results.averages(runs, experiment.with_reference_widths),
        classes=results.accuracy_of_classes(folder, experiment),
        forecasts=_forecasts(shown),
        scores=forecast.SCORES,
        runs=settings,
        has_whole="macs" in runs,
        has_latency="detector_ms" in runs,
        has_masks="mask_AP" in runs,
        charts=list(content["figures"]),
        overlaps=curves.OVERLAPS,
        losses={"terms": _names_of_losses(shown), "notes": shown.losses.notes, "points": curves.POINTS},
        pictures=pictures,
        jpegs=examples.numbered(pictures),
        confident=CONFIDENT,
        few=FEW,
        most=MOST,
        file_name=file_name,
        compared=shown.comparisons,
        tests={network: views.tested(compared.tests) for network, compared in shown.comparisons.items()},
        levels={network: equal_accuracy.level_rows(compared) for network, compared in shown.comparisons.items()},
        levels_of_pair=LEVELS,
        at_equal={
            network: equal_accuracy.layers_at_equal_accuracy(compared).to_dict("records")
            for network, compared in shown.comparisons.items()
        },
        has_spectra=bool(content["spectra"]),
        widths=shown.widths,
        readings=readings.read_readings(folder, experiment),
        on_readings=readings.on_readings,
        settled=findings.settled,
        on_budget=findings.on_budget,
        on_steps=findings.on_steps,
        on_intervals=findings.on_intervals,
        on_controls=findings.on_controls,
        parts=min(experiment.covariance.jackknife or 0, experiment.covariance.images),
        on_tests=differences.on_tests,
        on_runs=findings.on_runs,
        counted=wording.counted,
        bounds=BOUNDS,
        data=results.data_summaries(folder, experiment),
        pretrained=results.pretraining_records(folder, experiment),
        latency_devices=results.latency_devices(folder, experiment),
        provenance=_provenance(settings),
        configuration=configuration.dump_yaml(experiment),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        content=_script_json(content),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eigendet.report", "template"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "millions": lambda number: f"{number / 1e6:,.3g} M",
        "number": lambda number, digits: "" if pd.isna(number) else f"{number:.{digits}f}",
        "percent": lambda score: "" if pd.isna(score) else f"{100 * score:.1f}",
        "share": wording.share,
        "as_p": wording.as_p,
    }
    return environment.get_template("page.html.j2")


def _content(shown: Results) -> PageData:
    """Collect what the page's figures are drawn from, those included that follow the reader's choices."""
    courses = {
        str(network): views.courses(comparison.metrics, comparison.distances)
        for network, comparison in shown.comparisons.items()
    }
    spectra = {}
    for network in map(Network._make, shown.experiment.networks):
        tables = results.read_eigenvalues(shown.folder, shown.experiment, *network)
        if tables:
            spectra[str(network)] = views.packed(tables)
    quantities = {name for course in courses.values() for arm in course["arms"].values() for name in arm["values"]}
    quantities |= {name for course in courses.values() for name in course["between"]}
    return PageData(
        figures={figure.id: figures.specification(figure.chart) for figure in _figures(shown)},
        specs=_specifications(shown.experiment),
        quantities={name: quantity for name, quantity in views.quantities().items() if name in quantities},
        quantity=QUANTITY,
        courses=courses,
        spectra=spectra,
        levels=Levels(decades=views.DECADES, largest=views.LEVELS),
    )


def _specifications(experiment: Experiment) -> dict[str, figures.Specification]:
    """Return the figures that `page.js` fills with what the reader chooses; here they hold a row or two."""
    course = pd.DataFrame({"layer": ["a"], "step": [0], "value": [1.0]})
    colors = figures.colors(experiment)
    arms = [arm for arm in colors if arm in experiment.observed]
    spectra = pd.DataFrame({"arm": arms, "seed": 0, "x": 1.0, "value": 1.0})
    colors = {arm: colors[arm] for arm in experiment.observed}
    return {
        "course": figures.specification(figures.draw_course(course, "")),
        "spectrum_log": figures.specification(figures.draw_spectra(spectra, colors)),
        "spectrum_linear": figures.specification(figures.draw_spectra(spectra, colors, logarithmic=False)),
    }


def _findings(shown: Results) -> list[tuple[Network, list[str]]]:
    """Return the answers, in sentences, for each network."""
    answers = []
    for network in map(Network._make, shown.experiment.networks):
        backbone, detector = network
        runs = shown.runs[(shown.runs["backbone"] == backbone) & (shown.runs["detector"] == detector)]
        compared = shown.comparisons.get(network)
        sentences = equal_accuracy.on_equal_accuracy(compared) if compared else []
        starts = [arm for arm in shown.experiment.with_reference_widths if arm not in ("finetune", "scratch")]
        sentences += accuracy.on_accuracy(runs, next(reversed(shown.experiment.derived), None), starts)
        sentences += [findings.on_widths(entry.derived[-1]) for entry in shown.widths if entry.network == network]
        if compared:
            sentences += differences.on_spectra(compared.tests)
        answers.append((network, [sentence for sentence in sentences if sentence]))
    return answers


def _forecasts(shown: Results) -> dict[Network, forecast.Shown]:
    """Return what initializations promised, and what came of it, for each network."""
    runs = shown.runs
    return {
        network: forecast.shown(scored, runs[(runs["backbone"] == network[0]) & (runs["detector"] == network[1])])
        for network, scored in results.forecasts(shown.folder, shown.experiment).items()
    }


def _text(arm: str, experiment: Experiment) -> str:
    """Say what sets an arm apart."""
    if arm in ARMS:
        return ARMS[arm]
    if arm in experiment.derived:
        return f"as derived, from the spectra of {experiment.spectra_for(arm)}"
    own = experiment.arms[arm]
    init = "pre-trained here" if own.init == "workflow" else own.init
    start = f"from {init}" if own.init else "from random weights"
    return f"{start}, with the widths of {own.widths}" if own.widths else start


def _differences(experiment: Experiment) -> list[str]:
    """Say what the arms do not have in common, besides start and widths."""
    common = experiment.training.model_dump(exclude={"snapshots"})
    lines = []
    for arm in experiment.all_arms:
        own = experiment.training_of(arm).model_dump()
        changed = {key: own[key] for key, value in common.items() if own[key] != value}
        lines += [f"{arm}: {key} is {value} instead of {common[key]}" for key, value in changed.items()]
    return lines


def _settings(folder: Path, experiment: Experiment, runs: pd.DataFrame) -> pd.DataFrame:
    """Add to the summary how each run was trained, and by what."""
    rows = []
    for run in map(layout.Run._make, runs[list(layout.Run._fields)].itertuples(index=False)):
        training, record = experiment.training_of(run.arm), results.run_record(folder, run)
        rows.append(
            {"steps": training.steps, "batch_size": training.batch_size, "learning_rate": training.learning_rate,
             "snapshots": len(record.snapshots), "revision": record.revision, "torch": record.torch,
             "eigendet": record.eigendet, "data": record.identity.data[:8]}
        )  # fmt: skip
    return runs.join(pd.DataFrame(rows))


def _provenance(runs: pd.DataFrame) -> str:
    """Say by what all runs were made, or in what they differ."""
    names = {
        "eigendet": "eigendet {}", "revision": "revision {}", "torch": "torch {}", "device": "{}", "data": "data {}",
    }  # fmt: skip
    parts = [text.format(" and ".join(dict.fromkeys(map(str, runs[name])))) for name, text in names.items()]
    several = [name for name in names if len(set(runs[name])) > 1]
    return ", ".join(parts) + "." + (f" Runs differ in {', '.join(several)}: see their table." if several else "")


def _script_json(content: PageData) -> str:
    """Return JSON in which nothing can end the script element that holds it, or begin another in it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
