"""What a module's output stands for, where its channels are, and every call of every module.

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

from eigendet.errors import UserError
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


def point_of(module: nn.Module) -> Point:
    """The point that a module's output stands for."""
    name = type(module).__name__
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, ACTIVATIONS):
        return "act"
    if PYRAMID_NAME.search(name):
        return "fpn"
    if BLOCK_NAME.search(name) and next(module.children(), None) is not None:
        return "block"
    return "output"


def own_channel_dim(module: nn.Module, output: Tensor) -> int | None:
    """The dimension of the channels in the output of a layer that fixes it, else None."""
    if isinstance(module, CONVOLUTIONS):
        return output.dim() - 1 - len(module.kernel_size)
    if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:  # over channels of an NCHW map
        channels = module.normalized_shape[-1]
        return 1 if output.dim() == 4 and output.shape[1] == channels else -1
    if isinstance(module, LAST_DIMENSION):
        return -1
    return 1 if isinstance(module, NORMS) else None


def default_channel_dim(output: Tensor) -> int:
    """Of a tensor that no layer says anything about: tokens (N, T, C), else (N, C, ...)."""
    return -1 if output.dim() == 3 else 1


def feature_maps(output: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in a module's output, with a suffix to its path, `[level]`, where it gives several."""
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
) -> Iterator[None]:
    """Call `see(path, call index, module, inputs, output)` after every call of every module, while the context is open.

    Call indices start at 0 in every pass, which is one call from outside of the model or of a part of it; `before` and
    `after` are called around it. The output is what `forward` returned, before hooks that a module has of its own. The
    hooks here are the process's, not the modules', so that the model stays as it is: it can be copied and pickled.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    calls: Counter[str] = Counter()
    depth = 0

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal depth
        if id(module) in paths:
            if depth == 0:
                calls.clear()
                before()
            depth += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal depth
        path = paths.get(id(module))
        if path is None:
            return
        try:
            see(path, calls[path], module, inputs, output)
        finally:
            calls[path] += 1
            depth -= 1
        if depth == 0 and output is not None:
            after()

    entering = nn.modules.module.register_module_forward_pre_hook(torch.compiler.disable(enter))
    leaving = nn.modules.module.register_module_forward_hook(torch.compiler.disable(leave), always_call=True)
    try:
        yield
    finally:
        entering.remove()
        leaving.remove()


def refuse_hookless(model: nn.Module) -> None:
    """Raise UserError if a module inside does not run its hooks, so that its taps would be lost in silence."""
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
