"""The one exception that means: the user can mend this."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(Exception):
    """A mistake in configuration, data or use.

    The message names the file, key or id, the value found, and what would be accepted. The command line prints it
    without a traceback and exits with status 1.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Sentence for a name that does not exist: the nearest, then all of them, or of very many those that are near."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=10)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    if len(names) > 100:
        listed = some([*near, *(other for other in names if other not in near)], limit=10)
    else:
        listed = ", ".join(names) or "none"
    return f"unknown {kind} '{name}'.{hint} Known: {listed}."


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names; the empty one is of the model itself."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name or "the model itself" for name in names[:limit]) + more


def kind(value: Any) -> str:
    """Say in few words what a value is."""
    if hasattr(value, "dtype") and type(value).__module__.startswith("torch"):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return f"a dict with {some([str(key) for key in value]) if value else 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
