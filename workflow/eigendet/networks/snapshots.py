"""Snapshots of a network: its definition and its weights after some steps, in one file of tensors and plain values."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.networks.weights import load_plain, save


def write_snapshot(path: Path, step: int, model: nn.Module, definition: Definition) -> None:
    """Write a snapshot file, whole or not at all."""
    save(path, {"step": step, "model": model.state_dict(), "definition": definition.plain()})


def read_snapshot(path: Path) -> tuple[int, nn.Module, Definition]:
    """Read a snapshot file: its step, the network with its weights, and the definition."""
    content = load_plain(path, "a snapshot")
    if not isinstance(content, dict) or not {"step", "model", "definition"} <= content.keys():
        raise UserError(f"{path}: not a snapshot; expected a file checkpoints/step_*.pt of a run.")
    definition = Definition.of(content["definition"])
    model = definition.build()
    model.load_state_dict(content["model"])
    return content["step"], model.eval(), definition
