"""Backbones, detectors, data sets and width rules, found by name and loaded only when named.

A plugin is a function marked with `backbone`, `detector`, `dataset` or `rule`; its name is the plugin's name, the first
line of its docstring the summary, its keyword-only parameters the options, validated by their annotations. It stands in
a file of the folder `plugins/` (of the working directory or of this checkout), or an installed package names it as an
entry point of the group `eigendet.backbones`, `eigendet.detectors`, `eigendet.datasets` or `eigendet.rules`.

    @backbone
    def resnet(*, depth: Literal[18, 50] = 50) -> nn.Module

        A module from images (N, 3, H, W) to a dict of feature maps (N, C, H', W'), finest first. It says nothing about
        widths: `eigendet.channels` finds and changes them.

    @detector
    def faster_rcnn(backbone: nn.Module, classes: int, size: tuple[int, int], *, head_channels: int = 1024) -> nn.Module

        A module with torchvision's calling convention over that backbone: a list of images (3, H, W) in [0, 1] and, in
        training, targets with `boxes`, `labels` from 1 to `classes` (0 is background) and perhaps `masks`; a dict of
        losses comes back, or in evaluation a list of dicts with `boxes`, `labels`, `scores` and perhaps `masks`, in
        the images' own pixels. In evaluation it resizes images to `size`, (shorter, longest side); in training they
        come resized. Its attribute `backbone` is the given backbone, or a `PyramidBackbone` over it; a true attribute
        `learns_masks` asks for masks in training. Where parts of it look at regions of an image, `regions` says at how
        many, by prefix of module paths, {"roi_heads": 1000}; multiply-accumulates are counted so.

    @dataset
    def coco(*, annotations: FilePath, images: DirectoryPath) -> Detection

        What `eigendet.datasets` describes: `Detection` or `Classification`.

    @rule
    def dof(values: np.ndarray, *, scale: Annotated[float, Field(gt=0, examples=[1.0, 0.1, 0.01])] = 0.1) -> float

        The intrinsic dimension of a feature map, in channels, from the eigenvalues of its covariance: (C,), descending,
        none negative, the first positive. The `examples` of an option are the values over which it is compared with
        itself (`eigendet front`).

Files are discovered by reading them, not by importing them, so that one broken or heavy plugin hinders no other. Keep
imports of torch inside the function: options are then checked before a workflow starts, at no cost.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, DirectoryPath, FilePath, create_model

from eigendet.config import Experiment, validate_options
from eigendet.errors import UserError, unknown
from eigendet.sections import PluginChoice

Kind = Literal["backbone", "detector", "dataset", "rule"]
KINDS: tuple[Kind, ...] = get_args(Kind)
F = TypeVar("F", bound=Callable[..., Any])


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


@dataclass(frozen=True)
class Plugin:
    kind: Kind
    name: str
    summary: str
    file: Path | None  # None for a plugin of an installed package
    entry_point: EntryPoint | None = None

    @property
    def origin(self) -> str:
        return str(self.file) if self.file else f"package {self.entry_point.dist.name}"  # type: ignore[union-attr]


def discover(kind: Kind) -> dict[str, Plugin]:
    """All plugins of one kind, by name.

    Raises:
        UserError: two plugins have one name, or a file is not Python.
    """
    found: dict[str, Plugin] = {}
    for plugin in [*_in_folders(kind), *_installed(kind)]:
        if plugin.name in found:
            raise UserError(
                f"two {kind} plugins are named '{plugin.name}': {found[plugin.name].origin} and {plugin.origin}. "
                "Rename one of them."
            )
        found[plugin.name] = plugin
    return found


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of that name; UserError lists the known ones."""
    known = discover(kind)
    if name not in known:
        raise UserError(unknown(f"{kind} plugin", name, known))
    return known[name]


def bind(kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = True) -> Callable[..., Any]:
    """The plugin's function with the choice's options checked and filled in; call it with the contract's arguments.

    Args:
        where: the key of the configuration that errors name.
        paths: whether files and folders among the options must exist.
    """
    _, options = _checked(kind, choice, where, paths)
    function = _load(find(kind, choice.plugin))

    def bound(*arguments: Any) -> Any:
        return function(*arguments, **options)

    bound.__name__ = f"{kind} {choice.plugin}"
    return bound


