from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eigendet.spectra import references, significance
from tests.distances import FIVE, normal, only_relabelings, squared


def slow_welch(distances: np.ndarray, labels: tuple[str, ...]) -> tuple[float, float]:
    """Alekseyenko (2016) for one layer and arms of any size: the statistic, and Welch's degrees of freedom."""
    first = min(labels)
    own, other = ([i for i, label in enumerate(labels) if (label == first) == is_own] for is_own in (True, False))
    sums = [sum(distances[i, j] ** 2 for i, j in itertools.combinations(arm, 2)) for arm in (own, other)]
    sizes = len(own), len(other)
    across = sum(distances[i, j] ** 2 for i, j in itertools.product(own, other))
    apart = across / sizes[0] / sizes[1] - sums[0] / sizes[0] ** 2 - sums[1] / sizes[1] ** 2
    variances = [total / (size * size * (size - 1)) for total, size in zip(sums, sizes, strict=True)]
    freedom = sum(variances) ** 2 / sum(v**2 / (size - 1) for v, size in zip(variances, sizes, strict=True))
    return float(apart / sum(variances)), float(freedom)


def slow_score(distances: np.ndarray, labels: tuple[str, ...]) -> float:
    statistic, freedom = slow_welch(distances, labels)
    return float(references.normal_scores(np.array(statistic), np.array(freedom)))


def slow_test(distances: np.ndarray, labels: tuple[str, ...]) -> tuple[list[float], list[float], float]:
    """p-values, corrected ones (Westfall & Young 1993) and that of all layers, a relabeling at a time."""
    layers, others = range(len(distances)), sorted(set(itertools.permutations(labels)))
    observed = [slow_score(layer, labels) for layer in distances]
    drawn = [[slow_score(layer, other) for layer in distances] for other in others]
    p = [float(np.mean([one[k] >= observed[k] - 1e-7 for one in drawn])) for k in layers]
    order, corrected, floor = sorted(layers, key=lambda k: -observed[k]), list(p), 0.0
    for place, k in enumerate(order):
        rest = order[place:]
        floor = max(floor, float(np.mean([max(one[j] for j in rest) >= observed[k] - 1e-7 for one in drawn])))
        corrected[k] = floor
    squares = [np.mean(np.square(one)) for one in drawn]
    overall = float(np.mean([one >= np.mean(np.square(observed)) - 1e-7 for one in squares]))
    return p, [max(one, overall) for one in corrected], overall


@pytest.mark.parametrize("labels", [("a",) * 3 + ("b",) * 3, ("a", "b", "b", "a", "a", "b"), ("b", "a", "b", "a", "b")])
def test_the_test_is_that_of_the_definitions(labels: tuple[str, ...]) -> None:
    for seed in range(5):
        distances = normal(seed, 4, len(labels))
        p, corrected, overall = slow_test(distances, labels)
        statistic = significance.permutation_test(distances, labels).statistic
        np.testing.assert_allclose(statistic, [slow_welch(layer, labels)[0] for layer in distances], rtol=1e-9)
        relabeled = significance._p_values(squared(distances), only_relabelings(labels))
        np.testing.assert_allclose(relabeled[0], p, rtol=1e-12)
        np.testing.assert_allclose(relabeled[1], corrected, rtol=1e-12)
        assert relabeled[2] == pytest.approx(overall, rel=1e-12)


@pytest.mark.parametrize("second", [5, 3])
def test_of_numbers_it_is_welchs(second: int) -> None:
    """Statistic and degrees of freedom are scipy's; so are p-values of Gaussian draws, but for what draws differ."""
    values = np.random.default_rng(0).normal(size=(6, 5 + second)) * np.repeat([1.0, 2.0], [5, second])
    values[0, :5] += 3
    labels = FIVE[: 5 + second]
    test = significance.differences(values, labels)
    relabeled, drawn = references.references(tuple(label == "scratch" for label in labels), None, 10_000, 10_000)
    squares = squared(np.abs(values[:, :, None] - values[:, None]))
    freedom = significance._statistics(squares, relabeled)[1][:, 0]
    p = significance._p_values(squares, [drawn])[0]
    for layer in range(6):
        expected = scipy.stats.ttest_ind(values[layer, :5], values[layer, 5:], equal_var=False)
        assert test.statistic[layer] == pytest.approx(expected.statistic**2)
        assert freedom[layer] == pytest.approx(expected.df)
        assert p[layer] == pytest.approx(expected.pvalue, abs=0.03)
    arms = values[0, :5], values[0, 5:]
    squares_within = [[(a - b) ** 2 for a, b in itertools.combinations(arm, 2)] for arm in arms]
    assert test.within[0] == pytest.approx(np.sqrt(np.mean([*squares_within[0], *squares_within[1]])))
    np.testing.assert_allclose(test.spread[0], [np.sqrt(np.mean(one)) for one in squares_within])
    across = itertools.product(*arms)
    assert test.between[0] == pytest.approx(np.sqrt(np.mean([(a - b) ** 2 for a, b in across])))


