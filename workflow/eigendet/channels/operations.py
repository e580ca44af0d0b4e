"""What becomes of the channels in every kind of operation: the rules of `tracing`.

A rule reads the axes of what went into an operation and notes those of what came out. An operation that has no rule of
its own is taken for one that works element by element, which is right for most; any other mistake is found by the trial
that `channels.trace` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from eigendet.channels.sizes import Axis, scaled

if TYPE_CHECKING:
    from eigendet.channels.follower import Follower

aten = torch.ops.aten
NORMALIZATIONS = {
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten.native_group_norm, aten.native_layer_norm, aten.cudnn_batch_norm, aten._batch_norm_with_update,
    aten._batch_norm_no_update,
}  # fmt: skip
RESHAPES = {aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten}
SPLITS = {aten.split, aten.split_with_sizes, aten.unsafe_split, aten.chunk}
REDUCTIONS = {aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.prod, aten.var, aten.std}


def _convolution(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    image, weight, transposed, groups = args[0], args[1], args[6], args[8]
    spatial = weight.dim() - 2
    channel = image.dim() - spatial - 1
    given = follower.axes_of(image)
    source = given[channel]
    if source is None:
        source = follower.sizes.constant(image.shape[channel], f"not a number of channels, in {follower.where()}")
    out = outputs[0].shape[channel]
    path, owned = follower.owner(weight)
    depthwise = groups > 1 and groups == image.shape[channel]
    if depthwise:
        axis = follower.layer(path, source, scaled(source, Fraction(out, groups)))
    elif owned:
        axis = follower.layer(path, source, follower.written(path, out))
    else:
        axis = follower.sizes.constant(out, f"weights of a convolution that are no layer's, in {follower.where()}")
        follower.sizes.fix(source, f"weights of a convolution that are no layer's, in {follower.where()}")
    if groups > 1 and not depthwise:
        follower.sizes.require(source, groups)
        follower.sizes.require(axis, groups)
    where = image if transposed else outputs[0]
    positions = math.prod(where.shape[channel + 1 :]) * (follower.batch(path, where.shape[0]) if channel == 1 else 1)
    along = [d for d in range(channel + 1, image.dim()) if given[d] is not None]
    if along:  # a convolution that runs over channels as others do over pixels
        length, rest = given[along[0]], weight.numel() * positions // where.shape[along[0]]
        follower.call(f"{path}@{len(follower.calls)}", "product", None, length or (), positions=rest, owned=False)
        positions = 0
    follower.call(path, "conv", source, axis, groups, depthwise, math.prod(weight.shape[2:]), positions, owned)
    kept = [axis if outputs[0].shape[d] == image.shape[d] else None for d, axis in enumerate(given)]
    kept[channel] = axis
    follower.fix_dropped(given, kept, channel)
    follower.note(outputs[0], tuple(kept))


def _linear(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    operands = [arg for arg in args if isinstance(arg, Tensor)][-2:]
    image, weight = operands
    if not (follower.is_weight(weight) and id(image) in follower.axes):
        _product(follower, function, args, kwargs, outputs)
        return
    path, _ = follower.owner(weight)
    source = follower.axes_of(image)[-1]
    if source is None:
        source = follower.sizes.constant(image.shape[-1], f"not a number of channels, in {follower.where()}")
    axis = follower.layer(path, source, follower.written(path, outputs[0].shape[-1]))
    rows = outputs[0].shape[:-1]
    follower.call(
        path, "linear", source, axis, positions=follower.batch(path, rows[0]) * math.prod(rows[1:]) if rows else 1
    )
    follower.note(outputs[0], (*follower.axes_of(image)[:-1], axis))


def _product(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    """The matrix product of two maps, as in attention."""
    first, second = [arg for arg in args if isinstance(arg, Tensor)][-2:]
    left, right = follower.axes_of(first), follower.axes_of(second)
    if left[-1] is not None and right[-2] is not None:
        follower.sizes.equate(left[-1], right[-2])
    common = follower.common([first, second], 3, outputs[0].shape[0]) if first.dim() == 3 else None
    follower.note(outputs[0], (*([common] if first.dim() == 3 else []), left[-2], right[-1]))
    sizes = [*first.shape, second.shape[-1]]
    axes = [*([common] if first.dim() == 3 else []), left[-2], left[-1] or right[-2], right[-1]]
    tracked = [position for position, axis in enumerate(axes) if axis is not None]
    for position in tracked[2:]:
        follower.sizes.fix(axes[position] or (), f"a product of more than two widths in {follower.where()}")
    rest = math.prod(size for position, size in enumerate(sizes) if position not in tracked[:2])
    ends = [axes[position] for position in tracked[:2]]
    out = ends.pop() if ends else None
    follower.call(
        f"{follower.where()}@{len(follower.calls)}", "product", ends[0] if ends else None,
        out or follower.sizes.constant(1, "no width"), positions=rest, owned=False,
    )  # fmt: skip


def _normalization(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    follower.note(outputs[0], follower.axes_of(args[0]))
    over = [tensor for tensor in args[1:] if isinstance(tensor, Tensor) and id(tensor) in follower.owners]
    if function.overloadpacket is aten.native_group_norm:
        channels, dim, groups = args[4], 1, args[6]
    elif function.overloadpacket is aten.native_layer_norm:
        channels, dim, groups = args[0].shape[-1], args[0].dim() - 1, 1
        if len(args[1]) > 1:
            _stopped(follower, function, args, kwargs, outputs)
            return
    else:
        channels, dim, groups = args[0].shape[1], 1, 1
    axis = follower.axes_of(args[0])[dim]
    if axis is None or follower.sizes.size(axis) != channels:
        _stopped(follower, function, args, kwargs, outputs)
        return
    follower.sizes.require(axis, groups)
    if over:
        follower.norm(follower.owner(over[0])[0], axis)


def elementwise(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    """Dimensions of one size, aligned from the last, are of one kind; what changes size is not followed."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    for output in outputs:
        noted: list[Axis | None] = []
        for back in range(output.dim(), 0, -1):
            noted.append(follower.common(tensors, back, output.shape[-back]))
        follower.note(output, tuple(noted))
    for tensor in tensors:
        for d, axis in enumerate(follower.axes.get(id(tensor), ())):
            back = tensor.dim() - d
            sizes = {output.shape[-back] for output in outputs if output.dim() >= back}
            if axis is not None and tensor.shape[d] not in sizes and outputs:
                follower.sizes.fix(axis, f"'{follower.operations[-1].name}' in {follower.where()}")


