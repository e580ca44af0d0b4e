"""Channel groups and their costs: values, with nothing of how they were found (`tracing`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from numbers import Real
from typing import Any, Literal

from eigendet.errors import UserError, some, unknown

Widths = dict[str, int]
Kind = Literal["conv", "linear", "product", "norm", "parameter"]  # a product is one of two maps
Side = Literal["in", "out"]


class ChannelError(UserError):
    """A network that cannot be traced or resized, or widths that do not fit it; the message names the place."""


class RunError(ChannelError):
    """A network that cannot be run on images of the size that was given."""


@dataclass(frozen=True)
class Size:
    """A number of channels as a linear form: a constant, and channel groups with factors.

    >>> Size(Fraction(2), (("stem", Fraction(3)),))({"stem": 5})
    17
    """

    constant: Fraction
    terms: tuple[tuple[str, Fraction], ...]

    def __call__(self, widths: Mapping[str, Any]) -> Any:
        """Return the number at these widths of the groups."""
        return sum((_plain(factor) * widths[group] for group, factor in self.terms), _plain(self.constant))


@dataclass(frozen=True)
class Layer:
    """One layer with weights, or a parameter that stands alone, over all its calls."""

    module: str  # path of the module; of the parameter, where it stands alone
    kind: Kind
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
        """Return the elements of the kernels or of the matrix."""
        if self.kind in ("norm", "parameter"):
            return 0
        if self.depthwise or self.source is None:
            return self.kernel * self.out(widths)
        product = self.kernel * self.source(widths) * self.out(widths)
        return product if self.groups == 1 else product / Fraction(self.groups)

    def parameters(self, widths: Mapping[str, Any]) -> Any:
        """Return the trainable parameters."""
        vectors = self.vectors * self.out(widths)
        return self.weights(widths) + vectors if self.trained else vectors

    def macs(self, widths: Mapping[str, Any]) -> Any:
        """Return the multiply-accumulate operations for one image."""
        return self.weights(widths) * self.positions


@dataclass(frozen=True)
class Attribute:
    """A width that a module holds beside its layers, such as where it splits a map."""

    module: str
    name: str
    sizes: Size | tuple[Size, ...]  # of one number, or of those of a list or tuple


@dataclass(frozen=True)
class Channels:
    """The channel groups of a network."""

    widths: Widths  # group -> channels in the network as built; a group is named after the first layer that writes it
    multiples: dict[str, int]  # group -> what its width is a multiple of where it is rounded
    layers: tuple[Layer, ...]
    fixed: dict[str, str]  # layers whose width cannot change -> why
    outputs: dict[tuple[str, int], str]  # (module, call) -> the group that its output's channels are
    constant: int  # parameters that no width changes
    # Modules in order of construction, None for one that is not in the network; of a network as built it is not known.
    order: tuple[str | None, ...] | None = field(repr=False)
    others: tuple[type, ...] = ()  # classes of modules in `order` that convolve with weights of their own making
    attributes: tuple[Attribute, ...] = ()  # of modules, that follow the widths
    # What sums of groups must be a multiple of; no group of these alone has to be one of what it is rounded to.
    sums: tuple[tuple[Size, int], ...] = ()

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Return the trainable parameters of the network built with `widths`.

        Raises:
            ChannelError: a group has no width, or none above 0.
        """
        self._check_complete(widths)
        return self.constant + whole(sum(layer.parameters(widths) for layer in self.layers))

    def macs(self, widths: Mapping[str, Any]) -> Any:
        """Return the multiply-accumulates of convolutions and linear layers for one image of the traced size.

        Raises:
            ChannelError: a group has no width, or none above 0.
        """
        self._check_complete(widths)
        return whole(sum(layer.macs(widths) for layer in self.layers))

    def _check_complete(self, widths: Mapping[str, Any]) -> None:
        for group in self.widths:
            if group not in widths:
                raise ChannelError(f"no width for the channel group '{group}'; every group needs one")
            if not isinstance(widths[group], Real) or not widths[group] > 0:
                raise ChannelError(f"channel group '{group}': width {widths[group]!r}; expected a positive number")

    def rounded_to(self, multiple: int) -> dict[str, int]:
        """Return what the width of every group is a multiple of where it is rounded to `multiple`."""
        return {group: math.lcm(own, multiple) for group, own in self.multiples.items()}

    def renamed(self, prefix: str) -> Channels:
        """Return the same with groups, and the keys of outputs, named without a prefix of module paths."""

        def plain(size: Size) -> Size:
            return Size(size.constant, tuple((name.removeprefix(prefix), factor) for name, factor in size.terms))

        layers = [
            replace(layer, source=None if layer.source is None else plain(layer.source), out=plain(layer.out))
            for layer in self.layers
        ]
        outputs = {
            (path.removeprefix(prefix), call): group.removeprefix(prefix)
            for (path, call), group in self.outputs.items()
        }
        attributes = [
            replace(own, sizes=tuple(map(plain, own.sizes)) if isinstance(own.sizes, tuple) else plain(own.sizes))
            for own in self.attributes
        ]
        return replace(
            self,
            widths={name.removeprefix(prefix): width for name, width in self.widths.items()},
            multiples={name.removeprefix(prefix): multiple for name, multiple in self.multiples.items()},
            layers=tuple(layers),
            outputs=outputs,
            attributes=tuple(attributes),
            sums=tuple((plain(size), divisor) for size, divisor in self.sums),
        )

    def members(self, group: str) -> list[tuple[str, Side]]:
        """Return the layers that a group reaches, and which side of each."""
        members: list[tuple[str, Side]] = []
        for layer in self.layers:
            if layer.source is not None and group in dict(layer.source.terms):
                members.append((layer.module, "in"))
            if group in dict(layer.out.terms):
                members.append((layer.module, "out"))
        return members


