"""The one exception that means: the user can mend this."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in configuration, data or use.

    The message names the file, key or id, the value found, and what would be accepted. The command line prints it
    without a traceback and exits with status 1.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Sentence for a name that does not exist: the near ones first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}."
