"""The library stays readable by its measures: few rooms, short files, short functions, typed records."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIBRARY = ROOT / "workflow/eigendet"
SOURCES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "plugins").glob("*.py"), *(ROOT / "workflow").rglob("*.smk")])
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, UNTYPED_RECORDS = 400, 60, 14


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the lines of every function of a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LINES_OF_A_FILE
    if file.suffix == ".py":
        assert {name: lines for name, lines in functions(file) if lines > LINES_OF_A_FUNCTION} == {}


def test_there_are_at_most_fourteen_packages_on_four_modules_of_ground() -> None:
    rooms = {path.stem for path in LIBRARY.iterdir() if not path.name.startswith(("_", "."))} - {"py"}
    ground = {"errors", "files", "processes", "progress"}
    assert ground <= rooms and len(rooms - ground) == 14


def test_what_crosses_a_border_has_a_type() -> None:
    text = "".join(file.read_text() for file in LIBRARY.rglob("*.py"))
    assert text.count("dict[str, Any]") <= UNTYPED_RECORDS
