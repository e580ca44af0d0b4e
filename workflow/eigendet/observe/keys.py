"""What taps and their points are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Point = Literal["conv", "linear", "norm", "act", "block", "fpn", "output"]


@dataclass(frozen=True, order=True)
class TapKey:
    """Module path, index of the call in a pass, and point; as text `layer1.0.relu#2:act`."""

    module: str
    call: int
    point: str

    def __str__(self) -> str:
        return f"{self.module}#{self.call}:{self.point}"


def step_name(step: int) -> str:
    """Of the group of a step in an HDF5 file."""
    return f"step_{step:07d}"


def node_name(key: TapKey) -> str:
    """Of the group of a tap; a slash would nest, so attributes hold the true name."""
    return str(key).replace("/", "|")
