"""Which widths of a network are tied, what they cost, and how to build the network with others.

The network is built on the meta device and run once under a mode that sees every operation (`tracing`). The forward
hooks that name the taps run in the same pass, so a tap and its group share one key by construction, also where one
module is called several times. (An exported graph knows module scopes but not these keys, and takes thirty times
longer.) Then it is built with other widths and followed again: where that fails, or gives other sizes than predicted,
the groups that took part are kept at their widths, with the reason.

To rebuild with other widths, the network's own constructor runs again while the arguments of its layers are replaced,
in order of construction. So whatever it does afterwards, initialization above all, happens as it always does.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eigendet.channels.construction import RESIZABLE, constructing, resize_parameter
from eigendet.channels.follower import NORMS, Call, Follower
from eigendet.channels.groups import ChannelError, Channels, Layer, Size, check_widths, whole
from eigendet.channels.sizes import Axis
from eigendet.observe.points import each_call

Build = Callable[[], nn.Module]
SIDE = 128  # pixels, of the square images on which networks are tried: of 64, Inception v3 leaves nothing


def trace(build: Build, size: tuple[int, int] = (SIDE, SIDE), regions: Mapping[str, int] | None = None) -> Channels:
    """Channel groups of the network that `build` makes, with costs for one image of `size` (height, width).

    Args:
        regions: None for a network that takes a batch of images: it is run on the meta device. For a detector, which
            takes a list of images and looks at what it finds: it is run on noise, and modules whose path begins so are
            counted as if they saw so many regions of it.

    Raises:
        ChannelError: the network cannot be run at this size.
    """
    meta = regions is None
    model, order = _built(build, meta=meta)
    follower = Follower(model, regions)
    try:
        _follow(follower, size)
    except ChannelError:
        raise
    except Exception as error:  # whatever a network's own code raises
        raise ChannelError(
            f"{type(model).__name__}: cannot be run on an image of {size}: {_first_line(error)}"
        ) from None
    if others := _convolving(follower):
        _, order = _built(build, others, meta)
    for axis, reason in _parameters_with_values(build, follower):
        follower.sizes.fix(axis, reason)
    while True:
        found = _channels(follower, order, others)
        faults = (_trial(build, found, size, regions, wider) for wider in (0, 1))
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is None:
            return found
        layers, module, reason = fault
        if not _fix(follower, layers, module, reason):
            raise ChannelError(f"{type(model).__name__}: cannot be built with other widths: {reason}")


def rebuild(build: Build, channels: Channels, widths: Mapping[str, int], meta: bool = False) -> nn.Module:
    """The network of `build` with other widths, initialized as `build` initializes it.

    Args:
        channels: what `trace(build)` found.
        widths: channels of every group, narrower or wider.
        meta: without weights, on the meta device.

    Raises:
        ChannelError: a group is missing, unknown, or not a positive multiple of what it must be a multiple of.
    """
    check_widths(channels, widths)
    layers = {layer.module: layer for layer in channels.layers}
    order = iter(channels.order)

    def edit(module: nn.Module, arguments: dict[str, Any]) -> None:
        layer = layers.get(next(order, None) or "")
        if layer is None:
            return
        out = whole(layer.out(widths))
        if isinstance(module, nn.modules.conv._ConvNd):
            assert layer.source is not None
            arguments |= {"in_channels": whole(layer.source(widths)), "out_channels": out}
            if layer.depthwise:
                arguments["groups"] = arguments["in_channels"]
        elif isinstance(module, nn.Linear):
            assert layer.source is not None
            arguments |= {"in_features": whole(layer.source(widths)), "out_features": out}
        elif isinstance(module, nn.GroupNorm):
            arguments["num_channels"] = out
        elif isinstance(module, nn.LayerNorm):
            arguments["normalized_shape"] = (out,)
        elif isinstance(module, NORMS):
            arguments["num_features"] = out
        else:  # of the network's own: what says its width is the one argument with that value
            built = whole(layer.out(channels.widths))
            same = [name for name, value in arguments.items() if type(value) is int and value == built]
            arguments |= {name: out for name in same if len(same) == 1}

    with constructing(edit, meta, channels.others):
        model = build()
    for layer in channels.layers:
        if layer.kind == "parameter" and layer.out.terms:
            resize_parameter(model, layer.module, layer.dim, whole(layer.out(widths)))
    return model.to("meta") if meta else model


def _built(
    build: Build, others: Collection[type[nn.Module]] = (), meta: bool = True
) -> tuple[nn.Module, tuple[str | None, ...]]:
    """The network, on the meta device or with the same weights each time, and its layers in order of construction."""
    made: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]), constructing(lambda layer, arguments: made.append(layer), meta, others):
        torch.manual_seed(0)
        model = build()
    paths = {id(module): path for path, module in model.named_modules()}
    return model.to("meta") if meta else model, tuple(paths.get(id(layer)) for layer in made)


def _convolving(follower: Follower) -> tuple[type[nn.Module], ...]:
    """Classes of the network's own whose modules convolve by themselves, with weights that their constructors make."""
    modules = (follower.model.get_submodule(call.path) for call in follower.calls if call.kind == "conv")
    return tuple(dict.fromkeys(type(module) for module in modules if not isinstance(module, RESIZABLE)))


