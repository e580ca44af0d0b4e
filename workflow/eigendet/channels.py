"""Which widths of a network are tied, what they cost, and how to build the network with others.

The network is built on the meta device and run once under a dispatch mode that sees every operation. Feature maps carry
their channel group from operation to operation; a sum of two maps unites their groups (union-find). The forward hooks
that name the taps run in the same pass, so a tap and its group share one key by construction, also where one module is
called several times. (An exported graph knows module scopes but not these keys, and takes thirty times longer.)

To rebuild with other widths, the network's own constructor runs again while the arguments of its layers are replaced,
in order of construction. So whatever it does afterwards, initialisation above all, happens as it always does.

What cannot be resized is refused by name: no width is guessed.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from eigendet.errors import UserError, unknown
from eigendet.points import each_call

Build = Callable[[], nn.Module]
Widths = dict[str, int]
Number = TypeVar("Number", int, float)

aten = torch.ops.aten
CONVOLUTION = aten.convolution.default
SUMS = {aten.add, aten.add_}
NORMALISATIONS = {
    aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.native_group_norm,
}  # fmt: skip
# Operations that give each output channel from the same input channel.
CHANNELWISE = {
    aten.relu, aten.relu_, aten.silu, aten.silu_, aten.gelu, aten.hardtanh, aten.hardtanh_, aten.hardswish,
    aten.hardswish_, aten.leaky_relu, aten.leaky_relu_, aten.elu, aten.elu_, aten.mish, aten.mish_, aten.sigmoid,
    aten.tanh, aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.upsample_nearest2d,
    aten.upsample_bilinear2d, aten.clone, aten.detach, aten.mul, aten.sub,
}  # fmt: skip


class ChannelError(UserError):
    """A network that cannot be traced or resized; the message names the module and the operation."""


@dataclass(frozen=True)
class Layer:
    """One call of a layer with weights; the sizes that do not depend on widths."""

    module: str
    kind: str  # "conv" or "norm"
    source: str | None  # channel group read; None: the image
    group: str  # channel group written
    kernel: int = 0  # elements of the kernel
    positions: int = 0  # of the output map, for one image
    bias: bool = False
    affine: bool = False  # a norm with weight and bias


@dataclass(frozen=True)
class Channels:
    """The channel groups of a network."""

    widths: Widths  # group -> channels in the network as built; a group is named after the first layer that writes it
    layers: tuple[Layer, ...]
    outputs: dict[tuple[str, int], str]  # (module, call) -> group of its output
    order: tuple[str | None, ...]  # modules in order of construction; None: built but not part of the network
    norm_groups: dict[str, int]  # GroupNorm modules and their numbers of groups

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Trainable parameters of the network built with `widths`."""
        total = 0
        for layer in {layer.module: layer for layer in self.layers}.values():
            out = widths[layer.group]
            if layer.kind == "conv":
                total += layer.kernel * self._source_width(layer, widths) * out + layer.bias * out
            else:
                total += 2 * out * layer.affine
        return total

    def macs(self, widths: Mapping[str, Number]) -> Number:
        """Multiply-accumulate operations of all convolutions for one image of the traced size."""
        return sum(
            layer.kernel * self._source_width(layer, widths) * widths[layer.group] * layer.positions
            for layer in self.layers
            if layer.kind == "conv"
        )

    def _source_width(self, layer: Layer, widths: Mapping[str, Number]) -> Number:
        return 3 if layer.source is None else widths[layer.source]


def trace(build: Build, size: tuple[int, int] = (64, 64)) -> Channels:
    """Channel groups of the network that `build` makes, with costs for one image of `size` (height, width).

    Raises:
        ChannelError: the network holds an operation whose channels cannot be followed.
    """
    built: list[nn.Module] = []
    with torch.device("meta"), _constructing(lambda layer, arguments: built.append(layer)):
        model = build()
    model = model.to("meta").eval()
    tracer = _Tracer(model)
    image = torch.empty(1, 3, *size, device="meta")
    with torch.no_grad(), each_call(model, tracer.leave), tracer.entering(), tracer:
        model(image)
    paths = {id(module): path for path, module in model.named_modules()}
    return tracer.result(
        order=tuple(paths.get(id(layer)) for layer in built),
        norm_groups={path: m.num_groups for path, m in model.named_modules() if isinstance(m, nn.GroupNorm)},
    )


