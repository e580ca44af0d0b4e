from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eigendet import spectra as spectra_engine
from eigendet.spectra import metrics, tails

FLAT, SPIKE = np.full(8, 3.0), np.array([5.0, 0.0, 0.0, 0.0])
SKEWED = np.sort(np.random.default_rng(0).lognormal(0, 2, 150))[::-1]
GEOMETRIC = 7.0 * 0.8 ** np.arange(30)
exactly = partial(pytest.approx, rel=1e-8, abs=1e-8)
spectra = st.lists(st.just(0.0) | st.floats(1e-6, 1e6), max_size=40).flatmap(
    lambda rest: st.floats(1e-6, 1e6).map(lambda first: descending(np.array([first, *rest])))
)
some_samples = st.floats(0.5, 1e4)


def descending(values: np.ndarray) -> np.ndarray:
    return np.sort(values)[::-1]


def eigenvalues(samples: np.ndarray) -> np.ndarray:
    """Of the covariance of (n, C) samples; what rounding leaves of a zero is not removed unless it is negative."""
    return np.clip(descending(np.linalg.eigvalsh(np.cov(samples, rowvar=False))), 0, None)


def white(samples: int, channels: int, seed: int = 0) -> np.ndarray:
    return math.sqrt(7) * np.random.default_rng(seed).normal(size=(samples, channels))


def test_stable_rank_is_the_squared_frobenius_norm_over_the_squared_spectral_norm() -> None:
    assert metrics.stable_rank(FLAT) == 8
    assert metrics.stable_rank(SPIKE) == 1
    assert metrics.stable_rank(GEOMETRIC) == exactly((1 - 0.8**30) / (1 - 0.8))
    matrix = np.random.default_rng(0).normal(size=(20, 12))
    norms = np.linalg.norm(matrix), np.linalg.norm(matrix, 2)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    assert metrics.stable_rank(squares) == exactly((norms[0] / norms[1]) ** 2)


def test_entropy_in_closed_form() -> None:
    assert metrics.entropy(FLAT) == exactly(math.log(8))
    assert metrics.entropy(SPIKE) == 0
    first, mean_index = 0.2 / (1 - 0.8**30), 0.8 / 0.2 - 30 * 0.8**30 / (1 - 0.8**30)
    assert metrics.entropy(GEOMETRIC) == exactly(-math.log(first) - mean_index * math.log(0.8))


@given(spectra)
def test_entropy_agrees_with_scipy(values: np.ndarray) -> None:
    assert metrics.entropy(values) == exactly(scipy.stats.entropy(values))


@pytest.mark.parametrize("channels", [2, 3, 10, 1000])
def test_enrichment_is_exactly_0_for_equal_eigenvalues_and_1_for_a_single_one(channels: int) -> None:
    assert metrics.enrichment(np.full(channels, 0.1)) == 0
    assert metrics.enrichment(np.r_[0.1, np.zeros(channels - 1)]) == 1
    assert metrics.enrichment(np.array([0.1])) == 0


@given(spectra)
def test_enrichment_is_the_area_between_curve_and_diagonal_over_that_of_a_single_eigenvalue(values: np.ndarray) -> None:
    def area(spectrum: np.ndarray) -> float:
        curve = np.r_[0, np.cumsum(spectrum)] / spectrum.sum()
        return float(np.trapezoid(curve - np.linspace(0, 1, curve.size), dx=1 / spectrum.size))

    single = np.zeros_like(values)
    single[0] = 1
    expected = area(values) / area(single) if len(values) > 1 else 0
    assert metrics.enrichment(values) == exactly(expected)


@given(spectra.filter(lambda values: len(values) > 1))
def test_enrichment_is_the_gini_coefficient_over_its_largest_value(values: np.ndarray) -> None:
    gini = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert metrics.enrichment(values) == exactly(gini / (1 - 1 / len(values)))


