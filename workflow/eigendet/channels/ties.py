"""Widths that a network's code takes from one another, without an operation that shows it.

Attention often gives its result the shape that it read, `y.reshape(batch, tokens, channels)`: nothing but the code says
that its inner width is that of the tokens. Where a trial fails at an operation, a size that it gives is tried as being
another one of the same module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eigendet.channels.record import Operation, Record
from eigendet.channels.sizes import Axis, times
from eigendet.channels.trial import Fault

AHEAD = 3  # operations


def tied(record: Record, fault: Fault, trial: Callable[[], Fault | None]) -> Fault | None:
    """Tie a size at which a trial ends to another one, in all modules of that class, if that makes it go further.

    Args:
        record: whose sizes are tied.
        fault: at which the trial ends.
        trial: tries once more.

    Returns:
        The fault that remains, or None.
    """
    if fault.operation is None:
        return fault
    for axes in list(_candidates(record, fault.operation)):
        before = record.sizes.copy()
        for axis, other in axes:
            record.sizes.require(other, 1)
            record.sizes.equate(axis, other)
        after = trial()
        if after is None or after.progress > fault.progress:
            return after
        record.sizes = before
    return fault


def _candidates(record: Record, operation: Operation) -> Iterator[list[tuple[Axis, Axis]]]:
    """Yield pairs of sizes, one of each module of a class: one that an operation gives, and another of the module.

    Of an operation that was not reached, those after it come next: an error may be raised on the way to one of them.
    """
    kind = type(record.model.get_submodule(operation.module))
    modules = {path for path, module in record.model.named_modules() if type(module) is kind}
    for place in range(operation.place, operation.place + (1 if operation.outputs else AHEAD)):
        alike = [own for own in record.operations if own.place == place and own.module in modules]
        for position in range(max((len(own.written) for own in alike), default=0)):
            for others in (_read, _inside):
                pairs = {own.module: pair for own in alike for pair in _pair(record, own, position, others)}
                if operation.module in pairs:
                    yield list(pairs.values())
                    yield [pairs[operation.module]]


def _pair(
    record: Record, operation: Operation, position: int, others: Callable[[Record, Operation, Axis], list[Axis]]
) -> Iterator[tuple[Axis, Axis]]:
    """Yield a size that an operation gives and the first of others that it is, or a part of it."""
    sizes = record.sizes
    axis = operation.written[position] if position < len(operation.written) else ()
    own = {u for u, _ in sizes.resolve(axis)}
    if own <= sizes.fixed.keys():
        return
    for other in others(record, operation, axis):
        share = sizes.size(axis) / sizes.size(other)
        if share.numerator == 1 and {u for u, _ in sizes.resolve(other)} != own:
            yield axis, times(other, share)
            return


def _read(record: Record, operation: Operation, axis: Axis) -> list[Axis]:
    """Return what the layers read that write an axis."""
    layers = [record.layers.get(record.sizes.names[u]) for u, _ in record.sizes.resolve(axis)]
    return [layer.source for layer in layers if layer is not None and layer.source is not None]


def _inside(record: Record, operation: Operation, axis: Axis) -> list[Axis]:
    """Return what is as large as an axis in the module that runs an operation."""
    inside = [other for other in record.operations if f"{other.module}.".startswith(f"{operation.module}.")]
    axes = [other for around in inside for other in around.axes + around.written]
    return [other for other in axes if record.sizes.size(other) == record.sizes.size(axis)]
