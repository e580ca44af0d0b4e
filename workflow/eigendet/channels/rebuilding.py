"""A network built with other widths.

The network's own constructor runs again while the arguments of its layers are replaced, in order of construction. So
whatever it does afterwards, initialization above all, happens as it always does.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from eigendet.channels.arguments import Arguments
from eigendet.channels.construction import Build, BuildError, construct, constructing, handled, resize_parameter
from eigendet.channels.groups import Attribute, ChannelError, Channels, Layer, Size, check_widths, whole
from eigendet.channels.record import NORMS
from eigendet.errors import first_line, some


def rebuild(build: Build, channels: Channels, widths: Mapping[str, int], meta: bool = False) -> nn.Module:
    """Build the network of `build` with other widths, initialized as `build` initializes it.

    Half of every width:

    >>> from torch import nn
    >>> from eigendet import channels
    >>> class Net(nn.Sequential):
    ...     def __init__(self):
    ...         super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))
    >>> traced = channels.trace(Net, (16, 16))
    >>> half = {group: width // 2 for group, width in traced.widths.items()}
    >>> narrow = channels.rebuild(Net, traced, half)
    >>> narrow[3]
    Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1))
    >>> [sum(parameter.numel() for parameter in network.parameters()) for network in (Net(), narrow)]
    [1408, 416]
    >>> traced.parameters(traced.widths), traced.parameters(half)
    (1408, 416)

    Not thread-safe: the constructors of layers are replaced for the whole process while `build` runs.

    Args:
        build: the function or class that `trace` was given, or one that builds the same layers in the same order.
        channels: the groups that `trace` returned.
        widths: the width of every group, narrower or wider.
        meta: whether to build without weights, on the meta device.

    Raises:
        ChannelError: a group is missing, unknown, or not a positive multiple of what it must be a multiple of; a
            network was given, here or to `trace`, in place of what builds it; or `build` builds other layers.
    """
    if isinstance(build, nn.Module) or channels.order is None:
        raise ChannelError(
            "rebuilding runs the network's own constructor; give trace and rebuild the function or class that builds "
            "the network, such as functools.partial(resnet18, weights=None), in place of a network"
        )
    check_widths(channels, widths)
    try:
        model = resized(build, channels, widths, meta)
    except AttributeError as error:
        raise ChannelError(f"the network that is built is not the one that was traced: {first_line(error)}") from error
    if not any(map(is_lazy, model.parameters())):
        count, expected = sum(parameter.numel() for parameter in model.parameters()), channels.parameters(widths)
        if count != expected:
            raise ChannelError(
                f"{type(model).__name__}: is built with {count} parameters where {expected} are predicted; expected "
                "the function that builds the network that was traced"
            )
    return model


def resized(build: Build, channels: Channels, widths: Mapping[str, int], meta: bool = False) -> nn.Module:
    """Build the network of `build` with other widths, and whatever comes of it: `rebuild` without its checks."""
    model = _construct(build, channels, widths, meta)
    for layer in channels.layers:
        if layer.kind == "parameter" and layer.out.terms:
            resize_parameter(model, layer.module, layer.dim, whole(layer.out(widths)))
    for attribute in channels.attributes:
        _set(model.get_submodule(attribute.module), attribute, widths)
    return model.to("meta") if meta else model


def _construct(build: Build, channels: Channels, widths: Mapping[str, int], meta: bool) -> nn.Module:
    """Build the network while its layers are constructed in other sizes."""
    layers = {layer.module: layer for layer in channels.layers}
    order = iter(channels.order or ())
    constructed: dict[int, str] = {}  # paths by id

    def edit(module: nn.Module, arguments: Arguments) -> None:
        path = next(order, None)
        if path is not None and path in layers:
            constructed[id(module)] = path
            _resize(module, arguments, layers[path], channels.widths, widths)

    try:
        with constructing(edit, meta, channels.others):
            model = construct(build)
    except BuildError as error:
        suspects = [
            [constructed[id(layer)] for layer in module.modules() if id(layer) in constructed]
            for module in handled(error.__cause__)
        ]
        *_, last = ["", *constructed.values()]
        message = f"{error}, after '{last}' was built"
        several = [*filter(None, suspects), [last], list(constructed.values())]
        raise BuildError(message, several, len(constructed)) from error.__cause__
    unbuilt = [path for path in order if path in layers]
    if unbuilt:
        raise ChannelError(
            f"{type(model).__name__}: the function did not build {some(unbuilt)}; expected one that builds a new "
            "network, the one that was traced"
        )
    return model


def _set(module: nn.Module, attribute: Attribute, widths: Mapping[str, int]) -> None:
    """Set a number of a module, or several, to what these widths make of it."""
    if isinstance(attribute.sizes, Size):
        setattr(module, attribute.name, whole(attribute.sizes(widths)))
    else:
        kind = type(getattr(module, attribute.name))
        setattr(module, attribute.name, kind(whole(size(widths)) for size in attribute.sizes))


def _resize(
    module: nn.Module,
    arguments: Arguments,
    layer: Layer,
    reference: Mapping[str, int],
    widths: Mapping[str, int],
) -> None:
    """Replace the arguments of a layer's constructor that say how many channels it reads and writes."""
    for name, size in _names(module, layer, arguments, whole(layer.out(reference))).items():
        if name in arguments:
            new = whole(size(widths))
            arguments[name] = new if isinstance(arguments[name], int) else (new,)
    if layer.depthwise and isinstance(module, nn.modules.conv._ConvNd):
        arguments["groups"] = whole(layer.source(widths)) if layer.source else arguments["groups"]


def _names(module: nn.Module, layer: Layer, arguments: Arguments, built: int) -> dict[str, Size]:
    """Return the arguments of a layer's constructor that are widths."""
    out, source = layer.out, layer.source or layer.out
    if isinstance(module, nn.modules.conv._ConvNd):
        return {"in_channels": source, "out_channels": out}
    if isinstance(module, nn.Linear):
        return {"in_features": source, "out_features": out}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": out}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": out}
    if isinstance(module, NORMS):
        return {"num_features": out}
    # Of the network's own: its width is the one argument with that value.
    same = [name for name, value in arguments.items() if type(value) is int and value == built]
    return {same[0]: out} if len(same) == 1 else {}
