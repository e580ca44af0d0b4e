"""Backbones, detectors, data sets and width rules: what each must do, and loading of the one that is named.

A plugin is a function marked with `backbone`, `detector`, `dataset` or `rule`; its name is the plugin's name, the first
line of its docstring the summary. It stands in a file of a plugin folder, or an installed package names it as an entry
point of the group `eigendet.backbones`, `eigendet.detectors`, `eigendet.datasets` or `eigendet.rules` (`discovery`).
Its options are its keyword-only parameters, validated by their annotations; or, where several plugins share them or one
depends on another, a class, `options: MyOptions`, made from `Options`. `eigendet plugins new detector NAME` writes an
example, `eigendet plugins check NAME` tries whether a plugin keeps this contract.

    @backbone
    def resnet(*, depth: Literal[18, 50] = 50) -> nn.Module

        A module from images (N, 3, H, W) to a dict of feature maps (N, C, H', W'), finest first. It says nothing about
        widths: `eigendet.channels` finds and changes them.

    @detector
    def faster_rcnn(backbone: nn.Module, classes: int, size: tuple[int, int], *, head_channels: int = 1024) -> nn.Module

        A module over that backbone with torchvision's calling convention: a list of images (3, H, W) in [0, 1] and, in
        training, targets with `boxes`, `labels` from 1 to `classes` (0 is background) and perhaps `masks`; a dict of
        losses comes back, or in evaluation a list of dicts with `boxes`, `labels`, `scores` and perhaps `masks`, in
        the images' own pixels. In evaluation it resizes images to `size`, (shorter, longest side); in training they
        come resized. `parts.PyramidBackbone` puts a feature pyramid over any backbone. Two attributes may say more:
        `learns_masks`, if true, asks for masks in training; `regions` says how many regions of an image a part looks
        at, by prefix of module paths, {"roi_heads": 1000}, so that multiply-accumulates are counted.

    @dataset
    def coco(*, annotations: FilePath, images: DirectoryPath) -> Detection

        What `eigendet.datasets` describes: `Detection` or `Classification`.

    @rule
    def dof(values: np.ndarray, *, scale: Annotated[float, Field(gt=0, examples=[1.0, 0.1, 0.01])] = 0.1) -> float

        The intrinsic dimension of a feature map, in channels, from the eigenvalues of its covariance: (C,), descending,
        none negative, the first positive. The `examples` of an option are the values over which it is compared with
        itself (`eigendet front`).

Every parameter of a network is trained: constants belong in buffers, and freezing is for the configuration to say. Keep
imports of torch inside the function: options are then checked before a workflow starts, at no cost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, DirectoryPath, FilePath, create_model

from eigendet.config import Experiment, validate_options
from eigendet.config.sections import BackboneChoice, PluginChoice, Section
from eigendet.discovery import Kind, Plugin, discover, find, search
from eigendet.errors import UserError

__all__ = ["Options", "backbone", "bind", "dataset", "detector", "discover", "find", "rule", "search", "validate"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "backbone": (), "detector": ("backbone", "classes", "size"), "dataset": (), "rule": ("values",),
}  # fmt: skip
# Keys that stand beside a plugin's options in a configuration.
RESERVED: dict[Kind, set[str]] = {
    kind: set((BackboneChoice if kind == "backbone" else PluginChoice).model_fields) for kind in ARGUMENTS
}


class Options(Section):
    """The options of a plugin, as a class."""


def backbone(function: F) -> F:
    """Mark a function as a backbone plugin."""
    return function


def detector(function: F) -> F:
    """Mark a function as a detector plugin."""
    return function


def dataset(function: F) -> F:
    """Mark a function as a data set plugin."""
    return function


def rule(function: F) -> F:
    """Mark a function as a width rule."""
    return function


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


@contextlib.contextmanager
def failures_named(*plugins: Plugin) -> Iterator[None]:
    """Turn what a plugin's own code raises inside into a UserError with its file and line.

    Of several plugins, the one whose code was running last; the first, if none was.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever it raises
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        last = {str(plugin.file): plugin for plugin in plugins}
        plugin = next((last[file] for file in reversed(frames) if file in last), plugins[0])
        raise UserError(f"{plugin} fails{_place(plugin, error)}: {_reason(error)}") from error


def _place(plugin: Plugin, error: BaseException) -> str:
    """The last line of the plugin's own file that was running."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(plugin.file)]
    return f" at line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'without a message').splitlines()[0]}"


def _checked(kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = False) -> BaseModel:
    """The options of a choice, checked and filled in."""
    return validate_options(
        options_of(find(kind, choice.plugin), paths), choice.options, where or f"{kind} {choice.plugin}"
    )


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


def load(plugin: Plugin) -> Callable[..., Any]:
    """The plugin's function.

    Raises:
        UserError: the plugin is not available, cannot be imported, or is no function.
    """
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


@cache
def _import(file: Path) -> Any:
    name = f"eigendet_plugins_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data sets are pickled to the processes that load data
    spec.loader.exec_module(module)
    return module


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
