"""What every kind of operation does to the axes of its operands.

A rule reads the axes of the tensors that went into an operation and notes those of what came out. An operation that has
no rule of its own is taken for one that works element by element, which is right for most. The rules say what an
operation is likely to want when widths change; mistakes are found by the trial that `channels.trace` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torchvision  # noqa: F401, it brings operations of its own
from torch import Tensor
from torch.utils._pytree import tree_leaves

from eigendet.channels import weighted
from eigendet.channels.arguments import Arguments
from eigendet.channels.record import Record
from eigendet.channels.reshapes import part, reshape
from eigendet.channels.sizes import Axis, times

aten = torch.ops.aten
Rule = Callable[[Record, Arguments, list[Tensor]], None]


# Element by element.


def elementwise(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Tie dimensions of one size, aligned from the last; keep the size of those that the operation changes."""
    tensors = [leaf for leaf in tree_leaves(list(arguments.values())) if isinstance(leaf, Tensor)]
    for output in outputs:
        backs = range(output.dim(), 0, -1)
        record.note(output, tuple(record.common(tensors, back, output.shape[-back]) for back in backs))
    for tensor in tensors:
        for d, axis in enumerate(record.axes.get(id(tensor), ())):
            back = tensor.dim() - d
            sizes = {output.shape[-back] for output in outputs if output.dim() >= back}
            if axis is not None and tensor.shape[d] not in sizes and outputs:
                record.sizes.fix(axis, f"'{record.operations[-1].name}' in {record.where()}")


# Parts and sums of parts.


