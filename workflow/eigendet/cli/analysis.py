"""Define the commands from covariance files on: spectra, their comparison, forecasts, the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from eigendet.cli.options import (  # fmt: skip
    EXISTING,
    FOLDER,
    config_option,
    output_option,
    read_experiment,
)
from eigendet.errors import printable
from eigendet.plugins import discovery

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("covariance", type=EXISTING)
def inspect(covariance: Path) -> None:
    """Print what is in a covariance file."""
    from eigendet.observe import store

    for line in store.describe(covariance):
        click.echo(printable(line))


@click.command()
@click.argument("covariances", type=EXISTING, nargs=-1, required=True)
@output_option("HDF5 file of all images together.")
def merge(covariances: tuple[Path, ...], output: Path) -> None:
    """Merge covariance files of one run over different images, for example its shards; the result is exact."""
    from eigendet.observe import merging, store

    merging.merge(output, covariances)
    seen, probe = store.images(output) or [], store.provenance(output).get("probe", {}).get("images")
    if probe is not None and len(seen) < probe:
        click.echo(f"{len(seen)} of the {probe} probe images: shards are missing, and can be merged with this file")


@click.command()
@click.argument("covariance", type=EXISTING)
@click.option("--raw", is_flag=True, help="Take the raw second moments, as `widths.centered: false` does.")
@output_option("Folder for eigenvalues.parquet, jackknife.parquet and similarity.h5.")
def spectra(covariance: Path, raw: bool, output: Path) -> None:
    """Write the eigenvalues and leading eigenvectors of covariances.

    COVARIANCE is a file that `eigendet covariance` wrote.
    """
    from eigendet.spectra import spectrum as stage

    stage.write_spectra(covariance, output, centered=not raw)


@click.command()
@click.argument("spectra", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--plugins",
    "folders",
    type=FOLDER,
    multiple=True,
    help="A further folder of plugins, for width rules of your own; may be given several times.",
)
@click.option(
    "--evaluation",
    "evaluations",
    type=EXISTING,
    multiple=True,
    help="What `eigendet evaluate` wrote of a run, for each: arms are then compared at equal accuracy too.",
)
@output_option("Folder for metrics, distances, tests, matched and places (.parquet), and notes.json.")
def comparison(
    spectra: tuple[Path, ...], folders: tuple[Path, ...], evaluations: tuple[Path, ...], output: Path
) -> None:
    """Measure spectra, and compare those of several runs: by arm, by seed, along training, and at equal accuracy.

    SPECTRA are folders that `eigendet spectra` wrote, of one detector over one backbone.
    """
    from eigendet import plugins
    from eigendet.report.results import read_curve
    from eigendet.spectra import comparison
    from eigendet.spectra.metric_table import OWN_METRICS

    discovery.search(folders)
    curves = [read_curve(evaluation) for evaluation in evaluations]
    for note in comparison.write_comparison(spectra, output, plugins.rules(taken=OWN_METRICS), curves):
        click.echo(note)


@click.command()
@config_option
@click.argument("covariances", type=EXISTING, nargs=-1, required=True)
@output_option("JSON file for the scores.")
def forecast(configs: tuple[Path, ...], covariances: tuple[Path, ...], output: Path) -> None:
    """Score the initializations of runs by what is said to forecast how well they transfer.

    COVARIANCES are files that `eigendet covariance` wrote, of one detector over one backbone with the reference's
    widths. Scored is their snapshot at step 0, by RankMe, α-ReQ and LogME; nothing is trained.
    """
    from eigendet import files
    from eigendet.observe.keys import TapKey
    from eigendet.runs import forecast as stage

    result = stage.forecast(read_experiment(configs), covariances)
    files.write_json(output, result)
    for score in result["scores"]:
        numbers = ((name, score[name]) for name in ("rankme", "alpha", "logme"))
        texts = [f"{name} {number:.4g}" for name, number in numbers if number is not None]
        key = TapKey(score["module"], score["call"], score["point"])
        click.echo(printable(f"{score['arm']}, seed {score['seed']}, {key}: {', '.join(texts) or 'no scores'}"))
    for note in result["notes"]:
        click.echo(printable(note))


@click.command()
@click.argument("results", type=FOLDER)
def report(results: Path) -> None:
    """Write summary.csv and report.html, one self-contained page, from an experiment's results.

    RESULTS is the folder results/EXPERIMENT.
    """
    from eigendet.report.page import write_page

    _search_as(results)
    click.echo(write_page(results))


@click.command()
@click.argument("results", type=FOLDER)
@click.option("--format", "suffix", type=click.Choice(["svg", "png"]), default="svg", help="Kind of file.")
@click.option("--quantity", default="effective_rank", help="What the heat maps over training show.")
@output_option("Folder for the files.")
def figures(results: Path, suffix: str, quantity: str, output: Path) -> None:
    """Write the page's figures as files, for a paper.

    RESULTS is the folder results/EXPERIMENT.
    """
    from eigendet.report.page import write_figures

    _search_as(results)
    for path in write_figures(results, output, suffix, quantity):
        click.echo(path)


@click.command()
@click.argument("results", type=FOLDER)
@output_option("Folder for event files, whose old ones are removed; `tensorboard --logdir` shows it.")
def tensorboard(results: Path, output: Path) -> None:
    """Write losses and metrics of every layer for TensorBoard.

    RESULTS is the folder results/EXPERIMENT. Needs the package tensorboard.
    """
    from eigendet.report import events

    _search_as(results)
    click.echo(events.write_events(results, output))


def _search_as(results: Path) -> None:
    """Look for width rules where the experiment did whose results these are, in folders that are still there."""
    from eigendet.report.results import read_experiment

    discovery.search([folder for folder in read_experiment(results).plugins if Path(folder).is_dir()])


COMMANDS = (inspect, merge, spectra, comparison, forecast)
REPORTS = (report, figures, tensorboard)
