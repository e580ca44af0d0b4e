"""Write the parts of pages that follow from the code: every key of an experiment, every command.

What stands above MARK in a page is written by hand, and stays. `make generated` runs this; a test says when to.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from eigendet.cli import main
from eigendet.cli.plugin_commands import accepted
from eigendet.config import Experiment
from eigendet.config.sections import (
    Arm,
    BackboneChoice,
    CovarianceSettings,
    Data,
    DetectorTraining,
    Optimization,
    PluginChoice,
    Pretraining,
    Splits,
    WidthSettings,
)

DOCS = Path(__file__).parent
MARK = "<!-- Written by `make generated`: below this line, edit the code. -->"
OPTION_HEADER = ("option", "default", "what")
SEVERAL = 3  # commands with the same option, from which on it stands above them
TYPES = {"integer range": "integer", "float range": "number", "directory": "folder"}  # by their names in click
SECTIONS: list[tuple[str, str, type[BaseModel]]] = [  # heading, what stands below it, the keys
    ("The experiment", "Keys at the top of the file.", Experiment),
    ("`data`", "Each of the two tasks has the keys of the second table.", Data),
    ("`data.classification` and `data.detection`", "", Splits),
    (
        "A plugin",
        "Data sets, detectors and width rules are chosen so; every further key is an option of the plugin, which "
        "`eigendet plugins show NAME` prints.",
        PluginChoice,
    ),
    ("`backbones`", "What every backbone has, whichever plugin gives it.", BackboneChoice),
    ("`arms`", "Every key of `training` can be given for an arm, and this one.", Arm),
    ("Both `pretraining` and `training`", "", Optimization),
    ("`pretraining`", "Beside those:", Pretraining),
    ("`training`", "Beside those:", DetectorTraining),
    ("`covariance`", "", CovarianceSettings),
    ("`widths`", "", WidthSettings),
]


def configuration() -> str:
    """Return every key of an experiment, a table for each section, in their order."""
    parts, whole = [], Experiment.model_json_schema()
    for heading, text, model in SECTIONS:
        schema = whole["$defs"].get(model.__name__) or model.model_json_schema()
        keys = {key: schema["properties"][key] for key in _own_keys(model)}
        rows = [(f"`{key}`", kind(entry, schema), _default(entry, key, schema), entry.get("description", ""))
                for key, entry in keys.items()]  # fmt: skip
        parts += [f"### {heading}", *([text] if text else []), table(("key", "accepted", "default", "what"), rows)]
    return "\n\n".join(parts)


def commands() -> str:
    """Return every command with its arguments and options, in the order of the stages."""
    all_commands = list(_commands(main, "eigendet"))
    uses = Counter(_row(option) for _, command in all_commands for option in _options(command))
    shared = [row for row, times in uses.items() if times >= SEVERAL]
    parts = ["### Shared options", "These mean the same in every command that has them.", table(OPTION_HEADER, shared)]
    for name, command in all_commands:
        parts += [f"### {name.removeprefix('eigendet ')}", f"```text\n{_usage(name, command)}\n```", _text(command)]
        rows = [_row(option) for option in _options(command)]
        own = [row for row in rows if row not in shared]
        others = [row[0].split("`")[1].split(", ")[0] for row in rows if row in shared]
        parts += [table(OPTION_HEADER, own)] if own else []
        parts += [f"{'Also' if own else 'Options'}: {', '.join(f'`{option}`' for option in others)}."] if others else []
    return "\n\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {"configuration.md": configuration, "commands.md": commands}


def page(name: str) -> str:
    """Return the whole text of a page: what is written by hand as it stands, and what follows from the code anew."""
    by_hand, mark, _ = (DOCS / name).read_text().partition(MARK)
    if not mark:
        raise ValueError(f"{name}: holds no line '{MARK}'")
    return f"{by_hand}{MARK}\n\n{PAGES[name]()}\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def kind(entry: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Say in words what a key accepts, by its part of the JSON schema and the whole of that."""
    if "anyOf" in entry:
        return " or ".join(kind(part, schema) for part in entry["anyOf"])
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return "plugin" if name == "PluginChoice" else "section"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "prefixItems" in entry:
        return "two numbers"
    if "items" in entry:
        return f"list of {kind(entry['items'], schema)}"
    return "names with values" if entry.get("type") == "object" else accepted(entry, schema)


def _own_keys(model: type[BaseModel]) -> list[str]:
    """Return the keys that a section does not share with others that have a table."""
    shared = next((base for base in model.__bases__ if base in (Optimization, PluginChoice)), None)
    own = inspect.get_annotations(model)
    return [key for key in model.model_fields if shared is None or key in own]


def _default(entry: Mapping[str, Any], key: str, schema: Mapping[str, Any]) -> str:
    if key in schema.get("required", []):
        return "required"
    match entry.get("default"):
        case {"plugin": value} | (str() as value):
            return f"`{value}`"
        case dict(names) if key == "arms":
            return ", ".join(f"`{name}`" for name in names)
        case dict():
            return "those below"
        case value:
            return f"`{json.dumps(value)}`"


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix} {name}")


def _usage(name: str, command: click.Command) -> str:
    pieces = ["[OPTIONS]", "[COMMAND]", "..."]  # whatever a version of click says of a group
    if not isinstance(command, click.Group):
        pieces = command.collect_usage_pieces(click.Context(command, info_name=name))
    return " ".join([name, *pieces])


def _text(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option)]


def _row(option: click.Option) -> tuple[str, str, str]:
    """Return the names of an option with what it takes, its default, and what it means."""
    takes = TYPES.get(option.type.name, option.type.name)
    if isinstance(option.type, click.Choice):
        takes = ", ".join(f"`{choice}`" for choice in option.type.choices)
    defaults = option.default if isinstance(option.default, list | tuple) else [option.default]
    shown = [f"`{value}`" for value in defaults if isinstance(value, str | int | float) and value != ""]
    if option.is_flag:
        takes, shown = "", []
    if option.show_default is False:
        shown = []
    names = f"`{', '.join(option.opts)}`"
    return f"{names} {takes}".strip(), "required" if option.required else ", ".join(shown), option.help or ""


if __name__ == "__main__":
    for name in PAGES:
        text = page(name)  # before the file is opened, which would empty it
        (DOCS / name).write_text(text)
