"""The source of functions with all that it uses of this package, so that it runs without it."""

from __future__ import annotations

import ast
import dis
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterator
from functools import cache
from types import CodeType, ModuleType

from eigendet.errors import UserError

PACKAGE = __name__.partition(".")[0]
INSTEAD = {"UserError": "UserError = ValueError"}  # shorter, of what serves the command line
Import = ast.Import | ast.ImportFrom


class Sources:
    """Definitions from this package and its plugins, each after those that it uses, and imports of other packages.

    Marks of plugins are left out, and what annotations alone name.

    Args:
        taken: names that stand for something else where the text is put.

    >>> from eigendet.networks.parts import group_norm
    >>> sources = Sources()
    >>> sources.add(group_norm)
    >>> list(sources.definitions), sorted(sources.imports)
    (['HeadNorm', 'group_norm'], ['from torch import nn', 'import math', 'import torch'])
    """

    def __init__(self, taken: Collection[str] = ()) -> None:
        self.definitions: dict[str, str] = {}  # texts by name
        self.imports: set[str] = set()
        self._origins = dict.fromkeys(taken, "the file that it is written to")  # by name

    def add(self, function: Callable[..., object]) -> None:
        """Add a function that stands at the top of a module.

        Raises:
            UserError: it uses what cannot be taken along.
        """
        self._define(function.__module__, function.__name__)

    def _define(self, module: str, name: str) -> None:
        """Add what a name at the top of a module stands for, unless it is there."""
        statement = _bindings(module)[name]
        if isinstance(statement, Import):
            self._import(module, statement, name)
        elif self._is_new(name, module):
            if name in INSTEAD and module.startswith(f"{PACKAGE}."):
                self.definitions[name] = INSTEAD[name]
                return
            for inside in _own_imports(statement):
                for alias in inside.names:
                    self._import(module, inside, alias.asname or alias.name)
            text = _text(module, statement)
            for used in _globals(text):
                if used in _bindings(module):
                    self._define(module, used)
            self.definitions[name] = text

    def _import(self, module: str, statement: Import, name: str) -> None:
        """Add what an import of a module binds to a name: the import itself, or a definition of this package."""
        alias = next(alias for alias in statement.names if name in (alias.asname, alias.name, alias.name.split(".")[0]))
        text = ast.unparse(statement.__class__(**vars(statement) | {"names": [alias]}))
        if not _is_own(statement):
            if self._is_new(name, text):
                self.imports.add(text)
            return
        source = ""
        if isinstance(statement, ast.ImportFrom) and not statement.level:
            source = statement.module or ""
        value = getattr(importlib.import_module(source), alias.name) if source else None
        if value is None or alias.asname or isinstance(value, ModuleType):
            raise UserError(
                f"{module.removeprefix('eigendet_plugins_')}.py: '{text}' cannot be taken along; expected functions, "
                "classes or constants, by their own names: from eigendet.… import NAME."
            )
        home = str(getattr(value, "__module__", ""))  # where it is handed on from elsewhere
        self._define(home if home.startswith(f"{PACKAGE}.") else source, alias.name)

    def _is_new(self, name: str, origin: str) -> bool:
        """Tell whether a name is new, and raise UserError if it stands for something else already."""
        is_new = name not in self._origins
        earlier = self._origins.setdefault(name, origin)
        if earlier != origin:
            raise UserError(f"{origin}: '{name}' is also a name of {earlier}; in one file they need different ones.")
        return is_new


@cache
def _bindings(module: str) -> dict[str, ast.stmt]:
    """Return the statements at the top of a module by the names that they bind."""
    bindings: dict[str, ast.stmt] = {}
    for statement in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names = [statement.name]
        elif isinstance(statement, Import):
            names = [alias.asname or alias.name.split(".")[0] for alias in statement.names]
        else:
            names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and _is_bound(node)]
        bindings |= dict.fromkeys(names, statement)
    return bindings


