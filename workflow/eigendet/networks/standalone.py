"""A network's own code in one file that runs without this package: its plugins' source, and what its widths change."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from eigendet import plugins
from eigendet.config import validate_options
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError, first_line, some
from eigendet.files import Plain
from eigendet.networks.definition import Definition
from eigendet.networks.sources import Sources, import_lines
from eigendet.plugins.discovery import Kind

TOLERANCE = 1e-5  # of outputs, absolute, and relative to those beyond 1
IMPORTS = {"import torch", "from torch import nn", "from types import SimpleNamespace"}  # of the text below
NAMES = ("BACKBONE", "CLASSES", "DETECTOR", "NUMBERS", "SHAPES", "SIZE", "build", "load")  # likewise

HEADER = '''"""{title}

{origin}
It needs {packages}, and nothing else:

    detector = load("{weights}")
    detections = detector([image])  # (3, H, W) in [0, 1] -> a dict of boxes, labels and scores for each image

Boxes are left, top, right, bottom, in pixels of the image as it came; label 1 is the first of CLASSES.
"""

from __future__ import annotations

'''

FOOTER = '''

def build() -> nn.Module:
    """Build the detector with its own widths, for load_state_dict: weights of layers in SHAPES are zero."""
    {build}
    for path, numbers in NUMBERS.items():
        for name, value in numbers.items():
            setattr(detector.get_submodule(path), name, value)
    for path, shape in SHAPES.items():
        parent, _, name = path.rpartition(".")
        module = detector.get_submodule(parent)
        zeros = torch.zeros(shape, dtype=getattr(module, name).dtype)
        setattr(module, name, nn.Parameter(zeros) if name in module._parameters else zeros)
    return detector.eval()


def load(weights: str) -> nn.Module:
    """Build the detector and load its weights, a file that torch.save wrote."""
    detector = build()
    detector.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return detector
'''


class Change(NamedTuple):
    """How a network differs from the one that its plugins build before any width is chosen."""

    numbers: dict[str, Plain]  # of modules, by path and attribute
    shapes: dict[str, tuple[int, ...]]  # of parameters and buffers


def standalone_code(model: nn.Module, definition: Definition, origin: str, weights: str) -> str:
    """Return Python code that builds a detector without this package, and try it.

    Its functions are those of the plugins and of this package that built the detector, as they stand there. What its
    widths change is set afterwards: numbers of modules, and shapes of parameters.

    Args:
        model: the detector.
        definition: its definition.
        origin: a sentence that says where it comes from.
        weights: the name of the file of its state dict, for the example.

    Raises:
        UserError: its code cannot be taken along, or gives other outputs.
    """
    assert definition.detector is not None
    sources = Sources(NAMES)
    calls = {}
    for kind, choice in (("backbone", definition.backbone), ("detector", definition.detector)):
        function, options, takes_class = _chosen(kind, choice)  # type: ignore[arg-type]
        sources.add(function)
        calls[kind] = function.__name__, options, takes_class
    change = difference(definition._at_full_width(definition.size), model)
    code = _written(definition, sources, calls, change, origin, weights)
    _try(code, model, definition)
    return code


def difference(full: nn.Module, model: nn.Module) -> Change:
    """Return how a network differs from another with the same modules.

    >>> difference(nn.Sequential(nn.Linear(8, 2)), nn.Sequential(nn.Linear(4, 2)))
    Change(numbers={'0': {'in_features': 4}}, shapes={'0.weight': (2, 4)})

    Raises:
        UserError: they have other modules or parameters.
    """
    before, after = dict(full.named_modules()), dict(model.named_modules())
    tensors, others = _tensors(full), _tensors(model)
    if apart := [*before.keys() ^ after.keys(), *tensors.keys() ^ others.keys()]:
        raise UserError(f"{some(sorted(apart))}: only at some widths; expected a detector with the same layers at any.")
    numbers = {}
    for path, module in after.items():
        old = vars(before[path])
        changed = {name: value for name, value in vars(module).items() if _is_plain(value) and old.get(name) != value}
        if changed:
            numbers[path] = changed
    shapes = {name: tuple(value.shape) for name, value in others.items() if value.shape != tensors[name].shape}
    return Change(numbers, shapes)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _is_plain(value: object) -> bool:
    """Tell whether a value is a number or several, as widths are."""
    several = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in several)


def _chosen(kind: Kind, choice: PluginChoice) -> tuple[Callable[..., object], Plain, bool]:
    """Return a plugin's function, its options, and whether it takes them as one object."""
    plugin = plugins.find(kind, choice.plugin)
    model = plugins.options_of(plugin)
    options = dict(validate_options(model, choice.options, f"{kind} {choice.plugin}"))
    for name, value in options.items():
        try:
            ast.literal_eval(repr(value))
        except (ValueError, SyntaxError):
            raise UserError(f"{plugin}: {name} is {value!r}; as code an option is a plain value.") from None
    return plugins.load_plugin(plugin), options, issubclass(model, plugins.Options)


