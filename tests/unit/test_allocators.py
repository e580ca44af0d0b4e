"""Every shipped allocator beside its definition, and what comes of one that gives something else than widths."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from eigendet import plugins
from eigendet.config.sections import PluginChoice
from eigendet.plugins import discovery
from eigendet.plugins.markers import NEEDS
from eigendet.widths.allocation import Budget
from eigendet.widths.made_up import made_up_groups
from eigendet.widths.marginal import held
from eigendet.widths.rounding import rounded
from eigendet.widths.targets import checked_targets
from eigendet.widths.views import GroupView, MapView, Unfolding
from plugins import allocators

RANDOM = np.random.default_rng(0)


def groups_at(cap: float) -> tuple[list[GroupView], Budget]:
    return next(made_up_groups(NEEDS, [cap]))


def given(name: str, groups: list[GroupView], budget: Budget, **options: Any) -> np.ndarray:
    result = plugins.bind("allocator", PluginChoice(plugin=name, **options))(groups, budget)
    return checked_targets(result, budget.costs.groups, plugins.find("allocator", name))


def pooled(group: GroupView, values: Callable[..., np.ndarray]) -> np.ndarray:
    """The largest over maps, averaged over seeds, in descending order; written out."""
    seeds: dict[int, np.ndarray] = {}
    for one in group.maps:
        seeds[one.seed] = np.maximum(seeds.get(one.seed, np.zeros(group.reference)), values(one))
    return np.sort(np.mean(list(seeds.values()), axis=0))[::-1]


def best_of_all(budget: Budget, worth: list[Callable[[float], float]], least: np.ndarray | None = None) -> float:
    """What the best of all widths in multiples of 8 is worth, within the budget."""
    least = budget.least if least is None else least
    levels = [np.arange(low, high + 1, 8) for low, high in zip(least, budget.most, strict=True)]
    tables = [np.array([own(width) for width in level]) for own, level in zip(worth, levels, strict=True)]
    best = -np.inf
    for places in itertools.product(*(range(len(level)) for level in levels[:-1])):
        # The last group as wide as the budget still affords: its worth grows with its width.
        before = [level[place] for level, place in zip(levels, places, strict=False)]
        last = max(
            (k for k, width in enumerate(levels[-1]) if budget.affords(np.array([*before, width]))), default=None
        )
        if last is not None:
            best = max(best, sum(table[place] for table, place in zip(tables, [*places, last], strict=True)))
    return float(best)


def beyond(start: float, worth: Callable[[float], float]) -> Callable[[float], float]:
    return lambda width: worth(width - start)


def coarse(budget: Budget) -> Budget:
    """The same in multiples of 8, and no group more than twice as wide, so that all widths can be tried."""
    most = np.floor(2 * np.array([16.0, 32, 48, 24]) / 8) * 8
    return replace(budget, multiple=np.full(4, 8.0), least=np.full(4, 8.0), most=most)


def test_proportional_widths_are_in_proportion_to_dimensions_and_use_the_budget() -> None:
    groups, budget = groups_at(0.8)
    target = given("proportional", groups, budget)
    ratio = target / np.array([group.dimension for group in groups])
    assert budget.use(target) == pytest.approx(1) and ratio == pytest.approx([ratio[0]] * 4)


@pytest.mark.parametrize("cap", [0.5, 1.2])
@pytest.mark.parametrize(
    ("name", "options"), [("marginal", {}), ("loss_weighted", {"power": 1.0}), ("loss_weighted", {})]
)
def test_what_is_held_is_that_of_the_best_of_all_widths(name: str, options: dict[str, float], cap: float) -> None:
    groups, budget = groups_at(cap)
    budget = coarse(budget)

    def spectrum(one: Any) -> np.ndarray:
        if name == "marginal":
            return np.asarray(one.eigenvalues / one.eigenvalues.sum())
        values = np.linalg.eigvals(one.gradient @ one.covariance).real  # those of Σ^½ G Σ^½
        return np.sort(one.positions * values.clip(0))[::-1] ** options.get("power", 0.5)

    worth = [held(pooled(group, spectrum)) for group in groups]
    target = given(name, groups, budget, **options)
    assert (target % 8 == 0).all() and budget.affords(target)
    reached = sum(own(width) for own, width in zip(worth, target, strict=True))
    best = best_of_all(budget, worth)
    assert 0.995 * best <= reached <= best * (1 + 1e-6)


def test_an_eigenvalue_is_how_far_the_loss_of_an_image_moves_squared_if_a_direction_is_lost() -> None:
    """Of losses that are linear in a map, whose gradients and positions are independent."""
    random, positions = np.random.default_rng(0), 9
    mixed, weighted = (random.normal(size=(4, 4)) for _ in range(2))
    maps = random.normal(size=(40_000, positions, 4)) @ mixed
    slopes = random.normal(size=maps.shape) @ weighted
    values, vectors = np.linalg.eigh(mixed.T @ mixed)
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    _, directions = np.linalg.eigh(root @ weighted.T @ weighted @ root)
    moved = []
    for direction in directions.T[::-1]:
        lost = maps @ (inverse @ np.outer(direction, direction) @ root)  # the share of the map along it
        moved.append(np.mean((lost * slopes).sum((1, 2)) ** 2))
    one = MapView(0, values[::-1], mixed.T @ mixed, weighted.T @ weighted, positions=positions)
    groups, budget = groups_at(0.7)
    seen: list[np.ndarray] = []

    def watched(values: Callable[[MapView], np.ndarray]) -> np.ndarray:
        seen.append(values(one))
        return np.ones(16)

    watching = replace(groups[0], maps=(one,))
    object.__setattr__(watching, "over_maps", watched)
    given("loss_weighted", [watching, *groups[1:]], budget, power=1.0)
    np.testing.assert_allclose(seen[0], moved, rtol=0.05)


def test_powers_of_the_loss_change_what_groups_are_worth_beside_one_another() -> None:
    groups, budget = groups_at(0.7)
    strong = [
        replace(groups[0], maps=tuple(replace(one, gradient=1e4 * np.asarray(one.gradient)) for one in groups[0].maps)),
        *groups[1:],
    ]
    for power in (0.5, 1.0):
        before, after = (given("loss_weighted", own, budget, power=power) for own in (groups, strong))
        assert after[0] > before[0] and (after[1:] <= before[1:]).all()


@pytest.mark.parametrize("exponent", [1.5, 2.0, 4.0])
def test_cost_aware_widths_lose_least_of_a_power_law_at_the_cost(exponent: float) -> None:
    groups, budget = groups_at(0.6)
    budget = replace(budget, least=np.full(4, 0.5), most=np.full(4, np.inf))
    dimension = np.array([group.dimension for group in groups])

    def lost(widths: np.ndarray) -> float:
        return float(((widths / dimension) ** (1 - exponent)).sum())

    found = scipy.optimize.minimize(
        lambda logs: lost(np.exp(logs)),
        np.log(budget.scaled(dimension)),
        constraints={"type": "ineq", "fun": lambda logs: 1 - budget.use(np.exp(logs))},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    target = given("cost_aware", groups, budget, exponent=exponent)
    assert budget.use(target) == pytest.approx(1)
    assert lost(target) <= lost(np.exp(found.x)) * (1 + 1e-6)
    np.testing.assert_allclose(target, np.exp(found.x), rtol=0.01)
    assert lost(target) < lost(budget.scaled(dimension))


def test_cost_aware_widths_become_proportional_as_the_law_steepens() -> None:
    groups, budget = groups_at(0.8)
    steep = given("cost_aware", groups, budget, exponent=1e4)
    np.testing.assert_allclose(steep, given("proportional", groups, budget), rtol=1e-2)


def test_output_aware_widths_are_those_of_the_spectra_of_what_the_next_layers_compute() -> None:
    groups, budget = groups_at(0.8)
    dimension = []
    for group in groups:
        seeds: dict[int, list[float]] = {}
        for one in group.maps:
            (kernel,) = group.kernels[one.seed]
            rows = kernel.weight[0].transpose(0, 2, 1).reshape(-1, group.reference)  # an output for each element
            outputs = np.linalg.eigvalsh(rows @ np.asarray(one.covariance) @ rows.T)[::-1][: group.reference]
            seeds.setdefault(one.seed, []).append(group.rule(outputs.clip(0)))
        dimension.append(np.mean([max(own) for own in seeds.values()]))
    target = given("output_aware", groups, budget)
    np.testing.assert_allclose(target, budget.scaled(np.array(dimension)), rtol=1e-6)


def test_a_group_that_no_kernel_reads_has_its_own_spectrum() -> None:
    groups, budget = groups_at(0.8)
    alone = [replace(group, kernels={0: (), 1: ()}) for group in groups]
    target = given("output_aware", alone, budget)
    np.testing.assert_allclose(target, given("proportional", groups, budget), rtol=1e-6)


@pytest.mark.parametrize("cap", [0.5, 1.2])
def test_the_entropy_is_that_of_the_best_of_all_widths(cap: float) -> None:
    groups, budget = groups_at(cap)
    groups = [replace(group, readers=count) for group, count in zip(groups, (1, 3, 1, 2), strict=True)]
    budget = coarse(budget)
    worth: list[Callable[[float], float]] = [lambda width, n=n: n * np.log(width) for n in (1, 3, 1, 2)]  # type: ignore[misc]
    target = given("entropy", groups, budget)
    best = best_of_all(budget, worth)
    assert best - 0.02 <= sum(own(width) for own, width in zip(worth, target, strict=True)) <= best + 1e-9


@pytest.mark.parametrize("ratio", [0.5, 1.0, 8.0])
def test_widths_linear_in_depth_grow_by_the_same_each_time(ratio: float) -> None:
    groups, budget = groups_at(0.8)
    budget = replace(budget, least=np.full(4, 0.1), most=np.full(4, np.inf))
    target = given("linear_in_depth", groups, budget, ratio=ratio)
    assert np.diff(target) == pytest.approx([np.diff(target)[0]] * 3, abs=1e-9)
    assert target[-1] / target[0] == pytest.approx(ratio) and budget.use(target) == pytest.approx(1)


def test_growth_widens_the_reference_where_new_channels_have_the_largest_gradients() -> None:
    groups, budget = groups_at(1.4)
    budget = coarse(budget)
    full = np.array([16.0, 32, 48, 24])

    def score(one: Any) -> np.ndarray:
        return np.asarray(one.positions * np.linalg.eigvalsh(one.gradient)[::-1] * np.trace(one.covariance))

    scores = [held(pooled(group, score)) for group in groups]
    worth = [beyond(start, own) for own, start in zip(scores, full, strict=True)]
    target = given("growth", groups, budget)
    assert (target >= full).all() and budget.affords(target)
    reached = sum(own(width) for own, width in zip(worth, target, strict=True))
    assert reached >= 0.995 * best_of_all(budget, worth, least=full) > 0
    groups, budget = groups_at(0.7)
    np.testing.assert_allclose(given("growth", groups, budget), budget.scaled(full))


def unfolding(step: int, rank: int, channels: int = 32, blocks: int = 1) -> Unfolding:
    """The unfolding of a kernel of noise and of a product of so many directions, in every block."""
    shape = channels // blocks, 300
    strong = 3 * RANDOM.normal(size=(blocks, shape[0], rank)) @ RANDOM.normal(size=(blocks, rank, shape[1]))
    return Unfolding("it", step, shape, np.linalg.svd(RANDOM.normal(size=(blocks, *shape)) + strong, compute_uv=False))


def searched(reference: float, gained: float, threshold: float) -> float:
    """Where CONet's search ends for one number of channels, if it gains as many ranks a step at any width.

    Up where the slope of the share exceeds the threshold, else down, first by 20 %; half of it after each turn.
    """
    width, factor, before = reference, 0.2, 0
    while factor >= 0.001:
        direction = 1 if gained / width > threshold else -1
        factor = factor / 2 if direction == -before else factor
        width, before = width * (1 + factor * direction), direction
    return width


def test_ranks_gained_a_step_give_the_widths_where_the_search_of_conet_ends() -> None:
    groups, budget = groups_at(1.0)
    budget = replace(budget, least=np.full(4, 0.1), most=np.full(4, np.inf))
    ranks = [(2, 6, 12), (0, 8, 4), (4, 6, 8), (1, 1, 5)]  # at steps 0, 10 and 40, of 32 channels
    gained = np.array([10 / 40, 8 / 10, 4 / 40, 4 / 40]) / 32  # to the largest
    trained = [
        replace(
            group,
            history={0: tuple(map(unfolding, (0, 10, 40), own)), 1: tuple(map(unfolding, (40, 10, 0), own[::-1]))},
        )
        for group, own in zip(groups, ranks, strict=True)
    ]
    full = np.array([16.0, 32, 48, 24])
    target = given("conet", trained, budget)
    np.testing.assert_allclose(target, budget.scaled(full * gained))
    for threshold in (0.001, 0.01):
        ends = [searched(width, width * own, threshold) for width, own in zip(full, gained, strict=True)]
        np.testing.assert_allclose(np.array(ends) / ends[0], target / target[0], rtol=0.01)


def test_ranks_are_averaged_over_layers_blocks_and_seeds() -> None:
    groups, budget = groups_at(1.0)
    budget = replace(budget, least=np.full(4, 0.1), most=np.full(4, np.inf))
    full = np.array([16.0, 32, 48, 24])
    history: list[dict[int, tuple[Unfolding, ...]]] = [
        {0: (unfolding(0, 0), unfolding(9, 16)), 1: (unfolding(0, 0), unfolding(9, 8))},  # 16 and 8 of 32
        {0: (unfolding(0, 0), unfolding(0, 0, 64), unfolding(9, 8), unfolding(9, 32, 64))},  # 8 of 32, 32 of 64
        {0: (unfolding(0, 0, 32, 4), unfolding(9, 3, 32, 4))},  # 3 of 8, four times
        {0: (), 1: ()},  # has the mean slope
    ]

    def widths() -> np.ndarray:
        trained = [replace(group, history=own) for group, own in zip(groups, history, strict=True)]
        return given("conet", trained, budget)

    np.testing.assert_allclose(widths(), budget.scaled(full))
    history[0][0] = history[0][1]
    np.testing.assert_allclose(widths(), budget.scaled(full * [3, 4.5, 4.5, 4]))
    history = [{0: (unfolding(0, 4),)} for _ in groups]  # before training, no rank has grown
    np.testing.assert_allclose(widths(), budget.scaled(full))


@pytest.mark.parametrize("shape", [(16, 144), (64, 64), (3, 200), (96, 40)])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_is_that_of_the_least_free_energy(shape: tuple[int, int], rank: int) -> None:
    """The energy of variational Bayes, written out for each singular value, over many more variances of the noise."""
    directions = RANDOM.normal(size=(shape[0], rank)) @ RANDOM.normal(size=(rank, shape[1]))
    values = np.linalg.svd(RANDOM.normal(size=shape) + 3 * directions, compute_uv=False)
    small, large = sorted(shape)
    alpha = small / large

    def energy(variance: float) -> tuple[float, int]:
        total, count = 0.0, 0
        for value in values:
            x = value**2 / (large * variance)
            total += x - np.log(x)
            root = 2.5129 * np.sqrt(alpha)
            if x > (1 + root) * (1 + alpha / root):
                tau = (x - 1 - alpha + np.sqrt((x - 1 - alpha) ** 2 - 4 * alpha)) / 2
                total, count = total + np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau, count + 1
        return total, count

    mean = float((values**2).mean() / large)
    assert allocators._rank(values, shape) == min(map(energy, mean * np.geomspace(1e-3, 1, 2000)))[1] == rank


@pytest.mark.parametrize("name", sorted(discovery.discover("allocator")))
@pytest.mark.parametrize("cap", [0.4, 1.0])
def test_the_order_of_maps_and_names_of_groups_do_not_matter(name: str, cap: float) -> None:
    groups, budget = groups_at(cap)
    renamed = [replace(group, name=f"other{group.name}", maps=group.maps[::-1]) for group in groups]
    costs = replace(budget.costs, groups=tuple(group.name for group in renamed))
    other = given(name, renamed, replace(budget, costs=costs))
    np.testing.assert_allclose(given(name, groups, budget), other, rtol=1e-9)


def test_targets_beyond_the_budget_are_scaled_and_those_of_nothing_are_the_least() -> None:
    _, budget = groups_at(0.5)
    wide = budget.fitted(np.array([160.0, 320, 480, 240]))
    assert budget.use(wide) == pytest.approx(1) and (wide <= budget.most).all()
    np.testing.assert_allclose(budget.fitted(np.full(4, 1.7e308)), budget.scaled(np.ones(4)))
    assert budget.named(budget.least) == rounded(budget, budget.fitted(np.zeros(4)))
