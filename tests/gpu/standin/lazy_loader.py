"""A stand-in for the package lazy-loader. child.py puts this folder on the path where that one is missing."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package whose names stand in the stub beside its file."""
    statements = ast.parse(Path(file).with_suffix(".pyi").read_text()).body
    imports = [statement for statement in statements if isinstance(statement, ast.ImportFrom) and statement.level == 1]
    homes = {alias.name: f"{package}.{statement.module}" for statement in imports for alias in statement.names}

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(
            sys.modules[package], name, value
        )  # from now on it is found without asking, before a module of its name
        return value

    return attribute, lambda: sorted(homes), sorted(homes)
