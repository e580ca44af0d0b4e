"""Put numbers into words so that rounding and grammar say nothing that the numbers do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

NAMED = 3  # in a sentence
LEVEL = 0.05  # p-values up to it are called findings


def told_apart(first: float, second: float, digits: int) -> tuple[str, str]:
    """Return two numbers with so many decimals, or as many more as it takes to tell them apart where they differ.

    >>> told_apart(40.04, 39.96, digits=1), told_apart(2.0, 2.0, digits=1)
    (('40.04', '39.96'), ('2.0', '2.0'))
    """
    if first == second or not math.isfinite(first - second):
        return f"{first:.{digits}f}", f"{second:.{digits}f}"
    for decimals in range(digits, 16):
        texts = f"{first:.{decimals}f}", f"{second:.{decimals}f}"
        if texts[0] != texts[1]:
            return texts
    return f"{first:.{digits}f}", f"{second:.{digits}f}"  # but for rounding they are equal


def share(value: float, digits: int = 2) -> str:
    """Return a share with so many decimals, more where it would be rounded to all or to nothing.

    >>> share(0.4567), share(0.9996), share(1.0), share(0.0004)
    ('0.46', '0.9996', '1.00', '0.0004')
    """
    whole = float(round(value)) if math.isfinite(value) else value
    return told_apart(value, whole, digits)[0]


def as_p(p: float) -> str:
    """Return a p-value with two digits, more where it would be rounded down to the level of a finding.

    >>> as_p(0.0286), as_p(0.0504), as_p(0.05)
    ('0.029', '0.0504', '0.05')
    """
    for digits in range(2, 16):
        text = f"{p:.{digits}g}"
        if p <= LEVEL or float(text) > LEVEL:
            return text
    return f"{p:.2g}"


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts.

    >>> counted(1, "layer"), counted(0, "layer")
    ('1 layer', '0 layers')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def foremost(names: Sequence[str], values: Sequence[float], extreme: str, around: str = "") -> str:
    """Return the first few of ordered names for the end of a clause; as the extreme only if no tie says otherwise.

    Args:
        names: in order; all are listed if they are few.
        values: by which they are ordered.
        extreme: what the first ones are, in words.
        around: "()" to put them in brackets.

    >>> foremost(["a", "b"], [9.0, 7.0], "most of all"), foremost([], [], "most of all")
    (': a, b', '')
    >>> foremost(["a", "b", "c", "d"], [9.0, 7.0, 5.0, 1.0], "most of all", "()")
    ' (most of all a, b, c)'
    >>> foremost(["a", "b", "c", "d"], [9.0, 7.0, 5.0, 5.0], "most of all")
    ', among them a, b, c'
    """
    if not names:
        return ""
    words = ""
    if len(names) > NAMED:
        words = f"{extreme if values[NAMED - 1] != values[NAMED] else 'among them'} "
    text = words + ", ".join(names[:NAMED])
    if around:
        return f" {around[0]}{text}{around[1]}"
    return f"{', ' if words else ': '}{text}"


def verdict(p: float, smallest: float, different: str, not_different: str, pairs: int = 1) -> str:
    """Say what a test finds, and where it can find nothing, why.

    >>> verdict(0.01, 0.002, "a difference", "a difference is not shown")
    'a difference (test over runs, p = 0.01)'
    """
    if smallest > LEVEL:
        return too_few(smallest, pairs, p)
    if p <= LEVEL:
        return f"{different} (test over runs, p = {as_p(p)})"
    return f"{not_different} (p = {as_p(p)})"


def too_few(smallest: float, pairs: int = 1, p: float | None = None) -> str:
    """Say that runs are too few for a test to find anything, and what they allow.

    >>> too_few(1 / 3)
    'with so few seeds no difference can be established (the smallest p that they allow is 0.33, and 0.05 is asked)'
    """
    beside = f" for {pairs} pairs of arms" if pairs > 1 else ""
    allowed = (
        f"the smallest p that they allow is {as_p(smallest)}"
        if p is None
        else (f"p = {as_p(p)}; the smallest that they allow is {as_p(smallest)}")
    )
    return f"with so few seeds{beside} no difference can be established ({allowed}, and {LEVEL} is asked)"
