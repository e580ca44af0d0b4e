"""Mark functions as plugins; `discovery` looks for these decorators by name, without running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, overload

F = TypeVar("F", bound=Callable[..., Any])
Need = Literal["covariance", "gradients", "kernels", "history"]  # what an allocator may see beside eigenvalues
NEEDS: tuple[Need, ...] = get_args(Need)


def backbone(function: F) -> F:
    """Mark a function as a backbone plugin."""
    return function


def detector(function: F) -> F:
    """Mark a function as a detector plugin."""
    return function


def dataset(function: F) -> F:
    """Mark a function as a data set plugin."""
    return function


@overload
def rule(function: F) -> F: ...
@overload
def rule(*, in_units: bool) -> Callable[[F], F]: ...
def rule(function: F | None = None, *, in_units: bool = False) -> F | Callable[[F], F]:
    """Mark a function as a width rule, and whether its dimension depends on the units of maps: on how large they are.

    >>> @rule(in_units=True)
    ... def mine(values):
    ...     return float((values > 1).sum())
    >>> mine.in_units
    True
    """
    if function is not None:
        return function

    def mark(own: F) -> F:
        own.in_units = in_units  # type: ignore[attr-defined]
        return own

    return mark


@overload
def allocator(function: F) -> F: ...
@overload
def allocator(*, needs: tuple[Need, ...]) -> Callable[[F], F]: ...
def allocator(function: F | None = None, *, needs: tuple[Need, ...] = ()) -> F | Callable[[F], F]:
    """Mark a function as an allocator, with what it needs to see of the groups beside eigenvalues.

    >>> @allocator(needs=("covariance", "kernels"))
    ... def mine(groups, budget):
    ...     return {group.name: 8.0 for group in groups}
    >>> mine.needs
    ('covariance', 'kernels')
    """
    if function is not None:
        return function

    def mark(own: F) -> F:
        own.needs = needs  # type: ignore[attr-defined]
        return own

    return mark
