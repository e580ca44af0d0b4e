"""The names of taps and of their groups in HDF5 files."""

from __future__ import annotations

from typing import Literal, Self

Point = Literal["conv", "linear", "norm", "act", "block", "fpn", "output"]


class TapKey(str):
    """Name of one observed tensor, a text: module path, index of the call in a pass, and point.

    A module that runs several times in one pass has a key for each call. A key equals its text, and serves where a text
    does. The text is not parsed, since a module's path may hold any sign: the parts are attributes.

    Attributes:
        module: path in the model, `[name]` added where the module gives several tensors; "" is the model itself.
        call: 0 for the first call of the module in a pass.
        point: what the module is, one of `Point`; "input" for a layer's input that is accumulated in place of its
            output.

    Examples:
        >>> key = TapKey("layer1.0.relu", 2, "act")
        >>> key, key.module, key.call
        ('layer1.0.relu#2:act', 'layer1.0.relu', 2)
        >>> key == "layer1.0.relu#2:act"
        True
    """

    __slots__ = ("call", "module", "point")

    module: str
    call: int
    point: str

    def __new__(cls, module: str, call: int, point: str) -> Self:
        """Join the parts; of different parts no two texts are equal."""
        key = super().__new__(cls, f"{module}#{call}:{point}")
        key.module, key.call, key.point = module, call, point
        return key

    def __getnewargs__(self) -> tuple[str, int, str]:  # type: ignore[override]  # copies and pickles are made of the parts
        return self.module, self.call, self.point


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
    return key.replace("/", "|")
