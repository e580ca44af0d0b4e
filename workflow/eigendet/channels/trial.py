"""Whether a network can be built with other widths, and what to keep where it cannot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch

from eigendet.channels.construction import Build, BuildError
from eigendet.channels.follower import Sample, followed
from eigendet.channels.groups import Channels, Layer, Widths, whole
from eigendet.channels.naming import named
from eigendet.channels.rebuilding import resized
from eigendet.channels.record import Operation, Record
from eigendet.channels.sizes import Axis
from eigendet.errors import first_line

TRIALS = 2
MOST_ALONE = 4  # widths are tried alone


@dataclass(frozen=True)
class Fault:
    """Why a network does not take other widths.

    Attributes:
        reason: in words.
        layers: that took part, where known: several lists, the likeliest first.
        modules: where it failed, or what may be at fault for that.
        progress: the trial, and how many operations of its pass went as predicted.
        operation: the first one that did not, as it was in the pass that is followed; one that was not reached has no
            outputs.
    """

    reason: str
    layers: list[list[str]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    progress: tuple[int, float] = (0, 0)
    operation: Operation | None = None


def first_fault(build: Build, channels: Channels, reference: Record, sample: Sample) -> Fault | None:
    """Build twice with other widths, every other group wider, and return what fails first, or None.

    Args:
        build: what builds the network.
        channels: its groups.
        reference: the pass that they were found in.
        sample: what the network is run on.
    """
    for trial in range(TRIALS):
        fault = _try(build, channels, reference, sample, trial)
        if fault is not None:
            return fault
    return None


def kept(record: Record, fault: Fault, trial: Callable[[], Fault | None]) -> Fault | None:
    """Fix a width that takes part in a fault, if one alone makes a trial go further, or else all, or those around.

    Args:
        record: where widths are fixed.
        fault: at which the trial ends.
        trial: tries once more.

    Returns:
        The fault that remains, or None; the same if there was nothing left to fix.
    """
    fixed = record.sizes.fixed
    for axes in suspects(record, fault):
        alone = {u: (u, factor) for axis in axes for u, factor in record.sizes.resolve(axis) if u not in fixed}
        for term in alone.values() if len(alone) in range(2, MOST_ALONE + 1) else ():
            before = dict(fixed)
            record.sizes.fix((term,), fault.reason)
            after = trial()
            if after is None or after.progress > fault.progress:
                return after
            record.sizes.fixed = fixed = before
        for axis in axes:
            record.sizes.fix(axis, fault.reason)
        if alone:
            return trial()
    return fault


def other_widths(channels: Channels, trial: int) -> Widths:
    """Return a wider width for every group whose position has the trial's parity, and a narrower one for the others.

    The two trials move a group by numbers of units that have no common divisor, so that what a network asks of a width
    beside its multiple does not pass unseen; groups near each other move by different numbers.
    """
    widths = {}
    for position, (group, width) in enumerate(channels.widths.items()):
        units, step = width // channels.multiples[group], 1 + position % 7
        if trial:
            step = next(n for n in range(1 + position % 5, 12) if math.gcd(n, step) == 1)
        up = units <= step or position % 2 == trial
        widths[group] = max(1, units + step if up else units - step) * channels.multiples[group]
    return widths


def _try(build: Build, channels: Channels, reference: Record, sample: Sample, trial: int) -> Fault | None:
    """Build with other widths, follow again, and compare with what is predicted."""
    widths = other_widths(channels, trial)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = resized(build, channels, widths, meta=sample.meta)
    except BuildError as error:
        reason = f"the network is not built with other widths ({first_line(error.__cause__ or error)})"
        return Fault(reason, error.layers, progress=(trial, -1 / (1 + error.count)))
    record, failure = followed(model, sample)
    fault = _astray(reference, record, widths, failure, trial)
    if fault is None:
        fault = _other_sizes(record, channels, widths) or _other_costs(reference, record, channels, widths)
        return fault and replace(fault, progress=(trial, math.inf))
    return fault


def _astray(reference: Record, record: Record, widths: Widths, error: Exception | None, trial: int) -> Fault | None:
    """Return the fault of the first operation that does not give what is predicted, or before which an error came.

    A module may do more or less at other widths: not every difference is a fault, but it may be why another one is.
    """
    predicted = {(own.module, own.call, own.place): own for own in reference.operations}
    numbers = {id(own): number for number, own in enumerate(reference.operations)}
    modules: list[str] = []
    after = 0
    for position, now in enumerate(record.operations):
        before = predicted.get((now.module, now.call, now.place))
        if before is None or before.name != now.name:
            modules = modules or [now.module]
        elif _as_predicted(reference, before, now, widths):
            after = numbers[id(before)] + 1
        else:
            return _fault(record, before, modules, (trial, position), error)
    if error is None:
        return None
    following = reference.operations[min(after, len(reference.operations) - 1)]
    unlike = replace(following, module=record.stack[-1] if record.stack else "", outputs=[])
    return _fault(record, unlike, [*modules, following.module], (trial, len(record.operations)), error)


def _as_predicted(reference: Record, before: Operation, now: Operation, widths: Widths) -> bool:
    if len(before.outputs) != len(now.outputs):
        return False
    return all(
        axis is None or _size(reference, axis, widths) == size
        for (_, axes), (shape, _) in zip(before.outputs, now.outputs, strict=True)
        for axis, size in zip(axes, shape, strict=False)
    )


def _size(reference: Record, axis: Axis, widths: Widths) -> Fraction:
    """Return the size of an axis at other widths of the groups."""
    sizes = reference.sizes
    axis = sizes.resolve(axis)
    now = {u: sizes.built[u] if u in sizes.fixed else widths.get(sizes.names[u], sizes.built[u]) for u, _ in axis}
    return sum((factor * now[u] for u, factor in axis), Fraction(0))


def _fault(
    record: Record, operation: Operation, modules: list[str], progress: tuple[int, float], error: Exception | None
) -> Fault:
    detail = first_line(error) if error else f"at '{operation.name}'"
    reason = f"{operation.module or type(record.model).__name__} keeps its sizes ({detail})"
    return Fault(reason, [], [*modules, operation.module], progress, operation)


def _other_sizes(record: Record, channels: Channels, widths: Widths) -> Fault | None:
    """Return the fault of a layer that reads or writes other sizes than predicted."""
    for layer in channels.layers:
        if layer.kind == "product":
            continue
        own = record.layers.get(layer.module)
        for size, axis in ((layer.source, own and own.source), (layer.out, own and own.axis)):
            if size is not None and (axis is None or record.sizes.size(axis) != size(widths)):
                return Fault(f"{layer.module} does not follow other widths", [[layer.module]], [layer.module])
    return None


def _other_costs(reference: Record, record: Record, channels: Channels, widths: Widths) -> Fault | None:
    """Return the fault of a module that has other parameters than predicted, or of a layer that costs other MACs."""
    more: Counter[str] = Counter()
    for layer in channels.layers:
        more[_owner(layer)] += whole(layer.parameters(widths)) - whole(layer.parameters(channels.widths))
    for own, sign in ((reference, 1), (record, -1)):
        for parameter in own.model.parameters():
            more[own.owners[id(parameter)][0].path] += sign * parameter.numel()
    for path, difference in more.items():
        if difference:
            members = [layer.module for layer in channels.layers if _owner(layer) == path]
            return Fault(f"{path} has parameters that are not one for each channel", [members], [path])
    tried = named(record)
    macs: Counter[str] = Counter()  # of a module in all: in the other pass, other dimensions of a product may vary
    for layers, own_widths, sign in ((channels.layers, widths, 1), (tried.layers, tried.widths, -1)):
        for layer in layers:
            macs[layer.module.partition("@")[0]] += sign * layer.macs(own_widths)
    for path, difference in macs.items():
        if difference:
            members = [layer.module for layer in channels.layers if layer.module.partition("@")[0] == path]
            return Fault(f"{path} costs other multiply-accumulates than predicted", [members], [path])
    return None


def _owner(layer: Layer) -> str:
    """Return the path of the module that has a layer's parameters."""
    return layer.module.rpartition(".")[0] if layer.kind == "parameter" else layer.module


def suspects(record: Record, fault: Fault) -> Iterator[list[Axis]]:
    """Yield the axes that may be at fault, the likeliest first.

    They are those of the layers, then of all operations in the module and in those around.
    """
    for paths in fault.layers:
        layers = [record.layers[path] for path in paths if path in record.layers]
        yield [axis for layer in layers for axis in (layer.axis, layer.source) if axis is not None]
    if fault.operation is not None:
        yield fault.operation.written
        yield fault.operation.axes
    module = fault.modules[-1] if fault.modules else ""
    while module:
        inside = [operation for operation in record.operations if f"{operation.module}.".startswith(f"{module}.")]
        yield [axis for operation in inside for axis in operation.axes]
        module = module.rpartition(".")[0]
    yield [axis for operation in record.operations for axis in operation.axes]
