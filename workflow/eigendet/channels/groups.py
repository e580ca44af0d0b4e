"""Channel groups and their costs: values, with nothing of how they were found (`channels`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from eigendet.errors import UserError, some, unknown

Widths = dict[str, int]


class ChannelError(UserError):
    """A network that cannot be traced or resized, or widths that do not fit it; the message names the place."""


@dataclass(frozen=True)
class Size:
    """A number of channels as a linear form: a constant, and channel groups with factors."""

    constant: Fraction
    terms: tuple[tuple[str, Fraction], ...]

    def __call__(self, widths: Mapping[str, Any]) -> Any:
        return sum((_plain(factor) * widths[group] for group, factor in self.terms), _plain(self.constant))


@dataclass(frozen=True)
class Layer:
    """One layer with weights, or a parameter that stands alone, over all its calls."""

    module: str  # path of the module; of the parameter, where it stands alone
    kind: str  # "conv", "linear", "norm" or "parameter"
    source: Size | None  # channels read
    out: Size  # channels written
    kernel: int = 1  # elements of the kernel
    groups: int = 1  # of a convolution; not counting a depthwise one, whose groups are its channels
    depthwise: bool = False
    positions: int = 0  # at which the weights are applied, for one image, over all calls
    vectors: int = 0  # trainable parameters for each channel written: biases, and a norm's weight
    dim: int = 0  # that holds the channels, of a parameter that stands alone
    trained: bool = True  # its weights are parameters of its own

    def weights(self, widths: Mapping[str, Any]) -> Any:
        """Elements of the kernels or of the matrix."""
        if self.kind in ("norm", "parameter"):
            return 0
        if self.depthwise or self.source is None:
            return self.kernel * self.out(widths)
        product = self.kernel * self.source(widths) * self.out(widths)
        return product if self.groups == 1 else product / Fraction(self.groups)

    def parameters(self, widths: Mapping[str, Any]) -> Any:
        return self.weights(widths) * self.trained + self.vectors * self.out(widths)

    def macs(self, widths: Mapping[str, Any]) -> Any:
        return self.weights(widths) * self.positions


@dataclass(frozen=True)
class Channels:
    """The channel groups of a network."""

    widths: Widths  # group -> channels in the network as built; a group is named after the first layer that writes it
    multiples: dict[str, int]  # group -> what its width must be a multiple of
    layers: tuple[Layer, ...]
    fixed: dict[str, str]  # layers whose width cannot change -> why
    outputs: dict[tuple[str, int], str]  # (module, call) -> the group that its output's channels are
    constant: int  # parameters that no width changes
    order: tuple[str | None, ...] = field(repr=False)  # modules in order of construction; None: not in the network
    others: tuple[type, ...] = ()  # classes of modules in `order` that convolve with weights of their own making

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Trainable parameters of the network built with `widths`."""
        return self.constant + whole(sum(layer.parameters(widths) for layer in self.layers))

    def macs(self, widths: Mapping[str, Any]) -> Any:
        """Multiply-accumulate operations of convolutions and linear layers for one image of the traced size."""
        return whole(sum(layer.macs(widths) for layer in self.layers))

    def rounded_to(self, multiple: int) -> dict[str, int]:
        """What the width of every group is a multiple of where it is rounded to `multiple`."""
        return {group: math.lcm(own, multiple) for group, own in self.multiples.items()}

    def renamed(self, prefix: str) -> Channels:
        """The same with groups, and the keys of outputs, named without a prefix of module paths."""

        def plain(size: Size | None) -> Size | None:
            return size and Size(
                size.constant, tuple((name.removeprefix(prefix), factor) for name, factor in size.terms)
            )

        def named(values: dict[str, int]) -> dict[str, int]:
            return {name.removeprefix(prefix): value for name, value in values.items()}

        return replace(
            self,
            widths=named(self.widths),
            multiples=named(self.multiples),
            layers=tuple(
                replace(layer, source=plain(layer.source), out=plain(layer.out) or layer.out) for layer in self.layers
            ),
            outputs={
                (path.removeprefix(prefix), call): group.removeprefix(prefix)
                for (path, call), group in self.outputs.items()
            },
        )

    def members(self, group: str) -> list[tuple[str, str]]:
        """The layers that a group reaches, and which side of each: "in" or "out"."""
        found = []
        for layer in self.layers:
            for side, size in (("in", layer.source), ("out", layer.out)):
                if size is not None and any(name == group for name, _ in size.terms):
                    found.append((layer.module, side))
        return found