def moments(images: np.ndarray, parts: int = 8) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of (N, positions, C): the covariance of all, and without each part of the images."""
    left_out = [np.delete(images, np.s_[part::parts], axis=0) for part in range(parts)]
    whole, *without = (np.cov(rest.reshape(-1, images.shape[2]).T, bias=True) for rest in (images, *left_out))
    return whole, without


def test_independent_positions_are_worth_themselves_and_those_of_a_constant_image_one() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 25, 40)) + 3
    assert metrics.effective_samples(*moments(noise)) == pytest.approx(400 * 25, rel=0.05)
    assert metrics.effective_samples(*moments(np.repeat(noise[:, :1], 25, axis=1))) == pytest.approx(400, rel=0.05)


def test_second_moments_count_not_means() -> None:
    """The positions of an image have one strength and independent signs: means vary as little as if all were alone."""
    random = np.random.default_rng(0)
    strength = np.where(random.random((400, 1, 1)) < 0.1, 10.0, 1.0)
    images = strength * random.normal(size=(400, 25, 40))
    between = images.mean(1).var(axis=0, ddof=1).sum()
    assert 400 * images.var(axis=(0, 1)).sum() / between == pytest.approx(400 * 25, rel=0.1)  # Kish's, of means
    variance = (strength**2).mean()
    # Of the matrix: within an image its own noise, and between images that of a multiple of the identity.
    expected = (40**2 + 40) * variance**2 / ((strength**2).var() * 40 / 400 + (strength**4).mean() * (40**2 + 40) / 1e4)
    assert metrics.effective_samples(*moments(images)) == pytest.approx(expected, rel=0.2)
    assert expected < 1500


def test_positions_that_are_alike_are_worth_fewer_by_the_squares_of_their_correlations() -> None:
    """Of second moments n / Σ ρ², where that of means would be n / Σ ρ."""
    random, likeness = np.random.default_rng(0), 0.5 + 0.5 * np.eye(20)
    images = np.linalg.cholesky(likeness) @ random.normal(size=(600, 20, 40))
    assert metrics.effective_samples(*moments(images)) == pytest.approx(600 * 20 / (1 + 19 * 0.25), rel=0.07)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("unit", [1.0, 1e-90, 1e90])
def test_the_unit_does_not_matter(unit: float) -> None:
    """By hand: tr(S)² + tr(S²) = 9 + 5, and V = 1/2 · (1 + 1)."""
    whole, one = np.diag([2.0, 1.0]), np.diag([1.0, 0.0])
    assert metrics.effective_samples(whole * unit, [(whole + one) * unit, (whole - one) * unit]) == exactly(13)


@pytest.mark.parametrize(
    ("moment", "without"),
    [(1.0, []), (1.0, [2.0]), (0.0, [0.0, 0.0]), (1.0, [1.0, 1.0])],
    ids=["no parts", "one part", "no variance", "parts that are alike"],
)
def test_effective_samples_are_unknown(moment: float, without: list[float]) -> None:
    assert math.isnan(metrics.effective_samples(np.eye(2) * moment, [np.eye(2) * rest for rest in without]))


def median_of_the_law(ratio: float) -> float:
    """By integrating the Marchenko-Pastur density down from its upper edge, whose √(edge - x) is a weight of QUADPACK.

    Its part that is not at zero has the mass min(1, 1/ratio).
    """
    lower, upper = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2

    def rest_of_density(x: float) -> float:
        return math.sqrt(max(x - lower, 0.0)) / (2 * math.pi * ratio * x)

    def mass_above(x: float) -> float:
        return float(
            scipy.integrate.quad(rest_of_density, x, upper, weight="alg", wvar=(0, 0.5), epsabs=1e-11, epsrel=1e-11)[0]
        )

    inset = 1e-3 * (upper - lower)
    half = min(1, 1 / ratio) / 2
    return float(scipy.optimize.brentq(lambda x: mass_above(x) - half, lower + inset, upper - inset, xtol=1e-13))


@pytest.mark.parametrize("ratio", [1e-9, 1e-6, 0.01, 0.1, 0.5, 0.99, 1.0, 1.01, 2.0, 30.0, 1e4])
def test_median_of_the_marchenko_pastur_law(ratio: float) -> None:
    assert metrics.marchenko_pastur_median(ratio) == pytest.approx(median_of_the_law(ratio), rel=1e-9)


def test_median_of_the_marchenko_pastur_law_at_its_limits() -> None:
    """In Gavish and Donoho the threshold for square matrices of unknown noise is 2.858 = 4/√3 over the root of it."""
    assert 4 / math.sqrt(3 * metrics.marchenko_pastur_median(1.0)) == pytest.approx(2.858, abs=5e-4)
    assert [metrics.marchenko_pastur_median(ratio) for ratio in (1e-12, 1e-30, 1e-300)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("samples", "channels"), [(2000, 100), (300, 200), (200, 200), (60, 200), (100, 600)])
def test_white_noise_is_noise_and_planted_directions_are_not(samples: int, channels: int) -> None:
    noise = white(samples, channels)
    assert metrics.noise_share(eigenvalues(noise), samples) >= 1 - 2 / channels
    noise[:, :5] *= 10  # a variance of 100, far above the edge
    assert metrics.noise_share(eigenvalues(noise), samples) == pytest.approx(1 - 5 / channels, abs=2 / channels)


@pytest.mark.parametrize(("samples", "channels"), [(2000, 100), (300, 200), (60, 200), (100, 600)])
def test_the_edge_of_noise_is_where_the_law_has_it(samples: int, channels: int) -> None:
    values = eigenvalues(white(samples, channels))
    edge = 7 * (1 + math.sqrt(channels / samples)) ** 2
    for largest, noise in ((0.85 * edge, channels), (1.15 * edge, channels - 1)):
        values[0] = largest
        assert metrics.noise_share(descending(values), samples) == exactly(noise / channels)


def test_copies_of_samples_are_seen_through_by_their_effective_number() -> None:
    """Every image is constant over its 10 positions: taken for 3000 samples, noise of 300 would seem to be signal."""
    images = np.repeat(white(300, 100)[:, None], 10, axis=1)
    values, effective = eigenvalues(images.reshape(3000, 100)), metrics.effective_samples(*moments(images))
    assert metrics.noise_share(values, effective) >= 0.98
    assert metrics.noise_share(values, 3000) < 0.8


@pytest.mark.parametrize("samples", [0.4, 3.4, 25.0, 80.0, 1000.0, 1e6])
def test_noise_share_counts_what_is_at_or_below_the_edge(samples: float) -> None:
    values = SKEWED[:80]
    ratio, kept = 80 / samples, max(1, round(samples))
    variance = np.median(values[:kept]) / median_of_the_law(ratio)
    expected = np.mean(values <= variance * (1 + math.sqrt(ratio)) ** 2)
    assert 0 < expected < 1 or samples < 80
    assert metrics.noise_share(values, samples) == exactly(expected)


def test_noise_share_ignores_how_large_the_eigenvalues_are_that_so_few_samples_could_not_give() -> None:
    values = np.r_[1000.0, eigenvalues(white(60, 200))[:59], np.zeros(140)]
    rounded = np.where(values > 0, values, 1e-14)
    correlated = np.where(values > 0, values, 0.01)
    found = [metrics.noise_share(each, 60) for each in (values, rounded, correlated)]
    assert found == [exactly(199 / 200)] * 3


def test_rounding_errors_of_zeros_are_no_noise_level() -> None:
    """Of 400 channels 300 never vary: the noise is that of the others, not the 1e-16 that rounding leaves of these."""
    values = np.r_[1000.0, eigenvalues(white(5000, 100))[:99], np.full(300, 1e-14)]
    assert metrics.noise_share(values, 5000) == exactly(399 / 400)


@given(spectra)
def test_no_noise_share_without_effective_samples(values: np.ndarray) -> None:
    for samples in (math.nan, math.inf, 0.0, -0.5, -7.0):
        assert math.isnan(metrics.noise_share(values, samples))


@given(spectra, some_samples, st.integers(-900, 900))
def test_no_metric_depends_on_the_unit(values: np.ndarray, samples: float, power: int) -> None:
    """Powers of two are exact in floating point."""
    found = metrics.all_metrics(values * 2.0**power, samples)
    np.testing.assert_array_equal(list(found.values()), list(metrics.all_metrics(values, samples).values()))


@pytest.mark.parametrize("largest", [3e-300, 1e-9, 7e9, 1e308])
def test_no_metric_depends_on_the_unit_but_for_rounding(largest: float) -> None:
    values = SKEWED
    assert metrics.all_metrics(values / values[0] * largest, 500) == pytest.approx(
        metrics.all_metrics(values, 500), rel=1e-9, nan_ok=True
    )


@given(spectra, some_samples)
def test_bounds(values: np.ndarray, samples: float) -> None:
    found, slack = metrics.all_metrics(values, samples), 1 + 1e-12
    assert 1 <= found["stable_rank"] <= np.count_nonzero(values) * slack
    assert 0 <= found["entropy"] <= math.log(len(values)) * slack
    assert 0 <= found["enrichment"] <= slack
    assert 0 <= found["noise_share"] <= 1
    if len(np.unique(values[values > 0])) >= 4:
        assert not found["power_law_exponent"] <= 1  # nan where a power law does not fit
        assert 0 < found["power_law_distance"] < 1


def test_every_metric_by_its_name_and_with_a_description() -> None:
    values = SKEWED
    assert metrics.all_metrics(values, 40) == pytest.approx(
        {
            "stable_rank": metrics.stable_rank(values),
            "entropy": metrics.entropy(values),
            "enrichment": metrics.enrichment(values),
            **tails.power_law_metrics(values),
            "noise_share": metrics.noise_share(values, 40),
        },
        nan_ok=True,
    )
    assert {type(value) for value in metrics.all_metrics(values, 40).values()} == {float}
    assert set(metrics.DESCRIPTIONS) == {*metrics.all_metrics(values, 40), "effective_samples"}


def test_the_engine_gives_its_functions_on_arrays_by_name() -> None:
    assert {"all_metrics", "eigenvalues", "jensen_shannon", "cka", "permutation_test"} <= set(dir(spectra_engine))
    assert all(callable(getattr(spectra_engine, name)) for name in dir(spectra_engine))
    assert spectra_engine.entropy is metrics.entropy
