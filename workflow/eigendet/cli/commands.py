"""Define the command line, and the commands of stages that run networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from eigendet import __version__
from eigendet.cli import analysis, widths_commands
from eigendet.cli.export_command import export
from eigendet.cli.init_command import init
from eigendet.cli.options import (  # fmt: skip
    EXISTING,
    backbone_option,
    config_option,
    detector_option,
    devices_option,
    nodes_option,
    only,
    output_option,
    read_experiment,
)
from eigendet.cli.plugin_commands import plugins
from eigendet.cli.reports import log_option, start
from eigendet.errors import EXTRAS, UserError, lacking

# torch and pydantic are imported inside the commands, so that help and errors come at once.

# Commands by their names in version 0.1.
RENAMED = {"dump": "covariance", "spectrum": "spectra", "compare": "comparison"}


class Main(click.Group):
    """A group whose commands stand in the order of the stages, and whose user errors are messages, not tracebacks."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order of the stages, not of the alphabet."""
        return list(self.commands)

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        """Refuse a command by its old name, with the new one."""
        if args and args[0] in RENAMED:
            context.fail(f"'{args[0]}' is called '{RENAMED[args[0]]}' now: eigendet {RENAMED[args[0]]} --help")
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        """Turn what the user can correct into a message."""
        try:
            return super().invoke(context)
        except UserError as error:
            raise click.ClickException(str(error)) from None
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise click.ClickException(lacking([error.name])) from None
        except OSError as error:  # a folder that cannot be written, a full disk
            if error.filename is None:
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """Measure what pre-training changes inside an object detector, and how wide each layer must be.

    The stages in order: pretrain, train, evaluate, covariance, spectra, comparison, widths, report. `snakemake` runs
    them all for an experiment; each can also be run by hand, from a configuration file such as config.yaml.
    """
    start()


main.add_command(init)


@main.command("check-data")
@config_option
@click.argument("task", type=click.Choice(["classification", "detection"]))
@click.argument("split", type=click.Choice(["train", "val"]))
@output_option("JSON file for the summary.")
@log_option
def check_data(
    configs: tuple[Path, ...], task: Literal["classification", "detection"], split: str, output: Path
) -> None:
    """Check a data set: annotations, files, and every image."""
    from eigendet import files
    from eigendet.data import datasets

    summary = datasets.check_data(read_experiment(configs), task, split)
    click.echo(f"{task} {split}: {summary['images']} images, {len(summary['classes'])} classes")
    for note in summary["notes"]:
        click.echo(note)
    files.write_json(output, summary)


@main.command("check-network")
@config_option
@backbone_option
@detector_option
@output_option("JSON file for the summary.")
@log_option
def check_network(configs: tuple[Path, ...], backbone: str | None, detector: str | None, output: Path) -> None:
    """Check a detector over a backbone: build it, train a step and detect once.

    It shows a plugin's mistake before any run is started.
    """
    from eigendet import files
    from eigendet.runs import network_check

    experiment = read_experiment(configs)
    backbone = only(experiment.backbones, backbone, "backbone")
    detector = only(experiment.detectors, detector, "detector")
    result = network_check.check_network(experiment, backbone, detector)
    files.write_json(output, result)
    click.echo(f"{detector} over {backbone}: {result['costs']['parameters']} parameters")


@main.command()
@config_option
@click.option("--images-per-second", "rate", type=click.FloatRange(min=0, min_open=True), help="How fast one "
              "device trains a detector of this experiment; all else is inferred from it.")  # fmt: skip
