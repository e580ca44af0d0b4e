"""Other sizes for the layers of a network while its own constructor runs."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

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
)  # fmt: skip


@contextlib.contextmanager
def constructing(edit: Edit, meta: bool, others: Collection[type[nn.Module]] = ()) -> Iterator[None]:
    """Pass the arguments of every resizable layer that is constructed through `edit(layer, arguments)` while open.

    Not thread-safe: it replaces the constructors of the layers' classes, for the whole process, until it is closed.

    Args:
        edit: changes the arguments in place.
        meta: whether the layers hold no memory; torch's random state is then left as it was. (As torch's default
            device, meta would also reach arithmetic by which networks find their widths.)
        others: further classes whose modules are treated so.
    """
    own = [(layer, vars(layer).get("__init__")) for layer in (*CONSTRUCTED, *others)]
    with contextlib.ExitStack() as closing:
        if meta:  # the network that is built for use begins as if this one never was
            closing.enter_context(torch.random.fork_rng(devices=[]))
        for layer, original in own:
            closing.callback(_restore, layer, original)
            _set_constructor(layer, _edited(layer.__init__, edit, meta))
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
        raise ChannelError(
            f"{name}() fails: {type(error).__name__}: {first_line(error)}; expected a function or class that builds a "
            "network, without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ChannelError(f"{name}() gives {kind(model)}; expected a network, a torch.nn.Module")
    return model


def built(
    build: Build, others: Collection[type[nn.Module]] = (), meta: bool = True
) -> tuple[nn.Module, tuple[str | None, ...]]:
    """Build the network, and return it with the paths of its layers in order of construction.

    It is on the meta device, or has the same weights each time. A layer that the network does not keep has no path.

    Raises:
        ChannelError: `build` fails, or does not build anew what it gives: that is someone's, and must not be changed.
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]), constructing(lambda layer, arguments: layers.append(layer), meta, others):
        torch.manual_seed(0)
        model = construct(build)
        count = len(layers)
        _refuse_kept(model, construct(build))
    paths = {id(module): path for path, module in model.named_modules()}
    return model.to("meta") if meta else model, tuple(paths.get(id(layer)) for layer in layers[:count])


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


def _edited(original: Callable[..., None], edit: Edit, meta: bool) -> Callable[..., None]:
    """Return a constructor that edits its arguments before it does what the original does."""
    signature = inspect.signature(original)

    def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        edit(self, bound.arguments)
        if meta and "device" in signature.parameters:
            bound.arguments["device"] = "meta"
        original(*bound.args, **bound.kwargs)

    return construct


def _restore(layer: type[nn.Module], original: Callable[..., None] | None) -> None:
    if original is None:  # it was inherited
        del layer.__init__
    else:
        _set_constructor(layer, original)


def _set_constructor(layer: type[nn.Module], constructor: Callable[..., None]) -> None:
    layer.__init__ = constructor  # type: ignore[method-assign]
