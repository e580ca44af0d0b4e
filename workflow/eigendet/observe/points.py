"""Tell what a module's output stands for and where its channels are.

Points are what the module is: `conv`, `linear`, `norm`, `act`, `block` (a residual block, so its output is the residual
sum after its activation), `fpn` (a feature pyramid) and `output` (any other module).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, Permute

from eigendet.errors import UserError, kind
from eigendet.observe.keys import Point

CONVOLUTIONS = nn.modules.conv._ConvNd
LAST_DIMENSION = (nn.Linear, nn.LayerNorm, nn.RMSNorm)  # features last, whatever comes before
NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, FrozenBatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
# Functions of each element. Not GLU, which halves the channels, and no Softmax and no attention, which mix elements.
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
# Residual blocks and pyramids have no common base class; every library names them so.
BLOCK_NAME = re.compile(r"Block$|Bottleneck$|InvertedResidual$|MBConv$")
PYRAMID_NAME = re.compile(r"FeaturePyramidNetwork$|^FPN$")
# Nor have activations of other libraries, such as timm's GELUTanh and SwishMe, or transformers' XIELUActivation.
ACTIVATION_NAME = re.compile(
    r"Act$|Activation$|Nonlinearity$"
    r"|(?i:(elu|silu|swish|mish|sigmoid|tanh|softplus|softsign|shrink|snake)(6|_?me|_?auto|beta|tanh|squared)?$)"
)


def point_of(module: nn.Module) -> Point:
    """Return the point that a module's output stands for.

    >>> point_of(nn.Conv2d(3, 4, 1)), point_of(nn.GELU()), point_of(nn.Dropout())
    ('conv', 'act', 'output')
    >>> class Swish(nn.Module):
    ...     def forward(self, maps):
    ...         return maps * maps.sigmoid()
    >>> point_of(Swish())
    'act'
    """
    name = type(module).__name__
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, ACTIVATIONS) or (ACTIVATION_NAME.search(name) and _may_be_elementwise(module)):
        return "act"
    if PYRAMID_NAME.search(name):
        return "fpn"
    if BLOCK_NAME.search(name) and next(module.children(), None) is not None:
        return "block"
    return "output"


def _may_be_elementwise(module: nn.Module) -> bool:
    """Return whether a module has no weights but one for each channel, and is made of nothing but activations.

    >>> _may_be_elementwise(nn.PReLU(8)), _may_be_elementwise(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()))
    (True, False)
    """
    weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    per_channel = all(weight.numel() == max(weight.shape, default=1) for weight in weights)
    return per_channel and all(point_of(part) == "act" for part in module.children())


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
    return 1 if isinstance(module, (*NORMS, nn.Unfold)) else None


def inherited_channel_dim(module: nn.Module, source: Tensor, output: Tensor, channel_dim: int) -> int | None:
    """Return the dimension of the channels in the output of a layer that does not fix it, by where its input has them.

    It stays where the number of channels does, or else that of everything but channels.

    >>> maps = torch.zeros(2, 6, 40)
    >>> inherited_channel_dim(nn.MaxPool1d(2), maps, torch.zeros(2, 6, 20), 1)
    1
    >>> inherited_channel_dim(nn.GLU(1), maps, torch.zeros(2, 3, 40), 1)
    1
    >>> inherited_channel_dim(Permute([0, 2, 1]), maps, torch.zeros(2, 40, 6), 1)
    2
    """
    if isinstance(module, Permute):
        return [dim % source.dim() for dim in module.dims].index(channel_dim)
    if isinstance(module, nn.Flatten):
        return channel_dim if channel_dim < module.start_dim % source.dim() else None
    if source.dim() != output.dim():
        return None
    kept = [one == other for one, other in zip(source.shape, output.shape, strict=True)]
    return channel_dim if kept[channel_dim] or kept.count(False) == 1 else None


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
