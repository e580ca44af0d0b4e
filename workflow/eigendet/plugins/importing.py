"""Import a plugin's function, and name its file and line where its code fails."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from eigendet.errors import UserError
from eigendet.plugins.discovery import Plugin


def load_plugin(plugin: Plugin) -> Callable[..., Any]:
    """Import a plugin and return its function.

    Raises:
        UserError: the plugin is not available, cannot be imported, or is not a function.
    """
    keep_old_names()
    if plugin.unavailable:
        raise UserError(f"{plugin} is not available: {plugin.unavailable}")
    try:
        if plugin.entry_point is not None:
            loaded = plugin.entry_point.load()
        else:
            assert plugin.file is not None
            loaded = getattr(_import(plugin.file), plugin.name)
    except (Exception, SystemExit) as error:  # whatever a plugin's own code raises
        raise UserError(f"{plugin} cannot be loaded{_place(plugin, error)}: {_reason(error)}") from None
    if not inspect.isfunction(loaded):
        raise UserError(f"{plugin}: is {type(loaded).__name__}; expected a function.")
    function: Callable[..., Any] = loaded
    return function


# Where plugins that were written for version 0.1 find what they import.
MOVED = {
    "eigendet.coco": "eigendet.data.coco", "eigendet.datasets": "eigendet.data.datasets",
    "eigendet.norms": "eigendet.networks.norms", "eigendet.parts": "eigendet.networks.parts",
}  # fmt: skip


def keep_old_names() -> None:
    """Let modules be imported by their names of version 0.1; each is loaded once something of it is used."""
    for old, new in MOVED.items():
        module = types.ModuleType(old, f"{new}, by the name that it had in version 0.1.")
        module.__getattr__ = partial(_from, new)  # type: ignore[method-assign]
        sys.modules.setdefault(old, module)


def _from(module: str, name: str) -> Any:
    if name.startswith("__"):  # asked for by the import system, not by a plugin
        raise AttributeError(name)
    return getattr(importlib.import_module(module), name)


@cache
def _import(file: Path) -> Any:
    name = f"eigendet_plugins_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data sets are pickled to the processes that load data
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def failures_named(*plugins: Plugin) -> Iterator[None]:
    """Turn what a plugin's own code raises into a UserError that names its file and line.

    Of several plugins it names the one whose code was running last; the first, if none was.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever it raises
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        by_file = {str(plugin.file): plugin for plugin in plugins}
        plugin = next((by_file[file] for file in reversed(frames) if file in by_file), plugins[0])
        raise UserError(f"{plugin} fails{_place(plugin, error)}: {_reason(error)}") from error


def _place(plugin: Plugin, error: BaseException) -> str:
    """Return the last line of the plugin's own file that was running, in words."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(plugin.file)]
    return f" at line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'without a message').splitlines()[0]}"