def check_widths(channels: Channels, widths: Mapping[str, int]) -> None:
    """Raise ChannelError unless `widths` names exactly the network's groups, each with a width that it can have."""
    summed = {group for size, _ in channels.sums for group, _ in size.terms}
    for group, width in widths.items():
        if group not in channels.widths:
            if group in channels.fixed:
                raise ChannelError(f"channel group '{group}' cannot be resized: {channels.fixed[group]}")
            raise ChannelError(unknown("channel group", group, channels.widths))
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ChannelError(f"channel group '{group}': width {width!r}; expected a positive integer")
        if width % channels.multiples[group] and group not in summed:
            raise ChannelError(
                f"channel group '{group}': width {width}; expected a multiple of {channels.multiples[group]}, "
                "into which the network divides it"
            )
    missing = [group for group in channels.widths if group not in widths]
    if missing:
        raise ChannelError(f"no width for the channel groups {some(missing)}; every group needs one")
    for size, divisor in channels.sums:
        if Fraction(size(widths)) % divisor:
            groups = [group for group, _ in size.terms]
            raise ChannelError(
                f"channel groups {some(groups)}: widths {some([str(widths[group]) for group in groups])}, together "
                f"{size(widths)}; expected a multiple of {divisor}, into which the network divides it"
            )


def by_group(channels: Channels, widths: Mapping[str, int]) -> Widths:
    """Return widths by the names of groups, where some are named after another layer that writes the group.

    >>> from torch import nn
    >>> from eigendet import channels
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.again = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
    ...     def forward(self, images):
    ...         maps = self.stem(images)
    ...         return maps + self.again(maps)
    >>> by_group(channels.trace(Block), {"again": 4})
    {'stem': 4}

    Raises:
        ChannelError: two layers of one group have different widths.
    """
    writers = {}
    for layer in channels.layers:
        if len(layer.out.terms) == 1 and layer.out.terms[0][1] == 1 and not layer.out.constant:
            writers[layer.module] = layer.out.terms[0][0]
    widths_of_groups: Widths = {}
    source: dict[str, str] = {}
    for name, width in widths.items():
        group = name if name in channels.widths else writers.get(name, name)
        before = widths_of_groups.get(group, width)
        if before != width:
            raise ChannelError(
                f"'{source[group]}' is {before} and '{name}' is {width}; they are tied, so one width for both"
            )
        widths_of_groups[group], source[group] = width, name
    return widths_of_groups


def scaled(widths: Mapping[str, float], factor: float, multiples: Mapping[str, int]) -> Widths:
    """Return `factor` times every width, to the nearest multiple, at least one multiple.

    >>> scaled({"stem": 64, "head": 20}, 0.5, {"stem": 8, "head": 8})
    {'stem': 32, 'head': 8}
    """
    return {
        group: max(1, round(width * factor / multiples[group])) * multiples[group] for group, width in widths.items()
    }


def whole(value: Any) -> Any:
    """Return a whole Fraction as an int; floats, of relaxed widths, stay.

    >>> whole(Fraction(4, 2))
    2

    Raises:
        ChannelError: the Fraction is not whole.
    """
    if isinstance(value, Fraction):
        if value.denominator != 1:
            raise ChannelError(f"a size of {value} is not whole; widths must be multiples of what divides them")
        return int(value)
    return value


def _plain(factor: Fraction) -> Any:
    return int(factor) if factor.denominator == 1 else factor