def _follow(follower: Follower, size: tuple[int, int]) -> None:
    """A forward pass in evaluation, and on the meta device one in training too where some layers only run then."""
    model = follower.model.eval()
    if not all(tensor.is_meta for tensor in model.parameters()):
        _run(follower, [torch.rand(3, *size, generator=torch.Generator().manual_seed(0))])
        return
    _run(follower, torch.empty(1, 3, *size, device="meta"))
    if any(isinstance(m, RESIZABLE) and path not in follower.made for path, m in model.named_modules()):
        follower.counting = False
        model.train()
        _run(follower, torch.empty(2, 3, *size, device="meta"))
        model.eval()


def _run(follower: Follower, images: Any) -> None:
    model = follower.model
    with contextlib.ExitStack() as hooks:
        for path, module in model.named_modules():
            enter = module.register_forward_pre_hook(lambda module, inputs, path=path: follower.stack.append(path))
            hooks.callback(enter.remove)
        hooks.enter_context(torch.no_grad())

        def leave(path: str, call: int, module: nn.Module, inputs: Any, output: Any) -> None:
            if output is not None:  # else it failed, and the stack shows where
                follower.stack.pop()
                follower.leave(path, call, module, inputs, output)

        hooks.enter_context(each_call(model, leave))
        hooks.enter_context(follower)
        follower.begin(images)
        result = model(images)
    for tensor in tree_leaves(result):
        if (
            isinstance(tensor, Tensor)
            and tensor.dim() == 2
            and (axis := follower.axes.get(id(tensor), (None, None))[1]) is not None
        ):
            follower.sizes.fix(axis, "an output of the network, a number for each class")


def _channels(follower: Follower, order: tuple[str | None, ...], others: tuple[type[nn.Module], ...]) -> Channels:
    """What a follower found, in names."""
    sizes = follower.sizes

    def plain(axis: Axis) -> Size:
        terms = sizes.resolve(axis)
        constant = sum((factor * sizes.built[u] for u, factor in terms if u in sizes.fixed), Fraction(0))
        free: dict[str, Fraction] = {}
        for u, factor in terms:
            if u not in sizes.fixed:
                free[sizes.names[u]] = free.get(sizes.names[u], Fraction(0)) + factor
        return Size(constant, tuple(free.items()))

    calls: dict[str, list[Call]] = defaultdict(list)
    for call in follower.calls:
        calls[call.path].append(call)
    layers = []
    for path, own in calls.items():
        first = own[0]
        tensors = list(follower.model.get_submodule(path).parameters(recurse=False)) if first.owned else []
        layers.append(
            Layer(
                path, first.kind, None if first.source is None else plain(first.source), plain(first.axis),
                kernel=first.kernel, groups=1 if first.depthwise else first.groups, depthwise=first.depthwise,
                positions=sum(call.positions for call in own),
                vectors=_vectors(follower, first, len(tensors)), dim=first.dim, trained=first.owned,
            )
        )  # fmt: skip
    axes = [axis for _, axis in follower.made.values()]
    multiples = sizes.multiples()
    free = sorted({u for axis in axes for u, _ in sizes.resolve(axis) if u not in sizes.fixed})
    widths = {sizes.names[u]: sizes.built[u] for u in free}
    single = {key: sizes.resolve(axis) for key, axis in follower.outputs.items()}
    total = sum(parameter.numel() for parameter in follower.model.parameters())
    return Channels(
        widths=widths,
        multiples={sizes.names[u]: multiples.get(u, 1) for u in free},
        layers=tuple(layers),
        fixed={
            path: sizes.fixed[u]
            for path, (_, axis) in follower.made.items()
            if (u := next((u for u, _ in sizes.resolve(axis) if u in sizes.fixed), None)) is not None
        },
        outputs={
            key: sizes.names[axis[0][0]]
            for key, axis in single.items()
            if len(axis) == 1 and axis[0][1] == 1 and axis[0][0] not in sizes.fixed
        },
        constant=total - whole(sum(layer.parameters(widths) for layer in layers)),
        order=order,
        others=others,
    )


