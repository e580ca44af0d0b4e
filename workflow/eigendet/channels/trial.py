"""Whether a network can be built with other widths, and what to keep where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eigendet.channels.construction import Build
from eigendet.channels.follower import Sample, follow
from eigendet.channels.groups import ChannelError, Channels, Widths
from eigendet.channels.naming import named
from eigendet.channels.rebuilding import rebuild
from eigendet.channels.record import Record
from eigendet.channels.sizes import Axis
from eigendet.errors import first_line


@dataclass(frozen=True)
class Fault:
    """Why a network does not take other widths."""

    layers: list[str]  # that took part, where known
    module: str  # where it failed
    reason: str


def first_fault(build: Build, channels: Channels, sample: Sample) -> Fault | None:
    """Build twice with other widths, every other group wider, and return what fails first, or None.

    Raises:
        ChannelError: the network works, at another cost than predicted.
    """
    for parity in (0, 1):
        fault = _try(build, channels, _other_widths(channels, parity), sample)
        if fault is not None:
            return fault
    return None


def keep(record: Record, fault: Fault) -> bool:
    """Fix the widths of the layers of a fault, or else of all that its module handles, or else the module around it.

    Returns:
        Whether any of them was free.
    """
    sizes = record.sizes
    for axes in _suspects(record, fault):
        free = {u for axis in axes for u, _ in sizes.resolve(axis)} - sizes.fixed.keys()
        for axis in axes:
            sizes.fix(axis, fault.reason)
        if free:
            return True
    return False


def _other_widths(channels: Channels, parity: int) -> Widths:
    """Return a wider width for every group whose position has this parity, and a narrower one for the others."""
    widths = {}
    for position, (group, width) in enumerate(channels.widths.items()):
        units, step = width // channels.multiples[group], 1 + position % 3
        units = units + step if position % 2 == parity else max(1, units - step)
        widths[group] = units * channels.multiples[group]
    return widths


def _try(build: Build, channels: Channels, widths: Widths, sample: Sample) -> Fault | None:
    """Build with other widths, follow again, and compare with what is predicted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        record = Record(rebuild(build, channels, widths, meta=not sample.detector), sample.regions)
    try:
        follow(record, sample)
    except Exception as error:  # whatever a network's own code raises
        return _failure(record, error)
    for layer in channels.layers:
        if layer.kind == "product":
            continue
        own = record.layers.get(layer.module)
        pairs = [(layer.source, own and own.source), (layer.out, own and own.axis)]
        for predicted, axis in pairs:
            if predicted is not None and (axis is None or record.sizes.size(axis) != predicted(widths)):
                return Fault([layer.module], layer.module, f"{layer.module} does not follow other widths")
    tried = named(record)
    macs, expected = tried.macs(tried.widths), channels.macs(widths)
    if macs != expected:
        name = type(record.model).__name__
        raise ChannelError(f"{name}: {macs} multiply-accumulates where {expected} were predicted")
    return None


def _failure(record: Record, error: Exception) -> Fault:
    """Return the fault of a network that raised an error while it was followed."""
    last, module = record.operations[-1], record.stack[-1]
    layers: set[str] = set()
    if last.module == record.where():
        layers = {record.sizes.names[u] for axis in last.axes for u, _ in record.sizes.resolve(axis)} - {""}
    reason = f"{module or type(record.model).__name__} keeps its sizes ({first_line(error)})"
    return Fault(sorted(layers), module, reason)


def _suspects(record: Record, fault: Fault) -> Iterator[list[Axis]]:
    """Yield the axes that may be at fault: of the layers, then of all operations in the module and in those around."""
    yield [record.layers[layer].axis for layer in fault.layers if layer in record.layers]
    module = fault.module
    while module:
        inside = [operation for operation in record.operations if f"{operation.module}.".startswith(f"{module}.")]
        yield [axis for operation in inside for axis in operation.axes]
        module = module.rpartition(".")[0]
    yield [axis for operation in record.operations for axis in operation.axes]
