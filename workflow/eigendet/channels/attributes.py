"""Numbers that modules hold beside their layers and that are widths, such as where they split a map.

A constructor computes them from its arguments, so that they stay where only layers are built in other sizes. Where a
trial fails at an operation, numbers of the module that runs it, or of one around it, that equal the size of an axis
there are tried as being that size. What makes the trial go further stays, for all modules of that class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from eigendet.channels.record import Operation, Record
from eigendet.channels.sizes import Axis
from eigendet.channels.trial import Fault

Edits = dict[tuple[str, str], Axis | list[Axis | int]]  # by module and name


def edited(record: Record, fault: Fault, trial: Callable[[], Fault | None]) -> Fault | None:
    """Let numbers of modules follow the widths as long as that makes a trial go further.

    Args:
        record: where such numbers are noted.
        fault: at which the trial ends.
        trial: tries once more.

    Returns:
        The fault that remains, or None.
    """
    for edits in list(_candidates(record, fault)):
        before = dict(record.attributes)
        record.attributes |= edits
        after = trial()
        if after is None or after.progress > fault.progress:
            return after
        record.attributes = before
    return fault


def _candidates(record: Record, fault: Fault) -> Iterator[Edits]:
    """Yield numbers that may be sizes at an operation: one, in all modules of a class or in one alone; then several."""
    if fault.operation is None:
        return
    for path in dict.fromkeys(around for module in fault.modules for around in _around(module)):
        module = record.model.get_submodule(path)
        several: Edits = {}
        names = [name for name in vars(module) if _axes(record, path, name, fault.operation) is not None]
        for name in names:
            alike = {
                (other, name): _axes(record, other, name, fault.operation)
                for other, own in record.model.named_modules()
                if type(own) is type(module)
            }
            edits = {key: axes for key, axes in alike.items() if axes is not None}
            several |= edits
            yield edits
            if len(edits) > 1:
                yield {(path, name): edits[path, name]}
        if len(names) > 1:
            yield several


def _around(module: str) -> Iterator[str]:
    """Yield the paths of a module and of those around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _axes(record: Record, path: str, name: str, like: Operation) -> Axis | list[Axis | int] | None:
    """Return the axes whose sizes a module's number, or some of a list of them, equal at an operation inside it.

    That is the operation in question, or the one most like it.
    """
    module = record.model.get_submodule(path)
    value: Any = vars(module).get(name)
    if name.startswith("_") or type(module).__module__.startswith("torch.nn.") or (path, name) in record.attributes:
        return None
    numbers = [value] if type(value) is int else value
    if type(numbers) not in (list, tuple) or not numbers or any(type(one) is not int for one in numbers):
        return None
    inside = [own for own in record.operations if not path or f"{own.module}.".startswith(f"{path}.")]
    for operation in sorted(inside, key=lambda own: (own is not like, own.module != path, own.place != like.place)):
        written = operation.written
        free = [axis for axis in written + operation.axes if _is_free(record, axis)]
        sizes = {int(record.sizes.size(axis)): axis for axis in reversed(free)}
        if free and [int(record.sizes.size(axis)) for axis in written] == list(numbers):
            return written[0] if type(value) is int else list(written)
        if any(one in sizes for one in numbers):
            return sizes[value] if type(value) is int else [sizes.get(one, one) for one in numbers]
    return None


def _is_free(record: Record, axis: Axis) -> bool:
    return not {u for u, _ in record.sizes.resolve(axis)} <= record.sizes.fixed.keys()
