"""Spend a budget a multiple at a time, where the next channels are worth most for what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eigendet.errors import UserError
from eigendet.widths.allocation import Budget

Worth = Callable[[float], float]  # of so many channels of a group; grows with them
NOISE = 1e-8  # of the largest eigenvalue: below lie rounding errors
KICKS = (1, -1, 2, -2, 4, -4)  # multiples by which a group is moved, to look for something better
MOVES = 6000  # of any group by a multiple in that search, at most


def most_worth(budget: Budget, worth: Sequence[Worth]) -> np.ndarray:
    """Return the widths that are worth most within the budget, (groups,), as nearly as a bounded search finds them.

    From the least widths the group grows, each time, whose next multiple is worth most for its share of the tightest
    cap. Then each group is moved by some multiples and kept there while others make room and fill up; what is worth
    more is the next start.

    Args:
        budget: what widths may cost.
        worth: of the channels of each group, in the budget's order.

    Raises:
        UserError: nothing is worth anything.

    >>> from eigendet.widths.allocation import Costs
    >>> costs = Costs(("a", "b"), np.zeros(3), np.array([[1.0, 1], [2, 0], [0, 10]]), np.zeros((3, 2, 2)))
    >>> caps, four, any_width = np.array([20, np.inf, np.inf]), np.full(2, 4.0), np.full(2, np.inf)
    >>> budget = Budget(costs, caps, multiple=four, least=four, most=any_width)
    >>> most_worth(budget, [held(np.r_[np.ones(8), np.zeros(8)] / 8), held(np.arange(1.0, 17) ** -2)]).tolist()
    [8.0, 12.0]
    """
    best = _Spending(budget, worth)
    if not best.total and not best.gain.any() and (budget.least < budget.most).any():
        raise UserError(
            "no channel of any group is worth anything: each feature map is constant, or the loss does not depend on "
            "it. So no width can be derived; look at the loss, or take another allocator."
        )
    best.fill()
    moves = 0
    while moves < MOVES:
        before = best.total
        for group in range(len(worth)):
            for steps in KICKS:
                width = best.widths[group] + steps * budget.multiple[group]
                if budget.least[group] <= width <= budget.most[group]:
                    other = best.copy()
                    other.move(group, steps)
                    is_better = other.make_room(group) and other.fill(group).total > best.total * (1 + 1e-9)
                    moves += other.moves
                    best = other if is_better else best
            if moves > MOVES:
                break
        if best.total == before:
            break
    return best.widths


class _Spending:
    """Widths within a budget, what they cost and are worth, and how both change with each group's next multiple."""

    def __init__(self, budget: Budget, worth: Sequence[Worth]) -> None:
        self.budget, self.worth = budget, worth
        self.capped = np.isfinite(budget.caps)
        self.caps = budget.caps[self.capped][:, None]
        self.widths = budget.least.copy()
        self.spent, self.gradient = budget.costs(self.widths), budget.costs.gradient(self.widths)
        self.total = sum(own(width) for own, width in zip(worth, self.widths, strict=True))
        self.moves = 0  # since it was copied
        self.gain, self.loss = np.zeros(len(worth)), np.full(len(worth), np.inf)
        for group in range(len(worth)):
            self._look_around(group)

    def copy(self) -> _Spending:
        """Return the same, to be moved by itself."""
        other = object.__new__(_Spending)
        other.__dict__.update(self.__dict__, moves=0)
        other.widths, other.gain, other.loss = self.widths.copy(), self.gain.copy(), self.loss.copy()
        return other

    def move(self, group: int, steps: int) -> None:
        """Move a group by so many multiples."""
        costs, change = self.budget.costs, steps * self.budget.multiple[group]
        self.spent = self.spent + change * (self.gradient[:, group] + costs.quadratic[:, group, group] * change / 2)
        self.gradient = self.gradient + costs.quadratic[:, :, group] * change
        self.moves += 1
        before = self.worth[group](self.widths[group])
        self.widths[group] += change
        self.total += self.worth[group](self.widths[group]) - before
        self._look_around(group)

    def _look_around(self, group: int) -> None:
        width, step, worth = self.widths[group], self.budget.multiple[group], self.worth[group]
        here = worth(width)
        self.gain[group] = worth(width + step) - here if width + step <= self.budget.most[group] else 0.0
        self.loss[group] = here - worth(width - step) if width - step >= self.budget.least[group] else np.inf

    def fill(self, fixed: int | None = None) -> _Spending:
        """Grow all groups but one, each time the one that gains most for its share of the tightest cap."""
        while True:
            shares = self.budget.costs.steps(self.gradient, self.budget.multiple)[self.capped] / self.caps
            left = 1 + 1e-12 - self.spent[self.capped][:, None] / self.caps
            fits = (shares <= left).all(0) & (self.gain > 0)
            if fixed is not None:
                fits[fixed] = False
            if not fits.any():
                return self
            self.move(int(np.argmax(np.where(fits, self.gain / np.maximum(shares.max(0), 1e-30), -1.0))), 1)

    def make_room(self, fixed: int) -> bool:
        """Shrink all groups but one until no cap is exceeded, each time the one that loses least; says if they can."""
        while True:
            use = self.spent[self.capped] / self.caps[:, 0]
            if use.max() <= 1 + 1e-12:
                return True
            tightest = int(np.argmax(use))
            steps = self.budget.costs.steps(self.gradient, -self.budget.multiple)[self.capped]
            relief = -steps[tightest] / self.caps[tightest]
            loss = np.where(relief > 0, self.loss / np.maximum(relief, 1e-30), np.inf)
            loss[fixed] = np.inf
            group = int(np.argmin(loss))
            if not np.isfinite(loss[group]):
                return False
            self.move(group, -1)


def held(values: np.ndarray) -> Worth:
    """Return the sum of the first k eigenvalues as a function of k; beyond those observed, by `decay_law`.

    Args:
        values: in descending order, none negative.

    >>> held(np.array([3.0, 1.0]))(1)
    3.0
    """
    seen = np.concatenate([[0.0], np.cumsum(values)]).tolist()
    factor, exponent = decay_law(values)
    start = values.size + 0.5

    def sum_of(width: float) -> float:
        if width <= values.size:
            return float(seen[int(width)])
        # The integral of the law between half ranks is its sum, to a good approximation.
        tail = factor / (exponent - 1) * (start ** (1 - exponent) - (width + 0.5) ** (1 - exponent))
        return float(seen[-1] + tail)

    return sum_of


def decay_law(values: np.ndarray) -> tuple[float, float]:
    """Fit μ_k = factor · k^-exponent by least squares on the logarithms of the smaller half; return both numbers.

    Rounding errors are left out; if they are all there is, the spectrum ends, and the factor is 0. The exponent is at
    least 1.01, so that what lies beyond any width is finite. The other power law, of `spectra.metrics`, is of the
    density of the largest eigenvalues.

    >>> factor, exponent = decay_law(5 * np.arange(1.0, 65) ** -1.7)
    >>> round(factor, 6), round(exponent, 6)
    (5.0, 1.7)
    """
    rank = np.arange(1, values.size + 1)
    half = (rank > values.size // 2) & (values > NOISE * values.max(initial=0.0))
    if np.count_nonzero(half) < 2:
        return 0.0, 1.01
    slope, _ = np.polyfit(np.log(rank[half]), np.log(values[half]), 1)
    exponent = max(-float(slope), 1.01)
    return float(np.exp(np.mean(np.log(values[half]) + exponent * np.log(rank[half])))), exponent