@pytest.mark.parametrize(("freedom", "error"), [(1.0, 0.12), (2.0, 0.05), (4.0, 0.02), (8.0, 0.01), (100.0, 0.001)])
def test_scores_are_as_unlikely_as_students_t(freedom: float, error: float) -> None:
    for p in (0.3, 0.05, 0.01, 0.001):
        score = references.normal_scores(np.array(scipy.stats.t.isf(p / 2, freedom) ** 2), np.array(freedom))
        assert np.sqrt(score) == pytest.approx(scipy.stats.norm.isf(p / 2), rel=error)


PAIRED = ["a"] * 7 + ["b"] * 7


def test_within_seeds_it_is_the_paired_t_test_under_all_swaps() -> None:
    """The statistic and p-value are scipy's, whatever the order of runs; and a spread that seeds share disturbs not."""
    random = np.random.default_rng(0)
    values = np.tile(10 * random.normal(size=7), (4, 2)) + random.normal(size=(4, 14))
    values[:2, :7] += 1.5
    order = random.permutation(14)
    seeds = np.array([*range(7), *range(7)])
    test = significance.differences(values[:, order], np.array(PAIRED)[order], seeds[order])
    assert test.paired and test.relabelings == 64 and test.smallest == 1 / 64
    for layer in range(4):
        first, other = values[layer, :7], values[layer, 7:]
        assert test.statistic[layer] == pytest.approx(scipy.stats.ttest_rel(first, other).statistic ** 2)

        def t(a: np.ndarray, b: np.ndarray) -> float:
            return abs(float(scipy.stats.ttest_rel(a, b).statistic))

        exact = scipy.stats.permutation_test(
            (first, other), t, permutation_type="samples", n_resamples=np.inf, alternative="greater"
        )
        assert test.p[layer] == pytest.approx(exact.pvalue)
    assert test.overall <= 0.05 < significance.differences(values, PAIRED).overall


@pytest.mark.parametrize(
    ("labels", "seeds", "is_paired"),
    [
        (["a"] * 6 + ["b"] * 6, [*range(6), *range(6)], True),
        (["a"] * 6 + ["b"] * 6, [*range(6), *range(1, 7)], False),
        (["a"] * 6 + ["b"] * 7, [*range(6), *range(7)], False),
        (["a"] * 5 + ["b"] * 5, [*range(5), *range(5)], False),  # 1/16 at least: with free relabelings 1/126
        (["a"] * 6 + ["b"] * 6, [0, 0, 1, 2, 3, 4] * 2, False),
    ],
)
def test_arms_are_paired_where_they_share_all_seeds_and_enough(
    labels: list[str], seeds: list[int], is_paired: bool
) -> None:
    test = significance.differences(np.random.default_rng(0).normal(size=(1, len(labels))), labels, seeds)
    assert test.paired is is_paired
    assert test.smallest == significance.smallest_p(labels, seeds)
    if is_paired:
        assert test.smallest == test.relabelings**-1 == 2 / 2**6
    with pytest.raises(ValueError, match=r"seeds of .* runs"):
        significance.differences(np.zeros((1, len(labels))), labels, seeds[1:])


