"""Load the plugin that a configuration names, with its options checked and filled in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eigendet.config import Experiment, validate_options
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError, unknown
from eigendet.plugins.discovery import Kind, discover, find, from_here
from eigendet.plugins.importing import failures_named, load_plugin
from eigendet.plugins.markers import NEEDS, Need
from eigendet.plugins.options import Options, options_of

logger = logging.getLogger(__name__)


def bind(kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = True) -> Callable[..., Any]:
    """Return the plugin's function with its options filled in; call it with the arguments of the contract.

    Whatever the plugin's own code raises then becomes a UserError that names its file and line.

    Args:
        kind: of the plugin.
        choice: its name and options.
        where: the key of the configuration that errors name.
        paths: whether files and folders among the options must exist.

    Raises:
        UserError: there is no such plugin, it cannot be loaded, or an option is wrong.

    >>> rule = bind("rule", PluginChoice(plugin="energy", share=0.6))
    >>> rule([4.0, 2.0, 1.0, 1.0])
    2.0
    """
    options = _checked(kind, choice, where, paths)
    plugin = find(kind, choice.plugin)
    function = load_plugin(plugin)
    keywords = {"options": options} if isinstance(options, Options) else dict(options)

    def bound(*arguments: Any) -> Any:
        with failures_named(plugin):
            return function(*arguments, **keywords)

    bound.__name__ = f"{kind} {choice.plugin}"
    return bound


def _checked(kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = False) -> BaseModel:
    """Return the options of a choice, checked and filled in."""
    return validate_options(
        options_of(find(kind, choice.plugin), paths), choice.options, where or f"{kind} {choice.plugin}"
    )


def rules(taken: Collection[str] = ()) -> dict[str, Callable[..., Any]]:
    """Return all width rules by name, with their default options.

    A rule that has no defaults, or whose name is `taken` by another metric, is left out with a warning.
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
    """Return the summary of every plugin of a kind, by name."""
    return {name: plugin.summary for name, plugin in discover(kind).items()}


def variants(kind: Kind, choice: PluginChoice) -> list[PluginChoice]:
    """Vary the first option that has examples over these and its own value; the choice alone if none has any.

    >>> [str(other.options["share"]) for other in variants("rule", PluginChoice(plugin="energy", share=0.97))]
    ['0.8', '0.9', '0.95', '0.97', '0.98', '0.99', '0.999']
    """
    own = _checked(kind, choice)
    plain = dict(own)
    for name, field in type(own).model_fields.items():
        values: list[Any] = []
        for example in [*field.examples, plain[name]] if field.examples else []:
            with contextlib.suppress(UserError):  # an example that the option does not accept
                value = getattr(validate_options(type(own), plain | {name: example}, name), name)
                if value not in values:
                    values.append(value)
        if values:
            if all(isinstance(value, int | float) for value in values):
                values.sort()
            return [PluginChoice(plugin=choice.plugin, **plain | {name: value}) for value in values]
    return [choice]


def described(kind: Kind, choice: PluginChoice) -> str:
    """Describe a choice in words, options included that were left out.

    >>> described("rule", PluginChoice(plugin="dof"))
    'dof at scale 0.1'
    """
    values = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in _checked(kind, choice)
    )
    return f"{choice.plugin} at {values}" if values else choice.plugin


def validate(experiment: Experiment, source: str = "configuration", paths: bool = True) -> None:
    """Check the options of every plugin that an experiment names.

    Args:
        experiment: names them.
        source: opens every line of the error.
        paths: whether files and folders among the options must exist.

    Raises:
        UserError: a line for each wrong option, and for each file of weights that is missing.
    """
    chosen: dict[str, tuple[Kind, PluginChoice]] = {}
    for task, splits in (("classification", experiment.data.classification), ("detection", experiment.data.detection)):
        if splits:
            chosen |= {f"data.{task}.{split}": ("dataset", getattr(splits, split)) for split in ("train", "val")}
    chosen |= {f"backbones.{name}": ("backbone", choice) for name, choice in experiment.backbones.items()}
    chosen |= {f"detectors.{name}": ("detector", choice) for name, choice in experiment.detectors.items()}
    chosen["widths.rule"] = "rule", experiment.widths.rule
    chosen["widths.allocation"] = "allocator", experiment.widths.allocation
    faults = _weights_missing(experiment) if paths else []
    for where, (kind, choice) in chosen.items():
        try:
            bind(kind, choice, where, paths)
        except UserError as error:
            faults += (error if str(error).startswith(where) else error.within(where)).lines
    if not faults:
        try:
            check_needs(experiment)
        except UserError as error:
            faults += error.lines
    if faults:
        raise UserError(*(f"{source}: {fault}" for fault in faults))