def check_widths(channels: Channels, widths: Mapping[str, int]) -> None:
    """Raise ChannelError unless `widths` names exactly the network's groups, each with a width that it can have."""
    for group, width in widths.items():
        if group not in channels.widths:
            if group in channels.fixed:
                raise ChannelError(f"channel group '{group}' cannot be resized: {channels.fixed[group]}")
            raise ChannelError(unknown("channel group", group, channels.widths))
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ChannelError(f"channel group '{group}': width {width!r}; expected a positive integer")
        if width % channels.multiples[group]:
            raise ChannelError(
                f"channel group '{group}': width {width}; expected a multiple of {channels.multiples[group]}, "
                "into which the network divides it"
            )
    missing = [group for group in channels.widths if group not in widths]
    if missing:
        raise ChannelError(f"no width for the channel groups {some(missing)}; every group needs one")


def by_group(channels: Channels, widths: Mapping[str, int]) -> Widths:
    """Widths by the names of groups, where some are named after another layer that writes the group.

    Raises:
        ChannelError: two layers of one group have different widths.
    """
    writers = {}
    for layer in channels.layers:
        if len(layer.out.terms) == 1 and layer.out.terms[0][1] == 1 and not layer.out.constant:
            writers[layer.module] = layer.out.terms[0][0]
    found: Widths = {}
    source: dict[str, str] = {}
    for name, width in widths.items():
        group = name if name in channels.widths else writers.get(name, name)
        if group in found and found[group] != width:
            raise ChannelError(
                f"'{source[group]}' is {found[group]} and '{name}' is {width}; they are tied, so one width for both"
            )
        found[group], source[group] = width, name
    return found


def scaled(sizes: Mapping[str, float], factor: float, multiples: Mapping[str, int]) -> Widths:
    """`factor` times every size, to the nearest multiple, at least one multiple."""
    return {group: max(1, round(size * factor / multiples[group])) * multiples[group] for group, size in sizes.items()}


def table(channels: Channels, widths: Mapping[str, int]) -> str:
    """The groups at these widths as text: a line a group, and a line for every layer that cannot be resized."""
    rows = [("group", "width", "multiple of", "parameters", "MACs", "layers")]
    for group, width in widths.items():
        members: dict[str, list[str]] = {}
        for layer, side in channels.members(group):
            members.setdefault(layer, []).append(side)
        written = [layer for layer in channels.layers if layer.out.terms and layer.out.terms[0][0] == group]
        rows.append(
            (
                group,
                str(width),
                str(channels.multiples[group]),
                f"{whole(sum(layer.parameters(widths) for layer in written)):,}",
                f"{whole(sum(layer.macs(widths) for layer in written)):,}",
                ", ".join(f"{layer} ({'+'.join(sides)})" for layer, sides in members.items()),
            )
        )
    name, *numbers = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1])
    lines = ["  ".join([row[0].ljust(name), *map(str.rjust, row[1:-1], numbers), row[-1]]) for row in rows]
    lines.append(f"in all {channels.parameters(widths):,} parameters, {channels.macs(widths):,} MACs")
    lines += [f"kept: {layer}: {reason}" for layer, reason in channels.fixed.items()]
    return "\n".join(lines)


def whole(value: Any) -> Any:
    """A whole Fraction as an int; floats, of relaxed widths, stay."""
    if isinstance(value, Fraction):
        if value.denominator != 1:
            raise ChannelError(f"a size of {value} is not whole; widths must be multiples of what divides them")
        return int(value)
    return value


def _plain(factor: Fraction) -> Any:
    return int(factor) if factor.denominator == 1 else factor
