"""What becomes of an axis that is split or merged with others: one of what `operations` follows.

The dimensions that a reshape makes do not say which of them varies with the channels that go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

from eigendet.channels.arguments import Arguments
from eigendet.channels.record import Record
from eigendet.channels.sizes import Axis, times


def reshape(record: Record, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Follow dimensions that are merged or split: where several are mixed, the longest is what may vary."""
    axes = record.axes_of(arguments["self"])
    before, after = list(arguments["self"].shape), list(outputs[0].shape)
    noted: list[Axis | None] = [None] * len(after)
    for left, right in _blocks(before, after):
        long = [d for d in left if before[d] > 1]
        wide = [d for d in right if after[d] > 1]
        tracked = {d: axis for d in long if (axis := axes[d]) is not None}
        if not tracked or not wide:
            continue
        # Of several that are mixed one can vary, the longest.
        source, axis = max(tracked.items(), key=lambda one: (before[one[0]], one[0]))
        for other in tracked.keys() - {source}:
            record.sizes.fix(tracked[other], f"a reshape in {record.where()}")
        factors = {d: Fraction(after[d], before[source]) for d in wide}
        varying = _varying(
            axis, {d: factor for d, factor in factors.items() if not _is_multiplier(axis, after[d])} or factors
        )
        factor = factors[varying]
        whole = factor.numerator > 1 or len(long) > 1
        noted[varying] = times(axis, factor) if whole else part(record, axis, factor.denominator)
    record.note(outputs[0], tuple(noted))


def part(record: Record, axis: Axis, count: int) -> Axis:
    """Return one of equal parts of an axis: of parts side by side each, which are then tied, or else of their sum."""
    terms = record.sizes.resolve(axis)
    pieces = record.sizes.cut(axis, [int(record.sizes.size(axis)) // count] * count)
    if count == 1 or tuple(term for piece in pieces for term in piece) != terms:
        return times(axis, Fraction(1, count))
    for piece in pieces[1:]:
        record.sizes.equate(pieces[0], piece)
    return pieces[0]


def _is_multiplier(axis: Axis, size: int) -> bool:
    """Return whether an axis is this many times as long as its channels are: of neighborhoods that became channels."""
    return size > 1 and all(factor == size for _, factor in axis)


def _varying(axis: Axis, factors: dict[int, Fraction]) -> int:
    """Return which dimension varies with an axis that is split: the others are numbers that the network has.

    It is one that had been multiplied, if there is any; else the largest, and of those of one size the last.
    """
    multiplied = [d for d, factor in factors.items() if all((own * factor).denominator == 1 for _, own in axis)]
    return min(multiplied, key=factors.__getitem__) if multiplied else max(factors, key=lambda d: (factors[d], d))


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
