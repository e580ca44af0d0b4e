"""Widths that a network's code takes only in pairs, fours or eights.

An assertion, or a size that is halved and doubled again, asks of a width what no operation shows. Where a trial fails,
the widths that took part are tried as multiples of eight; where that helps, as multiples of less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from eigendet.channels.record import Record
from eigendet.channels.trial import Fault, suspects

MOST = 8  # what a width is tried as a multiple of
SEVERAL = 4  # widths are tried together


def coarser(record: Record, fault: Fault, trial: Callable[[], Fault | None]) -> Fault | None:
    """Make the widths that take part in a fault multiples of a number, if that makes a trial go further.

    Args:
        record: where it is noted what a width is a multiple of.
        fault: at which the trial ends.
        trial: tries once more.

    Returns:
        The fault that remains, or None; the same if it does not help.
    """
    sizes = record.sizes
    several = ({u for axis in axes for u, _ in sizes.resolve(axis)} for axes in suspects(record, fault))
    unknowns = next(filter(None, (unknowns - sizes.fixed.keys() for unknowns in several)), set())
    multiples = sizes.multiples()
    if len(unknowns) > SEVERAL or all(multiples.get(u, 1) % math.gcd(MOST, sizes.built[u]) == 0 for u in unknowns):
        return fault
    before = sizes.divisors[:]

    def attempt(multiple: int) -> Fault | None:
        sizes.divisors = before + [(((u, Fraction(1)),), math.gcd(multiple, sizes.built[u])) for u in unknowns]
        return trial()

    if not _is_further(attempt(MOST), fault):
        sizes.divisors = before
        return fault
    for multiple in (2, 4, MOST):
        after = attempt(multiple)
        if _is_further(after, fault):
            break
    return after


def _is_further(after: Fault | None, fault: Fault) -> bool:
    return after is None or after.progress > fault.progress
