"""Which tensors of a model are observed, each by the path of its module, the index of the call, and a point.

A module may run several times in one forward pass (a ReLU three times in a residual block, a head on five levels);
every call is a tap of its own. Points are what the module is: `conv`, `norm`, `act`, `block` (a residual block, so its
output is the residual sum after its activation), `fpn` (the levels of a feature pyramid, one tap a level).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from eigendet.config import Point
from eigendet.covariance import Covariance

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.InstanceNorm2d, FrozenBatchNorm2d)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Sigmoid, nn.Tanh, nn.Softplus,
)  # fmt: skip
# Residual blocks and pyramids have no common base class; every library names them so.
BLOCK_NAME = re.compile(r"Block$|Bottleneck$|InvertedResidual$")
PYRAMID_NAME = re.compile(r"FeaturePyramidNetwork$|^FPN$")


@dataclass(frozen=True, order=True)
class TapKey:
    module: str
    call: int
    point: str

    def __str__(self) -> str:
        return f"{self.module}#{self.call}:{self.point}"


def point_of(module: nn.Module) -> Point | None:
    """The point that a module's output stands for, or None if it is none of them."""
    name = type(module).__name__
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, ACTIVATIONS):
        return "act"
    if PYRAMID_NAME.search(name):
        return "fpn"
    if BLOCK_NAME.search(name) and next(module.children(), None) is not None:
        return "block"
    return None


@contextlib.contextmanager
def each_call(model: nn.Module, see: Callable[[str, int, nn.Module, Any], None]) -> Iterator[None]:
    """Call `see(path, call index, module, output)` after every module's every call, while the context is open.

    Call indices start at 0 in every forward pass of `model`.
    """
    calls: Counter[str] = Counter()

    def hook(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        see(path, calls[path], module, output)
        calls[path] += 1

    with contextlib.ExitStack() as hooks:
        start = model.register_forward_pre_hook(lambda module, inputs: calls.clear())
        hooks.callback(start.remove)
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(hook, path)).remove)
        yield


@contextlib.contextmanager
def tap(model: nn.Module, points: Collection[Point]) -> Iterator[dict[TapKey, Covariance]]:
    """Accumulate the covariance of every feature map at `points` over all forward passes inside the context.

    Yields:
        A dict that fills as the model runs, in order of execution. The model's outputs are untouched, and its hooks
        are gone after the context, also after an exception.
    """
    found: dict[TapKey, Covariance] = {}

    def see(path: str, call: int, module: nn.Module, output: Any) -> None:
        point = point_of(module)
        if point is None or point not in points:
            return
        if isinstance(output, Tensor):
            add(TapKey(path, call, point), output)
        else:
            levels = output.items() if isinstance(output, dict) else enumerate(output)
            for level, feature_map in levels:
                add(TapKey(f"{path}.{level}" if path else str(level), call, point), feature_map)

    def add(key: TapKey, feature_map: Tensor) -> None:
        if key not in found:
            found[key] = Covariance(feature_map.shape[1], feature_map.device)
        found[key].update(feature_map)

    with torch.no_grad(), each_call(model, see):
        yield found
