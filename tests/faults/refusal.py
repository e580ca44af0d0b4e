"""What a refusal must be, whatever is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eigendet.errors import UserError

LONGEST = 600  # characters, a path apart


@contextmanager
def refused(file: Path | str, *saying: str) -> Iterator[None]:
    """Check that the block is refused in one readable line that names `file` and says all of `saying`, as patterns."""
    with pytest.raises(UserError) as caught:
        yield
    check_refusal(str(caught.value), file, *saying)


def check_refusal(message: str, file: Path | str, *saying: str) -> None:
    """Check a message: one line that can be printed, names `file`, and says all of `saying`, as patterns."""
    assert message.strip() == message and message.isprintable(), f"not one printable line: {message!r}"
    assert str(file) in message, f"does not name {file}: {message}"
    assert len(message.replace(str(file), "")) <= LONGEST, f"too long: {message}"
    for pattern in saying:
        assert re.search(pattern, message), f"does not say {pattern!r}: {message}"


def one_line_or_nothing(read: Callable[[], object]) -> str:
    """Return the message in which `read` refuses, a readable line; '' if it accepts."""
    message = lines_or_nothing(read)
    assert "\n" not in message, f"not one line: {message!r}"
    return message


def lines_or_nothing(read: Callable[[], object]) -> str:
    """Return the message in which `read` refuses, a readable line for each mistake; '' if it accepts."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert message.replace("\n", "").isprintable(), f"cannot be printed: {message!r}"
        return message
    return ""
