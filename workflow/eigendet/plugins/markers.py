"""Mark functions as plugins; `discovery` looks for these decorators by name, without running them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def backbone(function: F) -> F:
    """Mark a function as a backbone plugin."""
    return function


def detector(function: F) -> F:
    """Mark a function as a detector plugin."""
    return function


def dataset(function: F) -> F:
    """Mark a function as a data set plugin."""
    return function


def rule(function: F) -> F:
    """Mark a function as a width rule."""
    return function
