"""Read from the parameters of a plugin's function which options it has, and what each accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, DirectoryPath, FilePath, create_model

from eigendet.config.sections import BackboneChoice, PluginChoice, Section
from eigendet.errors import UserError
from eigendet.plugins.discovery import Kind, Plugin
from eigendet.plugins.importing import load_plugin

# What the library calls a plugin with, by position.
ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "backbone": (), "detector": ("backbone", "classes", "size"), "dataset": (), "rule": ("values",),
    "allocator": ("groups", "budget"),
}  # fmt: skip
# Keys that stand beside a plugin's options in a configuration.
RESERVED: dict[Kind, set[str]] = {
    kind: set((BackboneChoice if kind == "backbone" else PluginChoice).model_fields) for kind in ARGUMENTS
}


class Options(Section):
    """The options of a plugin, as a class: each field is an option, and validators may compare several.

    >>> class Mine(Options):
    ...     channels: int = 64
    >>> Mine(channels=32)
    Mine(channels=32)
    """


def options_of(plugin: Plugin, paths: bool = False) -> type[BaseModel]:
    """Return the model that validates a plugin's options.

    Args:
        plugin: is imported for it.
        paths: whether files and folders among the options must exist.

    Raises:
        UserError: the plugin cannot be loaded, or its function does not keep the contract.
    """
    function = load_plugin(plugin)
    parameters = list(inspect.signature(function).parameters.values())
    _check_arguments(plugin, parameters)
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name, parameter in options.items():
        if parameter.annotation is parameter.empty:
            raise UserError(f"{plugin}: the option '{name}' has no annotation; give the type of what it accepts.")
    try:
        types = {name: _evaluated(parameter.annotation, function) for name, parameter in options.items()}
        own_class = _own_class(plugin, types)
        _check_names(plugin, own_class.model_fields if own_class else options)
        return own_class or _model(options, types, paths)
    except UserError:
        raise
    except Exception as error:  # whatever an annotation raises
        reason = str(error).splitlines()[0]
        raise UserError(f"{plugin}: an option has no usable type: {reason}") from None


def _check_arguments(plugin: Plugin, parameters: list[inspect.Parameter]) -> None:
    """Raise UserError unless the positional parameters are as many as the plugin's kind is called with."""
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    expected = ARGUMENTS[plugin.kind]
    if len(names) != len(expected):
        raise UserError(
            f"{plugin}: takes ({', '.join(names)}); expected ({', '.join([*expected, '*'])}), and options after the "
            "star."
        )


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """Return an annotation as a type; in a file with postponed annotations it is text."""
    return eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation


def _own_class(plugin: Plugin, types: Mapping[str, Any]) -> type[Options] | None:
    """Return the class that a plugin has for its options, if it has one."""
    for annotation in types.values():
        if inspect.isclass(annotation) and issubclass(annotation, Options):
            if list(types) != ["options"]:
                raise UserError(
                    f"{plugin}: takes {', '.join(types)}; a class of options stands alone, and is named `options`."
                )
            return annotation
    return None


def _check_names(plugin: Plugin, names: Iterable[str]) -> None:
    """Raise UserError if an option is named as a key that stands beside it in a configuration."""
    taken = RESERVED[plugin.kind].intersection(names)
    if taken:
        raise UserError(f"{plugin}: the option '{min(taken)}' is a key of every {plugin.kind} already; rename it.")


def _model(options: Mapping[str, inspect.Parameter], types: Mapping[str, Any], paths: bool) -> type[BaseModel]:
    """Make a model of keyword-only parameters."""
    fields: dict[str, Any] = {}
    for name, parameter in options.items():
        any_path = not paths and types[name] in (FilePath, DirectoryPath)
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (Path if any_path else types[name], default)
    return create_model("Options", __base__=Section, **fields)
