"""Define the commands of widths: channel groups, the widths themselves, the front, readings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from eigendet.cli.options import (  # fmt: skip
    EXISTING,
    FOLDER,
    backbone_option,
    config_option,
    detector_option,
    devices_option,
    nodes_option,
    only,
    optional_config_option,
    output_option,
    read_experiment,
)
from eigendet.cli.reports import log_option
from eigendet.errors import UserError, printable, some, unknown

if TYPE_CHECKING:
    from eigendet.config import Experiment
    from eigendet.networks.definition import Definition
    from eigendet.widths.derivation import Sources

covariance_option = click.option(
    "--covariance", "covariances", type=EXISTING, multiple=True,
    help="Covariance file of a run whose spectra are given, for an allocator that needs matrices; one for each seed.",
)  # fmt: skip
run_option = click.option(
    "--run", "runs", type=FOLDER, multiple=True,
    help="Folder of a run whose spectra are given, for an allocator that needs kernels; one for each seed.",
)  # fmt: skip


@click.command()
@optional_config_option
@click.option("--detector", help="Include the pyramid and heads of this entry of the configuration's `detectors`.")
@click.option("--size", help="HEIGHTxWIDTH of the image for which costs count, or CHANNELSxHEIGHTxWIDTH, for a network "
              "without a configuration. [default: what the library says, else 3x224x224]")  # fmt: skip
@click.argument("name")
def channels(configs: tuple[Path, ...], detector: str | None, size: str | None, name: str) -> None:
    """Print the channel groups of a network: which widths are tied, and what they cost.

    NAME is torchvision:resnet50, timm:resnet50, or my_module:build, a function in a file of this folder; or an entry of
    the configuration's `backbones`.

    Every line is a group, named after the first layer that writes it: its width, what that must be a multiple of,
    parameters and multiply-accumulates of the layers that write it (for one image), and all layers that read or write
    it. What cannot be resized follows, with the reason.
    """
    from eigendet.channels.tables import table

    if ":" in name:
        from eigendet.networks.by_name import trace_by_name

        if detector is not None or any(config != Path("config.yaml") for config in configs):
            raise UserError(f"--detector and --config go with an entry of `backbones`; '{name}' stands for itself.")
        traced = trace_by_name(name, None if size is None else _image(size))
        groups, widths, image = traced.channels, traced.channels.widths, traced.counted_for(is_assumed=size is None)
    else:
        from eigendet.runs import definitions

        if size is not None:
            raise UserError(f"--size: of '{name}' the configuration says it, training.min_size.")
        experiment = _experiment_for(configs, name)
        over = detector if detector is not None else next(iter(experiment.detectors))
        network = definitions.definition_for_widths(experiment, name, over, heads=detector is not None)
        groups, widths = network.reference(network.size[0])
        image = f"one image of {network.size[0]}x{network.size[0]} pixels"
    click.echo(table(groups, widths))
    click.echo(f"MACs are for {image}")


def _image(size: str) -> tuple[int, int, int]:
    """Return channels, height and width."""
    numbers = size.split("x")
    if len(numbers) not in (2, 3) or not all(number.isdecimal() and int(number) for number in numbers):
        raise UserError(f"--size: got '{size}'; expected HEIGHTxWIDTH, for example 224x224, or CHANNELSxHEIGHTxWIDTH.")
    channels, height, width = map(int, numbers if len(numbers) == 3 else ("3", *numbers))
    return channels, height, width


def _experiment_for(configs: tuple[Path, ...], name: str) -> Experiment:
    """Read the configuration in whose `backbones` a network is looked for."""
    for config in configs:
        if not config.exists():
            raise UserError(
                f"{config}: no such file, in whose `backbones` '{name}' would be looked for. Without a configuration "
                f"say whose network it is: torchvision:{name}, timm:{name}, or my_module:{name}."
            )
    return read_experiment(configs)


@click.command()
@config_option
@backbone_option
@detector_option
@click.argument("arm")
@click.argument("spectra", type=FOLDER, nargs=-1)
@click.option("--derived", type=EXISTING, help="File of the derived widths, for a control that is compared with them.")
@covariance_option
@run_option
@output_option("JSON file for the widths.")
def widths(
    configs: tuple[Path, ...],
    backbone: str | None,
    detector: str | None,
    arm: str,
    spectra: tuple[Path, ...],
    derived: Path | None,
    covariances: tuple[Path, ...],
    runs: tuple[Path, ...],
    output: Path,
) -> None:
    """Derive the widths of a network from spectra, or choose those of a control.

    ARM is a key of `arms`. SPECTRA are folders that `eigendet spectra` wrote, one for each seed, of the arm from which
    the widths are read (for `derived`, `untrained` and `permuted`).
    """
    from eigendet.networks import widths_file
    from eigendet.report import findings, wording
    from eigendet.widths import controls
    from eigendet.widths import derivation as stage

    experiment = read_experiment(configs)
    network = _network(experiment, backbone, detector)
    if arm in experiment.derived:
        source = experiment.spectra_for(arm) or ""
        chosen = stage.derive_widths(experiment, network, spectra, source, _sources(covariances, runs, source))
    elif arm in experiment.controls:
        sources = _sources(covariances, runs, experiment.spectra_for(arm))
        chosen = controls.control_widths(experiment, network, arm, spectra, derived, sources)
    else:
        raise UserError(unknown("arm with widths of its own", arm, [*experiment.derived, *experiment.controls]))
    widths_file.write_chosen(output, chosen)
    click.echo(widths_file.table(chosen))
    parameters, macs = (wording.share(cost.share, 3) for cost in (chosen.parameters, chosen.macs))
    click.echo(f"{arm}: {parameters} of the parameters, {macs} of the MACs")
    for note in filter(None, (findings.on_budget(chosen), findings.on_steps(chosen))):
        click.echo(note)
    if chosen.undetermined:
        click.echo(f"the images leave open the widths of {some(list(chosen.undetermined))}")
    if chosen.lacking_intervals:
        click.echo(chosen.lacking_intervals)


@click.command()
@config_option
@backbone_option
@detector_option
@click.argument("spectra", type=FOLDER, nargs=-1)
@covariance_option
@run_option
@output_option("CSV file for the table.")
def front(
    configs: tuple[Path, ...],
    backbone: str | None,
    detector: str | None,
    spectra: tuple[Path, ...],
    covariances: tuple[Path, ...],
    runs: tuple[Path, ...],
    output: Path,
) -> None:
    """Compare parameters and operations over an option of the width rule or the allocator, at several budgets.

    SPECTRA are folders that `eigendet spectra` wrote, one for each seed, of the arm that `widths.arm` names.
    """
    from eigendet import files
    from eigendet.widths import front as stage

    experiment = read_experiment(configs)
    sources = _sources(covariances, runs, experiment.widths.arm)
    table = stage.front(experiment, _network(experiment, backbone, detector), spectra, sources)
    files.write_text(output, table.to_csv(index=False))
    click.echo(table[table["on_front"]].to_string(index=False, float_format="{:.3f}".format))


@click.command()
@config_option
@backbone_option
@detector_option
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option("--covariance", "covariances", type=EXISTING, multiple=True, required=True,
              help="Covariance file of one of the runs; one for each.")  # fmt: skip
@devices_option
@nodes_option
@output_option("CSV file for the table.")
@log_option
def readings(
    configs: tuple[Path, ...],
    backbone: str | None,
    detector: str | None,
    runs: tuple[Path, ...],
    covariances: tuple[Path, ...],
    devices: int,
    nodes: int,
    output: Path,
) -> None:
    """Compare what each definition makes of the same spectra: every rule, raw or centered, positions or images alike.

    RUNS are folders of complete runs, one for each seed, of the arm that `widths.arm` names. Their covariance files
    hold one weighting; for the other, the probe images pass the last snapshot of each run once. Nothing is trained.
    """
    from eigendet.runs import parallel
    from eigendet.runs import readings as stage

    experiment = read_experiment(configs)
    network = _network(experiment, backbone, detector)

    def work() -> None:
        table = stage.write_readings(experiment, network, runs, covariances, output)
        if table is not None:
            click.echo(printable(table.to_string(index=False, float_format="{:.3f}".format)))

    parallel.run(work, experiment.device, devices, nodes)


def _sources(covariances: tuple[Path, ...], runs: tuple[Path, ...], arm: str | None) -> Sources:
    """Return the files that some allocators read beside spectra, of runs of the arm whose spectra are read.

    Raises:
        UserError: a run is of another arm, or two are of one seed.
    """
    from eigendet.runs.folder import runs_by_seed
    from eigendet.widths.derivation import Sources

    by_seed = runs_by_seed(runs, arm, "--run").items()
    return Sources(covariances, {seed: [run.snapshot(n) for n in record.snapshots] for seed, (run, record) in by_seed})


def _network(experiment: Experiment, backbone: str | None, detector: str | None) -> Definition:
    """Return the definition of the network whose widths are chosen."""
    from eigendet.runs import definitions

    backbone = only(experiment.backbones, backbone, "backbone")
    detector = only(experiment.detectors, detector, "detector")
    return definitions.definition_for_widths(experiment, backbone, detector, experiment.widths.heads)


COMMANDS = (channels, widths, front, readings)
