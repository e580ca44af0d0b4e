"""Define `eigendet plugins`: list plugins, show their options, write an example, check the contract."""

from __future__ import annotations

import builtins
import itertools
import keyword
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from eigendet.errors import UserError, unknown
from eigendet.plugins import discovery
from eigendet.plugins.discovery import KINDS, Kind, Plugin

# The list must come at once, so neither torch nor pydantic is imported up here.

TEMPLATES = Path(__file__).parent / "templates"
Schema = Mapping[str, Any]  # a JSON schema, or a part of one


def plugin_lines() -> tuple[list[str], list[str]]:
    """Return lines for all plugins, and sentences for what is wrong with some."""
    all_plugins = discovery.everything()
    rows = [(plugin.kind, plugin.name, plugin.version, plugin.origin, plugin.summary) for plugin in all_plugins]
    indent = " " * max(map(len, KINDS))
    lines = []
    for plugin, line in zip(all_plugins, _columns(rows), strict=True):
        lines.append(line)
        if plugin.unavailable:
            lines.append(f"{indent}  unavailable: {plugin.unavailable}")
    faults = discovery.broken()
    for one, other in itertools.pairwise(all_plugins):
        if (one.kind, one.name) == (other.kind, other.name):
            faults.append(discovery.same_name(one, other))
    return lines, faults


def plugins_named(name: str) -> list[Plugin]:
    """Return the plugins of that name, of whatever kind.

    Raises:
        UserError: there is none; the message lists similar names.
    """
    all_plugins = discovery.everything()
    same_name = [plugin for plugin in all_plugins if plugin.name == name]
    if not same_name:
        names = {plugin.name for plugin in all_plugins}
        raise UserError(" ".join([unknown("plugin", name, names), *discovery.broken()]))
    return same_name


def description(plugin: Plugin) -> list[str]:
    """Return lines that say what a plugin is, where it stands, and its options with types, defaults and meaning."""
    from eigendet import plugins
    from eigendet.config.sections import BackboneChoice

    function = plugins.load_plugin(plugin)
    lines = [f"{plugin.kind} {plugin.name}, version {plugin.version}, from {plugin.origin}", ""]
    text, _, _ = (function.__doc__ or "").partition(">>>")  # examples are for readers of the code
    lines += [line.strip() for line in text.strip().splitlines()]
    schema = plugins.options_of(plugin, paths=True).model_json_schema()
    properties = schema.get("properties", {})
    if plugin.kind == "backbone":  # has further keys, which the library reads itself
        of_all = BackboneChoice.model_json_schema()["properties"]
        properties |= {name: of_all[name] for name in ("width", "pretrained")}
    if not properties:
        return [*lines, "", "It has no options."]
    rows = [("option", "accepted", "default", "")]
    for name, entry in properties.items():
        default = _plain(entry["default"]) if "default" in entry else "(required)"
        rows.append((name, accepted(entry, schema), default, entry.get("description", "")))
    return [*lines, "", *_columns(rows)]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its columns as wide as the widest of all rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def accepted(entry: Schema, schema: Schema) -> str:
    """Say in words what an option accepts.

    Args:
        entry: the option's part of the JSON schema.
        schema: the whole of it, which holds what entries refer to.

    >>> accepted({"anyOf": [{"type": "integer", "minimum": 1}, {"const": None}]}, {})
    'integer >= 1 | null'
    """
    if "$ref" in entry:
        return accepted(schema["$defs"][entry["$ref"].rpartition("/")[2]], schema)
    if "const" in entry:
        return _plain(entry["const"])
    if "enum" in entry:
        return " | ".join(map(_plain, entry["enum"]))
    if "anyOf" in entry:
        return " | ".join(accepted(part, schema) for part in entry["anyOf"])
    if entry.get("format") in ("file-path", "directory-path"):
        return "file" if entry["format"] == "file-path" else "folder"
    if entry.get("type") == "array":
        return f"list of {accepted(entry['items'], schema)}" if "items" in entry else "list"
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {entry[key]:g}" for key, sign in bounds.items() if key in entry]
    return " ".join([entry.get("type", "any"), *limits])


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)


