"""Triton's part of `fused`, which alone imports it: kernels that read a map (C, images, rows, columns) in place."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

# Sizes and strides differ from map to map: a kernel is compiled once for all, not for each that 16 divides.
_SIZES = ["channels", "rows", "columns", "positions", "step", "share"]
_STRIDES = ["image_stride", "row_stride", "column_stride", "channel_stride"]


def _compiled(function):
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize=[name for name in arguments if name in _SIZES + _STRIDES])(function)


@_compiled
def shift_kernel(
    samples, shift, rows, columns, positions, step, image_stride, row_stride, column_stride, channel_stride,
    LOOKED_AT: tl.constexpr,
):  # fmt: skip
    """Write the shift of one channel, `moments.shift_of`, from every `step`-th position."""
    channel = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, LOOKED_AT) * step
    inside = place < positions
    row = place // columns
    at = (row // rows).to(tl.int64) * image_stride + (row % rows) * row_stride + (place % columns) * column_stride
    begin = samples + channel * channel_stride
    first = tl.load(begin).to(tl.float32)
    apart = tl.where(inside, tl.load(begin + at, mask=inside, other=0.0).to(tl.float32) - first, 0.0)
    count = tl.sum(inside.to(tl.float32), 0)
    mean = tl.sum(apart, 0) / count
    deviation = tl.sum(tl.where(inside, tl.abs(apart - mean), 0.0), 0) / count
    power = (deviation.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    coarse = power * 3145728.0  # 1.5 · 2²³ / 4
    tl.store(shift + channel, (first + mean + coarse) - coarse)


@triton.jit
def _tile(samples, channel, inside, shift, at, channel_stride, CONTIGUOUS: tl.constexpr):
    """Return samples less their shift, (channels, positions); 0 beyond either."""
    if CONTIGUOUS == 2:
        pointers = samples + channel[:, None] + at[None, :]
    else:
        pointers = samples + channel.to(tl.int64)[:, None] * channel_stride + at[None, :]
    tile = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, tile - shift[:, None], 0.0)


@_compiled
def gram_kernel(
    samples, shift, out, channels, rows, columns, positions, share, image_stride, row_stride, column_stride,
    channel_stride, CONTIGUOUS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """Write the product of two blocks of channels over a share of the positions; on the diagonal their sums as well."""
    i, j, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if j < i:
        return
    left, right = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    left_shift = tl.load(shift + left, mask=left < channels, other=0.0)
    right_shift = tl.load(shift + right, mask=right < channels, other=0.0)
    total = tl.zeros((BLOCK, BLOCK), tl.float64)
    sums = tl.zeros((BLOCK,), tl.float64)
    begin = part * share
    end = tl.minimum(begin + share, positions)
    for slab in range(begin, end, SLAB):
        product = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in range(0, SLAB, STEP):
            place = slab + start + tl.arange(0, STEP)
            row = place // columns
            column = (place % columns).to(tl.int64)
            if CONTIGUOUS != 1:
                column = column * column_stride
            at = (row // rows).to(tl.int64) * image_stride + (row % rows).to(tl.int64) * row_stride + column
            real = (place < end)[None, :]
            a = _tile(samples, left, (left < channels)[:, None] & real, left_shift, at, channel_stride, CONTIGUOUS)
            b = _tile(samples, right, (right < channels)[:, None] & real, right_shift, at, channel_stride, CONTIGUOUS)
            product = tl.dot(a, tl.trans(b), acc=product, input_precision="tf32x3")
            if i == j:
                sums += tl.sum(a, 1).to(tl.float64)
        total += product.to(tl.float64)
    first = out + part.to(tl.int64) * (channels + 1) * channels
    within = (left < channels)[:, None] & (right < channels)[None, :]
    tl.store(first + left.to(tl.int64)[:, None] * channels + right[None, :], total, mask=within)
    if i == j:
        tl.store(first + channels.to(tl.int64) * channels + left, sums, mask=left < channels)
