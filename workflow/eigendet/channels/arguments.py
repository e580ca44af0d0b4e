"""Arguments of an operation by their names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

Arguments = dict[str, Any]  # by their names in the operation's schema


def named_arguments(function: Any, args: Sequence[Any], kwargs: Arguments) -> Arguments:
    """Return the arguments of an operation by name, in the order of its schema, with defaults for those left out.

    >>> import torch
    >>> named_arguments(torch.ops.aten.transpose.int, (None, 0, 1), {})
    {'self': None, 'dim0': 0, 'dim1': 1}
    >>> named_arguments(torch.ops.aten.unbind.int, (None,), {})
    {'self': None, 'dim': 0}
    """
    defaults = _defaults(function)
    return defaults | dict(zip(defaults, args, strict=False)) | kwargs


@functools.cache
def _defaults(function: Any) -> Arguments:
    return {argument.name: argument.default_value for argument in function._schema.arguments}
