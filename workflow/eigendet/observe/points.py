"""Tell what a module's output stands for and where its channels are, and follow every call of every module.

Points are what the module is: `conv`, `linear`, `norm`, `act`, `block` (a residual block, so its output is the residual
sum after its activation), `fpn` (a feature pyramid) and `output` (any other module).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from eigendet.errors import UserError, kind
from eigendet.observe.keys import Point

CONVOLUTIONS = nn.modules.conv._ConvNd
LAST_DIMENSION = (nn.Linear, nn.LayerNorm, nn.RMSNorm)  # features last, whatever comes before
NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, FrozenBatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
# Residual blocks and pyramids have no common base class; every library names them so.
BLOCK_NAME = re.compile(r"Block$|Bottleneck$|InvertedResidual$")
PYRAMID_NAME = re.compile(r"FeaturePyramidNetwork$|^FPN$")
ACTIVATION_NAME = re.compile(r"Activation$")  # as transformers names its own, which have no children


def point_of(module: nn.Module) -> Point:
    """Return the point that a module's output stands for.

    >>> point_of(nn.Conv2d(3, 4, 1)), point_of(nn.GELU()), point_of(nn.Dropout())
    ('conv', 'act', 'output')
    """
    name = type(module).__name__
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, NORMS):
        return "norm"
    is_leaf = next(module.children(), None) is None
    if isinstance(module, ACTIVATIONS) or (is_leaf and ACTIVATION_NAME.search(name)):
        return "act"
    if PYRAMID_NAME.search(name):
        return "fpn"
    if BLOCK_NAME.search(name) and not is_leaf:
        return "block"
    return "output"


def own_channel_dim(module: nn.Module, output: Tensor) -> int | None:
    """Return the dimension of the channels in the output of a layer that fixes it, else None.

    >>> own_channel_dim(nn.Conv2d(3, 4, 1), torch.zeros(2, 4, 8, 8))
    1
    >>> own_channel_dim(nn.Linear(3, 4), torch.zeros(2, 49, 4))
    -1
    >>> own_channel_dim(nn.ReLU(), torch.zeros(2, 4)) is None
    True
    """
    if isinstance(module, CONVOLUTIONS):
        return output.dim() - 1 - len(module.kernel_size)
    if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:  # over channels of an NCHW map
        channels = module.normalized_shape[-1]
        return 1 if output.dim() == 4 and output.shape[1] == channels else -1
    if isinstance(module, LAST_DIMENSION):
        return -1
    return 1 if isinstance(module, NORMS) else None


def default_channel_dim(output: Tensor) -> int:
    """Return the dimension of the channels where no layer fixes it: in tokens (N, T, C), else in (N, C, ...).

    >>> default_channel_dim(torch.zeros(2, 49, 64)), default_channel_dim(torch.zeros(2, 64, 7, 7))
    (-1, 1)
    """
    return -1 if output.dim() == 3 else 1


def feature_maps(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors in a module's output, with a suffix to its path where it gives several.

    >>> [name for name, _ in feature_maps({"fine": torch.zeros(2, 4), "coarse": [torch.zeros(2, 4)]})]
    ['[fine]', '[coarse][0]']
    """
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim() > 1:
            yield "", output
    elif isinstance(output, dict | list | tuple):
        for name, part in output.items() if isinstance(output, dict) else enumerate(output):
            for suffix, tensor in feature_maps(part):
                yield f"[{name}]{suffix}", tensor


@contextlib.contextmanager
def each_call(
    model: nn.Module,
    see: Callable[[str, int, nn.Module, Any, Any], None],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    counts: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Call a function after every call of every module, while the context is open.

    The output is what `forward` returned, before hooks that a module has of its own. The hooks here are the process's,
    not the modules', so that the model stays as it is: it can be copied and pickled. What runs again in a backward
    pass, under gradient checkpointing, was seen before and is left out.

    Args:
        model: whose modules are followed.
        see: called as `see(path, call index, module, inputs, output)`. Indices start at 0 in every pass, which is one
            call from outside of the model or of a part of it.
        before: called before every pass.
        after: called after every pass that succeeded.
        counts: called when a pass begins; False leaves it out.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with each_call(model, lambda path, call, module, inputs, output: print(path, call, tuple(output.shape))):
        ...     output = model(torch.zeros(5, 3))
        0 0 (5, 2)
        1 0 (5, 2)
         0 (5, 2)
    """
    follower = _Follower(model, see, before, after, counts)
    enter, leave = torch.compiler.disable(follower.enter), torch.compiler.disable(follower.leave)
    entering = nn.modules.module.register_module_forward_pre_hook(enter)
    leaving = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        entering.remove()
        leaving.remove()


class _Follower:
    """What `each_call` knows of the present pass."""

    def __init__(
        self,
        model: nn.Module,
        see: Callable[[str, int, nn.Module, Any, Any], None],
        before: Callable[[], None],
        after: Callable[[], None],
        counts: Callable[[], bool],
    ) -> None:
        self.see, self.before, self.after, self.counts = see, before, after, counts
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.calls: Counter[str] = Counter()
        self.depth, self.is_counted = 0, True

    def enter(self, module: nn.Module, inputs: Any) -> None:
        if id(module) in self.paths and not _is_in_backward():
            if self.depth == 0:
                self.calls.clear()
                self.is_counted = self.counts()
                if self.is_counted:
                    self.before()
            self.depth += 1

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        path = self.paths.get(id(module))
        if path is None or _is_in_backward():
            return
        try:
            if self.is_counted:
                self.see(path, self.calls[path], module, inputs, output)
        finally:
            self.calls[path] += 1
            self.depth -= 1
        if self.depth == 0 and self.is_counted and output is not None:
            self.after()


def _is_in_backward() -> bool:
    """Return whether this thread runs a backward pass; torch's own checkpointing asks so too."""
    return torch._C._current_graph_task_id() != -1


def refuse_hookless(model: nn.Module) -> None:
    """Refuse a model with a module that does not run its hooks, so that its taps would be lost in silence.

    Raises:
        UserError: it is not a model; a module is compiled, scripted, or runs in copies.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {kind(model)}; expected a torch.nn.Module.")
    for path, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            how = "compiled by torch.compile, which drops hooks; tap the plain model, and compile it inside the context"
        elif isinstance(module, torch.jit.ScriptModule):
            how = "a TorchScript module, which has no hooks inside; tap the model that it was made from"
        elif isinstance(module, nn.DataParallel):
            how = "run in copies; tap the module inside, or use DistributedDataParallel"
        else:
            continue
        raise UserError(f"{path or 'the model'} ({type(module).__name__}) is {how}.")
