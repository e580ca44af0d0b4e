"""Define `eigendet init`: a first configuration for the user's own data."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eigendet.cli.options import EXISTING, FOLDER, NEW
from eigendet.errors import UserError, printable
from eigendet.plugins import discovery

if TYPE_CHECKING:
    from eigendet.data.survey import Survey
    from eigendet.files import Plain


OPENING = """\
A first configuration for the data in {folder}, by `eigendet init`. It is meant for a CPU: to see that everything \
works and what comes of it, not to establish anything. Change what you like; a key that is left out has its default. \
Paths are relative to where `snakemake` is started."""
ON_A_GPU = """\
For a GPU: put these lines into a second file, gpu.yaml, without their "# ", and lay it over this one by the option \
`--configfile {file} gpu.yaml` of `snakemake`. From scratch trains three times as long."""
TAKES = """\
What this file takes; `eigendet plan --measure --configfile {file}` counts the hours too."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--annotations", type=EXISTING, multiple=True, help="A COCO file; twice: for training, for validation.")
@click.option("--images", type=FOLDER, multiple=True, help="The folder of their images; once, or twice likewise.")
@click.option("--classes", type=FOLDER, multiple=True, help="A folder of a folder of images for each class, to "
              "pre-train on; twice likewise.")  # fmt: skip
@click.option("--output", "-o", type=NEW, default="config.yaml", help="The file to write; none is overwritten.")
def init(
    folder: Path, annotations: tuple[Path, ...], images: tuple[Path, ...], classes: tuple[Path, ...], output: Path
) -> None:
    """Write a first configuration for your own data.

    FOLDER holds COCO files and their images, and perhaps folders of a folder of images for each class. Options name
    what cannot be told from its name. What was chosen by the data has a comment that gives the figure.
    """
    from eigendet import files
    from eigendet.data.survey import survey
    from eigendet.runs.proposal import seen

    _check_output(output)
    data = survey(folder, annotations, images, classes)
    for line in seen(data):
        click.echo(printable(line))  # names of classes are the data's
    text = "\n".join(configuration_lines(data, folder, output)) + "\n"  # of large data, this takes a minute
    files.write_text(output, text)
    click.echo(f"{output}: written; read it, then run: {_how_to_run(output)}")


def _how_to_run(output: Path) -> str:
    """Return the line that runs a configuration from this folder, with the Snakefile where Snakemake would miss it."""
    from eigendet.config import installation

    snakefile, advice = "", ""
    if not Path("workflow/Snakefile").is_file():
        checkout = installation.checkout()
        snakefile = f"--snakefile {shlex.quote(str(checkout or 'CLONE') + '/workflow/Snakefile')} "
        if checkout is None:
            advice = " (CLONE is a clone of eigendet's repository; its docs/snakemake.md has other ways)"
    return f"snakemake {snakefile}--cores all --configfile {shlex.quote(str(output))}{advice}"


def _check_output(output: Path) -> None:
    """Raise UserError unless a file can be written there that is not there yet."""
    if os.path.lexists(output):
        raise UserError(f"{output}: is there already, and stays; name another file with --output.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{output}: {parent} is not a folder that can be written; name another file with --output.")


def _check_paths(values: Plain) -> None:
    """Raise UserError if Snakemake would take a part of a path for a wildcard."""
    for splits in values["data"].values():
        for choice in splits.values():
            for path in choice.values():
                if re.search("[{}]", path):
                    raise UserError(f"{path}: braces are wildcards to Snakemake; rename what has them in its name.")


def configuration_lines(data: Survey, folder: Path, output: Path) -> Iterator[str]:
    """Yield a configuration with comments, for a CPU; below it what to lay over it on a GPU, and what it takes.

    Raises:
        UserError: the data cannot be used.
    """
    from eigendet import config, plugins
    from eigendet.config.commented import comment, commented_yaml
    from eigendet.config.layout import results_folder
    from eigendet.runs import plan, proposal

    name = proposal.experiment_name(folder)
    values = proposal.settings(data, proposal.CPU, name)
    _check_paths(values)
    larger = proposal.changes(values, proposal.settings(data, proposal.GPU, f"{name}_gpu"))
    experiment = config.parse(values, str(output))
    discovery.search(experiment.plugins)
    plugins.validate(experiment)
    stages = plan.planned_stages(experiment, Path(results_folder(experiment)))
    file = shlex.quote(str(output))
    yield from comment(OPENING.format(folder=folder))
    yield from ["#", *comment("\n".join(proposal.seen(data)))]
    yield from commented_yaml(values, proposal.reasons(data, values))
    yield from ["", *comment(ON_A_GPU.format(file=file)), "#"]
    yield from (f"# {line}".rstrip() for line in commented_yaml(larger, {}))
    yield from ["", *comment(TAKES.format(file=file)), "#"]
    yield from (f"# {line}".rstrip() for line in plan.lines(stages, 1, "device"))
