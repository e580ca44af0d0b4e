"""What is known of one forward pass: which dimensions of its tensors count channels, and which layers it called.

Every dimension of a feature map that counts channels has an axis (see `sizes`); others, of images and pixels, have
none. Only sizes are followed, not which channel is which: after a channel shuffle a half is still a half.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from eigendet.channels.groups import Kind
from eigendet.channels.sizes import Axis, Sizes

Axes = tuple[Axis | None, ...]  # of a tensor, one for each dimension

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, FrozenBatchNorm2d)
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
    seen: int = 0  # positions in this pass, where regions are as many as it met


@dataclass
class Operation:
    """An operation of a pass, and the axes that took part: to name a failure and what to keep after it."""

    name: str
    module: str  # the path of the module that ran it
    call: int  # of the module
    place: int  # how many operations this call had run before
    axes: list[Axis]  # of its operands
    outputs: list[tuple[tuple[int, ...], Axes]] = field(default_factory=list)  # shapes and axes, once it has run

    @property
    def written(self) -> list[Axis]:
        """Return the axes of its outputs."""
        return [axis for _, axes in self.outputs for axis in axes if axis is not None]


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
        copies: modules that were made by copying another, and the path of the first that was made so.
    """

    def __init__(
        self, model: nn.Module, regions: Mapping[str, int] | None = None, copies: Mapping[str, str] | None = None
    ) -> None:
        self.model = model
        self.regions = regions or {}
        self.sizes = Sizes()
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self.outputs: dict[tuple[str, int], Axis] = {}
        self.stack: list[str] = []  # paths of the modules that are running, the innermost last
        self.called: Counter[str] = Counter()  # how often each module was
        self.counts: list[int] = [0]  # operations of each running one, and first those outside of any
        self.layers: dict[str, LayerAxes] = {}
        self.attributes: dict[
            tuple[str, str], Axis | list[Axis | int]
        ] = {}  # module and name -> the size it holds, or sizes
        self.axes: dict[int, Axes] = {}  # by id of a tensor
        self.makers: dict[int, str] = {}  # which operation a tensor comes from, by id
        self.parts: dict[int, tuple[int, list[Tensor]]] = {}  # of a tensor that modules own: where it is concatenated
        self.data: set[int] = set()  # ids of tensors that are computed from images
        self.counting = True  # positions of further calls are counted into the costs
        self._alive: list[Any] = []  # ids are unique among living tensors only
        # Tensors that modules own, and what is computed from these alone, by id; of several owners, the first first.
        self.owners: dict[int, list[Owner]] = defaultdict(list)
        for path, module in model.named_modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                self.owners[id(tensor)].append(Owner(path.partition("parametrizations.")[0].rstrip("."), name))
        self.twins = self._twins(copies or {})

    def begin(self, images: Any) -> None:
        """Take the images as feature maps whose number of channels is given."""
        for image in tree_leaves(images):
            self.data.add(id(image))
            dim = image.dim() - 3
            axis = self.sizes.constant(image.shape[dim], "the channels of the image")
            self.note(image, tuple(axis if d == dim else None for d in range(image.dim())))

    def enter(self, path: str) -> None:
        """Note that a module begins to run."""
        self.stack.append(path)
        self.called[path] += 1
        self.counts.append(0)

    def leave(self, path: str, call: int, output: Any) -> None:
        """Note the channels of a module's output under the key of its tap, after the module's call."""
        self.stack.pop()
        self.counts.pop()
        if self.counting and isinstance(output, Tensor) and id(output) in self.axes:
            tracked = [axis for axis in self.axes[id(output)] if axis is not None]
            if len(tracked) == 1:
                self.outputs[path, call] = tracked[0]

    def start(self, name: str, tensors: Iterable[Tensor]) -> Operation:
        """Note an operation that is about to run."""
        path = self.stack[-1] if self.stack else ""
        axes = [axis for tensor in tensors for axis in self.axes.get(id(tensor), ()) if axis is not None]
        self.operations.append(Operation(name, path, self.called[path], self.counts[-1], axes))
        self.counts[-1] += 1
        return self.operations[-1]

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
            self.data.add(id(tensor))
            self._alive.append(tensor)

    def inherit(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        """Count the outputs as their module's where all inputs that any module owns belong to one.

        Of several, it is the one whose tensor is of the output's shape, if there is only one: the others scale it.
        """
        owned = [tensor for tensor in inputs if id(tensor) in self.owners]
        for output in outputs:
            for tensors in (owned, [tensor for tensor in owned if tensor.shape == output.shape]):
                owners = [self.owners[id(tensor)] for tensor in tensors]
                if len({own[0].path for own in owners}) == 1:
                    self.owners[id(output)] = owners[0]

    def join(self, tensors: Sequence[Tensor], dim: int, output: Tensor) -> None:
        """Note that a tensor is made by concatenating others that one module owns."""
        if all(id(tensor) in self.owners for tensor in tensors) and id(output) in self.owners:
            self.owners[id(output)] = self.owners[id(tensors[0])]
            self.parts[id(output)] = (dim % output.dim(), list(tensors))

    def are_maps(self, tensors: Sequence[Tensor], is_product: bool) -> bool:
        """Return whether an operation takes what is computed from images, or multiplies what is not of one module."""
        if any(id(tensor) in self.data for tensor in tensors):
            return True
        paths = {self.owners[id(tensor)][0].path if id(tensor) in self.owners else None for tensor in tensors}
        return is_product and len(paths) > 1

    def owner(self, tensor: Tensor) -> tuple[str, bool]:
        """Return the path of the module whose weights these are, and whether that is a layer."""
        if id(tensor) in self.owners:
            paths = [owner.path for owner in self.owners[id(tensor)]]
            path = self.stack[-1] if self.stack and self.stack[-1] in paths else paths[0]
            return path, isinstance(self.model.get_submodule(path), (*WEIGHTED, *NORMS))
        return self.where(), False

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is of a linear layer."""
        return id(tensor) in self.owners and isinstance(
            self.model.get_submodule(self.owners[id(tensor)][0].path), nn.Linear
        )

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
                    self.meet(tensor, tensor.dim() - back, shared)
        return shared

    # Layers.

    def written(self, path: str, size: int) -> Axis:
        """Return the axis that a layer writes. One channel is not a width: it is a mask, or a map of weights."""
        if path in self.layers:
            return self.layers[path].axis
        return self.sizes.new(path, size) if size > 1 else self.sizes.constant(1, "a single channel")

    def layer(self, path: str, source: Axis, axis: Axis) -> Axis:
        """Note what a layer reads and writes, equal to what it did before if it was met; return what it writes."""
        for twin in (path, *self.twins.get(path, ())):
            if twin in self.layers:
                before = self.layers[twin]
                assert before.source is not None
                self.sizes.equate(before.source, source)
                self.sizes.equate(before.axis, axis)
        self.layers[path] = LayerAxes(source, axis)
        return axis

    def norm(self, path: str, axis: Axis) -> None:
        """Note the axis that a normalization has parameters for."""
        for twin in (path, *self.twins.get(path, ())):
            if twin in self.layers:
                self.sizes.equate(self.layers[twin].axis, axis)
        if path not in self.layers:
            self.layers[path] = LayerAxes(None, axis)
            self.add(Call(path, "norm", None, axis))

    def add(self, call: Call) -> None:
        """Note a call, with its positions if these are counted."""
        self.calls.append(call if self.counting else replace(call, positions=0))

    def meet(self, tensor: Tensor, dim: int, axis: Axis) -> None:
        """Note a tensor of a module that meets maps: of a normalization written out, or one that scales maps."""
        if self.parts.get(id(tensor), (-1, []))[0] == dim:
            parts = self.parts[id(tensor)][1]
            for part, piece in zip(parts, self.sizes.cut(axis, [part.shape[dim] for part in parts]), strict=True):
                self.sizes.require(piece, 1)
                self.meet(part, dim, piece)
            return
        path, name = self.owners[id(tensor)][0]
        module = self.model.get_submodule(path)
        own = getattr(module, name, None)
        if isinstance(module, NORMS):
            self.norm(path, axis)
        elif isinstance(module, WEIGHTED) and name == "bias" and path in self.layers:
            self.sizes.equate(self.layers[path].axis, axis)
        elif isinstance(own, Tensor) and own.numel() == math.prod(tensor.shape):
            if own.shape != tensor.shape:  # reshaped before its use
                dim = next((d for d, size in enumerate(own.shape) if size == tensor.shape[dim]), -1)
            parameter = f"{path}.{name}" if path else name
            if parameter not in self.layers:
                self.layers[parameter] = LayerAxes(None, axis)
                self.add(Call(parameter, "parameter", None, axis, dim=dim, owned=False))
            else:
                self.sizes.equate(self.layers[parameter].axis, axis)
        else:
            self.sizes.fix(axis, f"'{name}' of {path or self.where()}, changed before its use")

    def _twins(self, copies: Mapping[str, str]) -> dict[str, list[str]]:
        """Return for each layer those that share its weights, or are copied from the same one."""
        alike: dict[Any, list[str]] = defaultdict(list)
        for path, module in self.model.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None and isinstance(module, (*WEIGHTED, *NORMS)):
                alike[id(weight)].append(path)
            if path in copies:
                alike[copies[path]].append(path)
        twins: dict[str, list[str]] = defaultdict(list)
        for paths in alike.values():
            for path in paths:
                twins[path] += [other for other in paths if other != path]
        return twins