def _vectors(follower: Follower, call: Call, tensors: int) -> int:
    """Trainable parameters for each channel that a layer writes, its kernel aside."""
    if call.kind == "parameter":
        path, _, name = call.path.rpartition(".")
        tensor = getattr(follower.model.get_submodule(path), name)
        return math.prod(tensor.shape) // tensor.shape[call.dim] if isinstance(tensor, nn.Parameter) else 0
    return tensors if call.kind == "norm" else max(0, tensors - 1)


def _parameters_with_values(build: Build, follower: Follower) -> Iterator[tuple[Axis, str]]:
    """Parameters and buffers that stand alone and are not constant, so that none knows how a wider one would begin."""
    alone = [call for call in follower.calls if call.kind == "parameter"]
    with torch.random.fork_rng(devices=[]):
        model = build() if alone else None
    for call in alone:
        path, _, name = call.path.rpartition(".")
        assert model is not None
        tensor = getattr(model.get_submodule(path), name)
        if (tensor != tensor.flatten()[0]).any():
            yield call.axis, f"{call.path} has values of its own, which cannot be made for another width"


def _fix(follower: Follower, layers: list[str], module: str, reason: str) -> bool:
    """Keep the widths of the layers, or else of everything that passes the module; whether that keeps any more."""
    sizes = follower.sizes
    inside = [module[:end] for end in range(len(module), -1, -1) if end in (0, len(module)) or module[end] == "."]
    for axes in (
        [follower.made[layer][1] for layer in layers if layer in follower.made],
        *(
            [
                axis
                for operation in follower.operations
                if f"{operation.module}.".startswith(place)
                for axis in operation.axes
            ]
            for place in [f"{path}." for path in inside if path] + [""]
        ),
    ):
        free = {u for axis in axes for u, _ in sizes.resolve(axis)} - sizes.fixed.keys()
        for axis in axes:
            sizes.fix(axis, reason)
        if free:
            return True
    return False


def _trial(
    build: Build, channels: Channels, size: tuple[int, int], regions: Mapping[str, int] | None, wider: int
) -> tuple[list[str], str, str] | None:
    """Build with other widths, every other one wider, and follow again; layers that fail, where, and how.

    Args:
        wider: 0 or 1, which half is wider.
    """
    widths = {}
    for position, (group, width) in enumerate(channels.widths.items()):
        multiple = channels.multiples[group]
        units = width // multiple
        widths[group] = multiple * (
            units + 1 + position % 3 if position % 2 == wider else max(1, units - 1 - position % 3)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        follower = Follower(rebuild(build, channels, widths, meta=regions is None), regions)
    try:
        _follow(follower, size)
    except Exception as error:  # whatever a network's own code raises
        last, place = follower.operations[-1], follower.stack[-1]
        names = {follower.sizes.names[u] for axis in last.axes for u, _ in follower.sizes.resolve(axis)}
        reason = f"{place or type(follower.model).__name__} keeps its sizes ({_first_line(error)})"
        return sorted(names - {""}) if last.module == follower.where() else [], place, reason
    for layer in channels.layers:
        if layer.kind == "product":
            continue
        source, axis = follower.made.get(layer.module, (None, None))
        for predicted, found in ((layer.source, source), (layer.out, axis)):
            if predicted is not None and (found is None or follower.sizes.size(found) != predicted(widths)):
                return [layer.module], layer.module, f"{layer.module} does not follow other widths"
    again = _channels(follower, channels.order, channels.others)
    if again.macs(again.widths) != channels.macs(widths):
        raise ChannelError(
            f"{type(follower.model).__name__}: {again.macs(again.widths)} multiply-accumulates where "
            f"{channels.macs(widths)} were predicted"
        )
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
