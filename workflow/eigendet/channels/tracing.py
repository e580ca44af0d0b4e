"""Which widths of a network are tied, and what they cost.

The network is built on the meta device and run once under a mode that sees every operation (`follower`). Then it is
built with other widths and followed again (`trial`): where that fails, or gives other sizes than predicted, the groups
that took part are kept at their widths, with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from eigendet.channels.attributes import edited
from eigendet.channels.coarser import coarser
from eigendet.channels.construction import RESIZABLE, Build, BuildError, built
from eigendet.channels.follower import Sample, followed
from eigendet.channels.groups import ChannelError, Channels, RunError
from eigendet.channels.naming import named
from eigendet.channels.record import Record
from eigendet.channels.sizes import Axis
from eigendet.channels.ties import tied
from eigendet.channels.trial import Fault, first_fault, kept
from eigendet.errors import first_line

SIDE = 128  # pixels, of the square images on which networks are tried: of 64, Inception v3 leaves nothing


def trace(network: Build | nn.Module, size: tuple[int, int] = (SIDE, SIDE), image_channels: int = 3) -> Channels:
    """Find the channel groups of a network that takes a batch of images.

    >>> from torch import nn
    >>> from eigendet import channels
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
    ...     def forward(self, images):
    ...         maps = self.stem(images)
    ...         return maps + self.right(self.left(maps))
    >>> traced = channels.trace(Block, (16, 16))
    >>> traced.widths  # `right` is added to `stem`, so it has no width of its own
    {'stem': 8, 'left': 6}
    >>> traced.parameters({"stem": 16, "left": 6})
    278
    >>> channels.trace(Block(), (16, 16)).widths  # a network as it stands
    {'stem': 8, 'left': 6}

    Args:
        network: the class of the network or a function without arguments that builds it, such as
            functools.partial(torchvision.models.resnet18, weights=None). It is called several times, to try the groups
            with other widths: those that the network's code does not take are kept, with the reason. Or a network: it
            is left as it is, and its groups are those that its operations suggest, not tried with other widths.
            `rebuild` needs what builds it. Not thread-safe, like `rebuild`.
        size: height and width of the image for which costs are counted.
        image_channels: of the images: 1 of gray ones.

    Raises:
        ChannelError: the network cannot be built, or not anew each time, or not run at this size.
    """
    return _trace(network, Sample(size, image_channels=image_channels))


def trace_detector(
    network: Build | nn.Module, size: tuple[int, int] = (SIDE, SIDE), regions: Mapping[str, int] | None = None
) -> Channels:
    """Find the channel groups of a detector, which takes a list of images and looks at what it finds in them.

    It is run on noise, with weights; else as `trace`.

    >>> from torch import nn
    >>> from eigendet import channels
    >>> class Detector(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 4)
    ...     def forward(self, images):
    ...         maps = self.stem(torch.stack(images))
    ...         regions = maps[:, :, :4, :4]
    ...         return [{"scores": self.head(regions)}]
    >>> traced = channels.trace_detector(Detector, (16, 16), regions={"head": 100})
    >>> {layer.module: layer.macs(traced.widths) for layer in traced.layers}
    {'stem': 6144, 'head': 51200}

    Args:
        network: see `trace`.
        size: height and width of the image for which costs are counted.
        regions: how many regions of an image a part of the network is counted to see, by the beginning of the paths of
            its modules; where several fit, the longest. Other parts are counted with what they see of the noise.

    Raises:
        ChannelError: the network cannot be built, or not anew each time, or not run at this size.
    """
    return _trace(network, Sample(size, detector=True, regions=regions or {}))


def _trace(network: Build | nn.Module, sample: Sample) -> Channels:
    if isinstance(network, nn.Module):
        return named(_followed(_copied(network, sample.meta), sample))
    try:
        model, order, copies = built(network, meta=sample.meta)
        record = _followed(model, sample, copies)
    except (BuildError, RunError):
        if not sample.meta:
            raise
        return _trace(network, replace(sample, values=True))  # its code may look at values
    others = _convolving(record)
    if others:
        order = built(network, others, sample.meta).order
    for axis, reason in _parameters_with_values(network, record):
        record.sizes.fix(axis, reason)

    def trial() -> Fault | None:
        return first_fault(network, named(record, order, others), record, sample)

    fault = trial()
    while fault is not None:
        remaining = edited(record, fault, trial)
        if remaining is fault:
            remaining = tied(record, fault, trial)
        if remaining is fault:
            remaining = coarser(record, fault, trial)
        if remaining is fault:
            remaining = kept(record, fault, trial)
        if remaining is fault:
            raise ChannelError(f"{type(model).__name__}: cannot be built with other widths: {fault.reason}")
        fault = remaining
    return named(record, order, others)


def _followed(model: nn.Module, sample: Sample, copies: Mapping[str, str] | None = None) -> Record:
    record, error = followed(model, sample, copies)
    if error is None:
        return record
    if isinstance(error, ChannelError):
        raise error
    raise RunError(f"{type(model).__name__}: cannot be run on an image of {sample.size}: {first_line(error)}")


def _copied(model: nn.Module, meta: bool) -> nn.Module:
    """Return a copy of a network on the meta device, made without copying its weights, or else on the CPU."""
    copies: dict[int, Any] = {}  # what deepcopy takes in place of a copy of its own, by id
    if meta:
        for parameter in model.parameters():
            copies[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for buffer in model.buffers():
            copies[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        return copy.deepcopy(model, copies) if meta else copy.deepcopy(model).cpu()
    except Exception as error:  # whatever a network holds
        raise ChannelError(
            f"{type(model).__name__}: cannot be copied ({first_line(error)}); give the function that builds it"
        ) from None


def _convolving(record: Record) -> tuple[type[nn.Module], ...]:
    """Return the network's own classes whose modules convolve with weights that their constructors make."""
    modules = (
        record.model.get_submodule(call.path) for call in record.calls if call.kind == "conv" and "@" not in call.path
    )
    return tuple(dict.fromkeys(type(module) for module in modules if not isinstance(module, RESIZABLE)))


def _parameters_with_values(build: Build, record: Record) -> Iterator[tuple[Axis, str]]:
    """Yield parameters and buffers that stand alone and are not constant: nothing says how a wider one would begin."""
    alone = [call for call in record.calls if call.kind == "parameter"]
    if not alone:
        return
    with torch.random.fork_rng(devices=[]):
        model = build()
    for call in alone:
        path, _, name = call.path.rpartition(".")
        tensor = getattr(model.get_submodule(path), name)
        if (tensor != tensor.flatten()[0]).any():
            yield call.axis, f"{call.path} has values of its own, which cannot be made for another width"
