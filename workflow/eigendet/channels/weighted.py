"""What layers with weights do to the axes of their operands, and what is counted of them: rules of `operations`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor, nn

from eigendet.channels.arguments import Arguments
from eigendet.channels.groups import ChannelError
from eigendet.channels.record import Axes, Call, LayerAxes, Record
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
        path, axis = f"{record.where()}@{len(record.calls)}", record.sizes.constant(out, reason)
        record.sizes.fix(source, reason)
        record.layers[path] = LayerAxes(source, axis)
    if groups > 1 and not depthwise:
        record.sizes.require(source, groups)
        record.sizes.require(axis, groups)
    applied = image if arguments["transposed"] else outputs[0]
    positions = seen = math.prod(applied.shape[channel + 1 :])
    if channel == 1:
        positions, seen = positions * record.batch(path, applied.shape[0]), seen * applied.shape[0]
    kernel = math.prod(weight.shape[2:])
    along = [
        own if applied.shape[d] == image.shape[d] else None
        for d, own in enumerate(record.axes_of(image)[channel + 1 :], channel + 1)
    ]
    if _vary(record, along):  # it runs over channels as others do over pixels
        read = None if depthwise else times(source, Fraction(1, groups))
        count = kernel * (positions // max(1, math.prod(applied.shape[channel + 1 :])))
        lengths = [*applied.shape[channel + 1 :], weight.shape[1 if not arguments["transposed"] else 0], out, count]
        _count_product(record, path, lengths, [*along, read, axis, None])
        positions = seen = 0
    record.add(Call(path, "conv", source, axis, groups, depthwise, kernel, positions, owned, seen=seen))
    _meet_bias(record, path, arguments["bias"], axis)
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
    if not record.is_weight(weight) or record.is_weight(image):
        product(record, arguments, outputs)
        return
    path, _ = record.owner(weight)
    source = _source(record, image, -1)
    axis = record.layer(path, source, record.written(path, outputs[0].shape[-1]))
    rows = outputs[0].shape[:-1]
    positions, seen = record.batch(path, rows[0]) * math.prod(rows[1:]) if rows else 1, math.prod(rows)
    along = record.axes_of(image)[:-1]
    if _vary(record, along):  # it runs over channels as others do over positions
        _count_product(record, path, [*image.shape, outputs[0].shape[-1]], [*along, source, axis])
        positions = seen = 0
    record.add(Call(path, "linear", source, axis, positions=positions, seen=seen))
    bias = arguments["self"] if "mat1" in arguments else arguments.get("bias")
    _meet_bias(record, path, bias, axis)
    record.note(outputs[0], (*record.axes_of(image)[:-1], axis))


def _meet_bias(record: Record, path: str, bias: Tensor | None, axis: Axis) -> None:
    """Note that a bias which is not the layer's own is as long as what the layer writes."""
    if bias is None or bias.dim() == 0:
        return
    before = record.axes_of(bias)[-1]
    if before is not None:
        record.sizes.equate(before, axis)
    elif id(bias) in record.owners and (record.owner(bias)[0] != path or id(bias) in record.parts):
        record.meet(bias, bias.dim() - 1, axis)