def _checked(
    kind: Kind, choice: PluginChoice, where: str | None = None, paths: bool = False
) -> tuple[type[BaseModel], dict[str, Any]]:
    """The options of a plugin, and those of a choice, checked and filled in."""
    plugin = find(kind, choice.plugin)
    try:
        model = _options_model(_load(plugin), paths)
    except UserError:
        raise
    except Exception as error:  # whatever an annotation raises
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{kind} plugin '{plugin.name}' ({plugin.origin}): an option has no usable type: {reason}"
        ) from None
    return model, validate_options(model, choice.options, where or f"{kind} {choice.plugin}")


def variants(kind: Kind, choice: PluginChoice) -> list[PluginChoice]:
    """The choice with the first option that has examples at each of these and at its own value, or the choice alone."""
    model, own = _checked(kind, choice)
    for name, field in model.model_fields.items():
        values: list[Any] = []
        for example in [*(field.examples or []), own[name]] if field.examples else ():
            with contextlib.suppress(UserError):  # an example that the option does not accept
                value = validate_options(model, own | {name: example}, name)[name]
                values += [value] if value not in values else []
        if values:
            if all(isinstance(value, int | float) for value in values):
                values.sort()
            return [PluginChoice(plugin=choice.plugin, **own | {name: value}) for value in values]
    return [choice]


def described(kind: Kind, choice: PluginChoice) -> str:
    """A choice in words, with the options that were left out: "dof at scale 0.1"."""
    _, options = _checked(kind, choice)
    values = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in options.items()
    )
    return f"{choice.plugin} at {values}" if options else choice.plugin


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


def files(kind: Kind, choices: list[PluginChoice]) -> list[str]:
    """Local files of the chosen plugins, for Snakemake to watch."""
    here = Path.cwd()
    found = {file for choice in choices if (file := find(kind, choice.plugin).file)}
    # Relative where possible, so that a checkout can be moved without everything being made again.
    return sorted(str(file.relative_to(here) if file.is_relative_to(here) else file) for file in found)


def _folders() -> list[Path]:
    """`plugins/` of the working directory and of the checkout that this package stands in."""
    here = Path.cwd() / "plugins"
    checkout = Path(__file__).resolve().parents[2] / "plugins"
    return [folder for folder in dict.fromkeys([here.resolve(), checkout]) if folder.is_dir()]


def _in_folders(kind: Kind) -> list[Plugin]:
    found = []
    for file in [file for folder in _folders() for file in sorted(folder.glob("*.py"))]:
        for name, summary in _marked_functions(file).get(kind, {}).items():
            found.append(Plugin(kind, name, summary, file))
    return found


@cache
def _marked_functions(file: Path) -> dict[str, dict[str, str]]:
    """kind -> name -> summary of the plugins in a file, by reading its syntax."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise UserError(
            f"{file}, line {error.lineno}: not Python ({error.msg}). Mend the plugin or move it away."
        ) from None
    marked: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                kind = decorator.id if isinstance(decorator, ast.Name) else getattr(decorator, "attr", None)
                if kind in KINDS:
                    summary = (ast.get_docstring(node) or "").split("\n")[0]
                    marked.setdefault(kind, {})[node.name] = summary
    return marked


def _installed(kind: Kind) -> list[Plugin]:
    return [Plugin(kind, point.name, "", None, point) for point in entry_points(group=f"eigendet.{kind}s")]


def _load(plugin: Plugin) -> Callable[..., Any]:
    try:
        if plugin.entry_point is not None:
            loaded: Callable[..., Any] = plugin.entry_point.load()
        else:
            assert plugin.file is not None
            loaded = getattr(_import(plugin.file), plugin.name)
    except Exception as error:  # whatever a plugin's own code raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{plugin.kind} plugin '{plugin.name}' ({plugin.origin}) cannot be loaded: {reason}") from None
    return loaded


@cache
def _import(file: Path) -> Any:
    name = f"eigendet_plugins_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data sets are pickled to the processes that load data
    spec.loader.exec_module(module)
    return module


def _options_model(function: Callable[..., Any], paths: bool) -> type[BaseModel]:
    """The keyword-only parameters of a plugin as a pydantic model."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            annotation = parameter.annotation
            if isinstance(annotation, str):
                annotation = eval(annotation, function.__globals__)
            if not paths and annotation in (FilePath, DirectoryPath):
                annotation = Path
            fields[name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    return create_model("Options", __config__=ConfigDict(extra="forbid", validate_default=True), **fields)
