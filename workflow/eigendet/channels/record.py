"""What is known of one forward pass: which dimensions of its tensors count channels, and which layers it called.

Every dimension of a feature map that counts channels has an axis (see `sizes`); others, of images and pixels, have
none. Only sizes are followed, not which channel is which: after a channel shuffle a half is still a half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from eigendet.channels.groups import Kind
from eigendet.channels.sizes import Axis, Sizes

Axes = tuple[Axis | None, ...]  # of a tensor, one for each dimension

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Call:
    """One use of weights: a convolution or product, a normalization, or a parameter that stands alone."""

    path: str  # of the module; of the parameter, where it stands alone
    kind: Kind
    source: Axis | None
    axis: Axis
    groups: int = 1
    depthwise: bool = False
    kernel: int = 1  # elements
    positions: int = 0  # at which the weights are applied, for one image
    owned: bool = True  # the weights are parameters of the module
    dim: int = 0  # that holds the channels, of a parameter that stands alone


@dataclass(frozen=True)
class Operation:
    """An operation, its module and the axes that took part: to name a failure and what to keep after it."""

    name: str
    module: str
    axes: list[Axis]


class Owner(NamedTuple):
    """The module that a tensor belongs to, and the name of the parameter or buffer it is or was computed from."""

    path: str
    name: str


class LayerAxes(NamedTuple):
    """The axes that a layer reads and writes; a normalization or a single parameter has no source."""

    source: Axis | None
    axis: Axis


class Record:
    """The axes of tensors and the calls of layers in the forward passes of one network.

    Args:
        model: the network that is followed.
        regions: how many regions of an image the modules see whose path begins with the key.
    """

    def __init__(self, model: nn.Module, regions: Mapping[str, int] | None = None) -> None:
        self.model = model
        self.regions = regions or {}
        self.sizes = Sizes()
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self.outputs: dict[tuple[str, int], Axis] = {}
        self.stack: list[str] = []  # paths of the modules that are running, the innermost last
        self.layers: dict[str, LayerAxes] = {}
        self.axes: dict[int, Axes] = {}  # by id of a tensor
        self.counting = True  # positions of further calls are counted into the costs
        self._alive: list[Any] = []  # ids are unique among living tensors only
        # Tensors that modules own, and what is computed from these alone, by id.
        self.owners = {
            id(tensor): Owner(path, name)
            for path, module in model.named_modules()
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        }

    def begin(self, images: Any) -> None:
        """Take the images as feature maps whose number of channels is given."""
        for image in tree_leaves(images):
            dim = image.dim() - 3
            axis = self.sizes.constant(image.shape[dim], "the channels of the image")
            self.note(image, tuple(axis if d == dim else None for d in range(image.dim())))

    def leave(self, path: str, call: int, output: Any) -> None:
        """Note the channels of a module's output under the key of its tap, after the module's call."""
        if self.counting and isinstance(output, Tensor) and id(output) in self.axes:
            tracked = [axis for axis in self.axes[id(output)] if axis is not None]
            if len(tracked) == 1:
                self.outputs[path, call] = tracked[0]

    def where(self) -> str:
        """Return the path of the module that is running; of the network itself, its class."""
        return (self.stack[-1] if self.stack else "") or type(self.model).__name__

    def batch(self, path: str, size: int) -> int:
        """Return how many maps of one image a layer sees that was given `size`; regions are counted as stated."""
        prefixes = [prefix for prefix in self.regions if path.startswith(prefix)]
        return self.regions[max(prefixes, key=len)] if prefixes else size

    # Tensors.

    def keep_alive(self, values: Iterable[Any]) -> None:
        """Hold tensors until the end, so that no later one has the id of one of them."""
        self._alive += values

    def axes_of(self, tensor: Tensor) -> Axes:
        """Return the axis of each dimension of a tensor."""
        return self.axes.get(id(tensor), (None,) * tensor.dim())

    def note(self, tensor: Tensor, axes: Axes) -> None:
        """Note the axis of each dimension of a tensor, if any counts channels."""
        tracked = [axis for axis in axes if axis is not None]
        for axis in tracked:
            if any(factor.denominator > 1 for _, factor in axis):
                self.sizes.require(axis, 1)
        if tracked:
            self.axes[id(tensor)] = axes
            self._alive.append(tensor)

    def inherit(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        """Count the outputs as their module's where all inputs that any module owns belong to one."""
        owners = [self.owners[id(tensor)] for tensor in inputs if id(tensor) in self.owners]
        if len({owner.path for owner in owners}) == 1:
            for output in outputs:
                self.owners[id(output)] = owners[0]

    def owner(self, tensor: Tensor) -> tuple[str, bool]:
        """Return the path of the module whose weights these are, and whether that is a layer."""
        if id(tensor) in self.owners:
            path = self.owners[id(tensor)].path
            return path, isinstance(self.model.get_submodule(path), (*WEIGHTED, *NORMS))
        return self.where(), False

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is of a linear layer."""
        owner = self.owners.get(id(tensor))
        return owner is not None and isinstance(self.model.get_submodule(owner.path), nn.Linear)

    def common(self, tensors: Sequence[Tensor], back: int, size: int) -> Axis | None:
        """Return the axis that operands share in the dimension `back` from the last, made equal if they have several.

        Operands whose dimension is not of this size are left out.
        """
        aligned = [tensor for tensor in tensors if tensor.dim() >= back and tensor.shape[-back] == size]
        shared: Axis | None = None
        for tensor in aligned:
            axis = self.axes_of(tensor)[-back]
            if axis is not None and shared is not None:
                self.sizes.equate(shared, axis)
            shared = shared if axis is None else axis
        if shared is not None:
            for tensor in aligned:
                if id(tensor) in self.owners:
                    self._meet(tensor, tensor.dim() - back, shared)
        return shared

    # Layers.

    def written(self, path: str, size: int) -> Axis:
        """Return the axis that a layer writes. One channel is not a width: it is a mask, or a map of weights."""
        if path in self.layers:
            return self.layers[path].axis
        return self.sizes.new(path, size) if size > 1 else self.sizes.constant(1, "a single channel")

    def layer(self, path: str, source: Axis, axis: Axis) -> Axis:
        """Note what a layer reads and writes, equal to what it did before if it was met; return what it writes."""
        if path in self.layers:
            before = self.layers[path]
            assert before.source is not None
            self.sizes.equate(before.source, source)
            self.sizes.equate(before.axis, axis)
        self.layers[path] = LayerAxes(source, axis)
        return axis

    def norm(self, path: str, axis: Axis) -> None:
        """Note the axis that a normalization has parameters for."""
        if path in self.layers:
            self.sizes.equate(self.layers[path].axis, axis)
        else:
            self.layers[path] = LayerAxes(None, axis)
            self.add(Call(path, "norm", None, axis))

    def add(self, call: Call) -> None:
        """Note a call, with its positions if these are counted."""
        self.calls.append(call if self.counting else replace(call, positions=0))

    def _meet(self, tensor: Tensor, dim: int, axis: Axis) -> None:
        """Note a tensor of a module that meets maps: of a normalization written out, or one that scales maps."""
        path, name = self.owners[id(tensor)]
        module = self.model.get_submodule(path)
        own = getattr(module, name, None)
        if isinstance(module, NORMS):
            self.norm(path, axis)
        elif isinstance(own, Tensor) and own.numel() == math.prod(tensor.shape):
            if own.shape != tensor.shape:  # reshaped before its use
                dim = next((d for d, size in enumerate(own.shape) if size == tensor.shape[dim]), -1)
            parameter = f"{path}.{name}" if path else name
            if parameter not in self.layers:
                self.layers[parameter] = LayerAxes(None, axis)
                self.add(Call(parameter, "parameter", None, axis, dim=dim, owned=False))
        else:
            self.sizes.fix(axis, f"'{name}' of {path or self.where()}, changed before its use")