def product(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow the matrix product of two maps, as in attention, or of a map with a parameter."""
    first, second = _factors(arguments)
    left, right = record.axes_of(first), record.axes_of(second)
    inner = left[-1] or right[-2]
    if left[-1] is not None and right[-2] is not None:
        record.sizes.equate(left[-1], right[-2])
    for tensor, own, dim in ((first, left[-1], first.dim() - 1), (second, right[-2], second.dim() - 2)):
        if inner is not None and own is None and id(tensor) in record.owners:
            record.meet(tensor, dim, inner)
    batch: Axes = ()
    if first.dim() == 3:
        batch = (record.common([first, second], 3, outputs[0].shape[0]),)
    record.note(outputs[0], (*batch, left[-2], right[-1]))
    _count_product(record, record.where(), [*first.shape, second.shape[-1]], [*batch, left[-2], inner, right[-1]])


def added_product(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow the product of two maps that is added to another."""
    product(record, arguments, outputs)
    for back, size in enumerate(reversed(outputs[0].shape), 1):
        record.common([outputs[0], arguments["self"]], back, size)


def _vary(record: Record, axes: Sequence[Axis | None]) -> bool:
    """Return whether any of the dimensions counts channels whose number may change."""
    return any(axis is not None and not record.sizes.is_fixed(axis) for axis in axes)


def _count_product(record: Record, module: str, lengths: list[int], axes: list[Axis | None]) -> None:
    """Count a product of dimensions in a module as one of two widths; a third one keeps its size."""
    widths: list[Axis] = []
    rest = 1
    for length, axis in zip(lengths, axes, strict=True):
        if axis is not None and len(widths) < 2 and not record.sizes.is_fixed(axis):
            widths.append(axis)
            continue
        rest *= length
        if axis is not None:
            record.sizes.fix(axis, f"a product of more than two widths in {record.where()}")
    out = widths.pop() if widths else record.sizes.constant(1, "no width")
    source = widths.pop() if widths else None
    path = f"{module}@{len(record.calls)}"
    record.add(Call(path, "product", source, out, positions=rest, owned=False, seen=rest))


def compare(record: Record, before: int, macs: int) -> None:
    """Compare what was counted of an operation, in calls from `before` on, with what torch's counter says.

    An operation of which nothing was counted is one without a rule: what it takes keeps its size.

    Raises:
        ChannelError: the two differ.
    """
    counted = sum(_seen(record, call) for call in record.calls[before:])
    if counted == macs:
        return
    name = f"'{record.operations[-1].name}' in {record.where()}"
    if counted:
        raise ChannelError(f"{name}: {counted} multiply-accumulates are counted where torch counts {macs}")
    stopped(record)
    path = f"{record.where()}@{len(record.calls)}"
    record.add(Call(path, "product", None, record.sizes.constant(1, "no width"), positions=macs, owned=False))


def _seen(record: Record, call: Call) -> int:
    """Return the multiply-accumulates of a call in this pass."""
    if call.kind in ("norm", "parameter"):
        return 0
    out = record.sizes.size(call.axis)
    source = 1 if call.depthwise or call.source is None else record.sizes.size(call.source) / call.groups
    return int(call.kernel * source * out * call.seen)


def _factors(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return the two matrices of a product."""
    if "mat1" in arguments:
        return arguments["mat1"], arguments["mat2"]
    if "batch1" in arguments:
        return arguments["batch1"], arguments["batch2"]
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
        stopped(record)
    else:
        _normalization(record, arguments, outputs, dim=arguments["input"].dim() - 1)


def _normalization(record: Record, arguments: Arguments, outputs: list[Tensor], dim: int, groups: int = 1) -> None:
    """Follow a normalization of the dimension `dim`, with or without parameters."""
    image = arguments["input"]
    axis = record.axes_of(image)[dim]
    if axis is None:
        axis = record.sizes.constant(image.shape[dim], f"not a number of channels, in {record.where()}")
    record.note(outputs[0], record.axes_of(image))
    record.sizes.require(axis, groups)
    tensors = [arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    owned = [tensor for tensor in tensors if tensor is not None and id(tensor) in record.owners]
    for tensor in owned:
        path, is_layer = record.owner(tensor)
        if not is_layer:  # a module of the network's own has made its parameters
            record.meet(tensor, 0, axis)
            continue
        # Instance norm has the maps of several images side by side, as channels.
        name = record.owners[id(tensor)][0].name
        own = getattr(record.model.get_submodule(path), name) if name in ("weight", "bias") else tensor
        record.norm(path, times(axis, Fraction(own.numel(), tensor.numel())))
        return
    if owned:
        return
    path = record.stack[-1] if record.stack else ""
    features = _features(record.model.get_submodule(path))
    if features is not None:
        record.norm(path, times(axis, Fraction(features, image.shape[dim])))


def _features(module: nn.Module) -> int | None:
    """Return the number of channels that a normalization without parameters was made for."""
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm):
        return math.prod(module.normalized_shape)
    return module.num_features if isinstance(module, nn.modules.batchnorm._NormBase) else None


def stopped(record: Record, *_: object) -> None:
    """Keep the size of what goes into an operation that cannot be followed; what comes out has no axes."""
    for axis in record.operations[-1].axes:
        record.sizes.fix(axis, f"'{record.operations[-1].name}' in {record.where()}")
