"""The command line: a verb for each stage, each usable without Snakemake."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from eigendet import __version__
from eigendet.config import Experiment, load
from eigendet.errors import UserError, unknown

# Imports of torch stand inside the commands, so that help and errors come at once.

EXISTING = click.Path(exists=True, path_type=Path)
NEW = click.Path(path_type=Path)


class InOrder(click.Group):
    """Lists commands in the order of the stages, not of the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """What pre-training changes inside an object detector, and how wide each layer must be.

    The stages in order: pretrain, train, evaluate, dump, spectrum, widths, report. `snakemake` runs them all for an
    experiment; each can also be run by hand, from a configuration file such as config.yaml.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose `UserError` is one message and exit status 1, not a traceback."""

    @main.command()
    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        try:
            function(**arguments)
        except UserError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:  # a folder that cannot be written, a full disk
            if error.filename is None:
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None

    return run


config_option = click.option(
    "--config", "-c", "configs", type=EXISTING, multiple=True, default=["config.yaml"],
    help="The experiment's YAML file. Given several times, later files override earlier ones.",
)  # fmt: skip
backbone_option = click.option("--backbone", help="Which entry of `backbones`. [default: the only one]")
detector_option = click.option("--detector", help="Which entry of `detectors`. [default: the only one]")


def output_option(what: str) -> Callable[..., Any]:
    return click.option("--output", "-o", type=NEW, required=True, help=what)


@command
@config_option
@click.argument("task", type=click.Choice(["classification", "detection"]))
@click.argument("split", type=click.Choice(["train", "val"]))
@output_option("JSON file for the summary.")
def check(configs: tuple[Path, ...], task: str, split: str, output: Path) -> None:
    """Check a data set: annotations, files, and every image."""
    from eigendet import datasets, files

    summary = datasets.check(_experiment(configs), task, split)
    click.echo(f"{task} {split}: {summary['images']} images, {len(summary['classes'])} classes")
    for note in summary["notes"]:
        click.echo(note)
    files.write_json(output, summary)


@command
@config_option
@backbone_option
@output_option("Folder of the run; backbone.pt in it is the result.")
def pretrain(configs: tuple[Path, ...], backbone: str | None, output: Path) -> None:
    """Pre-train a backbone as a classifier, or fetch the weights that the configuration names.

    Stopped at any moment, the same command goes on from the last checkpoint.
    """
    from eigendet import runs

    experiment = _experiment(configs)
    runs.pretrain(experiment, _only(experiment.backbones, backbone, "backbone"), output)


@command
@config_option
@click.option("--arm", default="scratch", help="How the run starts and with which widths: a key of `arms`.")
@backbone_option
@detector_option
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Fixes weights, order and augmentation.")
@click.option("--init", type=EXISTING, help="Weights that the backbone starts from, for the arm finetune.")
@click.option(
    "--widths", type=EXISTING, help="File of widths, for all arms but finetune and scratch; may be edited by hand."
)
@output_option("Folder of the run.")
def train(
    configs: tuple[Path, ...],
    arm: str,
    backbone: str | None,
    detector: str | None,
    seed: int,
    init: Path | None,
    widths: Path | None,
    output: Path,
) -> None:
    """Train a detector, keeping snapshots of its weights.

    Stopped at any moment, the same command goes on from the last checkpoint.
    """
    from eigendet import runs

    experiment = _experiment(configs)
    backbone = _only(experiment.backbones, backbone, "backbone")
    detector = _only(experiment.detectors, detector, "detector")
    runs.train(experiment, arm, backbone, detector, seed, output, init, widths)


