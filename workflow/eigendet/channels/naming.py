"""From the record of a forward pass, whose sizes are numbered unknowns, to channel groups with names."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction

from torch import nn

from eigendet.channels.groups import Attribute, Channels, Layer, Size, whole
from eigendet.channels.record import Call, Record
from eigendet.channels.sizes import Axis, Sizes


def named(
    record: Record, order: tuple[str | None, ...] | None = None, others: tuple[type[nn.Module], ...] = ()
) -> Channels:
    """Return the channel groups that a record holds; for `order` and `others` see Channels."""
    sizes = record.sizes
    sizes.settle()
    multiples = sizes.multiples()
    free = sorted({u for layer in record.layers.values() for u in _free(sizes, layer.axis)})
    widths = {sizes.names[u]: sizes.built[u] for u in free}
    layers = tuple(_layers(record))
    total = sum(parameter.numel() for parameter in record.model.parameters())
    return Channels(
        widths=widths,
        multiples={sizes.names[u]: multiples.get(u, 1) for u in free},
        layers=layers,
        fixed=dict(_fixed(record)),
        outputs=dict(_outputs(record)),
        constant=total - whole(sum(layer.parameters(widths) for layer in layers)),
        order=order,
        others=others,
        attributes=tuple(_attributes(record)),
        sums=tuple(_sums(sizes)),
    )


def _attributes(record: Record) -> Iterator[Attribute]:
    """Yield the numbers of modules that change with widths."""
    for (path, name), axes in record.attributes.items():
        if isinstance(axes, list):
            sizes = (Size(Fraction(one), ()) if isinstance(one, int) else _size(record.sizes, one) for one in axes)
            yield Attribute(path, name, tuple(sizes))
        else:
            yield Attribute(path, name, _size(record.sizes, axes))


def _sums(sizes: Sizes) -> Iterator[tuple[Size, int]]:
    """Yield what must be a multiple of a number, of groups that are so only together with others."""
    required = [(axis, divisor, {u for u, _ in axis} - sizes.fixed.keys()) for axis, divisor in sizes.requirements()]
    summed = {u for _, _, free in required if len(free) > 1 for u in free}
    yield from dict.fromkeys((_size(sizes, axis), divisor) for axis, divisor, free in required if free & summed)


def _free(sizes: Sizes, axis: Axis) -> list[int]:
    """Return the unknowns of an axis that may change."""
    return [u for u, _ in sizes.resolve(axis) if u not in sizes.fixed]


def _size(sizes: Sizes, axis: Axis) -> Size:
    constant = Fraction(0)
    factors: dict[str, Fraction] = defaultdict(Fraction)
    for u, factor in sizes.resolve(axis):
        if u in sizes.fixed:
            constant += factor * sizes.built[u]
        else:
            factors[sizes.names[u]] += factor
    return Size(constant, tuple(factors.items()))


def _layers(record: Record) -> Iterator[Layer]:
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in record.calls:
        calls[call.path].append(call)
    for path, own in calls.items():
        first = own[0]
        yield Layer(
            path,
            first.kind,
            source=None if first.source is None else _size(record.sizes, first.source),
            out=_size(record.sizes, first.axis),
            kernel=first.kernel,
            groups=1 if first.depthwise else first.groups,
            depthwise=first.depthwise,
            positions=sum(call.positions for call in own),
            vectors=_vectors(record, first),
            dim=first.dim,
            trained=_has_kernel(record, first),
        )


def _has_kernel(record: Record, call: Call) -> bool:
    """Return whether a layer's kernel is a parameter of its own, not one that it shares with an earlier layer."""
    return call.owned and call.kind in ("conv", "linear") and _kernel(record, call) in _elements(record, call)


def _vectors(record: Record, call: Call) -> int:
    """Return the trainable parameters for each channel that a layer writes, its kernel aside."""
    if call.kind == "parameter":
        path, _, name = call.path.rpartition(".")
        tensor = getattr(record.model.get_submodule(path), name)
        return math.prod(tensor.shape) // tensor.shape[call.dim] if isinstance(tensor, nn.Parameter) else 0
    if not call.owned or call.kind == "product":
        return 0
    elements = _elements(record, call)
    if call.kind != "norm" and _kernel(record, call) in elements:
        elements.remove(_kernel(record, call))
    return elements.count(int(record.sizes.size(call.axis)))


def _kernel(record: Record, call: Call) -> int:
    source = 1 if call.depthwise or call.source is None else record.sizes.size(call.source) / call.groups
    return int(call.kernel * source * record.sizes.size(call.axis))


def _elements(record: Record, call: Call) -> list[int]:
    """Return how many elements each parameter has that a layer owns and no earlier one does, nor is counted alone."""
    alone = record.layers.keys()
    return [
        parameter.numel()
        for parameter in record.model.get_submodule(call.path).parameters()
        if record.owners[id(parameter)][0].path == call.path
        and f"{call.path}.{record.owners[id(parameter)][0].name}" not in alone
    ]


def _fixed(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the layers whose width cannot change, and why."""
    fixed = record.sizes.fixed
    for path, layer in record.layers.items():
        terms = record.sizes.resolve(layer.axis)
        if all(u in fixed for u, _ in terms):
            yield path, fixed[terms[0][0]]


def _outputs(record: Record) -> Iterator[tuple[tuple[str, int], str]]:
    """Yield the module calls whose output has the channels of one group and no others, and the group."""
    for key, axis in record.outputs.items():
        terms = record.sizes.resolve(axis)
        if len(terms) == 1 and terms[0][1] == 1 and terms[0][0] not in record.sizes.fixed:
            yield key, record.sizes.names[terms[0][0]]
