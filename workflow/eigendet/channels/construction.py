"""Other sizes for the layers of a network while its own constructor runs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from eigendet.channels.arguments import Arguments
from eigendet.channels.groups import ChannelError
from eigendet.channels.record import NORMS
from eigendet.errors import UserError, first_line, kind

Build = Callable[[], nn.Module]
Edit = Callable[[nn.Module, Arguments], None]  # changes a layer's arguments, by name

RESIZABLE = (nn.modules.conv._ConvNd, nn.Linear, *NORMS)
# Where the sizes of layers are arguments: ConvNd's own constructor takes them through those of its children.
CONSTRUCTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, *NORMS,
    nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d, nn.LazyConvTranspose1d, nn.LazyConvTranspose2d,
    nn.LazyConvTranspose3d, nn.LazyLinear,
)  # fmt: skip
MARK = "_position"  # of a layer, in order of construction, while the network is searched for it and for its copies


class BuildError(ChannelError):
    """A function or class that fails to build its network.

    Args:
        message: one line.
        layers: paths of those that may be why it fails, where known: several lists, the likeliest first.
        count: how many layers had been constructed.
    """

    def __init__(self, message: str, layers: list[list[str]] | None = None, count: int = 0) -> None:
        super().__init__(message)
        self.layers = layers or []
        self.count = count


@contextlib.contextmanager
def constructing(edit: Edit, meta: bool, others: Collection[type[nn.Module]] = ()) -> Iterator[None]:
    """Pass the arguments of every resizable layer that is constructed through `edit(layer, arguments)` while open.

    Where the constructor of such a class calls that of another one, the arguments of the first are passed.

    Not thread-safe: it replaces the constructors of the layers' classes, for the whole process, until it is closed.

    Args:
        edit: changes the arguments in place.
        meta: whether the layers hold no memory; torch's random state is then left as it was. (As torch's default
            device, meta would also reach arithmetic by which networks find their widths.)
        others: further classes whose modules are treated so.
    """
    own = [(layer, vars(layer).get("__init__")) for layer in dict.fromkeys((*CONSTRUCTED, *others))]
    running: set[int] = set()  # ids of layers
    with contextlib.ExitStack() as closing:
        if meta:  # the network that is built for use begins as if this one never was
            closing.enter_context(torch.random.fork_rng(devices=[]))
        for layer, original in own:
            closing.callback(_restore, layer, original)
            _set_constructor(layer, _edited(layer.__init__, edit, meta, running))
        yield


def construct(build: Build) -> nn.Module:
    """Call the function or class that builds a network.

    Raises:
        ChannelError: it is not a function, it fails, or it gives something else.
    """
    if not callable(build) or isinstance(build, nn.Module):
        raise ChannelError(f"got {kind(build)}; expected a function or class that builds a network, without arguments")
    name = getattr(build, "__name__", type(build).__name__)
    try:
        model = build()
    except UserError:
        raise
    except Exception as error:  # whatever the function's own code raises
        raise BuildError(
            f"{name}() fails: {type(error).__name__}: {first_line(error)}; expected a function or class that builds a "
            "network, without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ChannelError(f"{name}() gives {kind(model)}; expected a network, a torch.nn.Module")
    return model


class Built(NamedTuple):
    """A network, and where the layers are that were constructed with it."""

    model: nn.Module
    order: tuple[str | None, ...]  # paths in order of construction; None: of a layer that the network does not keep
    copies: dict[str, str]  # a layer that was copied from another one, or is it -> the first such


def built(build: Build, others: Collection[type[nn.Module]] = (), meta: bool = True) -> Built:
    """Build the network, on the meta device or with the same weights each time.

    Raises:
        ChannelError: `build` fails, or does not build anew what it gives: that is someone's, and must not be changed.
    """
    positions = itertools.count()

    def mark(layer: nn.Module, arguments: Arguments) -> None:
        vars(layer)[MARK] = next(positions)

    with torch.random.fork_rng(devices=[]), constructing(mark, meta, others):
        torch.manual_seed(0)
        model = construct(build)
        count = next(positions)
        _refuse_kept(model, construct(build))
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        if MARK in vars(module):
            paths.setdefault(vars(module).pop(MARK), []).append(path)
    order = tuple(paths[position][0] if position in paths else None for position in range(count))
    copies = {path: own[0] for own in paths.values() if len(own) > 1 for path in own}
    return Built(model.to("meta") if meta else model, order, copies)


def _refuse_kept(one: nn.Module, other: nn.Module) -> None:
    """Refuse two networks of one function that share a module with parameters or buffers."""
    others = set(map(id, other.modules()))
    for path, module in one.named_modules():
        has_tensors = any(True for _ in module.parameters(recurse=False)) or any(
            True for _ in module.buffers(recurse=False)
        )
        if id(module) in others and (has_tensors or not path):
            what = f"its module '{path}'" if path else "the network"
            raise ChannelError(
                f"{type(one).__name__}: the function gives {what} again each time it is called; expected one that "
                "builds a new network, or the network itself in its place"
            )


def handled(error: BaseException | None) -> Iterator[nn.Module]:
    """Yield the modules that the functions had at hand which an error came out of, the innermost first."""
    frames = [] if error is None else [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        local = [value for value in frame.f_locals.values() if isinstance(value, nn.Module)]
        yield from sorted((module for module in local if "_modules" in vars(module)), key=_count)


def _count(module: nn.Module) -> int:
    return sum(1 for _ in module.modules())


def resize_parameter(model: nn.Module, name: str, dim: int, width: int) -> None:
    """Replace a parameter or buffer of one value by one of another size."""
    path, _, name = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, name)
    shape = [width if d == dim else size for d, size in enumerate(old.shape)]
    new = old.detach().flatten()[:1].expand(math.prod(shape)).reshape(shape).clone()
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(module, name, new)


def _edited(original: Callable[..., None], edit: Edit, meta: bool, running: set[int]) -> Callable[..., None]:
    """Return a constructor that edits its arguments before it does what the original does."""
    signature = inspect.signature(original)

    def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        outermost = id(self) not in running
        running.add(id(self))
        try:
            if outermost:
                edit(self, bound.arguments)
            if meta and "device" in signature.parameters:
                bound.arguments["device"] = "meta"
            original(*bound.args, **bound.kwargs)
        finally:
            if outermost:
                running.discard(id(self))

    return construct


def _restore(layer: type[nn.Module], original: Callable[..., None] | None) -> None:
    if original is None:  # it was inherited
        del layer.__init__
    else:
        _set_constructor(layer, original)


def _set_constructor(layer: type[nn.Module], constructor: Callable[..., None]) -> None:
    layer.__init__ = constructor  # type: ignore[method-assign]