def rebuild(build: Build, channels: Channels, widths: Mapping[str, int]) -> nn.Module:
    """The network of `build` with other widths, initialised as `build` initialises it.

    Args:
        channels: what `trace(build)` found.
        widths: channels of every group. GroupNorm keeps its number of groups where it divides the new width, else it
            takes the greatest common divisor.

    Raises:
        ChannelError: a group is missing, unknown, or not a positive integer.
    """
    check_widths(channels, widths)
    ends = {layer.module: layer for layer in channels.layers}
    order = iter(channels.order)

    def edit(layer: nn.Module, arguments: dict[str, Any]) -> None:
        path = next(order, None)
        if path is None or path not in ends:
            return
        group, source = ends[path].group, ends[path].source
        if isinstance(layer, nn.Conv2d):
            arguments["out_channels"] = widths[group]
            if source is not None:
                arguments["in_channels"] = widths[source]
        elif isinstance(layer, nn.GroupNorm):
            arguments["num_channels"] = widths[group]
            arguments["num_groups"] = math.gcd(channels.norm_groups[path], widths[group])
        else:
            arguments["num_features"] = widths[group]

    with _constructing(edit):
        model = build()
    for path, layer in ends.items():
        shape = _weights(model.get_submodule(path)).shape
        if shape[0] != widths[layer.group]:
            raise ChannelError(f"{path}: rebuilt with {shape[0]} channels instead of {widths[layer.group]}")
    return model


def check_widths(channels: Channels, widths: Mapping[str, int]) -> None:
    """Raise ChannelError unless `widths` names exactly the network's groups, each with a positive integer."""
    for group, width in widths.items():
        if group not in channels.widths:
            raise ChannelError(unknown("channel group", group, channels.widths))
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ChannelError(f"channel group '{group}': width {width!r}; expected a positive integer")
    missing = [group for group in channels.widths if group not in widths]
    if missing:
        raise ChannelError(f"no width for the channel groups {', '.join(missing)}; every group needs one")


def scaled(sizes: Mapping[str, float], factor: float, multiple: int) -> Widths:
    """`factor` times every size, to the nearest multiple, at least one multiple."""
    return {group: max(1, round(size * factor / multiple)) * multiple for group, size in sizes.items()}


