"""Files of tensors and plain values that this package writes: each has a digest beside it, which is checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from eigendet.errors import UserError, first_line, kind
from eigendet.files import Plain, check_digest, replacing


def save(path: Path, content: Any) -> None:
    """Write tensors and plain values, whole or not at all, and a digest beside them."""
    with (
        replacing(path, digest=True) as temporary,
        temporary.open("wb") as file,
    ):  # torch's own files hide why they fail
        torch.save(content, file)


def load(path: Path, keys: set[str], what: str, remedy: str) -> Plain:
    """Read what `save` wrote.

    Args:
        path: the file.
        keys: those that it has.
        what: what was expected there, for messages.
        remedy: what makes it anew, likewise.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what}.")
    check_digest(path, remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers raise
        raise UserError(
            f"{path}: cannot be loaded ({first_line(error)}); expected {what} of tensors and plain values: {remedy}."
        ) from None
    if not isinstance(content, dict) or not keys <= content.keys():
        raise UserError(f"{path}: holds {kind(content)}; expected {what} with {', '.join(sorted(keys))}: {remedy}.")
    return content
