"""An allocator plugin, to change into your own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from eigendet.plugins import allocator

if TYPE_CHECKING:
    from eigendet.widths.allocation import Budget
    from eigendet.widths.views import GroupView


# The first line of the docstring is what `eigendet plugins` lists. An option's `examples` are the values over which
# `eigendet front` compares the allocator with itself. With `@allocator(needs=("covariance", "gradients", "kernels"))`,
# or some of these, the view of a group holds more than eigenvalues.
@allocator
def example(
    groups: Sequence["GroupView"], budget: "Budget", *, power: Annotated[float, Field(ge=0, examples=[0.5, 1.0])] = 0.5
) -> dict[str, float]:
    """Widths between those of the reference and those in proportion to the rule's dimensions."""
    weights = np.array([group.dimension**power * group.reference ** (1 - power) for group in groups])
    # `scaled` makes them as large as the caps afford; rounding to multiples is the library's.
    return dict(zip((group.name for group in groups), budget.scaled(weights).tolist(), strict=True))