def _written(
    definition: Definition,
    sources: Sources,
    calls: Mapping[str, tuple[str, Plain, bool]],
    change: Change,
    origin: str,
    weights: str,
) -> str:
    """Return the text of the file."""
    (backbone, own, own_class), (detector, over, over_class) = calls["backbone"], calls["detector"]
    imports = import_lines(IMPORTS | sources.imports)
    head = HEADER.format(
        title=f"{detector} over {backbone}, {len(definition.classes)} classes.",
        origin=origin,
        packages=_packages("\n".join([*imports, *sources.definitions.values()])),
        weights=weights,
    )
    constants = [
        f"CLASSES = {definition.classes!r}",
        f"SIZE = {definition.size!r}  # shorter and longest side to which images are resized, in pixels",
        f"BACKBONE = {own!r}",
        f"DETECTOR = {over!r}",
        "# What is set once the functions above have built their layers, so that these have their own widths.",
        f"NUMBERS = {_lines(change.numbers)}",
        f"SHAPES = {_lines(change.shapes)}",
    ]
    given = ["options=SimpleNamespace(**BACKBONE)" if own_class else "**BACKBONE"]
    given += ["options=SimpleNamespace(**DETECTOR)" if over_class else "**DETECTOR"]
    built = f"detector = {detector}({backbone}({given[0]}), len(CLASSES), SIZE, {given[1]})"
    definitions = [f"\n\n{text}" for text in sources.definitions.values()]
    return "\n".join([head + "\n".join(imports), *definitions, "\n", *constants, FOOTER.format(build=built)])


def _packages(code: str) -> str:
    """Name the packages that a text imports, those of Python's own library apart."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
    return ", ".join(sorted(modules - sys.stdlib_module_names))


def _lines(values: Mapping[str, object]) -> str:
    """Return a dict as code, an entry a line."""
    return "\n".join(["{", *(f"    {key!r}: {value!r}," for key, value in values.items()), "}"])


def _try(code: str, model: nn.Module, definition: Definition) -> None:
    """Raise UserError unless code builds a network that does with these weights what the model does."""
    module = ModuleType("standalone")
    try:
        exec(compile(code, "the exported code", "exec"), vars(module))
        with torch.random.fork_rng(devices=[]):
            built = module.build()
        built.load_state_dict(model.state_dict())
        theirs, ours = outputs(built, definition), outputs(model, definition)
    except Exception as error:  # whatever a plugin's code raises outside its module
        raise UserError(
            f"as code of its own the detector fails: {type(error).__name__}: {first_line(error)}"
        ) from error
    same = [
        one.shape == other.shape and torch.allclose(one, other, TOLERANCE, TOLERANCE)
        for one, other in zip(theirs, ours, strict=False)
    ]
    if len(theirs) != len(ours) or not all(same):
        raise UserError("as code of its own the detector gives other outputs; its widths are set in ways unknown here.")


def outputs(model: nn.Module, definition: Definition) -> list[Tensor]:
    """Return all that a detector's parts, and itself, give for an image of noise."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, given: object) -> None:
        seen.extend(_of(given))

    hooks = [part.register_forward_hook(keep) for part in (*model.children(), model)]
    try:
        image = torch.rand(3, *definition.size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            model.eval()([image])
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _of(value: object) -> Iterable[Tensor]:
    return (leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor))
