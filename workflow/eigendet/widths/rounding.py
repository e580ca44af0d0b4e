"""Round target widths to multiples: as near in ratio as the caps allow, and with little of them unspent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from eigendet.channels.groups import Widths
from eigendet.widths.allocation import Budget, largest_factor, targets

USED = 0.98  # of a cap, where the targets use as much
MOST_TRIED = 2**16  # roundings, where searching leaves more of a cap unspent
SHORT = 1e3  # what a unit of use that is lacking to that weighs, beside the squared logarithm of one group


def rounded(budget: Budget, target: np.ndarray) -> Widths:
    """Return multiples beside target widths, within the budget.

    They are nearest: Σ log²(width / target) is the least that steps and exchanges reach, one group going up, one down,
    or both, from the nearest multiples of all targets times the largest factor up to 1 that the caps afford. But where
    the targets use 98 % of a cap, so do the widths, as far as these multiples can: where steps and exchanges leave
    more, all of a small network's are tried. A larger target gets no smaller width than another with the same multiple,
    unless nothing else comes up to that.

    Args:
        budget: what the widths may cost.
        target: positive widths in the order of the budget's groups, (groups,), see `Budget.fitted`.

    >>> from eigendet.widths.allocation import Costs
    >>> costs = Costs(("a", "b"), np.zeros(3), np.array([[1.0, 1], [2, 0], [0, 10]]), np.zeros((3, 2, 2)))
    >>> caps, eight, any_width = np.array([44, np.inf, np.inf]), np.full(2, 8.0), np.full(2, np.inf)
    >>> budget = Budget(costs, caps, multiple=eight, least=eight, most=any_width)
    >>> rounded(budget, np.array([17.3, 20.6]))
    {'a': 16, 'b': 24}
    """
    target = budget.fitted(target)
    low = _below(budget, target, 1e-6)  # what a search left just below a multiple is one, unless that costs too much
    low = low if budget.affords(low) else _below(budget, target, 0)
    start = np.maximum(nearest(budget, target), low)
    if not budget.affords(start):
        start = np.maximum(nearest(budget, target * _factor(budget, target, low)), low)
    goal = np.where(budget.costs(target) >= USED * budget.caps, USED, 0.0)
    widths = _exchanged(budget, target, start, goal, in_order=True)
    if (budget.costs(widths) / budget.caps < goal).any():
        widths = _exchanged(budget, target, start, goal, in_order=False)
    if (budget.costs(widths) / budget.caps < goal).any():
        widths = _tried(budget, target, widths, goal)
    return budget.named(widths)


def proportional(budget: Budget, dimension: Mapping[str, float]) -> Widths:
    """Return multiples nearest to the largest widths in proportion to the dimensions that the budget affords.

    Raises:
        UserError: every dimension is zero.
    """
    return rounded(budget, targets(budget, dimension))


def nearest(budget: Budget, target: np.ndarray) -> np.ndarray:
    """Return the multiples nearest in ratio to target widths, (groups,), whatever they cost.

    >>> from eigendet.widths.allocation import Costs
    >>> costs = Costs(("a", "b"), np.zeros(3), np.ones((3, 2)), np.zeros((3, 2, 2)))
    >>> eight = np.full(2, 8.0)
    >>> nearest(Budget(costs, np.full(3, np.inf), eight, eight, np.full(2, np.inf)), np.array([11.2, 11.4])).tolist()
    [8.0, 16.0]
    """
    below = np.floor(target / budget.multiple + 1e-6)
    steps = np.where(target / budget.multiple > np.sqrt(below * (below + 1)), below + 1, below)
    widths: np.ndarray = np.clip(steps * budget.multiple, budget.least, budget.most)
    return widths


def _below(budget: Budget, target: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the multiples up to the targets, (groups,)."""
    below: np.ndarray = np.maximum(np.floor(target / budget.multiple + tolerance) * budget.multiple, budget.least)
    return below


def _factor(budget: Budget, target: np.ndarray, low: np.ndarray) -> float:
    """Return the largest factor on the targets whose nearest multiples, but none below `low`, are within the budget."""
    return largest_factor(lambda factor: budget.affords(np.maximum(nearest(budget, factor * target), low)))