def write_example(kind: Kind, name: str, folder: Path) -> list[Path]:
    """Write a working example of a plugin, and its test; returns their paths.

    Raises:
        UserError: the name cannot be a function's, or is taken; a file is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or hasattr(builtins, name):
        raise UserError(f"'{name}' cannot be the name of a plugin; expected one of a Python function, like my_{kind}.")
    example = (TEMPLATES / f"{kind}.py").read_text()
    if name != "example" and re.search(rf"\b{name}\b", example):
        raise UserError(f"'{name}' stands for something else in the example; choose another name, like my_{kind}.")
    taken = discovery.discover(kind).get(name)
    if taken:
        raise UserError(f"there is a {kind} plugin '{name}' already, {taken.origin}; choose another name.")
    texts = {}
    for template, path in ((f"{kind}.py", folder / f"{name}.py"), ("test.py", folder / f"test_{name}.py")):
        if path.exists():
            raise UserError(f"{path}: is there already; choose another name or folder.")
        texts[path] = (TEMPLATES / template).read_text()
        replacements = {
            "Contract": f"{kind.capitalize()}Contract",
            "FILE": str(path),
            "TestExample": "Test" + "".join(part.capitalize() for part in name.split("_")),
            "example": name,
        }
        for word, replacement in replacements.items():
            texts[path] = re.sub(rf"\b{word}\b", replacement, texts[path])
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    return list(texts)


def check(plugin: Plugin, options: Mapping[str, Any]) -> bool:
    """Try every promise of a plugin and print whether it is kept; returns whether all are."""
    import logging
    import time

    from eigendet import testing
    from eigendet.config.sections import PluginChoice
    from eigendet.plugins import failures_named

    logging.disable(logging.INFO)  # of training
    kept = True
    for promise, test in testing.promises(plugin.kind, PluginChoice(plugin=plugin.name, **options)):
        start = time.perf_counter()
        try:
            with failures_named(plugin):
                test()
        except UserError as error:
            kept = False
            click.echo(f"  no   {promise}: {error}")
            if promise in testing.FIRST:
                click.echo("       the rest was not tried")
                return False
        else:
            click.echo(f"  yes  {promise} ({time.perf_counter() - start:.1f} s)")
    return kept


@click.group(invoke_without_command=True)
@click.option(
    "--config", "-c", "configs", type=click.Path(exists=True, path_type=Path), multiple=True,
    help="The experiment's YAML file, whose `plugins` are further folders. [default: config.yaml, if it exists]",
)  # fmt: skip
@click.pass_context
def plugins(context: click.Context, configs: Sequence[Path]) -> None:
    """List plugins: kind, name, version, where each stands, what it is, and why one is unavailable.

    The version of a file is made from its content.
    """
    default = Path("config.yaml")
    for path in configs or ([default] if default.is_file() else []):
        discovery.search(_folders(path))
    if context.invoked_subcommand is None:
        lines, faults = plugin_lines()
        click.echo("\n".join(lines))
        if faults:
            raise UserError(*faults)


def _folders(configuration: Path) -> list[str]:
    """Read the folders of plugins that a configuration names; whatever else stands in it may be wrong."""
    from eigendet.config.plain_yaml import read_yaml

    content = read_yaml(configuration)
    folders = content.get("plugins", []) if isinstance(content, dict) else []
    if not isinstance(folders, list):
        raise UserError(f"{configuration}: plugins is {folders!r}; expected a list of folders.")
    return [str(folder) for folder in folders]


@plugins.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print what a plugin is, and its options: what each accepts, its default, and what it means."""
    for plugin in plugins_named(name):
        click.echo("\n".join(description(plugin)))


@plugins.command("new")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path), default="plugins", show_default=True, help="Where to write it."
)
def new_command(kind: Kind, name: str, folder: Path) -> None:
    """Write a working, commented example of a plugin, and its test."""
    for path in write_example(kind, name, folder):
        click.echo(path)
    if folder.resolve() not in discovery.folders():
        click.echo(f"To use it, name its folder in the configuration: plugins: [{folder}]")
    click.echo(f"To try it: eigendet plugins check {name}")


@plugins.command("check")
@click.argument("name")
@click.option("--options", default="", help="Options of the plugin, as in a configuration: 'depth: 18, norm: batch'.")
def check_command(name: str, options: str) -> None:
    """Check whether a plugin keeps its contract: build, train, resize and tap it, and more, which takes minutes."""
    from eigendet.config.plain_yaml import parse_yaml

    try:
        values = parse_yaml(f"{{{options}}}")
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values) or "plugin" in values:
        raise UserError(f"--options: got '{options}'; expected keys and values, like 'depth: 18, norm: batch'.")
    kept = []
    for plugin in plugins_named(name):
        click.echo(f"{plugin}:")
        kept.append(check(plugin, values))
    if not all(kept):
        raise UserError("The contract is not kept.")
