"""A network built with other widths.

The network's own constructor runs again while the arguments of its layers are replaced, in order of construction. So
whatever it does afterwards, initialization above all, happens as it always does.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from eigendet.channels.arguments import Arguments
from eigendet.channels.construction import Build, construct, constructing, resize_parameter
from eigendet.channels.groups import ChannelError, Channels, Layer, check_widths, whole
from eigendet.channels.record import NORMS
from eigendet.errors import some


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
    layers = {layer.module: layer for layer in channels.layers}
    order = iter(channels.order)

    def edit(module: nn.Module, arguments: Arguments) -> None:
        path = next(order, None)
        if path is not None and path in layers:
            _resize(module, arguments, layers[path], channels.widths, widths)

    with constructing(edit, meta, channels.others):
        model = construct(build)
    unbuilt = [path for path in order if path in layers]
    if unbuilt and unbuilt == [path for path in channels.order if path in layers]:
        raise ChannelError(
            f"{type(model).__name__}: the function built none of {some(unbuilt)}; expected one that builds a "
            "new network"
        )
    for layer in channels.layers:
        if layer.kind == "parameter" and layer.out.terms:
            resize_parameter(model, layer.module, layer.dim, whole(layer.out(widths)))
    return model.to("meta") if meta else model


def _resize(
    module: nn.Module,
    arguments: Arguments,
    layer: Layer,
    reference: Mapping[str, int],
    widths: Mapping[str, int],
) -> None:
    """Replace the arguments of a layer's constructor that say how many channels it reads and writes."""
    out = whole(layer.out(widths))
    source = None if layer.source is None else whole(layer.source(widths))
    if isinstance(module, nn.modules.conv._ConvNd):
        arguments |= {"in_channels": source, "out_channels": out}
        if layer.depthwise:
            arguments["groups"] = source
    elif isinstance(module, nn.Linear):
        arguments |= {"in_features": source, "out_features": out}
    elif isinstance(module, nn.GroupNorm):
        arguments["num_channels"] = out
    elif isinstance(module, nn.LayerNorm):
        arguments["normalized_shape"] = (out,)
    elif isinstance(module, NORMS):
        arguments["num_features"] = out
    else:  # of the network's own: its width is the one argument with that value
        built = whole(layer.out(reference))
        same = [name for name, value in arguments.items() if type(value) is int and value == built]
        if len(same) == 1:
            arguments[same[0]] = out
