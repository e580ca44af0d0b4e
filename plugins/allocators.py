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
from eigendet.widths import allocation, weighting
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
        roots = {
            seed: weighting.root(np.sum([kernel.gram for kernel in kernels], axis=0))
            for seed, kernels in group.kernels.items()
            if kernels
        }
        return float(group.over_maps(lambda one: group.rule(_weighted(one, roots.get(one.seed)))))

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
    moves, squared and on average, if the map loses a direction; gradient and map are taken to be independent, and so
    are positions. So groups are comparable in units of the loss, where `marginal` counts each trace as one. At power 1
    late layers can be starved of width; the square root is the default.
    """
    worth = [spending.held(_descending(group.over_maps(lambda one: one.loss_spectrum**power))) for group in groups]
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


@allocator(needs=("history",))
def conet(groups: Sequence[GroupView], budget: Budget) -> Targets:
    """Rival: widths where each group would gain the same share of rank a step (CONet's rank rule, arXiv 2108.06822).

    CONet trains for some epochs, widens the layers whose rank average slope exceeds a threshold δ, narrows the others,
    and starts anew, up to 25 times. The rank is that of a kernel's low-rank factor, unfolded over channels, as a share
    of them; its average is over the layers that write or read the channels; its slope is from the first snapshot to
    that of the largest average. Here one training must do: if each group goes on to gain as many ranks whatever its
    width, the search ends at widths in proportion to reference times slope, and the budget takes the place of δ. A
    group that no layer writes or reads by itself has the mean slope. Where no rank grows, as before training, all keep
    their proportions. Left out is what CONet has beside the rule, a bound on the condition of low-rank factors.
    """
    slopes = np.array([_rank_slope(group) for group in groups])
    slopes[np.isnan(slopes)] = slopes[~np.isnan(slopes)].mean() if not np.isnan(slopes).all() else 0.0
    full = np.array([group.reference for group in groups], float)
    return _named(groups, budget.scaled(full * slopes if slopes.any() else full))


def _named(groups: Sequence[GroupView], widths: np.ndarray) -> Targets:
    return {group.name: float(width) for group, width in zip(groups, widths, strict=True)}


def _descending(values: np.ndarray) -> np.ndarray:
    return np.sort(values)[::-1]


def _known(matrix: np.ndarray | None) -> np.ndarray:
    """Return a matrix that the library gives because it was asked for."""
    assert matrix is not None
    return matrix


def _weighted(one: MapView, root: np.ndarray | None) -> np.ndarray:
    return one.eigenvalues if root is None else weighting.product_eigenvalues(root, _known(one.covariance))


def _logarithm(count: int) -> Callable[[float], float]:
    return lambda width: count * math.log(max(width, 1e-9))


def _beyond(width: float, worth: Callable[[float], float]) -> Callable[[float], float]:
    return lambda widened: worth(max(widened - width, 0.0))


def _rank_slope(group: GroupView) -> float:
    """Return the share of rank that a group gains a step, averaged over seeds; NaN where no layer shows it."""
    slopes = []
    for unfoldings in group.history.values():
        shares: dict[int, list[float]] = {}
        for own in unfoldings:
            rank = sum(_rank(values, own.shape) for values in own.values)
            shares.setdefault(own.step, []).append(rank / (len(own.values) * own.shape[0]))
        average = {step: np.mean(shares[step]) for step in sorted(shares)}
        if average:
            first, best = min(average), max(average, key=lambda step: average[step])
            slopes.append((average[best] - average[first]) / max(best - first, 1))
    return float(np.mean(slopes)) if slopes else math.nan


def _rank(values: np.ndarray, shape: tuple[int, int]) -> int:
    """Return how many singular values of a matrix are beyond noise, by empirical variational Bayes.

    Nakajima, Sugiyama, Babacan and Tomioka (JMLR 14, 2013): of γ² / (M σ²), where M is the larger side, those beyond a
    limit count. The variance σ² of the noise is that of the least free energy, here among 200 from their lower to their
    upper bound.

    >>> random = np.random.default_rng(0)
    >>> noise, strong = random.normal(size=(2, 16, 144))
    >>> rank = lambda matrix: _rank(np.linalg.svd(matrix, compute_uv=False), matrix.shape)
    >>> rank(noise), rank(noise + 3 * np.r_[np.ones(4), np.zeros(12)][:, None] * strong), rank(0 * noise)
    (0, 4, 0)
    """
    if not values.any():
        return 0
    small, large = sorted(shape)
    squares, alpha = np.maximum(values**2, 1e-12 * values.max() ** 2) / large, small / large
    limit = (1 + 2.5129 * math.sqrt(alpha)) * (1 + math.sqrt(alpha) / 2.5129)
    most = math.ceil(small / (1 + alpha)) - 1
    low = max(squares[most] / limit, squares[most:].mean())
    scaled = squares / np.geomspace(low, squares.mean(), 200)[:, None]
    above = np.maximum(scaled, limit) - 1 - alpha
    tau = (above + np.sqrt(above**2 - 4 * alpha)) / 2
    kept = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    energy = (scaled - np.log(scaled) + np.where(scaled > limit, kept, 0.0)).sum(1)
    return int(np.count_nonzero(scaled[np.argmin(energy)] > limit))
