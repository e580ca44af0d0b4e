"""The plugin that a configuration names, with its options checked and filled in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eigendet.config import Experiment, validate_options
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.plugins.discovery import Kind, discover, find
from eigendet.plugins.importing import failures_named, load
from eigendet.plugins.options import Options, options_of

logger = logging.getLogger(__name__)


def bind(kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = True) -> Callable[..., Any]:
    """The plugin's function with the choice's options checked and filled in; call it with the contract's arguments.

    Whatever the plugin's own code raises then is a UserError that names its file and line.

    Args:
        where: the key of the configuration that errors name.
        paths: whether files and folders among the options must exist.
    """
    options = _checked(kind, choice, where, paths)
    plugin = find(kind, choice.plugin)
    function = load(plugin)
    keywords = {"options": options} if isinstance(options, Options) else dict(options)

    def bound(*arguments: Any) -> Any:
        with failures_named(plugin):
            return function(*arguments, **keywords)

    bound.__name__ = f"{kind} {choice.plugin}"
    return bound


def _checked(kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = False) -> BaseModel:
    """The options of a choice, checked and filled in."""
    return validate_options(
        options_of(find(kind, choice.plugin), paths), choice.options, where or f"{kind} {choice.plugin}"
    )


def rules(taken: Collection[str] = ()) -> dict[str, Callable[..., Any]]:
    """All width rules by name, with their default options.

    A rule that cannot be used so, or has a name that is `taken` by another metric, is left out with a warning.
    """
    usable: dict[str, Callable[..., Any]] = {}
    for name in discover("rule"):
        if name in taken:
            logger.warning("no metric of the rule %s: another one has its name", name)
            continue
        try:
            usable[name] = bind("rule", PluginChoice(plugin=name))
        except UserError as error:
            logger.warning("no metric of the rule %s: %s", name, error)
    return usable


def summaries(kind: Kind) -> dict[str, str]:
    """The summary of every plugin of a kind, by name."""
    return {name: plugin.summary for name, plugin in discover(kind).items()}


def variants(kind: Kind, choice: PluginChoice) -> list[PluginChoice]:
    """The choice with the first option that has examples at each of these and at its own value, or the choice alone."""
    own = _checked(kind, choice)
    plain = dict(own)
    for name, field in type(own).model_fields.items():
        values: list[Any] = []
        for example in [*(field.examples or []), plain[name]] if field.examples else ():
            with contextlib.suppress(UserError):  # an example that the option does not accept
                value = getattr(validate_options(type(own), plain | {name: example}, name), name)
                values += [value] if value not in values else []
        if values:
            if all(isinstance(value, int | float) for value in values):
                values.sort()
            return [PluginChoice(plugin=choice.plugin, **plain | {name: value}) for value in values]
    return [choice]


def described(kind: Kind, choice: PluginChoice) -> str:
    """A choice in words, with the options that were left out: "dof at scale 0.1"."""
    values = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in _checked(kind, choice)
    )
    return f"{choice.plugin} at {values}" if values else choice.plugin


def validate(experiment: Experiment, paths: bool = True) -> None:
    """Check the options of every plugin that an experiment names; UserError holds a line for each wrong one."""
    chosen: dict[str, tuple[Kind, PluginChoice]] = {}
    for task in ("classification", "detection"):
        splits = getattr(experiment.data, task)
        for split in ("train", "val") if splits else ():
            chosen[f"data.{task}.{split}"] = "dataset", getattr(splits, split)
    chosen |= {f"backbones.{name}": ("backbone", choice) for name, choice in experiment.backbones.items()}
    chosen |= {f"detectors.{name}": ("detector", choice) for name, choice in experiment.detectors.items()}
    chosen["widths.rule"] = "rule", experiment.widths.rule
    faults = []
    for where, (kind, choice) in chosen.items():
        try:
            bind(kind, choice, where, paths)
        except UserError as error:
            faults.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
    if faults:
        raise UserError("\n".join(faults))


def versions(**choices: PluginChoice) -> dict[str, str]:
    """What the code of the chosen plugins is, by kind: `versions(backbone=…, detector=…)`."""
    return {kind: find(kind, choice.plugin).version for kind, choice in choices.items()}  # type: ignore[arg-type]


def package_versions(**choices: PluginChoice) -> dict[str, str]:
    """Of those that come from packages; Snakemake watches the files of the others."""
    installed = [kind for kind, choice in choices.items() if find(kind, choice.plugin).entry_point]  # type: ignore[arg-type]
    return {kind: version for kind, version in versions(**choices).items() if kind in installed}


def files(kind: Kind, choices: list[PluginChoice]) -> list[str]:
    """Files of the chosen plugins, for Snakemake to watch; a plugin of a package is known by the package's version."""
    here = Path.cwd()
    plugins = [find(kind, choice.plugin) for choice in choices]
    found = {plugin.file for plugin in plugins if plugin.file and not plugin.entry_point}
    # Relative where possible, so that a checkout can be moved without everything being made again.
    return sorted(str(file.relative_to(here) if file.is_relative_to(here) else file) for file in found)
