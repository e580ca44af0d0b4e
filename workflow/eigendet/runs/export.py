"""A run's detector in files that need nothing of this package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Literal

import torch

from eigendet import __version__
from eigendet.errors import UserError, lacking
from eigendet.files import replacing
from eigendet.networks.detector import learns_masks
from eigendet.networks.snapshots import read_snapshot
from eigendet.runs.folder import RunFolder, RunRecord

Format = Literal["state-dict", "python", "torch.export", "onnx"]
SUFFIXES: dict[Format, str] = {
    "state-dict": ".safetensors", "python": ".py", "torch.export": ".pt2", "onnx": ".onnx",
}  # fmt: skip
PACKAGES: dict[Format, list[str]] = {"state-dict": ["safetensors"], "onnx": ["onnx", "onnxscript"]}


def export(folder: Path, to: Format, output: Path, size: tuple[int, int] | None = None) -> list[Path]:
    """Write the detector of a complete run, with the weights of its last snapshot, for use without this package.

    Each file is whole or absent. `state-dict` is a safetensors file of the weights by name, `python` a module that
    builds the detector and a file of its weights beside it, `torch.export` and `onnx` are programs for one image.

    Args:
        folder: of the run.
        to: the format.
        output: the file, with the suffix that `SUFFIXES` names.
        size: height and width of the images that a program takes; None: the shorter and longest side of training.

    Returns:
        the files that were written.

    Raises:
        UserError: the run is not complete, or of a classifier; a package is missing; the format lacks an operation;
            the file has another suffix, or is a folder.
        OSError: the file cannot be written.
    """
    run = RunFolder(folder)
    record = run.read_detector_run()
    _check(to, output, size)
    step, model, definition = read_snapshot(run.snapshot(record.last_step))
    note = _description(record, step)
    if to == "python":
        return _write_python(output, record, step, model)
    with replacing(output) as temporary, temporary.open("wb") as file:
        if to == "state-dict":
            from safetensors.torch import save

            tensors = {
                name: value.clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
            }
            file.write(save(tensors, {"format": "pt", "eigendet": note}))
            return [output]
        from eigendet.networks import program

        followed = program.program_of(model, size or definition.size)
        if to == "torch.export":
            torch.export.save(followed, file, extra_files={"eigendet.json": note})
        else:
            translated = program.onnx_of(followed, learns_masks(model))
            translated.model.metadata_props["eigendet"] = note
            file.write(translated.model_proto.SerializeToString())
    return [output]


def _check(to: Format, output: Path, size: tuple[int, int] | None) -> None:
    """Check, before anything is read, what is known of the request."""
    if output.suffix != SUFFIXES[to]:
        raise UserError(f"{output}: the suffix is '{output.suffix}'; for {to} expected '{SUFFIXES[to]}'.")
    for path in (output, output.with_suffix(".pt")) if to == "python" else (output,):
        if path.is_dir():
            raise UserError(f"{path}: a folder; expected the name of a file to write.")
    if size is not None and to in ("state-dict", "python"):
        raise UserError(f"--size goes with torch.export and onnx; as {to} a detector takes images of any size.")
    if absent := [name for name in PACKAGES.get(to, []) if importlib.util.find_spec(name) is None]:
        raise UserError(f"--to {to}: {lacking(absent)}")


def _description(record: RunRecord, step: int) -> str:
    """Return what a file says of its detector, as JSON."""
    definition = record.definition
    return json.dumps({
        "run": record.run, "step": step, "classes": definition.classes, "size": definition.size,
        "costs": record.costs, "definition": definition.plain(),
        "eigendet": __version__, "torch": torch.__version__,
    })  # fmt: skip


def _write_python(output: Path, record: RunRecord, step: int, model: torch.nn.Module) -> list[Path]:
    """Write a module that builds the detector, and its weights beside it."""
    from eigendet.networks.standalone import standalone_code

    weights = output.with_suffix(".pt")
    arm, seed = record.run.get("arm"), record.run.get("seed")
    origin = f"Written by eigendet {__version__}: the arm {arm}, seed {seed}, after {step} steps of training."
    with replacing(output) as temporary:
        temporary.write_text(standalone_code(model, record.definition, origin, weights.name), encoding="utf-8")
        with replacing(weights) as beside, beside.open("wb") as file:
            torch.save(model.state_dict(), file)
    return [output, weights]
