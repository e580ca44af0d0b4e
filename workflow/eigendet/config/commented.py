"""Write settings as YAML with a comment above each key that has one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

import yaml

from eigendet.errors import UserError
from eigendet.files import Plain

WIDTH = 100  # of a line of a comment


def commented_yaml(values: Plain, comments: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    r"""Yield lines of YAML.

    Args:
        values: sections of sections and plain values.
        comments: by the path of the key that they stand above, with dots.
        prefix: path of what `values` stand under.

    Raises:
        UserError: a name is not valid Unicode, so that no YAML file can hold it.

    >>> print("\n".join(commented_yaml({"training": {"steps": 500}}, {"training.steps": "20 epochs"})))
    training:
      # 20 epochs
      steps: 500
    """
    indent = "  " * (prefix.count(".") + 1 if prefix else 0)
    for number, (key, value) in enumerate(values.items()):
        path = f"{prefix}.{key}" if prefix else key
        if number and not prefix and isinstance(value, dict):
            yield ""
        if path in comments:
            yield from comment(comments[path], indent)
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from commented_yaml(value, comments, path)
        else:
            yield f"{indent}{key}: {_plain(value)}"


def comment(text: str, indent: str = "") -> list[str]:
    r"""Return lines of a comment, one or more for every line of the text.

    >>> comment("first\n  second")
    ['# first', '#   second']
    """
    lines = []
    for line in text.splitlines() or [""]:
        printable = "".join(letter if letter.isprintable() else " " for letter in line)
        opening = f"{indent}# "
        hanging = opening + " " * (len(printable) - len(printable.lstrip()))
        lines += textwrap.wrap(
            printable, WIDTH, initial_indent=opening, subsequent_indent=hanging,
            break_long_words=False, break_on_hyphens=False,
        ) or [f"{indent}#"]  # fmt: skip
    return lines


def _plain(value: object) -> str:
    """Return a value on one line."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{value!r}: not valid Unicode, so a configuration cannot name it; rename it.") from None
    style = '"' if isinstance(value, str) and not value.isprintable() else None  # with escapes, so on one line too
    text: str = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=style is None
    )
    return text.removesuffix("...\n").strip()