def _weights_missing(experiment: Experiment) -> list[str]:
    """Return a line for each key whose weights are neither made here nor published, nor in a file."""
    finetune = "finetune" in experiment.arms
    own = {
        f"backbones.{name}.pretrained": choice.pretrained for name, choice in experiment.backbones.items() if finetune
    }
    own |= {f"arms.{arm}.init": section.init for arm, section in experiment.arms.items() if section.init is not None}
    return [
        f"{key}: got '{source}', which is not a file; expected 'workflow', a state-dict file, or published weights, as "
        "'torchvision:NAME' or 'timm:NAME'"
        for key, source in own.items()
        if source != "workflow" and not source.startswith(("torchvision:", "timm:")) and not Path(source).is_file()
    ]


def needs(choice: PluginChoice) -> tuple[Need, ...]:
    """Return what an allocator needs to see of the groups beside eigenvalues.

    Raises:
        UserError: there is no such allocator, or it names something else.

    >>> needs(PluginChoice(plugin="marginal")), needs(PluginChoice(plugin="output_aware"))
    ((), ('covariance', 'kernels'))
    """
    plugin = find("allocator", choice.plugin)
    marked: Any = getattr(load_plugin(plugin), "needs", ())
    named: tuple[Need, ...] = tuple(marked) if isinstance(marked, tuple | list | set) else (marked,)
    for name in named:
        if name not in NEEDS:
            raise UserError(f"{plugin}: {unknown('need', str(name), NEEDS)}")
    return named


def in_units(choice: PluginChoice) -> bool:
    """Tell whether a width rule's dimension depends on the units of maps.

    >>> in_units(PluginChoice(plugin="ratio")), in_units(PluginChoice(plugin="absolute"))
    (False, True)
    """
    return bool(getattr(load_plugin(find("rule", choice.plugin)), "in_units", False))


def check_needs(experiment: Experiment) -> None:
    """Check that an experiment observes what its allocator needs.

    Raises:
        UserError: it needs gradients, and these are not observed.
    """
    choice, gradients = experiment.widths.allocation, experiment.covariance.gradients
    if "gradients" in needs(choice) and not gradients and (experiment.derived or "untrained" in experiment.arms):
        raise UserError(
            f"widths.allocation: {choice.plugin} needs the moments of the loss's gradient; set covariance.gradients to "
            "true, or choose another allocator."
        )


def versions(**choices: PluginChoice) -> dict[str, str]:
    """Return the version of each chosen plugin, by kind: `versions(backbone=…, detector=…)`."""
    return {kind: find(kind, choice.plugin).version for kind, choice in choices.items()}  # type: ignore[arg-type]


def package_versions(**choices: PluginChoice) -> dict[str, str]:
    """Return the versions of those that packages bring; Snakemake watches the files of the others."""
    plugins = {kind: find(kind, choice.plugin) for kind, choice in choices.items()}  # type: ignore[arg-type]
    return {kind: plugin.version for kind, plugin in plugins.items() if plugin.entry_point}


def files(kind: Kind, choices: list[PluginChoice]) -> list[str]:
    """Return the files of the chosen plugins, for Snakemake to watch; those of packages have a version instead."""
    plugins = [find(kind, choice.plugin) for choice in choices]
    # Relative where possible, so that a checkout can be moved without everything being made again.
    return sorted({str(from_here(plugin.file)) for plugin in plugins if plugin.file and not plugin.entry_point})
