"""Snapshots of a network: its definition and its weights after some steps, in one file of tensors and plain values."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from eigendet.errors import UserError, first_line
from eigendet.networks.checkpoints import load, save
from eigendet.networks.definition import Definition

REMEDY = "delete the run's folder, and train again"


def write_snapshot(path: Path, step: int, model: nn.Module, definition: Definition) -> None:
    """Write a snapshot file, whole or not at all."""
    save(path, {"step": step, "model": model.state_dict(), "definition": definition.plain()})


def read_snapshot(path: Path) -> tuple[int, nn.Module, Definition]:
    """Read a snapshot file: its step, the network with its weights, and the definition.

    Raises:
        UserError: the file is missing or damaged, is no snapshot, or its weights are not those of its network.
    """
    content = load(path, {"step", "model", "definition"}, "a snapshot, checkpoints/step_*.pt of a run", REMEDY)
    step = content["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise UserError(f"{path}: step is {str(step)[:40]!r}; expected an integer from 0 on: {REMEDY}.")
    try:
        definition = Definition.of(content["definition"])
    except ValueError as error:
        raise UserError(f"{path}: its definition cannot be read ({first_line(error)}); {REMEDY}.") from None
    try:
        model = definition.build()
        model.load_state_dict(content["model"])
    except UserError as error:
        raise error.within(path) from None
    except (RuntimeError, MemoryError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: its weights are not those of its network ({reason}); {REMEDY}.") from None
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{path}: the weight {name} holds NaN or infinity; {REMEDY}.")
    return step, model.eval(), definition
