"""Follows the sizes of feature maps through one forward pass, operation by operation.

Every dimension of a feature map that counts channels has an axis (see `sizes`); others, of images and pixels, have
none. Layers with weights make axes and take them, sums equate them, concatenations join them, reshapes split and merge
them. Only sizes are followed, not which channel is which: after a channel shuffle a half is still a half.

The rules here are of what an operation is likely to want when widths change. `channels.trace` builds the network with
other widths and follows it again; where that fails, or comes out otherwise, the groups are kept at their widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from eigendet.channels.operations import RULES, elementwise
from eigendet.channels.sizes import Axis, Sizes

Axes = tuple[Axis | None, ...]  # of a tensor, a dimension each

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass
class Call:
    """One use of weights: a convolution or product, a normalization, or a parameter that stands alone."""

    path: str  # of the module; of the parameter, where it stands alone
    kind: str  # "conv", "linear", "product" of two maps, "norm" or "parameter"
    source: Axis | None
    axis: Axis
    groups: int = 1
    depthwise: bool = False
    kernel: int = 1  # elements
    positions: int = 0  # at which the weights are applied, for one image
    owned: bool = True  # the weights are parameters of the module
    dim: int = 0  # of the parameter that stands alone


@dataclass
class Operation:
    """What was done where, with which axes: to name a failure and what took part in it."""

    name: str
    module: str
    axes: list[Axis]


class Follower(TorchDispatchMode):
    """Annotates the tensors of a forward pass with axes, and notes the calls of layers."""

    def __init__(self, model: nn.Module, regions: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.regions = regions or {}  # prefix of module paths -> how many regions of an image these modules see
        self.sizes = Sizes()
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self.outputs: dict[tuple[str, int], Axis] = {}
        self.stack: list[str] = []
        self.axes: dict[int, Axes] = {}  # by id of a tensor
        self.made: dict[str, tuple[Axis | None, Axis]] = {}  # layer -> its source and its axis
        self.alive: list[Any] = []  # ids are unique among living tensors only
        self.counting = True  # positions of further calls are counted into the costs
        # Tensors that modules own, and what is computed from these alone.
        self.owners = {
            id(tensor): (path, name)
            for path, module in model.named_modules()
            for name, tensor in [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]
        }

    def begin(self, images: Any) -> None:
        """Take the images as feature maps whose channels are given."""
        for image in tree_leaves(images):
            dim = image.dim() - 3
            axis = self.sizes.constant(image.shape[dim], "the channels of the image")
            self.note(image, tuple(axis if d == dim else None for d in range(image.dim())))

    def leave(self, path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
        """After a module's call: note the channels of its output, under the key of its tap."""
        if self.counting and isinstance(output, Tensor) and id(output) in self.axes:
            tracked = [axis for axis in self.axes[id(output)] if axis is not None]
            if len(tracked) == 1:
                self.outputs[path, call] = tracked[0]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive += tensors
        maps = [tensor for tensor in tensors if id(tensor) in self.axes]
        operation = Operation(function.overloadpacket._qualified_op_name.split("::")[-1], self.where(), [])
        for tensor in maps:
            operation.axes += [axis for axis in self.axes[id(tensor)] if axis is not None]
        if maps:
            self.operations.append(operation)
        result = function(*args, **(kwargs or {}))
        self.alive.append(result)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if maps:
            follow = RULES.get(function.overloadpacket, elementwise)
            follow(self, function, args, kwargs or {}, outputs)
        else:
            owners = [self.owners[id(tensor)] for tensor in tensors if id(tensor) in self.owners]
            if len({path for path, _ in owners}) == 1:
                self.owners |= dict.fromkeys(map(id, outputs), owners[0])
        return result

    # For the rules of operations.

    def batch(self, path: str, size: int) -> int:
        """How many maps of one image a layer sees where it sees `size` at a time: regions are counted as stated."""
        prefixes = [prefix for prefix in self.regions if path.startswith(prefix)]
        return self.regions[max(prefixes, key=len)] if prefixes else size

    def axes_of(self, tensor: Tensor) -> Axes:
        return self.axes.get(id(tensor), (None,) * tensor.dim())

    def note(self, tensor: Tensor, axes: Axes) -> None:
        tracked = [axis for axis in axes if axis is not None]
        for axis in tracked:
            if any(factor.denominator > 1 for _, factor in axis):
                self.sizes.require(axis, 1)
        if tracked:
            self.axes[id(tensor)] = axes
            self.alive.append(tensor)

    def where(self) -> str:
        return (self.stack[-1] if self.stack else "") or type(self.model).__name__

    def owner(self, tensor: Tensor) -> tuple[str, bool]:
        """The layer whose weights these are, and whether they are a layer's at all."""
        if id(tensor) in self.owners:
            path, _ = self.owners[id(tensor)]
            return path, isinstance(self.model.get_submodule(path), (*WEIGHTED, *NORMS))
        return self.where(), False

    def is_weight(self, tensor: Tensor) -> bool:
        return id(tensor) in self.owners and isinstance(self.model.get_submodule(self.owners[id(tensor)][0]), nn.Linear)

    def written(self, path: str, size: int) -> Axis:
        """The axis that a layer writes. One channel is not a width: it is a mask, or a map of weights."""
        if path in self.made:
            return self.made[path][1]
        return self.sizes.new(path, size) if size > 1 else self.sizes.constant(1, "a single channel")

    def layer(self, path: str, source: Axis, axis: Axis) -> Axis:
        """Equate what a layer that was met before took and gave with what it takes and gives now."""
        if path in self.made:
            known = self.made[path]
            assert known[0] is not None
            self.sizes.equate(known[0], source)
            self.sizes.equate(known[1], axis)
        self.made[path] = source, axis
        return axis

    def norm(self, path: str, axis: Axis) -> None:
        if path in self.made:
            self.sizes.equate(self.made[path][1], axis)
        else:
            self.made[path] = None, axis
            self.call(path, "norm", None, axis)

    def parameter(self, tensor: Tensor, dim: int, axis: Axis) -> None:
        """A parameter or buffer that takes part by itself: of a normalization written out, or one that scales maps."""
        path, name = self.owners[id(tensor)]
        module = self.model.get_submodule(path)
        if isinstance(module, NORMS):
            self.norm(path, axis)
        elif isinstance(own := getattr(module, name, None), Tensor) and own.numel() == math.prod(tensor.shape):
            if own.shape != tensor.shape:  # reshaped before its use
                dim = next((d for d, size in enumerate(own.shape) if size == tensor.shape[dim]), -1)
            known = f"{path}.{name}" if path else name
            if known not in self.made:
                self.made[known] = None, axis
                self.call(known, "parameter", None, axis, dim=dim, owned=False)
        else:
            self.sizes.fix(axis, f"'{name}' of {path or self.where()}, changed before its use")

    def call(
        self,
        path: str,
        kind: str,
        source: Axis | None,
        axis: Axis,
        groups: int = 1,
        depthwise: bool = False,
        kernel: int = 1,
        positions: int = 0,
        owned: bool = True,
        dim: int = 0,
    ) -> None:
        positions = positions if self.counting else 0
        self.calls.append(Call(path, kind, source, axis, groups, depthwise, kernel, positions, owned, dim))

    def fix_dropped(self, given: Axes, kept: Sequence[Axis | None], channel: int) -> None:
        for d, axis in enumerate(given):
            if axis is not None and kept[d] is None and d != channel:
                self.sizes.fix(axis, f"a convolution along the channels in {self.where()}")

    def common(self, tensors: Sequence[Tensor], back: int, size: int) -> Axis | None:
        """The axis of the dimension `back` from the last, which operands have in common."""
        found: Axis | None = None
        for tensor in tensors:
            if tensor.dim() < back or tensor.shape[-back] != size:
                continue
            axis = self.axes_of(tensor)[-back]
            if axis is not None and found is not None:
                self.sizes.equate(found, axis)
            found = found if axis is None else axis
        if found is not None:
            for tensor in tensors:
                if id(tensor) in self.owners and tensor.dim() >= back and tensor.shape[-back] == size:
                    self.parameter(tensor, tensor.dim() - back, found)
        return found