def _concatenation(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    tensors = [tensor for tensor in args[0] if tensor.numel() or tensor.dim() > 1]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outputs[0].dim()
    noted: list[Axis | None] = []
    for d in range(outputs[0].dim()):
        axes = [follower.axes_of(tensor)[d] for tensor in tensors]
        if d != dim:
            noted.append(follower.common(tensors, outputs[0].dim() - d, outputs[0].shape[d]))
        elif all(axis is None for axis in axes):
            noted.append(None)
        else:
            parts = [
                follower.sizes.constant(tensor.shape[d], "not a number of channels") if axis is None else axis
                for tensor, axis in zip(tensors, axes, strict=True)
            ]
            noted.append(tuple(term for part in parts for term in part))
    follower.note(outputs[0], tuple(noted))


def _split(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given = follower.axes_of(args[0])
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    axis = given[dim]
    lengths = [output.shape[dim] for output in outputs]
    pieces: list[Axis] = [] if axis is None else follower.sizes.cut(axis, lengths)
    if pieces and len(set(lengths)) == 1:
        for piece in pieces[1:]:
            follower.sizes.equate(pieces[0], piece)
    for position, output in enumerate(outputs):
        follower.note(output, tuple(
            axis if d != dim else (pieces[position] if pieces else None) for d, axis in enumerate(given)
        ))  # fmt: skip


def _slice(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given = list(follower.axes_of(args[0]))
    rest: list[Any] = list(args[1:])
    dim, start, _, step = rest + [0, None, None, 1][len(rest) :]
    dim %= args[0].dim()
    length = outputs[0].shape[dim]
    axis = given[dim]
    whole = args[0].shape[dim]
    if axis is not None and length != whole:
        start = start or 0
        first = max(start + whole, 0) if start < 0 else start
        if step == 1:
            given[dim] = follower.sizes.cut(axis, (first, length))[1]
        else:
            follower.sizes.fix(axis, f"a slice with steps in {follower.where()}")
            given[dim] = None
    follower.note(outputs[0], tuple(given))


def _reshape(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given, before, after = follower.axes_of(args[0]), list(args[0].shape), list(outputs[0].shape)
    noted: list[Axis | None] = [None] * len(after)
    for left, right in _blocks(before, after):
        tracked = [d for d in left if given[d] is not None and before[d] > 1]
        wide = [d for d in right if after[d] > 1]
        if not tracked or not wide:
            continue
        axis = given[tracked[0]]
        assert axis is not None
        if len(tracked) == 1 and len(wide) == 1:
            noted[wide[0]] = scaled(axis, Fraction(after[wide[0]], before[tracked[0]]))
        elif len(tracked) == 1 and len(wide) == 2 and len([d for d in left if before[d] > 1]) == 1:
            # Rows of equal length; their number is the smaller of the two and stays.
            rows, kept = sorted(wide, key=lambda d: after[d])
            pieces = follower.sizes.cut(axis, [after[kept]] * after[rows])
            for piece in pieces[1:]:
                follower.sizes.equate(pieces[0], piece)
            noted[kept] = pieces[0]
        else:
            for d in tracked:
                follower.sizes.fix(given[d] or (), f"a reshape in {follower.where()}")
    follower.note(outputs[0], tuple(noted))


def _permutation(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given, dims = follower.axes_of(args[0]), args[0].dim()
    if function.overloadpacket is aten.permute:
        order = [d % dims for d in args[1]]
    elif function.overloadpacket is aten.t:
        order = list(range(dims))[::-1]
    else:
        order = list(range(dims))
        first, second = args[1] % dims, args[2] % dims
        order[first], order[second] = second, first
    follower.note(outputs[0], tuple(given[d] for d in order))


def _unsqueeze(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given = list(follower.axes_of(args[0]))
    given.insert(args[1] % outputs[0].dim(), None)
    follower.note(outputs[0], tuple(given))


def _squeeze(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    image = args[0]
    named = args[1] if len(args) > 1 else list(range(image.dim()))
    dims = {d % image.dim() for d in (named if isinstance(named, list | tuple) else [named])}
    given = follower.axes_of(image)
    follower.note(outputs[0], tuple(
        axis for d, axis in enumerate(given) if not (d in dims and image.shape[d] == 1)
    ))  # fmt: skip


def _select(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    """One dimension is taken away: select, unbind."""
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    given = list(follower.axes_of(args[0]))
    if (axis := given.pop(dim)) is not None:
        follower.sizes.fix(axis, f"'{follower.operations[-1].name}' of channels in {follower.where()}")
    for output in outputs:
        follower.note(output, tuple(given))


def _reduction(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    image = args[0]
    named = args[1] if len(args) > 1 and isinstance(args[1], list | tuple | int) else range(image.dim())
    dims = {d % image.dim() for d in (named if not isinstance(named, int) else [named])}
    given = follower.axes_of(image)
    for output in outputs:
        if output.dim() == image.dim():
            follower.note(output, tuple(None if d in dims else axis for d, axis in enumerate(given)))
        else:
            follower.note(output, tuple(axis for d, axis in enumerate(given) if d not in dims))


def _channel_shuffle(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given = follower.axes_of(args[0])
    if given[1] is not None:
        follower.sizes.require(given[1], args[1])
    follower.note(outputs[0], given)


def _pixel_shuffle(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    given = follower.axes_of(args[0])
    dim = args[0].dim() - 3
    axis = given[dim]
    noted: list[Axis | None] = [None] * outputs[0].dim()
    if axis is not None:
        noted[dim] = scaled(axis, Fraction(outputs[0].shape[dim], args[0].shape[dim]))
    follower.note(outputs[0], tuple(noted))


def _stopped(follower: Follower, function: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    """An operation that cannot be followed: what goes in keeps its size, what comes out is not followed."""
    for axis in follower.operations[-1].axes:
        follower.sizes.fix(axis, f"'{follower.operations[-1].name}' in {follower.where()}")
    for output in outputs:
        follower.axes.pop(id(output), None)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions before and after a reshape that hold the same elements; those of size 1 belong to any run."""
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


RULES: dict[Any, Callable[..., None]] = {
    aten.convolution: _convolution,
    aten.addmm: _linear,
    aten.mm: _linear,
    aten.linear: _linear,
    aten.cat: _concatenation,
    aten.slice: _slice,
    aten.unsqueeze: _unsqueeze,
    aten.unsqueeze_: _unsqueeze,  # in place: what is known of the axes is from before
    aten.squeeze: _squeeze,
    aten.select: _select,
    aten.unbind: _select,
    aten.channel_shuffle: _channel_shuffle,
    aten.native_channel_shuffle: _channel_shuffle,
    aten.pixel_shuffle: _pixel_shuffle,
    aten.pixel_unshuffle: _pixel_shuffle,
    aten.bmm: _product,
    **dict.fromkeys((aten.permute, aten.t, aten.transpose), _permutation),
    **dict.fromkeys(NORMALIZATIONS, _normalization),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(SPLITS, _split),
    **dict.fromkeys(REDUCTIONS, _reduction),
}