class _Tracer(TorchDispatchMode):
    """Follows the channel group of every feature map through one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Layers by the identity of the tensors that they own; views of these are added while tracing.
        self.owners = {
            id(tensor): path
            for path, module in model.named_modules()
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        }
        self.groups: dict[int, int | None] = {}  # id of a feature map -> node of the union-find; None: the image
        self.parents: list[int] = []
        self.names: list[str] = []  # of nodes, by their first layer
        self.sizes: list[int] = []
        self.layers: list[tuple[str, int | None, int, dict[str, Any]]] = []
        self.outputs: dict[tuple[str, int], int] = {}
        self.stack: list[str] = []
        self.alive: list[Tensor] = []  # identities are only unique among living tensors

    @contextlib.contextmanager
    def entering(self) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            for path, module in self.model.named_modules():
                hook = module.register_forward_pre_hook(lambda module, inputs, path=path: self.stack.append(path))
                hooks.callback(hook.remove)
            yield

    def leave(self, path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()
        if isinstance(output, Tensor) and (node := self.groups.get(id(output))) is not None:
            self.outputs[path, call] = node

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        operation = function.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive += tensors
        if not self.groups:  # the first operation reads the image
            self.groups[id(tensors[0])] = None
        maps = [tensor for tensor in tensors if id(tensor) in self.groups]
        owners = {self.owners[id(tensor)] for tensor in tensors if id(tensor) in self.owners}
        output = result[0] if isinstance(result, tuple) else result
        if not maps:  # arithmetic on a layer's own tensors: the result is the layer's too
            if isinstance(output, Tensor) and len(owners) == 1:
                self._own(output, owners.pop())
            return result
        self.alive.append(output)
        if function is CONVOLUTION:
            self._convolution(args, output)
        elif operation in NORMALISATIONS:
            self._norm(self.owners.get(id(args[1])) if args[1] is not None else None, maps[0], output)
        elif operation in SUMS and len(maps) == 2:
            self.groups[id(output)] = self._unite(maps[0], maps[1], operation)
        elif operation in (SUMS | CHANNELWISE) and len(maps) == 1 and len(owners) == 1:
            self._norm(owners.pop(), maps[0], output)  # a frozen normalisation, written out
        elif operation in CHANNELWISE and len(maps) == 1 and len(tensors) == 1:
            self.groups[id(output)] = self.groups[id(maps[0])]
        else:
            raise ChannelError(f"{self._where()}: the channels of operation '{operation}' cannot be followed")
        return result

    def _own(self, tensor: Tensor, owner: str) -> None:
        self.owners[id(tensor)] = owner
        self.alive.append(tensor)

    def _convolution(self, args: Any, output: Tensor) -> None:
        image, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        path = self.owners.get(id(weight))
        if path is None:
            raise ChannelError(f"{self._where()}: a convolution whose weight is not a parameter of a layer")
        if id(image) not in self.groups:
            raise ChannelError(f"{path}: a convolution of something that is not a feature map")
        if transposed or groups != 1:
            kind = "transposed" if transposed else f"grouped (groups={groups})"
            raise ChannelError(f"{path}: a {kind} convolution cannot be resized")
        known = next((node for name, _, node, sizes in self.layers if name == path), None)
        node = self._node(path, output.shape[1]) if known is None else known
        self.groups[id(output)] = node
        sizes = {
            "kind": "conv",
            "kernel": math.prod(weight.shape[2:]),
            "positions": math.prod(output.shape[2:]),
            "bias": bias is not None,
        }
        self.layers.append((path, self.groups[id(image)], node, sizes))

    def _norm(self, path: str | None, feature_map: Tensor, output: Tensor) -> None:
        node = self.groups[id(feature_map)]
        if node is None:
            raise ChannelError(f"{self._where()}: a normalisation of the image itself cannot be resized")
        self.groups[id(output)] = node
        if path is not None and not any(name == path for name, *_ in self.layers):
            affine = next(self.model.get_submodule(path).parameters(recurse=False), None) is not None
            self.layers.append((path, node, node, {"kind": "norm", "affine": affine}))

    def _node(self, name: str, size: int) -> int:
        self.parents.append(len(self.parents))
        self.names.append(name)
        self.sizes.append(size)
        return self.parents[-1]

    def _find(self, node: int) -> int:
        while self.parents[node] != node:
            node = self.parents[node]
        return node

    def _unite(self, first: Tensor, second: Tensor, operation: Any) -> int:
        nodes = [self.groups[id(tensor)] for tensor in (first, second)]
        if None in nodes or first.shape[1] != second.shape[1]:
            raise ChannelError(f"{self._where()}: '{operation}' of maps {tuple(first.shape)} and {tuple(second.shape)}")
        roots = sorted(self._find(node) for node in nodes if node is not None)
        self.parents[roots[-1]] = roots[0]  # the earlier layer names the group
        return roots[0]

    def _where(self) -> str:
        return (self.stack[-1] if self.stack else "") or type(self.model).__name__

    def result(self, order: tuple[str | None, ...], norm_groups: dict[str, int]) -> Channels:
        name = [self.names[self._find(node)] for node in range(len(self.parents))]
        roots = [node for node in range(len(self.parents)) if self._find(node) == node]
        return Channels(
            widths={self.names[node]: self.sizes[node] for node in roots},
            layers=tuple(
                Layer(path, source=None if source is None else name[source], group=name[node], **sizes)
                for path, source, node, sizes in self.layers
            ),
            outputs={key: name[node] for key, node in self.outputs.items()},
            order=order,
            norm_groups=norm_groups,
        )


RESIZABLE = (nn.Conv2d, nn.modules.batchnorm._NormBase, nn.GroupNorm, FrozenBatchNorm2d)


@contextlib.contextmanager
def _constructing(edit: Callable[[nn.Module, dict[str, Any]], None]) -> Iterator[None]:
    """While open, every resizable layer that is constructed passes its arguments through `edit(layer, arguments)`."""

    def patched(original: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(original)

        def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            edit(self, bound.arguments)
            original(*bound.args, **bound.kwargs)

        return construct

    with contextlib.ExitStack() as patches:
        for layer in RESIZABLE:
            patches.enter_context(mock.patch.object(layer, "__init__", patched(layer.__init__)))
        yield


def _weights(layer: nn.Module) -> Tensor:
    """A tensor whose first dimension is the layer's number of output channels."""
    tensors = [*layer.parameters(recurse=False), *(b for b in layer.buffers(recurse=False) if b.dim())]
    if not tensors:
        raise ChannelError(f"{type(layer).__name__} has no tensor that shows its width")
    return tensors[0]