def _is_bound(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _is_own(statement: Import) -> bool:
    """Tell whether an import is of this package, or relative."""
    if isinstance(statement, ast.ImportFrom) and statement.level:
        return True
    modules = [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        modules = [statement.module or ""]
    return any(module.partition(".")[0] == PACKAGE for module in modules)


def _own_imports(statement: ast.stmt) -> list[Import]:
    """Return the imports of this package inside a definition."""
    return [node for node in ast.walk(statement) if isinstance(node, Import) and _is_own(node)]


def _text(module: str, statement: ast.stmt) -> str:
    """Return a definition's text, without what only plugins, type checkers and this package read."""
    source = inspect.getsource(sys.modules[module]).encode()
    starts = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]

    def place(line: int | None, column: int | None) -> int:
        return starts[(line or 1) - 1] + (column or 0)

    def extent(node: ast.stmt | ast.expr | ast.arg) -> tuple[int, int]:
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)

    spans = []  # to leave out, of bytes
    fields = [field for node in ast.walk(statement) if isinstance(node, ast.ClassDef) for field in node.body]
    for node in ast.walk(statement):
        if isinstance(node, ast.AnnAssign) and node not in fields:
            whole_lines = starts[node.lineno - 1], starts[node.end_lineno or node.lineno]
            spans.append((extent(node.target)[1], extent(node.annotation)[1]) if node.value else whole_lines)
        elif isinstance(node, ast.arg) and node.annotation is not None:
            end = extent(node.annotation)[1]
            spans.append((extent(node)[0] + len(node.arg.encode()), end))
            if source[end : end + 3] == b" = ":  # before a default
                spans += [(end, end + 1), (end + 2, end + 3)]
        elif isinstance(node, Import) and _is_own(node):
            spans.append((starts[node.lineno - 1], starts[node.end_lineno or node.lineno]))
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            begin, end = extent(node.returns)
            spans.append((len(source[: source.rindex(b"->", 0, begin)].rstrip()), end))
    first = starts[statement.lineno - 1]
    for decorator in getattr(statement, "decorator_list", []):
        begin, end = starts[decorator.lineno - 1], starts[decorator.end_lineno or decorator.lineno]
        first = min(first, begin)
        if _is_mark(module, decorator):
            spans.append((begin, end))
    last = extent(statement)[1]
    kept, position = b"", first
    for begin, end in sorted(spans):
        kept, position = kept + source[position:begin], end
    return re.sub(r"\n{3,}(?= )", "\n\n", (kept + source[position:last]).decode())


def import_lines(imports: Collection[str]) -> list[str]:
    """Return imports in the usual order: Python's own library, a blank line, others; one for each module.

    >>> import_lines({"from torch import nn", "import torch", "from torch import Tensor", "import math"})
    ['import math', '', 'import torch', 'from torch import Tensor, nn']
    """
    names: dict[str, list[str]] = {}
    for line in sorted(imports):
        start, _, name = line.rpartition("import ") if line.startswith("from") else ("", "", line)
        names.setdefault(start or line, []).append(name)
    lines = [f"{start}import {', '.join(own)}" if start != own[0] else start for start, own in names.items()]
    lines.sort(key=lambda line: line.startswith("from"))
    own = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return [*own, *([""] if own else []), *(line for line in lines if line not in own)]


def _is_mark(module: str, decorator: ast.expr) -> bool:
    """Tell whether a decorator is of this package."""
    root = next(node.id for node in ast.walk(decorator) if isinstance(node, ast.Name))
    origin = _bindings(module).get(root)
    return isinstance(origin, Import) and _is_own(origin)


def _globals(text: str) -> list[str]:
    """Return the names that a definition looks up outside itself; annotations are not."""
    code = compile(f"from __future__ import annotations\n{text}", "", "exec", dont_inherit=True)
    loads = (step for part in _parts(code) for step in dis.get_instructions(part))
    return list(dict.fromkeys(step.argval for step in loads if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")))


def _parts(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
