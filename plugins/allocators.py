"""Allocators: from what is known of every channel group, and a budget, to target widths.

Groups are `eigendet.widths.views.GroupView`, in the order in which the network runs; the budget is
`eigendet.widths.allocation.Budget`. Rounding and caps are the library's. `tests/unit/test_allocators.py` holds each to
its definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from eigendet.plugins import allocator
from eigendet.widths import allocation
from eigendet.widths import marginal as spending

if TYPE_CHECKING:
    from eigendet.widths.allocation import Budget
    from eigendet.widths.views import GroupView, MapView

Targets = dict[str, float]


@allocator
def proportional(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Widths in proportion to the rule's dimensions, as large as the caps afford."""
    return _named(groups, allocation.targets(budget, {group.name: group.dimension for group in groups}))


@allocator
def marginal(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Widths that hold most of the groups' traces, each counted as one."""

    def shares(one: MapView) -> np.ndarray:
        return one.eigenvalues / (one.eigenvalues.sum() or 1.0)

    worth = [spending.held(_descending(group.over_maps(shares))) for group in groups]
    return _named(groups, spending.most_worth(budget, worth))


@allocator
def cost_aware(
    groups: Sequence[GroupView],
    budget: Budget,
    *,
    exponent: Annotated[float, Field(gt=1, examples=[1.5, 2.0, 3.0, 6.0])] = 2.0,
) -> Targets:
    """Widths in proportion to dimensions, less where channels cost: the first-order optimum of a power-law tail.

    Where the k-th share of a trace is (k / d)^-a / d, what w channels lose is (w / d)^(1 - a) / (a - 1). Its sum over
    groups is least under a cost C where w = d^(1 - 1/a) (λ ∂C/∂w)^(-1/a), which is solved for by iteration. The cost is
    that of the tightest cap. As the exponent grows, this becomes `proportional`.
    """
    dimensions = np.array([group.dimension for group in groups])
    if not dimensions.any():
        return _named(groups, allocation.targets(budget, dict.fromkeys(budget.costs.groups, 0.0)))  # says why not
    widths = budget.scaled(dimensions)
    for _ in range(500):
        tightest = int(np.argmax(budget.costs(widths) / budget.caps))
        price = np.maximum(budget.costs.gradient(widths)[tightest], 1e-30 * budget.caps[tightest])
        aimed = dimensions ** (1 - 1 / exponent) * price ** (-1 / exponent)
        after = budget.scaled(np.sqrt(aimed / aimed.max() * widths / widths.max()))  # half of the way
        if np.allclose(after, widths, rtol=1e-9):
            break
        widths = after
    return _named(groups, widths)


@allocator(needs=("covariance", "kernels"))
def output_aware(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Widths in proportion to the rule's dimensions of what the next layers read of each map (arXiv 1808.08558).

    The spectrum is that of Σ^½ (Σ WᵀW) Σ^½, summed over the elements of all kernels that read the group: how much of
    their outputs varies along each direction. A group that no kernel reads by itself has its own spectrum.
    """

    def dimension(group: GroupView) -> float:
        read = {
            seed: np.sum([kernel.gram for kernel in kernels], axis=0)
            for seed, kernels in group.kernels.items()
            if kernels
        }
        return float(group.over_maps(lambda one: group.rule(_weighted(one, read.get(one.seed)))))

    return _named(groups, allocation.targets(budget, {group.name: dimension(group) for group in groups}))


@allocator(needs=("covariance", "gradients"))
def loss_weighted(
    groups: Sequence[GroupView],
    budget: Budget,
    *,
    power: Annotated[float, Field(gt=0, le=2, examples=[1.0, 0.5, 0.25])] = 0.5,
) -> Targets:
    """Widths that hold most of what the loss reads: eigenvalues of Σ^½ G Σ^½ times positions, to a power.

    In the spirit of arXiv 1905.05934 and 2108.00708: to first order the k-th eigenvalue is how far the loss of an image
    moves, squared, if the map loses a direction. So groups are comparable in units of the loss, where `marginal` counts
    each trace as one. At power 1 late layers can be starved of width; the square root is the default.
    """

    def spectrum(one: MapView) -> np.ndarray:
        return (one.positions * _product_eigenvalues(_known(one.covariance), _known(one.gradient))) ** power

    worth = [spending.held(_descending(group.over_maps(spectrum))) for group in groups]
    return _named(groups, spending.most_worth(budget, worth))


@allocator
def entropy(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Control without data: widths of the largest entropy, the sum of log width over all layers that read each group.

    What the entropy of a plain network with random weights grows with, in arXiv 2111.13336 and 2303.02165: the sum over
    layers of the logarithm of channels read times kernel, of which only the channels differ here.
    """
    worth = [_logarithm(max(group.readers, 1)) for group in groups]
    return _named(groups, spending.most_worth(budget, worth))


@allocator
def linear_in_depth(
    groups: Sequence[GroupView],
    budget: Budget,
    *,
    ratio: Annotated[float, Field(gt=0, examples=[1.0, 2.0, 4.0, 8.0, 16.0])] = 8.0,
) -> Targets:
    """Control without data: widths linear in depth, the last `ratio` times the first (ReXNet, arXiv 2007.00992)."""
    return _named(groups, budget.scaled(np.linspace(1.0, ratio, len(groups)) if len(groups) > 1 else np.ones(1)))


@allocator(needs=("covariance", "gradients"))
def growth(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Widths above the reference by the gradient that new channels would get (GradMax, arXiv 2201.05125).

    The squared gradient of k channels that are added to a map is at most the sum of the k largest squared singular
    values of the mean product of the gradient behind and the map before. If both are independent, as in EigenDamage,
    these are eigenvalues of G times the trace of the second moment; both are taken at the group itself. Where the caps
    leave nothing above the reference, all its widths are scaled alike.
    """
    full = np.array([group.reference for group in groups], float)
    least = np.ceil(full / budget.multiple) * budget.multiple
    if not budget.affords(least) or (least > budget.most).any():
        return _named(groups, budget.scaled(full))

    def spectrum(one: MapView) -> np.ndarray:
        values = np.linalg.eigvalsh(_known(one.gradient))[::-1].clip(0.0)
        return one.positions * values * np.trace(_known(one.covariance))

    worth = [
        _beyond(width, spending.held(_descending(group.over_maps(spectrum))))
        for group, width in zip(groups, least, strict=True)
    ]
    return _named(groups, spending.most_worth(replace(budget, least=least), worth))


@allocator(needs=("kernels",))
def weight_rank(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Rival: the reference's widths times the share of directions that kernels read beyond noise (CONet's rank rule).

    CONet (arXiv 2108.06822) widens and narrows layers by the rank of their low-rank factors over training. Here it is
    the rank after training of every kernel that reads a group: singular values of its unfolding over channels read that
    exceed the optimal hard threshold for unknown noise (Gavish and Donoho 2014). A group that no kernel reads by itself
    keeps all.
    """

    def share(group: GroupView) -> float:
        shares = [_rank_share(kernel.weight) for own in group.kernels.values() for kernel in own]
        return float(np.mean(shares)) if shares else 1.0

    return _named(groups, budget.scaled(np.array([group.reference * share(group) for group in groups])))


def _named(groups: Sequence[GroupView], widths: np.ndarray) -> Targets:
    return {group.name: float(width) for group, width in zip(groups, widths, strict=True)}


def _descending(values: np.ndarray) -> np.ndarray:
    return np.sort(values)[::-1]


def _known(matrix: np.ndarray | None) -> np.ndarray:
    """Return a matrix that the library gives because it was asked for."""
    assert matrix is not None
    return matrix


def _product_eigenvalues(covariance: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of Σ^½ M Σ^½, (C,), descending, none negative.

    >>> _product_eigenvalues(np.diag([4.0, 1.0]), np.array([[1.0, 1.0], [1.0, 1.0]])).round(6).tolist()
    [5.0, 0.0]
    """
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0.0))
    return np.linalg.eigvalsh(root.T @ matrix @ root)[::-1].clip(0.0)


def _weighted(one: MapView, read: np.ndarray | None) -> np.ndarray:
    return one.eigenvalues if read is None else _product_eigenvalues(_known(one.covariance), read)


def _logarithm(count: int) -> Callable[[float], float]:
    return lambda width: count * math.log(max(width, 1e-9))


def _beyond(width: float, worth: Callable[[float], float]) -> Callable[[float], float]:
    return lambda widened: worth(max(widened - width, 0.0))


def _rank_share(weight: np.ndarray) -> float:
    """Return the share of the directions read whose singular values exceed what noise alone would have.

    >>> noise = np.random.default_rng(0).normal(size=(1, 64, 16, 9))
    >>> strong = np.random.default_rng(1).normal(size=(1, 64, 16, 9)) * np.r_[np.full(4, 30.0), np.zeros(12)][:, None]
    >>> _rank_share(noise), _rank_share(noise + strong)
    (0.0, 0.25)
    """
    ranks, channels = 0, weight.shape[0] * weight.shape[2]
    for block in weight:
        unfolded = block.transpose(1, 0, 2).reshape(block.shape[1], -1)
        values = np.linalg.svd(unfolded, compute_uv=False)
        beta = min(unfolded.shape) / max(unfolded.shape)
        threshold = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * np.median(values)
        ranks += int(np.count_nonzero(values > threshold))
    return ranks / channels
