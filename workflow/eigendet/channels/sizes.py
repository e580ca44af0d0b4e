"""Sizes of tensor dimensions as linear forms over unknowns, and the equations between them.

An unknown is a number of channels that someone chose. The size of a dimension is a sum of unknowns with positive
rational factors, in the order in which they lie in memory: a convolution's output is one unknown, a concatenation a sum
of several, the half of a chunk an unknown times 1/2, a flattened map an unknown times its pixels. Where a network needs
two dimensions to be equal, `Sizes.equate` solves for it: unknowns become equal, or multiples of each other, or one
becomes the sum of others. What is left free when the network was followed to its end are its channel groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

Axis = tuple[tuple[int, Fraction], ...]  # (unknown, factor), in the order of memory


@dataclass
class Sizes:
    """Unknowns with their sizes in the network as built, and what is known of them."""

    built: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    solved: dict[int, Axis] = field(default_factory=dict)  # unknown -> what it was found to be
    fixed: dict[int, str] = field(default_factory=dict)  # unknown -> why it cannot change
    divisors: list[tuple[Axis, int]] = field(default_factory=list)  # each term of the axis is a multiple of the number

    def new(self, name: str, value: int) -> Axis:
        """A new unknown, as an axis."""
        self.built.append(value)
        self.names.append(name)
        return ((len(self.built) - 1, Fraction(1)),)

    def constant(self, value: int, reason: str) -> Axis:
        """An unknown that cannot change."""
        axis = self.new("", value)
        self.fixed[axis[0][0]] = reason
        return axis

    def size(self, axis: Axis) -> Fraction:
        """Its size in the network as built."""
        return sum((factor * self.built[unknown] for unknown, factor in axis), Fraction(0))

    def resolve(self, axis: Axis) -> Axis:
        """The axis over unknowns that are still free; neighbors of the same unknown become one term."""
        terms: list[tuple[int, Fraction]] = []
        for unknown, factor in axis:
            if unknown in self.solved:
                found = self.resolve(self.solved[unknown])
                self.solved[unknown] = found
                found = scaled(found, factor)
            else:
                found = ((unknown, factor),)
            for term in found:
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
                rest = self.size((long,)) - self.size((short,))
                unknown, factor = long
                other = self.new(self.names[unknown], 0)
                # Kept whole: the rest has the unit of the unknown that it is a part of.
                self.built[other[0][0]] = int(rest / factor) if (rest / factor).denominator == 1 else int(rest)
                unit = Fraction(1) if (rest / factor).denominator == 1 else 1 / factor
                self._solve(unknown, (*scaled((short,), 1 / factor), (other[0][0], unit)))

    def cut(self, axis: Axis, lengths: Iterable[int]) -> list[Axis]:
        """The axis in consecutive pieces of these lengths."""
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

    def fix(self, axis: Axis, reason: str) -> None:
        """Every unknown of the axis keeps its size; the first reason stays."""
        for unknown, _ in self.resolve(axis):
            self.fixed.setdefault(unknown, reason)

    def require(self, axis: Axis, divisor: int) -> None:
        """Every term of the axis stays a multiple of `divisor`; of 1, that is whole."""
        self.divisors.append((axis, divisor))

    def multiples(self) -> dict[int, int]:
        """Of every free unknown that something is required of, what it must be a multiple of."""
        found: dict[int, int] = {}
        for axis, divisor in self.divisors:
            for unknown, factor in self.resolve(axis):
                found[unknown] = math.lcm(found.get(unknown, 1), (factor / divisor).denominator)
        return found

    def _solve(self, unknown: int, axis: Axis) -> None:
        if (reason := self.fixed.get(unknown)) is not None:
            self.fix(axis, reason)
        self.solved[unknown] = axis


def scaled(axis: Axis, factor: Fraction | int) -> Axis:
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
