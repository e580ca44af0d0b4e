"""A width rule plugin, to change into your own."""

from typing import Annotated

import numpy as np
from pydantic import Field

from eigendet.plugins import rule


# The first line of the docstring is what `eigendet plugins` lists and what the report says of this metric. An option's
# `examples` are the values over which `eigendet front` compares the rule with itself.
@rule
def example(
    values: np.ndarray, *, share: Annotated[float, Field(gt=0, lt=1, examples=[0.5, 0.1, 0.01])] = 0.1
) -> float:
    """Count the eigenvalues above `share` of their mean."""
    # `values` are the eigenvalues of one feature map's covariance: (C,), descending, none negative, the first positive.
    return float(np.count_nonzero(values > share * values.mean()))