def test_many_swaps_are_drawn_at_random() -> None:
    values = np.random.default_rng(0).normal(size=(3, 32))
    values[:, 16:] += 0.6
    labels, seeds = ["a"] * 16 + ["b"] * 16, [*range(16)] * 2
    test = significance.differences(values, labels, seeds)
    assert test.relabelings == 10_000 and test.smallest == 1e-4
    for layer in range(3):
        assert test.p[layer] == pytest.approx(scipy.stats.ttest_rel(*values[layer].reshape(2, 16)).pvalue, abs=0.03)


@pytest.mark.parametrize(
    ("sizes", "relabelings"), [((2, 2), 3), ((3, 3), 10), ((4, 4), 35), ((5, 5), 126), ((3, 4), 35), ((6, 3), 84)]
)
def test_few_runs_allow_no_small_p_value(sizes: tuple[int, int], relabelings: int) -> None:
    labels = ["a"] * sizes[0] + ["b"] * sizes[1]
    apart = significance.differences(
        np.array([[0.01 * run + 9 * (arm == "a") for run, arm in enumerate(labels)]]), labels
    )
    assert significance.smallest_p(labels) == apart.smallest == pytest.approx(1 / relabelings)
    assert apart.relabelings == relabelings
    assert apart.p[0] == apart.corrected[0] == apart.overall == pytest.approx(1 / relabelings)


@pytest.mark.parametrize("sizes", [(2, 3), (9, 2), (2, 20)])
def test_an_arm_of_two_runs_finds_nothing_however_many_the_other_has(sizes: tuple[int, int]) -> None:
    labels = ["a"] * sizes[0] + ["b"] * sizes[1]
    values = np.random.default_rng(0).normal(size=(4, sum(sizes))) + 99.0 * np.array([arm == "a" for arm in labels])
    apart = significance.differences(values, labels)
    assert significance.smallest_p(labels) == apart.smallest == apart.overall == 1 / 3
    assert (apart.p == 1 / 3).all() and (apart.corrected == 1 / 3).all() and (apart.statistic > 100).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-90, 1e90, 1e200])
def test_tiny_and_huge_numbers_have_the_same_p(scale: float) -> None:
    """Squares of their squares are no float64."""
    values = np.random.default_rng(0).normal(size=(3, 10))
    values[0, :5] += 2
    one, other = significance.differences(values, FIVE), significance.differences(scale * values, FIVE)
    for name in ("statistic", "p", "corrected", "overall", "dispersion"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-9)
    for name in ("between", "within", "spread"):
        np.testing.assert_allclose(getattr(other, name), scale * getattr(one, name), rtol=1e-9)


def test_relabelings_are_all_different_partitions() -> None:
    for first in ([1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1]):
        drawn = references._relabelings(np.array(first, dtype=bool), 10_000)
        partitions = {frozenset([frozenset(np.flatnonzero(one)), frozenset(np.flatnonzero(~one))]) for one in drawn}
        assert len(partitions) == len(drawn) == 10
        assert drawn[0].tolist() == first and (drawn.sum(1) == sum(first)).all()


def test_many_relabelings_are_drawn_at_random_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, squares = [0, 1] * 8, squared(normal(0, 10, 16))
    first = tuple(label == 0 for label in labels)
    exact, drawn = (references.references(first, None, most, 100)[:1] for most in (10_000, 6000))
    assert len(exact[0].centers) == 6435 and len(drawn[0].centers) == 6000
    for p, other in zip(
        significance._p_values(squares, exact)[:2], significance._p_values(squares, drawn)[:2], strict=True
    ):
        assert (np.abs(other - p) <= 4 * np.sqrt(p * (1 - p) / 6000) + 1 / 6000).all()
    monkeypatch.setattr(significance, "RELABELINGS", 1500)
    monkeypatch.setattr(significance, "DRAWS", 1500)
    apart = np.where(np.equal.outer(labels, labels), 1.0, 9.0)[None]
    test, again = (significance.permutation_test(apart, labels) for _ in range(2))
    assert test.relabelings == 1500 and test.smallest == significance.smallest_p(labels) == 1 / 1500
    assert test.p[0] == again.p[0] == 1 / 1500  # the observed labels count as one of them


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_neither_scale_nor_the_order_of_runs_nor_the_names_of_arms_matter(seed: int, factor: float) -> None:
    distances, order = normal(seed, 3, 7), np.random.default_rng(seed).permutation(7)
    labels = np.array(["a", "a", "a", "b", "b", "b", "b"])
    names = np.where(labels == "a", "z", "c")[order]
    shuffled = factor * distances[:, order][:, :, order]
    one, other = significance.permutation_test(distances, labels), significance.permutation_test(shuffled, names)
    np.testing.assert_allclose(other.statistic, one.statistic, rtol=1e-9)
    of_one, of_other = (
        significance._p_values(squared(matrices), only_relabelings(list(arms)))
        for matrices, arms in ((distances, labels), (shuffled, names))
    )
    np.testing.assert_allclose(of_other[0], of_one[0])
    np.testing.assert_allclose(of_other[1], of_one[1])
    assert of_other[2] == pytest.approx(of_one[2])
    assert (one.corrected >= one.overall).all()  # no layer differs where the arms do not


