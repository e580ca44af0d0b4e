"""Define the options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eigendet import plugins
from eigendet.errors import UserError

if TYPE_CHECKING:
    from eigendet.config import Experiment

EXISTING = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW = click.Path(path_type=Path)


def _check_configs(context: click.Context, option: click.Parameter, configs: tuple[Path, ...]) -> tuple[Path, ...]:
    """Raise UserError unless every configuration file is there."""
    for config in configs:
        if not config.exists():
            raise UserError(f"{config}: no such file; give --config FILE, or write one with 'eigendet init FOLDER'.")
    return configs


def _config_option(check: Callable[..., Any] | None) -> Callable[..., Any]:
    return click.option(
        "--config", "--configfile", "-c", "configs", type=NEW, multiple=True, default=["config.yaml"], callback=check,
        help="The experiment's YAML file. Given several times, later files override earlier ones.",
    )  # fmt: skip


config_option, optional_config_option = _config_option(_check_configs), _config_option(None)
backbone_option = click.option("--backbone", help="Which entry of `backbones`. [default: the only one]")
detector_option = click.option("--detector", help="Which entry of `detectors`. [default: the only one]")
devices_option = click.option(
    "--devices", type=click.IntRange(min=0), default=0, show_default=False,
    help="How many GPUs the job has, each for a process of its own where several can work together; with `device: cpu` "
    "the number of processes. [default: one, or what `device` says]",
)  # fmt: skip
nodes_option = click.option(
    "--nodes", type=click.IntRange(min=1), default=1, help="Nodes of the Slurm job over which the devices are spread."
)


def output_option(what: str) -> Callable[..., Any]:
    """Make the option that says where a result is written; `what` is its help."""
    return click.option("--output", "-o", type=NEW, required=True, help=what)


def read_experiment(configs: tuple[Path, ...]) -> Experiment:
    """Read an experiment, look for plugins in the folders that it names, and check their options."""
    from eigendet.config import load

    experiment = load([Path(config) for config in configs])
    plugins.search(experiment.plugins)
    plugins.validate(experiment, ", ".join(map(str, configs)), paths=False)
    return experiment


def only(choices: Mapping[str, object], name: str | None, kind: str) -> str:
    """Return a name that was given, or else that of the only choice.

    Raises:
        UserError: there are several choices.

    >>> only({"resnet18": ...}, None, "backbone")
    'resnet18'
    """
    if name is None and len(choices) > 1:
        raise UserError(f"--{kind}: there are several, {', '.join(choices)}; name one.")
    return name if name is not None else next(iter(choices))
