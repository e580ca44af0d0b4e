"""The options of a plugin: what each accepts, read from the parameters of its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, DirectoryPath, FilePath, create_model

from eigendet.config.sections import BackboneChoice, PluginChoice, Section
from eigendet.errors import UserError
from eigendet.plugins.discovery import Kind, Plugin
from eigendet.plugins.importing import load

ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "backbone": (), "detector": ("backbone", "classes", "size"), "dataset": (), "rule": ("values",),
}  # fmt: skip
# Keys that stand beside a plugin's options in a configuration.
RESERVED: dict[Kind, set[str]] = {
    kind: set((BackboneChoice if kind == "backbone" else PluginChoice).model_fields) for kind in ARGUMENTS
}


class Options(Section):
    """The options of a plugin, as a class."""


def options_of(plugin: Plugin, paths: bool = False) -> type[BaseModel]:
    """The class of a plugin's options; `paths`: whether files and folders among them must exist."""
    function = load(plugin)
    try:
        return _options_model(plugin, function, paths)
    except UserError:
        raise
    except Exception as error:  # whatever an annotation raises
        reason = str(error).splitlines()[0]
        raise UserError(f"{plugin}: an option has no usable type: {reason}") from None


def _options_model(plugin: Plugin, function: Callable[..., Any], paths: bool) -> type[BaseModel]:
    """The keyword-only parameters of a plugin as a pydantic model, or the class that it names for its options."""
    parameters = inspect.signature(function).parameters.values()
    given = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wanted = ARGUMENTS[plugin.kind]
    if len(given) != len(wanted):
        raise UserError(
            f"{plugin}: takes ({', '.join(given)}); expected ({', '.join([*wanted, '*'])}), and options after the star."
        )
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    accepted: dict[str, Any] = {}
    for name, parameter in options.items():
        if parameter.annotation is parameter.empty:
            raise UserError(f"{plugin}: the option '{name}' has no annotation; give the type of what it accepts.")
        text = isinstance(parameter.annotation, str)
        accepted[name] = eval(parameter.annotation, function.__globals__) if text else parameter.annotation
    classes = [value for value in accepted.values() if inspect.isclass(value) and issubclass(value, Options)]
    if classes and list(options) != ["options"]:
        raise UserError(
            f"{plugin}: takes {', '.join(options)}; a class of options stands alone, and is named `options`."
        )
    taken = RESERVED[plugin.kind].intersection(classes[0].model_fields if classes else options)
    if taken:
        raise UserError(f"{plugin}: the option '{min(taken)}' is a key of every {plugin.kind} already; rename it.")
    if classes:
        return classes[0]
    fields: dict[str, Any] = {}
    for name, annotation in accepted.items():
        kind = Path if not paths and annotation in (FilePath, DirectoryPath) else annotation
        default = options[name].default
        fields[name] = kind, ... if default is inspect.Parameter.empty else default
    return create_model("Options", __base__=Section, **fields)
