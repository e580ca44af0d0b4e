"""The exception for what the user can correct, and the words of its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

# Modules that an extra of this package brings, and which one.
EXTRAS = {
    "altair": "report", "jinja2": "report", "lightning": "lightning", "sklearn": "demo",
    "snakemake": "workflow", "tensorboard": "tensorboard", "timm": "timm", "transformers": "transformers",
    "vl_convert": "report",
}  # fmt: skip


class UserError(Exception):
    r"""A mistake in configuration, data or use.

    The message names the file, key or id, the value found, and what would be accepted. The command line prints it
    without a traceback and exits with status 1. What cannot be printed is escaped.

    Args:
        lines: one for each mistake.

    Examples:
        >>> print(UserError("a.json: unknown key 'col\nor'"))
        a.json: unknown key 'col\nor'
    """

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(printable(line).replace("\n", r"\n") for line in lines)
        super().__init__(*self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def within(self, where: object) -> UserError:
        """Return the same mistakes, with where they are before each.

        >>> print(UserError("steps: missing").within("a.yaml"))
        a.yaml: steps: missing
        """
        return UserError(*(f"{where}: {line}" for line in self.lines))


def printable(text: str) -> str:
    r"""Return a text in which what cannot be printed is escaped, line breaks apart.

    >>> printable("red \x1b[31m, broken \udc80")
    'red \\x1b[31m, broken \\udc80'
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def unknown(what: str, name: object, choices: Iterable[str]) -> str:
    """Say that a name does not exist, which is nearest, and which do exist; of more than 100 only a few.

    >>> unknown("color", "gren", ["red", "green"])
    "unknown color 'gren'. Did you mean 'green'? Known: green, red."
    """
    names = sorted(choices)
    near = difflib.get_close_matches(str(name), names, n=10)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    if len(names) > 100:
        listed = some([*near, *(other for other in names if other not in near)], limit=10)
    else:
        listed = ", ".join(names) or "none"
    return f"unknown {what} '{name}'.{hint} Known: {listed}."


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first few of many names; the empty name is that of the model itself.

    >>> some(["conv1", "", "fc"], limit=2)
    'conv1, the model itself and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name or "the model itself" for name in names[:limit]) + more


def lacking(modules: Sequence[str]) -> str:
    """Say that modules are not installed, and what installs them: an extra of this package where there is one.

    >>> lacking(["timm"])
    "timm is not installed: pip install 'eigendet[timm]'"
    >>> lacking(["timm", "kornia"])
    "timm and kornia are not installed: pip install 'eigendet[timm]' kornia"
    """
    verb = "is" if len(modules) == 1 else "are"
    packages = dict.fromkeys(f"'eigendet[{EXTRAS[name]}]'" if name in EXTRAS else name for name in modules)
    return f"{' and '.join(modules)} {verb} not installed: pip install {' '.join(packages)}"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, cut to 200 characters, or else its class; it can be printed.

    >>> first_line(ValueError("too wide\nfor this")), first_line(KeyError())
    ('too wide', 'KeyError')
    """
    line = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return line if line.isprintable() else ascii(line)


def kind(value: Any) -> str:
    """Say in few words what a value is.

    >>> kind({"scores": 1, "boxes": 2}), kind([1, 2]), kind("text")
    ('a dict with scores, boxes', 'a list of 2', 'str')
    """
    if type(value).__module__.startswith("torch") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return f"a dict with {some([str(key) for key in value]) if value else 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
