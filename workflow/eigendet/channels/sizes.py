"""Sizes of tensor dimensions as linear forms over unknowns, and the equations between them.

An unknown is a number of channels that someone chose. The size of a dimension is a sum of unknowns with positive
rational factors, in the order in which they lie in memory: a convolution's output is one unknown, a concatenation a sum
of several, the half of a chunk an unknown times 1/2, a flattened map an unknown times its pixels. Where a network needs
two dimensions to be equal, `Sizes.equate` solves for it: unknowns become equal, or multiples of each other, or one
becomes the sum of others. The unknowns that are still free after a forward pass are the network's channel groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

Axis = tuple[tuple[int, Fraction], ...]  # (unknown, factor), in the order of memory


@dataclass
class Sizes:
    """Unknowns with their sizes in the network as built, and what is known of them.

    >>> sizes = Sizes()
    >>> total, left, right = sizes.new("total", 8), sizes.new("left", 3), sizes.new("right", 5)
    >>> sizes.equate(total, left + right)  # a sum of a map with a concatenation
    >>> sizes.resolve(total) == left + right
    True
    """

    built: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    solved: dict[int, Axis] = field(default_factory=dict)  # unknown -> the axis that it equals
    fixed: dict[int, str] = field(default_factory=dict)  # unknown -> why it cannot change
    divisors: list[tuple[Axis, int]] = field(default_factory=list)  # the size of the axis is a multiple of the number

    def copy(self) -> Sizes:
        """Return the same, to go back to."""
        return Sizes(self.built[:], self.names[:], dict(self.solved), dict(self.fixed), self.divisors[:])

    def new(self, name: str, value: int) -> Axis:
        """Return the axis of a new unknown."""
        self.built.append(value)
        self.names.append(name)
        return ((len(self.built) - 1, Fraction(1)),)

    def constant(self, value: int, reason: str) -> Axis:
        """Return the axis of a new unknown that cannot change."""
        axis = self.new("", value)
        self.fixed[axis[0][0]] = reason
        return axis

    def size(self, axis: Axis) -> Fraction:
        """Return the size of an axis in the network as built."""
        return sum((factor * self.built[unknown] for unknown, factor in axis), Fraction(0))

    def resolve(self, axis: Axis) -> Axis:
        """Return the axis over unsolved unknowns; neighbors of the same unknown become one term."""
        terms: list[tuple[int, Fraction]] = []
        for unknown, factor in axis:
            part: Axis = ((unknown, factor),)
            if unknown in self.solved:
                self.solved[unknown] = self.resolve(self.solved[unknown])
                part = times(self.solved[unknown], factor)
            for term in part:
                if terms and terms[-1][0] == term[0]:
                    terms[-1] = (term[0], terms[-1][1] + term[1])
                else:
                    terms.append(term)
        return tuple(terms)

    def equate(self, first: Axis, second: Axis) -> None:
        """Solve for the unknowns so that both axes have one size, term by term from the front.

        Raises:
            ValueError: the axes differ in size in the network as built.
        """
        if self.size(first) != self.size(second):
            raise ValueError(f"sizes {self.size(first)} and {self.size(second)} cannot be equal")
        while True:
            first, second = _without_common_front(self.resolve(first), self.resolve(second))
            if not first:
                return
            short, long = sorted((first[0], second[0]), key=lambda term: self.size((term,)))
            if self.size((short,)) == self.size((long,)):
                # The earlier unknown stays, and with it its name.
                keep, solve = sorted((short, long), key=lambda term: term[0])
                self._solve(solve[0], ((keep[0], keep[1] / solve[1]),))
            else:
                self._divide(long, short)

    def cut(self, axis: Axis, lengths: Iterable[int]) -> list[Axis]:
        """Return the axis in consecutive pieces of these lengths."""
        pieces: list[Axis] = []
        rest = list(self.resolve(axis))
        for length in lengths:
            piece: list[tuple[int, Fraction]] = []
            missing = Fraction(length)
            while missing > 0:
                unknown, factor = rest.pop(0)
                taken = min(factor, missing / self.built[unknown])
                piece.append((unknown, taken))
                missing -= taken * self.built[unknown]
                if taken < factor:
                    rest.insert(0, (unknown, factor - taken))
            pieces.append(tuple(piece))
        return pieces

    def set_apart(self, axis: Axis, lengths: Sequence[int]) -> None:
        """Divide an unknown that is cut into single channels and one run of others: one channel is not a width."""
        (unknown, factor), *more = self.resolve(axis)
        runs = [(single, sum(run)) for single, run in itertools.groupby(lengths, key=lambda length: length == 1)]
        if more or factor != 1 or [single for single, _ in runs].count(False) != 1 or len(runs) == 1:
            return
        parts = (
            self.constant(length, "a single channel") if single else self.new(self.names[unknown], length)
            for single, length in runs
        )
        self._solve(unknown, tuple(term for part in parts for term in part))

    def fix(self, axis: Axis, reason: str) -> None:
        """Keep the size of every unknown of the axis; the first reason stays."""
        for unknown, _ in self.resolve(axis):
            self.fixed.setdefault(unknown, reason)

    def is_fixed(self, axis: Axis) -> bool:
        """Return whether no unknown of the axis may change."""
        return all(unknown in self.fixed for unknown, _ in self.resolve(axis))

    def require(self, axis: Axis, divisor: int) -> None:
        """Require that the size of the axis stays a multiple of `divisor`; a divisor of 1 means whole."""
        self.divisors.append((axis, divisor))

    def requirements(self) -> list[tuple[Axis, int]]:
        """Return what axes over unsolved unknowns must be a multiple of, each once, where anything is required."""
        resolved = ((self.resolve(axis), divisor) for axis, divisor in self.divisors)
        return list(
            dict.fromkeys((axis, n) for axis, n in resolved if any((factor / n).denominator > 1 for _, factor in axis))
        )

    def multiples(self) -> dict[int, int]:
        """Return of what to make each unknown a multiple, so that every sum is a multiple of what it must be."""
        multiples: dict[int, int] = {}
        for axis, divisor in self.requirements():
            for unknown, factor in axis:
                multiples[unknown] = math.lcm(multiples.get(unknown, 1), (factor / divisor).denominator)
        return multiples

    def settle(self) -> None:
        """Fix the unknowns that, as multiples of what they are to be, would not add up with those that are fixed."""
        before = -1
        while before < (before := len(self.fixed)):
            for axis, divisor in self.requirements():
                constant = sum((factor * self.built[u] for u, factor in axis if u in self.fixed), Fraction(0))
                if constant % divisor:
                    self.fix(axis, f"a multiple of {divisor} only together with {constant} channels that stay")

    def _divide(self, long: tuple[int, Fraction], short: tuple[int, Fraction]) -> None:
        """Solve for the unknown of the long term: the short term, then a new unknown for the rest."""
        unknown, factor = long
        rest = self.size((long,)) - self.size((short,))
        # Kept whole: the rest has the unit of the unknown that it is a part of.
        if (rest / factor).denominator == 1:
            value, unit = int(rest / factor), Fraction(1)
        else:
            value, unit = int(rest), 1 / factor
        other = self.new(self.names[unknown], value)
        self._solve(unknown, times((short,), 1 / factor) + times(other, unit))

    def _solve(self, unknown: int, axis: Axis) -> None:
        if (reason := self.fixed.get(unknown)) is not None:
            self.fix(axis, reason)
        self.solved[unknown] = axis


def times(axis: Axis, factor: Fraction | int) -> Axis:
    """Return the axis that is `factor` times as long.

    >>> times(((0, Fraction(1)), (1, Fraction(1, 2))), 4)
    ((0, Fraction(4, 1)), (1, Fraction(2, 1)))
    """
    return tuple((unknown, own * factor) for unknown, own in axis)


def _without_common_front(first: Axis, second: Axis) -> tuple[Axis, Axis]:
    left, right = list(first), list(second)
    while left and right and left[0][0] == right[0][0]:
        unknown, common = left[0][0], min(left[0][1], right[0][1])
        for side in (left, right):
            if side[0][1] == common:
                side.pop(0)
            else:
                side[0] = (unknown, side[0][1] - common)
    return tuple(left), tuple(right)
