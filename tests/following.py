"""What the tests of the rules of operations share: an operation followed by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.channels.follower import Follower
from eigendet.channels.record import Call, Record
from eigendet.channels.sizes import Axis

Named = tuple[tuple[int, ...], str]  # a shape, and a letter for each dimension: "." for one that counts no channels


class Followed:
    """An operation on maps whose axes have names, and what was noted of it."""

    def __init__(self, operation: Callable[..., Any], *maps: Named, regions: Mapping[str, int] | None = None) -> None:
        model = nn.Sequential(operation).to("meta") if isinstance(operation, nn.Module) else nn.Sequential()
        self.record = Record(model, regions)
        sizes = self.record.sizes
        known: dict[str, Axis] = {}
        tensors = []
        for shape, names in maps:
            tensor = torch.empty(shape, device="meta")
            axes = []
            for name, size in zip(names, shape, strict=True):
                if name not in known and name != ".":
                    known[name] = sizes.new(name, size)
                axes.append(known.get(name))
            self.record.note(tensor, tuple(axes))
            tensors.append(tensor)
        self.known = known
        with Follower(self.record):
            self.output = operation(*tensors)

    @property
    def axes(self) -> list[str]:
        """Of the output, or of the first one of several."""
        return self.axes_of(self.output if isinstance(self.output, Tensor) else self.output[0])

    def axes_of(self, tensor: Tensor) -> list[str]:
        assert tensor.dim() == len(self.record.axes_of(tensor))
        return [self.text(axis) for axis in self.record.axes_of(tensor)]

    def text(self, axis: Axis | None) -> str:
        """As a sum of names with factors; a constant as its number; "." for none."""
        if axis is None:
            return "."
        sizes = self.record.sizes
        terms = [
            str(factor * sizes.built[unknown]) if not sizes.names[unknown]
            else f"{'' if factor == 1 else factor}{sizes.names[unknown]}"
            for unknown, factor in sizes.resolve(axis)
        ]  # fmt: skip
        return "+".join(terms)

    @property
    def fixed(self) -> dict[str, str]:
        """The names of axes that keep their size, with the reason."""
        sizes = self.record.sizes
        return {sizes.names[unknown]: reason for unknown, reason in sizes.fixed.items() if sizes.names[unknown]}

    @property
    def multiples(self) -> dict[str, int]:
        sizes = self.record.sizes
        return {sizes.names[u]: multiple for u, multiple in sizes.multiples().items() if multiple > 1}

    @property
    def call(self) -> Call:
        (call,) = self.record.calls
        return call
