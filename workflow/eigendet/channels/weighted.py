"""What layers with weights do to the axes of their operands, and what is counted of them: rules of `operations`."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor

from eigendet.channels.arguments import Arguments
from eigendet.channels.record import Axes, Call, Record
from eigendet.channels.sizes import Axis, times


def convolution(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow a convolution, transposed or not: of a layer, depthwise, or with weights from elsewhere."""
    image, weight, groups = arguments["input"], arguments["weight"], arguments["groups"]
    channel = image.dim() - weight.dim() + 1
    source = _source(record, image, channel)
    path, owned = record.owner(weight)
    depthwise = groups > 1 and groups == image.shape[channel]
    out = outputs[0].shape[channel]
    if depthwise:
        axis = record.layer(path, source, times(source, Fraction(out, groups)))
    elif owned:
        axis = record.layer(path, source, record.written(path, out))
    else:
        reason = f"weights of a convolution that are not a layer's, in {record.where()}"
        axis = record.sizes.constant(out, reason)
        record.sizes.fix(source, reason)
    if groups > 1 and not depthwise:
        record.sizes.require(source, groups)
        record.sizes.require(axis, groups)
    applied = image if arguments["transposed"] else outputs[0]
    positions = math.prod(applied.shape[channel + 1 :])
    if channel == 1:
        positions *= record.batch(path, applied.shape[0])
    for d, axis_along in enumerate(record.axes_of(image)[channel + 1 :], channel + 1):
        if axis_along is not None:  # a convolution that runs over channels as others do over pixels
            rest = weight.numel() * positions // applied.shape[d]
            record.add(Call(f"{path}@{len(record.calls)}", "product", None, axis_along, positions=rest, owned=False))
            positions = 0
            break
    kernel = math.prod(weight.shape[2:])
    record.add(Call(path, "conv", source, axis, groups, depthwise, kernel, positions, owned))
    _note_convolved(record, image, outputs[0], channel, axis)


def _note_convolved(record: Record, image: Tensor, output: Tensor, channel: int, axis: Axis) -> None:
    """Note the axes of a convolution's output: dimensions beside its channels stay where they keep their size."""
    noted: list[Axis | None] = []
    for d, before in enumerate(record.axes_of(image)):
        if d == channel:
            noted.append(axis)
        elif output.shape[d] == image.shape[d]:
            noted.append(before)
        else:
            noted.append(None)
            if before is not None:
                record.sizes.fix(before, f"a convolution along the channels in {record.where()}")
    record.note(output, tuple(noted))


def linear(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow a product with the weights of a linear layer, or else of two maps."""
    image, weight = _factors(arguments)
    if not (record.is_weight(weight) and id(image) in record.axes):
        product(record, arguments, outputs)
        return
    path, _ = record.owner(weight)
    source = _source(record, image, -1)
    axis = record.layer(path, source, record.written(path, outputs[0].shape[-1]))
    rows = outputs[0].shape[:-1]
    positions = record.batch(path, rows[0]) * math.prod(rows[1:]) if rows else 1
    record.add(Call(path, "linear", source, axis, positions=positions))
    record.note(outputs[0], (*record.axes_of(image)[:-1], axis))


def product(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow the matrix product of two maps, as in attention."""
    first, second = _factors(arguments)
    left, right = record.axes_of(first), record.axes_of(second)
    if left[-1] is not None and right[-2] is not None:
        record.sizes.equate(left[-1], right[-2])
    batch: Axes = ()
    if first.dim() == 3:
        batch = (record.common([first, second], 3, outputs[0].shape[0]),)
    record.note(outputs[0], (*batch, left[-2], right[-1]))
    _count_product(record, [*first.shape, second.shape[-1]], [*batch, left[-2], left[-1] or right[-2], right[-1]])


def _count_product(record: Record, lengths: list[int], axes: list[Axis | None]) -> None:
    """Count a product of dimensions as one of two widths; a third one keeps its size."""
    widths: list[Axis] = []
    rest = 1
    for length, axis in zip(lengths, axes, strict=True):
        if axis is not None and len(widths) < 2:
            widths.append(axis)
            continue
        rest *= length
        if axis is not None:
            record.sizes.fix(axis, f"a product of more than two widths in {record.where()}")
    out = widths.pop() if widths else record.sizes.constant(1, "no width")
    source = widths.pop() if widths else None
    path = f"{record.where()}@{len(record.calls)}"
    record.add(Call(path, "product", source, out, positions=rest, owned=False))


def _factors(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return the two matrices of a product."""
    if "mat1" in arguments:
        return arguments["mat1"], arguments["mat2"]
    if "weight" in arguments:
        return arguments["input"], arguments["weight"]
    return arguments["self"], arguments["mat2"]


def _source(record: Record, image: Tensor, channel: int) -> Axis:
    """Return the axis of the dimension that a layer reads."""
    axis = record.axes_of(image)[channel]
    if axis is None:
        return record.sizes.constant(image.shape[channel], f"not a number of channels, in {record.where()}")
    return axis


def batch_norm(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow a normalization of each channel."""
    _normalization(record, arguments, outputs, dim=1)


def group_norm(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow a normalization of groups of channels."""
    _normalization(record, arguments, outputs, dim=1, groups=arguments["group"])


def layer_norm(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow a normalization of the last dimension; one of several is not followed."""
    if len(arguments["normalized_shape"]) > 1:
        _stopped(record)
    else:
        _normalization(record, arguments, outputs, dim=arguments["input"].dim() - 1)


def _normalization(record: Record, arguments: Arguments, outputs: list[Tensor], dim: int, groups: int = 1) -> None:
    """Follow a normalization of the dimension `dim`, with or without parameters."""
    image = arguments["input"]
    axis = record.axes_of(image)[dim]
    if axis is None:
        _stopped(record)
        return
    record.note(outputs[0], record.axes_of(image))
    record.sizes.require(axis, groups)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = arguments.get(name)
        if tensor is not None and id(tensor) in record.owners:
            record.norm(record.owner(tensor)[0], axis)
            return


def _stopped(record: Record) -> None:
    """Keep the size of what goes into an operation that cannot be followed; what comes out has no axes."""
    for axis in record.operations[-1].axes:
        record.sizes.fix(axis, f"'{record.operations[-1].name}' in {record.where()}")
