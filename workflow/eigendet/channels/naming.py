"""From the record of a forward pass, whose sizes are numbered unknowns, to channel groups with names."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction

from torch import nn

from eigendet.channels.groups import Channels, Layer, Size, whole
from eigendet.channels.record import Call, Record
from eigendet.channels.sizes import Axis, Sizes


def named(
    record: Record, order: tuple[str | None, ...] | None = None, others: tuple[type[nn.Module], ...] = ()
) -> Channels:
    """Return the channel groups that a record holds; for `order` and `others` see Channels."""
    sizes = record.sizes
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
    )


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
            trained=first.owned,
        )


def _vectors(record: Record, call: Call) -> int:
    """Return the trainable parameters for each channel that a layer writes, its kernel aside."""
    if call.kind == "parameter":
        path, _, name = call.path.rpartition(".")
        tensor = getattr(record.model.get_submodule(path), name)
        return math.prod(tensor.shape) // tensor.shape[call.dim] if isinstance(tensor, nn.Parameter) else 0
    if not call.owned:
        return 0
    tensors = len(list(record.model.get_submodule(call.path).parameters(recurse=False)))
    return tensors if call.kind == "norm" else max(0, tensors - 1)


def _fixed(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the layers whose width cannot change, and why."""
    fixed = record.sizes.fixed
    for path, layer in record.layers.items():
        reasons = [fixed[u] for u, _ in record.sizes.resolve(layer.axis) if u in fixed]
        if reasons:
            yield path, reasons[0]


def _outputs(record: Record) -> Iterator[tuple[tuple[str, int], str]]:
    """Yield the module calls whose output has the channels of one group and no others, and the group."""
    for key, axis in record.outputs.items():
        terms = record.sizes.resolve(axis)
        if len(terms) == 1 and terms[0][1] == 1 and terms[0][0] not in record.sizes.fixed:
            yield key, record.sizes.names[terms[0][0]]
