"""Widths brought to the MACs and the parameters of others, by a factor and a ratio from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from eigendet.widths.allocation import Budget, largest_factor

RATIOS = (1 / 16, 16.0)  # from a stage to the next


class Matched(NamedTuple):
    """Target widths that are weights of the groups, times a factor, times a ratio to the power of the stage."""

    target: np.ndarray  # (groups,)
    factor: float
    ratio: float


def matched(budget: Budget, weights: np.ndarray, stages: Mapping[str, int]) -> Matched:
    """Scale weights by a factor times a ratio to the power of the stage, to the MACs and parameters of a budget.

    Args:
        budget: with caps on MACs and parameters.
        weights: positive, (groups,).
        stages: of every group.

    >>> from eigendet.widths.allocation import Costs
    >>> costs = Costs(("a", "b"), np.zeros(3), np.array([[4.0, 1], [1, 4], [0, 0]]), np.zeros((3, 2, 2)))
    >>> caps, any_width = np.array([60, 90, np.inf]), np.full(2, np.inf)
    >>> found = matched(Budget(costs, caps, np.ones(2), np.ones(2), any_width), np.array([8.0, 8]), {"a": 0, "b": 1})
    >>> found.target.round(2).tolist(), round(found.factor, 2), round(found.ratio, 2)
    ([10.0, 20.0], 1.25, 2.0)
    """
    power = np.array([stages[group] for group in budget.costs.groups], float)

    def target(factor: float, ratio: float) -> np.ndarray:
        return np.clip(factor * ratio**power * weights, budget.least, budget.most)

    def factor_of(ratio: float) -> float:
        """Return the factor at which this ratio has the MACs."""
        return largest_factor(lambda factor: budget.costs(target(factor, ratio))[0] <= budget.caps[0])

    low, high = RATIOS
    while high / low > 1 + 1e-6:  # parameters sit late, so that they grow with the ratio
        ratio = float(np.sqrt(low * high))
        low, high = (
            (ratio, high) if budget.costs(target(factor_of(ratio), ratio))[1] <= budget.caps[1] else (low, ratio)
        )
    factor = factor_of(low)
    return Matched(target(factor, low), factor, low)
