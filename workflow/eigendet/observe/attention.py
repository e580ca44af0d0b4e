"""Run torch's attention by its modules, where hooks see what is inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_fast_paths: list[bool] = []  # as it was before the first of the taps that are open, once for each of these


@contextlib.contextmanager
def by_modules() -> Iterator[None]:
    """Keep torch's attention in evaluation from running as one function, which has no modules inside.

    Taps may close in any order; with the last of them the setting comes back.
    """
    _fast_paths.append(_fast_paths[0] if _fast_paths else torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        before = _fast_paths.pop()
        if not _fast_paths:
            torch.backends.mha.set_fastpath_enabled(before)