def _exchanged(budget: Budget, target: np.ndarray, widths: np.ndarray, goal: np.ndarray, in_order: bool) -> np.ndarray:
    """Take the best step or exchange, as long as one is better, between the multiples beside the targets."""
    step, count, capped = budget.multiple, len(target), np.isfinite(budget.caps)
    low, high = _beside(budget, target, widths)
    smaller = (step[:, None] == step) & (target[:, None] < target * (1 - 1e-9)) & in_order
    while True:
        wider, narrower = widths + step, widths - step
        up = (wider <= high) & ~(smaller & (wider[:, None] > widths)).any(1)
        down = (narrower >= low) & ~(smaller & (widths[:, None] > narrower)).any(0)
        # Rows go up and columns go down; the last of each stays as it is.
        possible = np.zeros((count + 1, count + 1), bool)
        possible[:-1, :-1] = up[:, None] & down & ~(smaller & (wider[:, None] > narrower)) & ~np.eye(count, dtype=bool)
        possible[:-1, -1], possible[-1, :-1], possible[-1, -1] = up, down, True
        use = _use_after(budget, widths)
        possible &= (use <= 1 + 1e-12).all(0)
        lacking = np.maximum(goal[capped][:, None, None] - use, 0).max(0)
        farther = _farther(target, widths, wider)[:, None] + _farther(target, widths, narrower)
        score = np.where(possible, farther + SHORT * count * np.round(lacking, 9), np.inf)
        best = np.unravel_index(np.argmin(score), score.shape)
        if score[best] > score[-1, -1] - 1e-9:
            return widths
        change = np.zeros((2, count + 1))
        change[0, best[0]], change[1, best[1]] = 1, 1
        widths = widths + (change[0] - change[1])[:-1] * step


def _tried(budget: Budget, target: np.ndarray, widths: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return what lacks least to the goal, and of that the nearest, of all multiples beside the targets, if not many.

    `widths` are returned where nothing is better, or there are more than 2^16 to try.
    """
    low, high = _beside(budget, target, widths)
    levels = [sorted({one, other}) for one, other in zip(low.tolist(), high.tolist(), strict=True)]
    if math.prod(map(len, levels)) > MOST_TRIED:
        return widths
    every = np.array([widths.tolist(), *itertools.product(*levels)])
    capped = np.isfinite(budget.caps)
    quadratic = np.einsum("ng,kgh,nh->nk", every, budget.costs.quadratic[capped], every, optimize=True) / 2
    spent = budget.costs.constant[capped] + every @ budget.costs.linear[capped].T + quadratic
    use = spent / budget.caps[capped]
    lacking = np.where((use <= 1 + 1e-12).all(1), np.maximum(goal[capped] - use, 0).max(1), np.inf)
    farther = (np.log(every / target) ** 2).sum(1)
    best: np.ndarray = every[np.lexsort([farther, np.round(lacking, 9)])[0]]
    return best


def _beside(budget: Budget, target: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the multiples below the targets, unless `widths` are narrower still, and those above, within ranges."""
    low = np.minimum(_below(budget, target, 1e-6), widths)
    high = np.minimum(np.maximum(np.ceil(target / budget.multiple - 1e-6) * budget.multiple, budget.least), budget.most)
    return low, high


def _use_after(budget: Budget, widths: np.ndarray) -> np.ndarray:
    """Return the share of each cap after one group has gone up, or none, and one down, (caps, groups + 1, …)."""
    step, count = budget.multiple, len(widths)
    capped = np.isfinite(budget.caps)
    gradient = budget.costs.gradient(widths)
    after = np.zeros((int(capped.sum()), count + 1, count + 1)) + budget.costs(widths)[capped][:, None, None]
    after[:, :-1] += budget.costs.steps(gradient, step)[capped][:, :, None]
    after[:, :, :-1] += budget.costs.steps(gradient, -step)[capped][:, None]
    after[:, :-1, :-1] -= budget.costs.quadratic[capped] * np.outer(step, step)
    use: np.ndarray = after / budget.caps[capped][:, None, None]
    return use


def _farther(target: np.ndarray, widths: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return by how much squared logarithms of the ratio to the targets grow, (groups + 1,), the last being 0."""
    return np.append(np.log(np.maximum(after, 1) / target) ** 2 - np.log(widths / target) ** 2, 0)
