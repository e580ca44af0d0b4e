"""The names of taps and of their groups in HDF5 files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Point = Literal["conv", "linear", "norm", "act", "block", "fpn", "output"]


@dataclass(frozen=True, order=True)
class TapKey:
    """Name of one observed tensor: module path, index of the call in a pass, and point.

    A module that runs several times in one pass has a key for each call. The text of a key serves as well where taps
    are looked up, but is not parsed: a module's path may hold any sign.

    Attributes:
        module: path in the model, `[name]` added where the module gives several tensors; "" is the model itself.
        call: 0 for the first call of the module in a pass.
        point: what the module is, one of `Point`; "input" for a layer's input that is accumulated in place of its
            output.

    Examples:
        >>> key = TapKey("layer1.0.relu", 2, "act")
        >>> str(key)
        'layer1.0.relu#2:act'
        >>> sorted([key, TapKey("conv1", 0, "conv")])[0].module
        'conv1'
    """

    module: str
    call: int
    point: str

    def __str__(self) -> str:
        return f"{self.module}#{self.call}:{self.point}"


def step_name(step: int) -> str:
    """Return the HDF5 group name of a step.

    >>> step_name(500)
    'step_0000500'
    """
    return f"step_{step:07d}"


def node_name(key: TapKey) -> str:
    """Return the HDF5 group name of a tap; a slash would nest, so attributes hold the true name.

    >>> node_name(TapKey("head/box", 0, "linear"))
    'head|box#0:linear'
    """
    return str(key).replace("/", "|")
