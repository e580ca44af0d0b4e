"""YAML of plain values, such as JSON has: what else YAML can say is refused, with its line.

Nothing is built before it was looked at: a nesting too deep for the reader, written out or by names for parts
(anchors), ends the process, and a few lines of such names stand for more than any memory holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eigendet.errors import UserError, first_line

BYTES, DEPTH, NODES, LARGEST = 1_000_000, 50, 100_000, 2**63 - 1
PLAIN = {"map", "seq", "str", "int", "float", "bool", "null", "merge"}


def read_yaml(path: Path) -> Any:
    """Return the parsed YAML of a configuration file.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or holds more than plain values.
    """
    try:
        with path.open("rb") as file:
            content = file.read(BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a configuration file.") from None
    if len(content) > BYTES:
        raise UserError(f"{path}: larger than {BYTES // 1_000_000} MB; expected a configuration file.")
    try:
        return parse_yaml(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def parse_yaml(content: bytes | str) -> Any:
    r"""Return the plain values of YAML.

    Raises:
        ValueError: it is not YAML, or holds more than plain values; the message gives the line.

    Examples:
        >>> parse_yaml("{depth: 18, norm: batch}")
        {'depth': 18, 'norm': 'batch'}
        >>> parse_yaml("steps: 3\nsteps: 4")
        Traceback (most recent call last):
        ...
        ValueError: line 2: the key 'steps' stands twice; expected each once
    """
    import yaml  # here, so that commands without a configuration need not wait for it

    loader_class: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster in C
    try:
        depth = 0
        for event in yaml.parse(content, loader_class):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise _wrong(event, f"nested more than {DEPTH} deep")
        loader = loader_class(content)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"not YAML: {first_line(ValueError(' '.join(str(error).split())))}") from None


def _check(root: Any) -> None:
    """Check all nodes of a document.

    Raises:
        ValueError: one is no plain value, or stands for too many.
    """
    sizes: dict[int, tuple[int, int]] = {}  # values that a node stands for, and how deep they are nested
    above: set[int] = set()

    def size_of(node: Any) -> tuple[int, int]:
        if id(node) in above:
            raise _wrong(node, "a part that holds itself")
        if id(node) not in sizes:
            _check_node(node)
            above.add(id(node))
            parts = [size_of(part) for part in _parts(node)]
            above.remove(id(node))
            count, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
            if count > NODES:
                raise _wrong(node, f"more than {NODES:,} values, with those that names stand for")
            if depth > DEPTH:
                raise _wrong(node, f"nested more than {DEPTH} deep")
            sizes[id(node)] = count, depth
        return sizes[id(node)]

    size_of(root)


def _parts(node: Any) -> Iterator[Any]:
    if node.id == "sequence":
        yield from node.value
    elif node.id == "mapping":
        for key, value in node.value:
            yield key
            yield value


def _check_node(node: Any) -> None:
    """Raise ValueError unless a node by itself is a plain value."""
    tag = str(node.tag).rpartition(":")[2]
    if not str(node.tag).startswith("tag:yaml.org,2002:") or tag not in PLAIN:
        raise _wrong(node, f"a value of type {str(node.tag)[:40]!r}; write a text in quotes")
    if tag in ("int", "float"):
        _check_number(node, tag)
    names = set()
    for key, _ in node.value if node.id == "mapping" else ():
        if str(key.tag).rpartition(":")[2] not in ("str", "int", "merge"):
            raise _wrong(key, f"a key of type {str(key.tag)[-40:]!r}; expected a text, perhaps in quotes")
        if (key.tag, key.value) in names:
            raise _wrong(key, f"the key {key.value[:40]!r} stands twice; expected each once")
        names.add((key.tag, key.value))


def _check_number(node: Any, tag: str) -> None:
    """Raise ValueError unless a number is finite, and an integer one that 64 bits hold."""
    import yaml

    try:
        value = getattr(yaml.SafeLoader(""), f"construct_yaml_{tag}")(node)
        fits = math.isfinite(value) and (tag == "float" or abs(value) <= LARGEST)
    except (ValueError, OverflowError, IndexError):
        fits = False
    if not fits:
        raise _wrong(node, f"the number {str(node.value)[:40]!r}; expected a finite one, an integer of at most 64 bits")


def _wrong(node: Any, what: str) -> ValueError:
    return ValueError(f"line {node.start_mark.line + 1}: {what}")
