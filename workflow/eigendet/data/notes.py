"""What a data set was found to hold that may not be meant, counted by ids, as sentences of the check's summary."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from eigendet.errors import some

MOST_LETTERS = 100  # of a text


def shown(value: Any) -> str:
    """Return a value of a user's file for a message, however long it is and whatever it holds.

    >>> shown("a" * 1000)[:3], len(shown("a" * 1000)), shown([1] * 1000)
    ("'aa", 93, '[1, 1, 1, 1, 1, 1, ...]')
    """
    if isinstance(value, str):
        return repr(value if len(value) <= MOST_LETTERS else f"{value[:50]}…{value[-40:]}")
    return reprlib.repr(value)


def printable(path: Path) -> str:
    r"""Return a path for a message, which names with line breaks and escapes would break.

    >>> printable(Path("data/a.png")), printable(Path("a\nb.png"))
    ('data/a.png', "'a\\nb.png'")
    """
    return str(path) if str(path).isprintable() else repr(str(path))


class Notes:
    """Counts of a data set, and sentences on it, each opened by what it is about; threads may count at once.

    >>> notes = Notes("train.json")
    >>> for identity in (3, 1):
    ...     notes.count("boxes of no area dropped", "annotations", identity)
    >>> notes.sentences()
    ['train.json: 2 boxes of no area dropped (annotations id 1, 3)']
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._counted: dict[str, tuple[str, set[int]]] = {}
        self._said: list[str] = []

    def count(self, what: str, kind: str, identity: int) -> None:
        """Count something of a kind, such as `images`, by its id; what was counted already counts once."""
        self._counted.setdefault(what, (kind, set()))[1].add(identity)

    def number(self, what: str) -> int:
        """Return how many of these were counted."""
        return len(self._counted[what][1]) if what in self._counted else 0

    def say(self, sentence: str) -> None:
        """Add a sentence that is not a count."""
        self._said.append(sentence)

    def sentences(self) -> list[str]:
        """Return all, the counts with their first ids."""
        counts = [
            f"{len(ids)} {what} ({kind} id {some([shown(identity) for identity in sorted(ids)])})"
            for what, (kind, ids) in sorted(self._counted.items())
        ]
        return [f"{self._where}: {sentence}" for sentence in [*counts, *self._said]]