def test_order_matters_to_gaussian_draws_no_more_than_their_number_allows() -> None:
    labels, distances = ["a"] * 3 + ["b"] * 9, normal(3, 10, 12)
    p = significance.permutation_test(distances, labels).p
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(12)
        other = significance.permutation_test(distances[:, order][:, :, order], np.array(labels)[order]).p
        assert (np.abs(other - p) <= 4 * np.sqrt(2 * p * (1 - p) / significance.DRAWS)).all()


def test_correction_knows_how_layers_depend_on_one_another() -> None:
    values = np.random.default_rng(3).normal(size=10) + np.repeat([0, 1.5], 5)
    copies = significance.differences(np.tile(values, (30, 1)), FIVE)
    squares = squared(np.abs(values[:, None] - values)[None].repeat(30, axis=0))
    relabeled = significance._p_values(squares, only_relabelings(FIVE))
    np.testing.assert_array_equal(relabeled[1], relabeled[0])
    assert copies.overall == copies.p[0]
    others = np.random.default_rng(0).normal(size=(29, 10))
    among = significance.differences(np.vstack([values, others]), FIVE)
    assert among.p[0] == copies.p[0] and among.corrected[0] > 3 * among.p[0]
    assert (among.corrected >= among.p).all()


def test_gaussian_draws_correct_as_if_layers_were_independent() -> None:
    """Few runs show more dependence than there is: 30 copies of a layer count as 30 layers (Šidák 1967)."""
    values = np.random.default_rng(3).normal(size=10) + np.repeat([0, 5.0], 5)
    squares = squared(np.abs(values[:, None] - values)[None].repeat(30, axis=0))
    (_, drawn) = references.references(tuple(label == FIVE[0] for label in FIVE), None, 10, 10_000)
    p, corrected, _ = significance._p_values(squares, [drawn])
    assert 0.001 < p[0] < 0.01 and (corrected >= p).all()
    assert corrected.max() == pytest.approx(1 - (1 - p[0]) ** 30, abs=0.01)
    assert significance._p_values(squares[:1], [drawn])[1] == p[:1]


def test_a_layer_without_distances_disturbs_no_other() -> None:
    good = normal(0, 5, 10)
    bad = good[:2].copy()
    bad[0, 2, 3] = bad[0, 3, 2] = np.nan
    bad[1, 0, 9] = bad[1, 9, 0] = np.inf
    alone, found = (
        significance.permutation_test(good, FIVE),
        significance.permutation_test(np.concatenate([bad, good]), FIVE),
    )
    for name in ("statistic", "p", "corrected"):
        assert np.isnan(getattr(found, name)[:2]).all()
        np.testing.assert_array_equal(getattr(found, name)[2:], getattr(alone, name))
    assert found.overall == alone.overall
    nothing = significance.permutation_test(bad, FIVE)
    assert np.isnan(nothing.overall) and np.isnan(nothing.p).all()
    values = np.array([[1.0, np.nan, 3, 4], [1, np.inf, np.inf, 4], [1, 2, 3, 4]])
    assert np.isnan(significance.differences(values, [0, 0, 1, 1]).p).tolist() == [True, True, False]


