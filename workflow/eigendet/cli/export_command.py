"""Define `eigendet export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from eigendet.cli.options import FOLDER, output_option
from eigendet.cli.reports import log_option
from eigendet.errors import UserError
from eigendet.plugins import discovery

if TYPE_CHECKING:
    from eigendet.runs.export import Format


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--to", type=click.Choice(["state-dict", "python", "torch.export", "onnx"]), required=True,
              help="state-dict: weights by name, a safetensors file. python: a module that builds the detector, and "
              "its weights beside it. torch.export, onnx: a program for one image.")  # fmt: skip
@click.option("--size", help="HEIGHTxWIDTH in pixels of the images that a program takes. [default: the shorter and "
              "the longest side of training]")  # fmt: skip
@click.option("--plugins", "folders", type=FOLDER, multiple=True, help="A further folder of plugins, for networks of "
              "your own; may be given several times.")  # fmt: skip
@output_option("File, with the suffix .safetensors, .py, .pt2 or .onnx.")
@log_option
def export(run: Path, to: Format, size: str | None, folders: tuple[Path, ...], output: Path) -> None:
    """Write a trained detector for use without eigendet: weights, Python code, or a program.

    RUN is the folder of a complete run of a detector. What is written has the weights of its last snapshot.
    """
    from eigendet.runs import export as stage

    discovery.search(folders)
    for path in stage.export(run, to, output, None if size is None else _sides(size)):
        click.echo(path)


def _sides(size: str) -> tuple[int, int]:
    """Return height and width."""
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f"--size: got '{size}'; expected HEIGHTxWIDTH, for example 480x640.")
    return int(height), int(width)
