"""Find out which plugins there are from their files, without importing anything.

A plugin is a function marked with the name of its kind, in a file of a plugin folder, or the entry point of an
installed package; `plugins` says what each kind must do. Files are parsed, not run, so that a broken or heavy plugin
does not affect the others, and a list of all takes no time. The first line of the docstring is the summary. A plugin is
unavailable if a package that its file imports is not installed; imports inside `try` and `if TYPE_CHECKING` do not
count. A file may say how to get what it lacks: `INSTALL = "pip install …"`.
"""

from __future__ import annotations

import ast
import filecmp
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from eigendet.errors import UserError, lacking, unknown

Kind = Literal["backbone", "detector", "dataset", "rule", "allocator"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_further: list[Path] = []  # folders that the configuration names


@dataclass(frozen=True)
class Plugin:
    """A plugin, as its file or its package's metadata describe it."""

    kind: Kind
    name: str
    file: Path | None  # None where a package's file cannot be found without importing it
    line: int = 1
    summary: str = ""
    unavailable: str = ""  # why, in a line
    entry_point: EntryPoint | None = None

    @property
    def origin(self) -> str:
        """Where it stands: file and line, and the package if it comes from one."""
        place = f"{from_here(self.file)}:{self.line}" if self.file else ""
        if self.entry_point is None:
            return place
        package = f"package {self.entry_point.dist.name}" if self.entry_point.dist else "a package"
        return f"{package}, {place or self.entry_point.value}"

    @property
    def version(self) -> str:
        """The package's version; of a file by itself, eight characters that stand for its content."""
        if self.entry_point is not None:
            return self.entry_point.dist.version if self.entry_point.dist else "unknown"
        assert self.file is not None
        return hashlib.sha256(self.file.read_bytes()).hexdigest()[:8]

    def __str__(self) -> str:
        return f"{self.kind} plugin '{self.name}' ({self.origin})"


def from_here(file: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def search(folders: Sequence[str | Path]) -> None:
    """Look in these folders too, from now on in this process.

    Raises:
        UserError: one is not a folder.
    """
    for folder in (Path(folder).expanduser() for folder in folders):
        if not folder.is_dir():
            raise UserError(f"plugins: '{folder}' is not a folder; expected one with Python files of plugins.")
        _further.append(folder.resolve())


def folders() -> list[Path]:
    """Return `plugins/` of the working directory, that of the shipped plugins, and the folders given to `search`."""
    here = Path.cwd() / "plugins"
    return [folder for folder in dict.fromkeys([here.resolve(), shipped(), *_further]) if folder.is_dir()]


def shipped() -> Path:
    """Return the folder of the shipped plugins: within an installed package, or at the top of a checkout."""
    installed = Path(__file__).with_name("shipped")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "plugins"


def everything() -> list[Plugin]:
    """Return all plugins, sorted by kind and name; several may share a name."""
    plugins = [plugin for kind in KINDS for plugin in (*_in_folders(kind), *_installed(kind))]
    return sorted(plugins, key=lambda plugin: (KINDS.index(plugin.kind), plugin.name))


def discover(kind: Kind) -> dict[str, Plugin]:
    """Return all plugins of one kind, by name.

    Raises:
        UserError: two plugins have one name.

    >>> sorted(discover("rule"))[:3]
    ['absolute', 'dof', 'effective_rank']
    """
    plugins: dict[str, Plugin] = {}
    for plugin in (*_in_folders(kind), *_installed(kind)):
        if plugin.name in plugins:
            raise UserError(same_name(plugins[plugin.name], plugin))
        plugins[plugin.name] = plugin
    return plugins


def same_name(one: Plugin, other: Plugin) -> str:
    """Say where two plugins of one name stand."""
    return f"two {one.kind} plugins are named '{one.name}': {one.origin} and {other.origin}. Rename one of them."


def find(kind: Kind, name: str) -> Plugin:
    """Return the plugin of that name.

    Raises:
        UserError: there is none; the message lists those with similar names, and files that cannot be read.

    >>> find("rule", "dof").kind
    'rule'
    """
    plugins = discover(kind)
    if name not in plugins:
        raise UserError(" ".join([unknown(f"{kind} plugin", name, plugins), *unmarked(kind, name), *broken()]))
    return plugins[name]


def unmarked(kind: Kind, name: str) -> list[str]:
    """Return a sentence for every file that has something of that name which is not a plugin of the kind."""
    sources = {file: _read(file, file.stat().st_mtime_ns) for file in _files()}
    return [
        f"{file} has '{name}', but not as a function marked with @{kind} from eigendet.plugins."
        for file, source in sources.items()
        if name in source.names and kind not in source.functions.get(name, (0, "", ()))[2]
    ]


def broken() -> list[str]:
    """Return a sentence for every file that is not Python, whose plugins are therefore unknown."""
    return [fault for file in _files() if (fault := _read(file, file.stat().st_mtime_ns).fault)]


@dataclass(frozen=True)
class _Source:
    """What a file holds: line, summary and marks of each function, what it imports, and how that is installed."""

    functions: dict[str, tuple[int, str, tuple[str, ...]]]
    names: frozenset[str] = frozenset()  # whatever is defined or imported at its top level
    imports: tuple[str, ...] = ()
    install: str = ""
    fault: str = ""
    beside: str = ""  # another file of the folder that it imports

    @property
    def unavailable(self) -> str:
        """Why a file of a plugin folder cannot be used; unlike it, a package's may import what stands beside it."""
        if self.beside:
            return f"it imports {self.beside} from beside it, but stands alone: make a package of the two"
        return self.lacking

    @property
    def lacking(self) -> str:
        """What it imports that is not installed."""
        absent = [name for name in self.imports if name != "." and not _is_installed(name)]
        if not absent:
            return ""
        fault = lacking(absent)
        return f"{fault.partition(':')[0]}: {self.install}" if self.install else fault


def _files() -> Iterator[Path]:
    """Yield the files of all folders; of copies, as of the shipped ones in a checkout that is not installed, one."""
    listed: dict[str, list[Path]] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.py")):
            namesakes = listed.setdefault(file.name, [])
            if not any(filecmp.cmp(file, other, shallow=False) for other in namesakes):
                namesakes.append(file)
                yield file


def _in_folders(kind: Kind) -> Iterator[Plugin]:
    for file in _files():
        source = _read(file, file.stat().st_mtime_ns)
        for name, (line, summary, marks) in source.functions.items():
            if kind in marks:
                yield Plugin(kind, name, file, line, summary, source.unavailable)


@cache
def _entry_points(path: tuple[str, ...]) -> Any:
    """Return those of all packages, which takes 40 ms; the path is an argument so that another path is seen."""
    return entry_points()


def _installed(kind: Kind) -> Iterator[Plugin]:
    for point in _entry_points(tuple(sys.path)).select(group=f"eigendet.{kind}s"):
        file = _file_of(point.module)
        if file is None:
            hidden = "." in point.module and _is_installed(point.module.partition(".")[0])  # compiled, or zipped
            fault = "" if hidden else f"there is no module '{point.module}'"
            yield Plugin(kind, point.name, None, unavailable=fault, entry_point=point)
            continue
        source = _read(file, file.stat().st_mtime_ns)
        line, summary, _ = source.functions.get(point.attr, (1, "", ()))
        absent = "" if point.attr in source.names else f"{file} has no function '{point.attr}'"
        if not point.attr:
            absent = f"its entry point is '{point.value}'; expected module:function"
        yield Plugin(kind, point.name, file, line, summary, source.fault or absent or source.lacking, point)


@cache
def _read(file: Path, changed: int) -> _Source:
    """Read a file by its syntax; the time of its last change is an argument so that an edit is seen."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or str(error)
        return _Source({}, fault=f"{file}, line {line}: not Python ({reason}). Correct the file or move it away.")
    functions = {
        node.name: (node.lineno, (ast.get_docstring(node) or "").split("\n")[0], tuple(_marks(node)))
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    install = next(filter(None, map(_install, tree.body)), "")
    names = frozenset(name for node in tree.body for name in _bound(node))
    imports = tuple(dict.fromkeys(_imports(tree)))
    near = (name for name in imports if name == "." or file.with_name(f"{name}.py").is_file())
    beside = next((name for name in near if name == "." or not _is_installed(name)), "")
    return _Source(functions, names, imports, install, beside=beside)


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement of a file's top level binds, also inside of `if` and `try`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    else:
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _marks(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        mark = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = mark.id if isinstance(mark, ast.Name) else getattr(mark, "attr", None)
        if name in KINDS:
            yield name


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the packages that are imported anywhere in a file, unless that is optional."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield "." if child.level else (child.module or "").partition(".")[0]
        elif not _is_optional(child):
            yield from _imports(child)


def _is_optional(node: ast.AST) -> bool:
    for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    return for_types or isinstance(node, ast.Try)


def _install(node: ast.stmt) -> str:
    """Return the text of `INSTALL = "…"`, if this is that statement."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
        return str(node.value.value) if any(getattr(target, "id", "") == "INSTALL" for target in node.targets) else ""
    return ""


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None  # to Python, None says that there is none
    return _can_be_found(package, tuple(sys.path))


@cache
def _can_be_found(package: str, path: tuple[str, ...]) -> bool:
    """Look on that path, which takes a millisecond; plugins import much the same."""
    return importlib.util.find_spec(package) is not None


def _file_of(module: str) -> Path | None:
    """Find the file of a module of an installed package, without importing the package."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