def _concatenation(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    tensors = [tensor for tensor in arguments["tensors"] if tensor.numel() or tensor.dim() > 1]
    dims = outputs[0].dim()
    noted: list[Axis | None] = []
    for d in range(dims):
        axes = [record.axes_of(tensor)[d] for tensor in tensors]
        if d != arguments["dim"] % dims:
            noted.append(record.common(tensors, dims - d, outputs[0].shape[d]))
        elif all(axis is None for axis in axes):
            noted.append(None)
        else:
            parts = [
                record.sizes.constant(tensor.shape[d], "not a number of channels") if axis is None else axis
                for tensor, axis in zip(tensors, axes, strict=True)
            ]
            noted.append(tuple(term for part in parts for term in part))
    record.note(outputs[0], tuple(noted))


def _split(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    before = record.axes_of(arguments["self"])
    dim = arguments["dim"] % len(before)
    axis = before[dim]
    pieces: Sequence[Axis | None] = [None] * len(outputs)
    if axis is not None:
        lengths = [output.shape[dim] for output in outputs]
        equal = len(set(lengths)) == 1
        if not equal:
            record.sizes.set_apart(axis, lengths)
        pieces = [part(record, axis, len(lengths))] * len(lengths) if equal else record.sizes.cut(axis, lengths)
    for piece, output in zip(pieces, outputs, strict=True):
        record.note(output, (*before[:dim], piece, *before[dim + 1 :]))


def _slice(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    image, start = arguments["self"], arguments["start"] or 0
    noted = list(record.axes_of(image))
    dim = arguments["dim"] % image.dim()
    length, whole, axis = outputs[0].shape[dim], image.shape[dim], noted[dim]
    if axis is not None and length != whole:
        first = max(start + whole, 0) if start < 0 else start
        if arguments["step"] == 1:
            noted[dim] = record.sizes.cut(axis, (first, length))[1]
        elif length > 1 and length * arguments["step"] == whole:  # one channel, a side of a box, is not a width
            noted[dim] = part(record, axis, arguments["step"])
        else:
            record.sizes.fix(axis, f"a slice with steps in {record.where()}")
            noted[dim] = None
    record.note(outputs[0], tuple(noted))


def _halving(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow an operation of one half of a dimension with the other, as in a gated linear unit."""
    noted = list(record.axes_of(arguments["self"]))
    axis = noted[arguments["dim"]]
    noted[arguments["dim"]] = None if axis is None else part(record, axis, 2)
    record.note(outputs[0], tuple(noted))


def _select(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow an operation that takes one dimension away: select, unbind."""
    noted = list(record.axes_of(arguments["self"]))
    axis = noted.pop(arguments["dim"])
    if axis is not None:
        record.sizes.fix(axis, f"'{record.operations[-1].name}' of channels in {record.where()}")
    for output in outputs:
        record.note(output, tuple(noted))


def _index(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow a choice of elements, as many as there are: the dimensions that it chooses along keep their size."""
    image, indices = arguments["self"], arguments["indices"]
    axes, places = record.axes_of(image), [place for place, index in enumerate(indices) if index is not None]
    noted: list[Axis | None] = []
    d = 0
    for index in indices:
        along = 1 if index is None or index.dtype not in (torch.bool, torch.uint8) else index.dim()
        if index is None:
            noted.append(axes[d])
        else:
            _fix(record, axes[d : d + along])
        d += along
    noted += axes[d:]
    # Where choices are apart, their dimensions come first.
    start = places[0] if places[-1] - places[0] < len(places) else 0
    noted[start:start] = [None] * (outputs[0].dim() - len(noted))
    record.note(outputs[0], tuple(noted))


def _fix(record: Record, axes: Sequence[Axis | None]) -> None:
    """Keep the sizes of axes that the operation at hand cannot change."""
    for axis in axes:
        if axis is not None:
            record.sizes.fix(axis, f"'{record.operations[-1].name}' in {record.where()}")


# Other shapes.


def _permute(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    axes = record.axes_of(arguments["self"])
    record.note(outputs[0], tuple(axes[d] for d in arguments["dims"]))


def _transpose(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow an operation that exchanges two dimensions: transpose, and t, which does with the only two."""
    noted = list(record.axes_of(arguments["self"]))
    first, second = arguments.get("dim0", 0), arguments.get("dim1", -1)
    noted[first], noted[second] = noted[second], noted[first]
    record.note(outputs[0], tuple(noted))


def _unsqueeze(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    noted = list(record.axes_of(arguments["self"]))
    noted.insert(arguments["dim"] % outputs[0].dim(), None)
    record.note(outputs[0], tuple(noted))


def _squeeze(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    image = arguments["self"]
    single = [d for d in _dims(arguments) if image.shape[d] == 1]
    record.note(outputs[0], tuple(axis for d, axis in enumerate(record.axes_of(image)) if d not in single))


def _reduction(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    image = arguments["self"]
    dims = _dims(arguments) or set(range(image.dim()))
    axes = record.axes_of(image)
    for output in outputs:
        if output.dim() == image.dim():
            record.note(output, tuple(None if d in dims else axis for d, axis in enumerate(axes)))
        else:
            record.note(output, tuple(axis for d, axis in enumerate(axes) if d not in dims))


def _dims(arguments: Arguments) -> set[int]:
    """Return the dimensions that an operation names, or all where it takes no names."""
    dims, count = arguments.get("dim"), arguments["self"].dim()
    if dims is None:
        return set(range(count))
    return {d % count for d in ([dims] if isinstance(dims, int) else dims)}


def _stack(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    tensors, output = arguments["tensors"], outputs[0]
    dim, dims = arguments["dim"] % output.dim(), output.dim()
    noted = [record.common(tensors, dims - 1 - d, size) for d, size in enumerate(tensors[0].shape)]
    record.note(output, (*noted[:dim], None, *noted[dim:]))


def _repeat(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow an operation that lengthens dimensions, or adds some in front."""
    image, output = arguments["self"], outputs[0]
    added = output.dim() - image.dim()
    noted = [
        None if axis is None else times(axis, Fraction(output.shape[d + added], image.shape[d]))
        for d, axis in enumerate(record.axes_of(image))
    ]
    record.note(output, (*[None] * added, *noted))


def _padding(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow constants beside a map; a map that is cut keeps its size."""
    image, amounts = arguments["self"], arguments["pad"]
    noted = list(record.axes_of(image))
    for back in range(len(amounts) // 2):
        d = image.dim() - 1 - back
        axis, sides = noted[d], amounts[2 * back : 2 * back + 2]
        if axis is None or not any(sides):
            continue
        if min(sides) < 0:
            record.sizes.fix(axis, f"'{record.operations[-1].name}' in {record.where()}")
            noted[d] = None
            continue
        before, after = (record.sizes.constant(side, "padding") if side else () for side in sides)
        noted[d] = (*before, *axis, *after)
    record.note(outputs[0], tuple(noted))


def _unfold(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow neighborhoods that become channels, or the reverse: each image has one dimension fewer or more."""
    image, output = arguments["self"], outputs[0]
    source, d = image.dim() - 3, output.dim() - 2
    if output.dim() > image.dim():
        source, d = image.dim() - 2, output.dim() - 3
    axis = record.axes_of(image)[source]
    noted: list[Axis | None] = [None] * output.dim()
    if axis is not None:
        noted[d] = times(axis, Fraction(output.shape[d], image.shape[source]))
    record.note(output, tuple(noted))


def _sampling(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow values at points: those have as many coordinates as there are."""
    for axis in record.axes_of(arguments["grid"]):
        if axis is not None:
            record.sizes.fix(axis, f"coordinates of '{record.operations[-1].name}' in {record.where()}")
    record.note(outputs[0], (*record.axes_of(arguments["input"])[:2], *[None] * (outputs[0].dim() - 2)))


def _new(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow an operation that takes only the type of values from a map: what it gives is not computed from images."""
    record.data.difference_update(map(id, outputs))


def _parts_of_numbers(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow complex numbers that become pairs of real ones in a last dimension, or the reverse."""
    axes = record.axes_of(arguments["self"])
    record.note(outputs[0], (*axes, None)[: outputs[0].dim()])


def _channel_shuffle(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    axes = record.axes_of(arguments["self"])
    if axes[1] is not None:
        record.sizes.require(axes[1], arguments["groups"])
    record.note(outputs[0], axes)


def _pixel_shuffle(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    image = arguments["self"]
    dim = image.dim() - 3
    axis = record.axes_of(image)[dim]
    noted: list[Axis | None] = [None] * outputs[0].dim()
    if axis is not None:
        noted[dim] = times(axis, Fraction(outputs[0].shape[dim], image.shape[dim]))
    record.note(outputs[0], tuple(noted))


BATCH_NORMS = (
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm, aten._batch_norm_with_update, aten._batch_norm_no_update,
)  # fmt: skip
RESHAPES = (aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten)
SPLITS = (aten.split, aten.split_with_sizes, aten.unsafe_split, aten.chunk)
REDUCTIONS = (
    aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.prod, aten.var, aten.std, aten.var_mean,
    aten.std_mean, aten.norm, aten.linalg_vector_norm, aten.logsumexp, aten.argmax, aten.argmin, aten.any, aten.all,
    aten.median, aten.aminmax,
)  # fmt: skip
# What they give is as long as the values say, or not followed.
STOPPING = (aten.nonzero, aten.masked_select, torch.ops.torchvision.nms, torch.ops.torchvision.deform_conv2d)
NEW = (aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full, aten.new_empty_strided)
PRODUCTS = {
    aten.convolution, aten.addmm, aten.mm, aten.linear, aten.bmm, aten.baddbmm,
}  # fmt: skip
RULES: dict[Any, Rule] = {
    aten.convolution: weighted.convolution,
    aten.addmm: weighted.linear,
    aten.mm: weighted.linear,
    aten.linear: weighted.linear,
    aten.bmm: weighted.product,
    aten.baddbmm: weighted.added_product,
    aten.native_group_norm: weighted.group_norm,
    aten.native_layer_norm: weighted.layer_norm,
    aten.cat: _concatenation,
    aten.slice: _slice,
    aten.select: _select,
    aten.index: _index,
    aten.unbind: _select,
    aten.glu: _halving,
    aten.view_as_real: _parts_of_numbers,
    aten.view_as_complex: _parts_of_numbers,
    aten.permute: _permute,
    aten.transpose: _transpose,
    aten.t: _transpose,
    aten.unsqueeze: _unsqueeze,
    aten.unsqueeze_: _unsqueeze,  # in place: what is known of the axes is from before
    aten.squeeze: _squeeze,
    aten.stack: _stack,
    aten.repeat: _repeat,
    aten.constant_pad_nd: _padding,
    aten.im2col: _unfold,
    aten.col2im: _unfold,
    aten.grid_sampler_2d: _sampling,
    aten.grid_sampler_3d: _sampling,
    **dict.fromkeys(STOPPING, weighted.stopped),
    aten.channel_shuffle: _channel_shuffle,
    aten.native_channel_shuffle: _channel_shuffle,
    aten.pixel_shuffle: _pixel_shuffle,
    aten.pixel_unshuffle: _pixel_shuffle,
    **dict.fromkeys(BATCH_NORMS, weighted.batch_norm),
    **dict.fromkeys(RESHAPES, reshape),
    **dict.fromkeys(SPLITS, _split),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(NEW, _new),
}
