"""Other sizes for the layers of a network while its own constructor runs."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from eigendet.channels.follower import NORMS

RESIZABLE = (nn.modules.conv._ConvNd, nn.Linear, *NORMS)


@contextlib.contextmanager
def constructing(
    edit: Callable[[nn.Module, dict[str, Any]], None], meta: bool, others: Collection[type[nn.Module]] = ()
) -> Iterator[None]:
    """While open, every resizable layer that is constructed passes its arguments through `edit(layer, arguments)`.

    So do modules of the classes in `others`.

    With `meta` the layers hold no memory. (As torch's default device, meta would also reach arithmetic by which
    networks find their widths.)
    """

    def patched(original: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(original)

        def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            edit(self, bound.arguments)
            if meta and "device" in signature.parameters:
                bound.arguments["device"] = "meta"
            original(*bound.args, **bound.kwargs)

        return construct

    with contextlib.ExitStack() as patches:
        if meta:  # the network that is built for use begins as if this one never was
            patches.enter_context(torch.random.fork_rng(devices=[]))
        for layer in (*CONSTRUCTED, *others):
            patches.enter_context(mock.patch.object(layer, "__init__", patched(layer.__init__)))
        yield


# Where the sizes of layers are arguments: ConvNd's own constructor takes them through those of its children.
CONSTRUCTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, *NORMS,
)  # fmt: skip


def resize_parameter(model: nn.Module, name: str, dim: int, width: int) -> None:
    """A parameter or buffer of one value, in another size."""
    path, _, name = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, name)
    shape = [width if d == dim else size for d, size in enumerate(old.shape)]
    new = old.detach().flatten()[:1].expand(math.prod(shape)).reshape(shape).clone()
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(module, name, new)