@click.option("--measure", is_flag=True, help="Measure that here, by some steps of every network.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="How many jobs run at once, as for Snakemake.")
def plan(configs: tuple[Path, ...], rate: float | None, measure: bool, jobs: int) -> None:
    """Print what an experiment takes before anything of it is run: jobs, steps, images, disk, hours of devices.

    It needs the data, and a GPU only to measure on it.
    """
    from eigendet.config.layout import results_folder
    from eigendet.runs import plan as stage
    from eigendet.runs import throughput

    if rate is not None and measure:
        raise UserError("--images-per-second and --measure: give one of them.")
    experiment = read_experiment(configs)
    rates: Any = partial(throughput.inferred, rate, experiment) if rate else None
    if measure:
        rates = partial(throughput.measured, experiment)
    stages = stage.planned_stages(experiment, Path(results_folder(experiment)), rates)
    for line in stage.lines(stages, jobs, throughput.device_name(experiment) if measure else "device"):
        click.echo(line)
    if rates is None:
        click.echo("hours: give --images-per-second, or --measure on a machine like those that will run it")


@main.command()
@config_option
@backbone_option
@devices_option
@nodes_option
@click.option("--seed", type=click.IntRange(min=0), help="Of weights, order and augmentation.  [default: the first of "
              "`pretraining.seeds`]")  # fmt: skip
@click.option("--widths", type=EXISTING, help="File of widths, of the backbone or of the whole detector.")
@click.option("--detector", help="The entry of `detectors` that such a file is for, if there are several.")
@output_option("Folder of the run; backbone.pt in it is the result.")
@log_option
def pretrain(
    configs: tuple[Path, ...],
    backbone: str | None,
    devices: int,
    nodes: int,
    seed: int | None,
    widths: Path | None,
    detector: str | None,
    output: Path,
) -> None:
    """Pre-train a backbone as a classifier.

    After a stop at any moment the same command continues from the last checkpoint.
    """
    from eigendet.runs import definitions, network_check, parallel, stages

    experiment = read_experiment(configs)
    backbone = only(experiment.backbones, backbone, "backbone")
    if seed is None:
        seed = experiment.pretraining.seeds[0] if experiment.pretraining else 0
    own = None
    if widths is not None:
        own = definitions.backbone_widths(
            experiment, backbone, only(experiment.detectors, detector, "detector"), widths
        )

    def work() -> None:
        for name in experiment.detectors:  # first, since to one that fails the backbone would be of no use
            network_check.check_network(experiment, backbone, name)
        stages.pretrain(experiment, backbone, seed, output, own)

    parallel.run(work, experiment.device, devices, nodes)


@main.command()
@config_option
@click.option("--arm", default="finetune", help="Whose weights: a key of `arms`.")
@backbone_option
@output_option("Folder; backbone.pt in it is the result.")
@log_option
def fetch(configs: tuple[Path, ...], arm: str, backbone: str | None, output: Path) -> None:
    """Fetch the weights that an arm starts from, out of a file or from those who published them."""
    from eigendet.runs import stages

    experiment = read_experiment(configs)
    stages.fetch(experiment, arm, only(experiment.backbones, backbone, "backbone"), output)


@main.command()
@config_option
@click.option("--arm", default="scratch", help="How the run starts and with which widths: a key of `arms`.")
@backbone_option
@detector_option
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of weights, order and augmentation.")
@click.option("--init", type=EXISTING, help="Weights that the backbone starts from, of an arm that has some.")
@click.option(
    "--widths", type=EXISTING, help="File of widths, of an arm that has not the reference's; may be edited by hand."
)
@devices_option
@nodes_option
@output_option("Folder of the run.")
@log_option
def train(
    configs: tuple[Path, ...],
    arm: str,
    backbone: str | None,
    detector: str | None,
    seed: int,
    init: Path | None,
    widths: Path | None,
    devices: int,
    nodes: int,
    output: Path,
) -> None:
    """Train a detector, and keep snapshots of its weights.

    After a stop at any moment the same command continues from the last checkpoint.
    """
    from eigendet.runs import parallel, stages

    experiment = read_experiment(configs)
    backbone = only(experiment.backbones, backbone, "backbone")
    detector = only(experiment.detectors, detector, "detector")
    work = partial(stages.train, experiment, arm, backbone, detector, seed, output, init, widths)
    parallel.run(work, experiment.device, devices, nodes)


@main.command()
@config_option
@click.argument("run", type=EXISTING)
@devices_option
@output_option("JSON file for the result.")
@log_option
def evaluate(configs: tuple[Path, ...], run: Path, devices: int, output: Path) -> None:
    """Evaluate a run's last snapshot on the validation split: COCO average precision, or top-1 accuracy.

    RUN is the folder of a complete run.
    """
    from eigendet import files
    from eigendet.runs import parallel, stages

    experiment = read_experiment(configs)
    parallel.check_devices(experiment.device, devices)
    result = stages.evaluate(experiment, run)
    files.write_json(output, result)
    scores = result.get("boxes", {"top1": result.get("top1")})
    click.echo(", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None))


@main.command()
@config_option
@click.argument("runs", type=EXISTING, nargs=-1, required=True)
@devices_option
@output_option("JSON file for the times.")
@log_option
def latency(configs: tuple[Path, ...], runs: tuple[Path, ...], devices: int, output: Path) -> None:
    """Measure in turns how long detectors and their backbones take for one image.

    RUNS are folders of complete runs. Let nothing else run at the same time.
    """
    from eigendet import files
    from eigendet.runs import latency as stage
    from eigendet.runs import parallel

    experiment = read_experiment(configs)
    parallel.check_devices(experiment.device, devices)
    result = stage.measure_latency(experiment, runs)
    files.write_json(output, result)
    for run in result["runs"]:
        times = ", ".join(f"{part} {run[part]['median']:.1f} ms" for part in ("detector", "backbone"))
        click.echo(f"{run['arm']}, seed {run['seed']}: {times}")


@main.command()
@config_option
@click.argument("run", type=EXISTING)
@click.option("--shard", default="1/1", help="K/N: only the K-th of N parts of the images, for `eigendet merge`.")
@devices_option
@nodes_option
@output_option("HDF5 file for the covariances.")
@log_option
def covariance(configs: tuple[Path, ...], run: Path, shard: str, devices: int, nodes: int, output: Path) -> None:
    """Compute the covariance of every chosen feature map, at every snapshot of a run.

    RUN is the folder of a complete run of a detector. After a stop at any moment the same command continues with the
    snapshot that it was at.
    """
    from eigendet.runs import covariances as stage
    from eigendet.runs import parallel

    experiment = read_experiment(configs)
    work = partial(stage.compute_covariance, experiment, run, output, _shard(shard))
    parallel.run(work, experiment.device, devices, nodes)


for command in (*analysis.COMMANDS, *widths_commands.COMMANDS, *analysis.REPORTS, export, plugins):
    main.add_command(command)


def _shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise UserError(f"--shard: got '{text}'; expected K/N with K from 1 to N, for example 2/8.")
    return int(number), int(total)