@command
@config_option
@click.argument("run", type=EXISTING)
@output_option("JSON file for the result.")
def evaluate(configs: tuple[Path, ...], run: Path, output: Path) -> None:
    """Test a run's last snapshot on the validation split: COCO average precision, or top-1 accuracy.

    RUN is the folder of a complete run.
    """
    from eigendet import files, runs

    result = runs.evaluate(_experiment(configs), run)
    files.write_json(output, result)
    scores = result.get("boxes", {"top1": result.get("top1")})
    click.echo(", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None))


@command
@config_option
@click.argument("runs", type=EXISTING, nargs=-1, required=True)
@output_option("JSON file for the times.")
def latency(configs: tuple[Path, ...], runs: tuple[Path, ...], output: Path) -> None:
    """Measure how long detectors and their backbones take for one image, in turns.

    RUNS are folders of complete runs. Let nothing else run meanwhile.
    """
    from eigendet import files
    from eigendet import latency as stage

    result = stage.measure(_experiment(configs), runs)
    files.write_json(output, result)
    for run in result["runs"]:
        times = ", ".join(f"{part} {run[part]['median']:.1f} ms" for part in ("detector", "backbone"))
        click.echo(f"{run['arm']}, seed {run['seed']}: {times}")


@command
@config_option
@click.argument("run", type=EXISTING)
@click.option("--shard", default="1/1", help="K/N: only every N-th image from the K-th on, for `eigendet merge`.")
@output_option("HDF5 file for the covariances.")
def dump(configs: tuple[Path, ...], run: Path, shard: str, output: Path) -> None:
    """Dump the covariance of every chosen feature map, at every snapshot of a run.

    RUN is the folder of a complete run of a detector. Stopped at any moment, the same command goes on with the
    snapshot that it was at.
    """
    from eigendet import dump as stage

    stage.dump(_experiment(configs), run, output, _shard(shard))


@command
@click.argument("covariance", type=EXISTING)
def inspect(covariance: Path) -> None:
    """Print what is in a covariance file."""
    from eigendet import store

    for line in store.describe(covariance):
        click.echo(line)


@command
@click.argument("covariances", type=EXISTING, nargs=-1, required=True)
@output_option("HDF5 file of all images together.")
def merge(covariances: tuple[Path, ...], output: Path) -> None:
    """Merge covariance files of one run over different images, for example its shards, exactly."""
    from eigendet import store

    store.merge(output, covariances)


@command
@click.argument("covariance", type=EXISTING)
@click.option("--raw", is_flag=True, help="Of the raw second moments, for `widths.centred: false`.")
@output_option("Folder for eigenvalues.parquet, jackknife.parquet and similarity.h5.")
def spectrum(covariance: Path, raw: bool, output: Path) -> None:
    """Eigenvalues and leading eigenvectors of a dump.

    COVARIANCE is a file that `eigendet dump` wrote.
    """
    from eigendet import spectrum as stage

    stage.write(covariance, output, centred=not raw)


@command
@click.argument("spectra", type=click.Path(exists=True, file_okay=False, path_type=Path), nargs=-1, required=True)
@output_option("Folder for metrics.parquet, distances.parquet, tests.parquet and notes.json.")
def compare(spectra: tuple[Path, ...], output: Path) -> None:
    """Measure spectra, and compare those of several runs: by arm, by seed, and along training.

    SPECTRA are folders that `eigendet spectrum` wrote, of one detector over one backbone.
    """
    from eigendet import comparison

    for note in comparison.write(spectra, output):
        click.echo(note)


@command
@config_option
@click.option("--detector", help="Of this entry of `detectors` over the backbone, pyramid and heads included.")
@click.argument("backbone")
def channels(configs: tuple[Path, ...], detector: str | None, backbone: str) -> None:
    """Print the channel groups of a backbone: which widths are tied, and what they cost.

    BACKBONE is an entry of `backbones`. Every line is a group, named after the first layer that writes it: its width,
    what that must be a multiple of, parameters and multiply-accumulates of the layers that write it (for one training
    image of the shorter side), and all layers that read or write it. What cannot be resized follows, with the reason.
    """
    from eigendet import runs
    from eigendet.groups import table

    experiment = _experiment(configs)
    chosen = detector if detector is not None else next(iter(experiment.detectors))
    network = runs.definition_for_widths(experiment, backbone, chosen, heads=detector is not None)
    click.echo(table(*network.reference(network.size[0])))


@command
@config_option
@backbone_option
@detector_option
@click.argument("arm")
@click.argument("spectra", type=click.Path(exists=True, file_okay=False, path_type=Path), nargs=-1)
@click.option("--derived", type=EXISTING, help="File of the derived widths, for a control that is compared with them.")
@output_option("JSON file for the widths.")
def widths(
    configs: tuple[Path, ...],
    backbone: str | None,
    detector: str | None,
    arm: str,
    spectra: tuple[Path, ...],
    derived: Path | None,
    output: Path,
) -> None:
    """Derive the widths of a network from spectra, or those of a control.

    ARM is a key of `arms`. SPECTRA are folders that `eigendet spectrum` wrote, one for each seed, of the arm from which
    the widths are read (for `derived`, `untrained` and `permuted`).
    """
    from eigendet import controls, files
    from eigendet import widths as stage

    experiment = _experiment(configs)
    network = _network(experiment, backbone, detector)
    if arm in experiment.derived:
        content = stage.derive(experiment, network, spectra, experiment.spectra_for(arm) or "")
    elif arm in experiment.controls:
        content = controls.control(experiment, network, arm, spectra, derived)
    else:
        raise UserError(unknown("arm with widths of its own", arm, [*experiment.derived, *experiment.controls]))
    files.write_json(output, content)
    change = {cost: content[cost]["result"] / content[cost]["reference"] for cost in ("parameters", "macs")}
    click.echo(f"{arm}: {change['parameters']:.3f} of the parameters, {change['macs']:.3f} of the MACs")
    if content.get("undetermined"):
        click.echo(f"the images leave open the widths of {', '.join(content['undetermined'])}")


@command
@config_option
@backbone_option
@detector_option
@click.argument("spectra", type=click.Path(exists=True, file_okay=False, path_type=Path), nargs=-1)
@output_option("CSV file for the table.")
def front(
    configs: tuple[Path, ...], backbone: str | None, detector: str | None, spectra: tuple[Path, ...], output: Path
) -> None:
    """Compare parameters and operations over the width rule's option, at several budgets.

    SPECTRA are folders that `eigendet spectrum` wrote, one for each seed, of the arm that `widths.arm` names.
    """
    from eigendet import files
    from eigendet import front as stage

    experiment = _experiment(configs)
    table = stage.front(experiment, _network(experiment, backbone, detector), spectra)
    files.write_text(output, table.to_csv(index=False))
    click.echo(table[table["on_front"]].to_string(index=False, float_format="{:.3f}".format))


@command
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(results: Path) -> None:
    """Write summary.csv and report.html, one self-contained page, from an experiment's results.

    RESULTS is the folder results/EXPERIMENT.
    """
    from eigendet import report as stage

    click.echo(stage.write(results))


@command
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "suffix", type=click.Choice(["svg", "png"]), default="svg", help="Kind of file.")
@click.option("--quantity", default="effective_rank", help="What the heat maps over training show.")
@output_option("Folder for the files.")
def figures(results: Path, suffix: str, quantity: str, output: Path) -> None:
    """Write the page's figures as files, for a paper.

    RESULTS is the folder results/EXPERIMENT.
    """
    from eigendet import report as stage

    for path in stage.write_figures(results, output, suffix, quantity):
        click.echo(path)


@command
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@output_option("Folder for event files, anew; `tensorboard --logdir` shows it.")
def tensorboard(results: Path, output: Path) -> None:
    """Write losses and metrics of every layer for TensorBoard.

    RESULTS is the folder results/EXPERIMENT. Needs the package tensorboard.
    """
    from eigendet import events

    click.echo(events.write(results, output))


def _experiment(configs: tuple[Path, ...]) -> Experiment:
    return load([Path(config) for config in configs])


def _network(experiment: Experiment, backbone: str | None, detector: str | None) -> Any:
    """The definition whose widths are chosen."""
    from eigendet import runs

    backbone = _only(experiment.backbones, backbone, "backbone")
    detector = _only(experiment.detectors, detector, "detector")
    return runs.definition_for_widths(experiment, backbone, detector, experiment.widths.heads)


def _shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise UserError(f"--shard: got '{text}'; expected K/N with K from 1 to N, for example 2/8.")
    return int(number), int(total)


def _only(choices: dict[str, Any], name: str | None, kind: str) -> str:
    if name is None and len(choices) > 1:
        raise UserError(f"--{kind}: there are several, {', '.join(choices)}; name one.")
    return name if name is not None else next(iter(choices))
