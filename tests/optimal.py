"""The best widths of all, by mixed-integer programming: what bounded searches are held to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.sparse

from eigendet.channels.groups import Widths
from eigendet.widths.allocation import Budget, Costs
from eigendet.widths.marginal import held, most_worth


def flat(caps: list[float], least: list[float], most: list[float], multiple: float = 4.0) -> Budget:
    """MACs are the sum of both widths, parameters twice the first, activations 10 of the second."""
    linear = np.array([[1.0, 1], [2, 0], [0, 10]])
    costs = Costs(("a", "b"), np.zeros(3), linear, np.zeros((3, 2, 2)))
    return Budget(costs, np.array(caps), np.full(2, multiple), np.array(least), np.array(most))


def optimum(budget: Budget, levels: Sequence[np.ndarray], worth: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the widths, one level of each group, that are worth most in all and exceed no cap, (groups,).

    A level is a binary variable, and the product of two another, between 0 and 1, whose sums over the levels of either
    group are the variables of the other's.
    """
    costs, capped = budget.costs, np.flatnonzero(np.isfinite(budget.caps))
    start = np.cumsum([0, *map(len, levels)])
    pairs, size = {}, start[-1]
    for first, second in itertools.combinations(range(len(levels)), 2):
        if costs.quadratic[capped, first, second].any():
            pairs[first, second] = size
            size += len(levels[first]) * len(levels[second])
    rows: list[np.ndarray] = []
    values: list[float] = []
    for group, level in enumerate(levels):
        row = np.zeros(size)
        row[start[group] : start[group] + len(level)] = 1
        rows.append(row)
        values.append(1.0)
    for (first, second), offset in pairs.items():
        place = np.arange(offset, offset + len(levels[first]) * len(levels[second])).reshape(len(levels[first]), -1)
        for group, columns in ((first, place), (second, place.T)):
            for position, products in enumerate(columns):
                row = np.zeros(size)
                row[products], row[start[group] + position] = 1, -1
                rows.append(row)
                values.append(0.0)
    caps = np.zeros((len(capped), size))
    for row, kind in zip(caps, capped, strict=True):
        for group, level in enumerate(levels):
            own = costs.linear[kind, group] * level + costs.quadratic[kind, group, group] * level**2 / 2
            row[start[group] : start[group] + len(level)] = own
        for (first, second), offset in pairs.items():
            products = costs.quadratic[kind, first, second] * np.outer(levels[first], levels[second]).ravel()
            row[offset : offset + len(products)] = products
    limit = budget.caps[capped] - costs.constant[capped]
    result = scipy.optimize.milp(
        -np.concatenate([*worth, np.zeros(size - start[-1])]),
        integrality=np.arange(size) < start[-1],
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(scipy.sparse.csr_matrix(np.array(rows)), values, values),
            scipy.optimize.LinearConstraint(scipy.sparse.csr_matrix(caps / limit[:, None]), -np.inf, 1),
        ],
        options={"mip_rel_gap": 1e-4},
    )
    assert result.success, result.message
    chosen = [int(np.argmax(result.x[first:last])) for first, last in itertools.pairwise(start)]
    return np.array([level[place] for level, place in zip(levels, chosen, strict=True)], float)


def marginal(budget: Budget, spectra: Mapping[str, np.ndarray]) -> Widths:
    """Return widths by marginal allocation over these spectra, each trace counted as one."""
    shares = [spectra[group] / (spectra[group].sum() or 1.0) for group in budget.costs.groups]
    return budget.named(most_worth(budget, [held(values) for values in shares]))
