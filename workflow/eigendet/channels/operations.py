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
from torch import Tensor
from torch.utils._pytree import tree_leaves

from eigendet.channels import weighted
from eigendet.channels.arguments import Arguments
from eigendet.channels.record import Record
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
        pieces = _pieces(record, axis, [output.shape[dim] for output in outputs])
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
        else:
            record.sizes.fix(axis, f"a slice with steps in {record.where()}")
            noted[dim] = None
    record.note(outputs[0], tuple(noted))


def _select(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow an operation that takes one dimension away: select, unbind."""
    noted = list(record.axes_of(arguments["self"]))
    axis = noted.pop(arguments["dim"])
    if axis is not None:
        record.sizes.fix(axis, f"'{record.operations[-1].name}' of channels in {record.where()}")
    for output in outputs:
        record.note(output, tuple(noted))


def _pieces(record: Record, axis: Axis, lengths: list[int]) -> list[Axis]:
    """Cut an axis into pieces, tied where all are equally long."""
    pieces = record.sizes.cut(axis, lengths)
    if len(set(lengths)) == 1:
        for piece in pieces[1:]:
            record.sizes.equate(pieces[0], piece)
    return pieces


# Other shapes.


def _reshape(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    axes = record.axes_of(arguments["self"])
    before, after = list(arguments["self"].shape), list(outputs[0].shape)
    noted: list[Axis | None] = [None] * len(after)
    for left, right in _blocks(before, after):
        long = [d for d in left if before[d] > 1]
        wide = [d for d in right if after[d] > 1]
        tracked = [axis for d in long if (axis := axes[d]) is not None]
        if not tracked or not wide:
            continue
        if len(tracked) == 1 and len(wide) == 1:
            length = next(before[d] for d in long if axes[d] is not None)
            noted[wide[0]] = times(tracked[0], Fraction(after[wide[0]], length))
        elif len(long) == 1 and len(wide) == 2:
            # Rows of equal length; their number is the smaller of the two and stays.
            rows, kept = sorted(wide, key=lambda d: after[d])
            noted[kept] = _pieces(record, tracked[0], [after[kept]] * after[rows])[0]
        else:
            for axis in tracked:
                record.sizes.fix(axis, f"a reshape in {record.where()}")
    record.note(outputs[0], tuple(noted))


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return runs of dimensions before and after a reshape that hold the same elements.

    Dimensions of size 1 belong to any run.
    """
    blocks = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right, a, b = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * before[i], i + 1
            else:
                right.append(j)
                b, j = b * after[j], j + 1
        blocks.append((left, right))
    return blocks


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
REDUCTIONS = (aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.prod, aten.var, aten.std)
RULES: dict[Any, Rule] = {
    aten.convolution: weighted.convolution,
    aten.addmm: weighted.linear,
    aten.mm: weighted.linear,
    aten.linear: weighted.linear,
    aten.bmm: weighted.product,
    aten.native_group_norm: weighted.group_norm,
    aten.native_layer_norm: weighted.layer_norm,
    aten.cat: _concatenation,
    aten.slice: _slice,
    aten.select: _select,
    aten.unbind: _select,
    aten.permute: _permute,
    aten.transpose: _transpose,
    aten.t: _transpose,
    aten.unsqueeze: _unsqueeze,
    aten.unsqueeze_: _unsqueeze,  # in place: what is known of the axes is from before
    aten.squeeze: _squeeze,
    aten.channel_shuffle: _channel_shuffle,
    aten.native_channel_shuffle: _channel_shuffle,
    aten.pixel_shuffle: _pixel_shuffle,
    aten.pixel_unshuffle: _pixel_shuffle,
    **dict.fromkeys(BATCH_NORMS, weighted.batch_norm),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(SPLITS, _split),
    **dict.fromkeys(REDUCTIONS, _reduction),
}