def test_runs_of_an_arm_that_are_all_equal() -> None:
    """Deterministic arms, arms and all equal, and an arm that scatters: F of infinity, 0, and a number."""
    values = np.random.default_rng(0).normal(size=(4, 10))
    values[1], values[2], values[3, 5:] = np.repeat([1.0, 2.0], 5), 7.0, 9.0
    found = significance.differences(values, FIVE)
    assert np.isinf(found.statistic[1]) and found.statistic[2] == 0 and np.isfinite(found.statistic[[0, 3]]).all()
    assert found.p[1] == found.corrected[1] == found.p[3] == found.smallest
    assert found.p[2] == found.corrected[2] == 1
    assert found.overall == found.smallest
    assert found.within[1] == 0 and found.between[1] == 1


@pytest.mark.parametrize("labels", [["a", "b", "b"], ["a", "a", "b"], ["b", "a", "b"]])
def test_either_arm_may_be_the_one_of_a_single_run(labels: list[str]) -> None:
    assert np.isnan(significance.smallest_p(labels))
    found = significance.permutation_test(normal(0, 2, 3), labels)
    assert np.isnan(found.p).all() and found.relabelings == 0


@pytest.mark.filterwarnings("error")
def test_an_arm_of_one_run_has_no_spread() -> None:
    distances = normal(0, 2, 4)
    found = significance.permutation_test(distances, ["a", "b", "b", "b"])
    assert np.isnan([significance.smallest_p(["a", "b"]), found.smallest, found.overall]).all()
    assert np.isnan([found.statistic, found.p, found.corrected]).all() and found.relabelings == 0
    np.testing.assert_allclose(found.between, np.sqrt((distances[:, 0, 1:] ** 2).mean(1)))
    np.testing.assert_allclose(found.within, np.sqrt((distances[:, [1, 1, 2], [2, 3, 3]] ** 2).mean(1)))
    pair = significance.permutation_test(distances[:, :2, :2], ["a", "b"])
    assert np.isnan(pair.within).all() and np.isfinite(pair.between).all()


@pytest.mark.parametrize("labels", [["a", "a", "b", "c"], ["a"] * 4])
def test_two_arms_are_compared(labels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"arms, .*; expected two"):
        significance.permutation_test(normal(0, 1, 4), labels)
    with pytest.raises(ValueError, match="expected two"):
        significance.smallest_p(labels)


def test_several_pairs_are_corrected_for_their_number() -> None:
    values = np.random.default_rng(0).normal(size=(4, 15)) + np.repeat([0.0, 0.3, 4.0], 5)
    arms = np.repeat(["a", "b", "c"], 5)
    alone = []
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        chosen = np.isin(arms, pair)
        alone.append(significance.differences(values[:, chosen], arms[chosen]))
    together = significance.over_pairs(alone)
    p = [one.overall for one in alone]
    assert p[1] == p[2] < 0.02 < 0.05 < p[0]
    assert [one.overall for one in together] == pytest.approx([p[0], 3 * p[1], 3 * p[1]])  # Holm (1979)
    for one, before in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.corrected, np.clip(3 * before.corrected, one.overall, 1))
        np.testing.assert_array_equal(one.p, before.p)
        assert one.smallest == 3 * before.smallest
    single = significance.differences(values[:, :6], ["a"] * 5 + ["b"])  # no test: it does not count
    both = significance.over_pairs([alone[1], single])
    assert both[0].overall == alone[1].overall and both[0].smallest == alone[1].smallest
    assert np.isnan([both[1].overall, both[1].smallest]).all() and np.isnan(both[1].corrected).all()
    assert significance.over_pairs([]) == []


def test_no_pair_has_a_smaller_p_than_it_is_said_to_allow() -> None:
    """With 4+4 beside 4+12 runs Holm's method takes the first pair as it is, once both others have been found."""
    values = np.r_[np.zeros(4), np.full(4, 5.0), np.full(12, 10.0)] + np.random.default_rng(0).normal(size=(3, 20)) / 9
    arms = np.repeat(["a", "b", "c"], [4, 4, 12])
    pairs = [np.isin(arms, pair) for pair in (("a", "b"), ("a", "c"), ("b", "c"))]
    tests = significance.over_pairs([significance.differences(values[:, pair], arms[pair]) for pair in pairs])
    assert tests[0].overall == tests[0].smallest == 1 / 35
    assert all(test.overall >= test.smallest and (test.corrected >= test.smallest).all() for test in tests)
