"""Changes of plain values that stay plain values, so that what is fuzzed gets past the parser."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, -0.0, 1e-300, 1e308, 0.5, float("nan"), float("inf"), "", " ",
    "\0", "\x1b[31m", "a\nb", "\ud800", "..", "/", "é", "1", "nan", [], {}, [[]], {"": None}, "x" * 5000,
]  # fmt: skip


def changed(plain: Any, source: random.Random) -> Any:
    """Return a copy with one to three values replaced, removed, doubled, moved or renamed."""
    plain = copy.deepcopy(plain)
    for _ in range(source.randint(1, 3)):
        places = list(_places(plain))
        if not places:
            return source.choice(STRANGE)
        holder, key = source.choice(places)
        match source.randrange(6):
            case 0 | 1:
                holder[key] = copy.deepcopy(source.choice(STRANGE))
            case 2:
                del holder[key]
            case 3:
                other, place = source.choice(places)
                holder[key] = copy.deepcopy(other[place]) if place in _keys(other) else None
            case 4 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 4:
                holder[str(source.choice(STRANGE))] = holder.pop(key)
            case 5 if isinstance(holder[key], int | float):
                holder[key] = source.choice([-1, 2, 10**6]) * holder[key] + source.choice([0, 1, -1])
            case _:
                holder[key] = [holder[key]]
    return plain


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every list and object with each index or key in it."""
    for key in _keys(plain):
        yield plain, key
        yield from _places(plain[key])


def _keys(plain: Any) -> list[Any]:
    return list(plain) if isinstance(plain, dict) else list(range(len(plain))) if isinstance(plain, list) else []
