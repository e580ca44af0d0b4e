"""How far a benchmark is, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def watched(items: Collection[Item], job: str) -> Iterator[Item]:
    """Yield the items, and say which of them is under way, in one line that changes."""
    for number, item in enumerate(items, start=1):
        end = "\n" if number == len(items) else ""
        print(f"\r{job}: {number} of {len(items)}", end=end, file=sys.stderr, flush=True)
        yield item
