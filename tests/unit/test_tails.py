from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import powerlaw
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from eigendet.spectra import tails

exactly = partial(pytest.approx, rel=1e-8, abs=1e-8)


def descending(values: np.ndarray) -> np.ndarray:
    return np.sort(values)[::-1]


def fitted(values: np.ndarray, **options: Any) -> powerlaw.Fit:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return powerlaw.Fit(values, verbose=0, **options)


def fit(values: np.ndarray, **options: Any) -> list[float]:
    law = fitted(values, **options)
    return [law.alpha, law.D, law.xmin / values.max(), np.count_nonzero(values >= law.xmin)]


def tail(name: str) -> np.ndarray:
    random, ranks = np.random.default_rng(0), np.arange(1.0, 151)
    return descending(
        {
            "density x^-1.3": random.pareto(0.3, 150) + 1,
            "density x^-2.5": random.pareto(1.5, 150) + 1,
            "density x^-5": random.pareto(4, 150) + 1,
            "lognormal": random.lognormal(0, 2, 150),
            "rank^-1": ranks**-1 * random.uniform(0.9, 1.1, 150),
            "rank^-0.4": ranks**-0.4 * random.uniform(0.9, 1.1, 150),
            "rank^-8": ranks**-8 * random.uniform(0.9, 1.1, 150),
            "ties": np.round(random.pareto(1.5, 150) + 1, 1),
            "white noise": np.linalg.eigvalsh(np.cov(random.normal(size=(500, 100)), rowvar=False)),
        }[name]
    )


@pytest.mark.parametrize("name", ["density x^-1.3", "density x^-2.5", "lognormal", "rank^-1", "rank^-8", "ties"])
def test_power_law_is_what_the_package_powerlaw_fits(name: str) -> None:
    assert list(tails.power_law(tail(name))) == exactly(fit(tail(name)))


@pytest.mark.parametrize("name", ["density x^-5", "rank^-0.4", "white noise"])
def test_power_law_is_what_powerlaw_fits_without_its_limit_of_3_for_the_exponent(name: str) -> None:
    found = tails.power_law(tail(name))
    assert list(found) == exactly(fit(tail(name), parameter_ranges={"alpha": [1, None]}))
    assert found.exponent > 3 >= fit(tail(name))[0]


@pytest.mark.parametrize("size", [4, 5, 7])
def test_power_law_of_few_values_is_what_powerlaw_fits(size: int) -> None:
    """There the fit often starts at the last eigenvalue that may be the smallest one."""
    for values in np.random.default_rng(0).lognormal(0, 1, (20, size)):
        found = tails.power_law(descending(values))
        assert list(found) == exactly(fit(values, parameter_ranges={"alpha": [1, None]}))


@settings(max_examples=25)
@given(st.floats(1.2, 8), st.integers(0, 19))
def test_power_law_recovers_the_exponent_of_a_sample(exponent: float, seed: int) -> None:
    sample = np.random.default_rng(seed).pareto(exponent - 1, 2000) + 1
    standard_error = (exponent - 1) / math.sqrt(len(sample))  # of all; the fit keeps some
    assert abs(tails.power_law(descending(sample))[0] - exponent) < 4 * standard_error


def test_power_law_finds_where_the_tail_begins() -> None:
    """Half of the eigenvalues lie evenly below 1 and would make the exponent of all of them far smaller."""
    random = np.random.default_rng(0)
    values = descending(np.r_[random.uniform(0.01, 1, 1000), random.pareto(2.0, 1000) + 1])
    law = tails.power_law(values)
    assert law.exponent == pytest.approx(3, abs=4 * 2 / math.sqrt(1000))
    assert law.distance < 0.05 and law.tail == np.count_nonzero(values >= law.smallest * values[0]) < 1200


def test_power_law_leaves_zeros_out_and_needs_four_distinct_values() -> None:
    values = tail("lognormal")
    assert tails.power_law(np.r_[values, np.zeros(9)]) == tails.power_law(values)
    for few in (np.full(8, 3.0), np.array([5.0, 0.0]), np.array([1.0]), np.array([4.0, 4.0, 2.0, 1.0, 1.0, 0.0])):
        assert tails.power_law(few).tail == 0 and math.isnan(tails.power_law(few).exponent)
        assert all(map(math.isnan, tails.power_law_metrics(few).values()))


def test_eigenvalues_that_vanish_beside_the_largest_are_zeros() -> None:
    measured = tails.power_law_metrics(np.r_[1e300 * tail("lognormal"), np.full(9, 1e-320)])
    assert measured == tails.power_law_metrics(tail("lognormal"))


# Whether it fits.


def pareto(size: int, seed: int, exponent: float = 2.5) -> np.ndarray:
    return descending(np.random.default_rng(seed).pareto(exponent - 1, size) + 1)


def fit_of(values: np.ndarray) -> float:
    return tails.goodness_of_fit(values, tails.power_law(values))


@pytest.mark.parametrize("size", [5, 30, 64])
def test_each_sample_of_the_bootstrap_is_fitted_as_the_package_powerlaw_does(size: int) -> None:
    random = np.random.default_rng(size)
    samples = [random.pareto(1.5, size) + 1, random.uniform(0.1, 1, size), random.lognormal(0, 1, size)]
    if size > 5:
        samples.append(np.round(random.pareto(1.5, size) + 1, 1))  # ties, as drawn again from the values below the tail
    found = tails.best_distances(np.log(np.sort(np.array(samples), axis=1)))
    expected = [fitted(sample, parameter_ranges={"alpha": [1, None]}).D for sample in samples]
    assert found == exactly(expected)


@pytest.mark.parametrize("body", [0, 60])
def test_of_samples_of_a_power_law_a_tenth_has_a_p_of_a_tenth(body: int) -> None:
    p = []
    for seed in range(200):
        low = np.random.default_rng([seed, 1]).uniform(0.1, 1, body)
        p.append(fit_of(descending(np.r_[pareto(80, seed), low])))
    rejected = np.count_nonzero(np.array(p) < tails.PLAUSIBLE)
    assert scipy.stats.binomtest(rejected, 200, 0.1).pvalue > 0.01
    assert min(p) >= 0.01 and scipy.stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize("name", ["geometric", "even", "white noise"])
def test_what_follows_no_power_law_fits_badly_and_has_no_exponent(name: str) -> None:
    random = np.random.default_rng(0)
    values = {
        "geometric": 0.97 ** np.arange(256),
        "even": descending(random.uniform(0.01, 1, 256)),
        "white noise": descending(np.linalg.eigvalsh(np.cov(random.normal(size=(1000, 256)), rowvar=False))),
    }[name]
    measured = tails.power_law_metrics(values)
    assert math.isnan(measured["power_law_exponent"])
    assert measured["power_law_fit"] < 0.1 or measured["power_law_tail"] < tails.longest_of_log_normal(256)
    assert 0 < measured["power_law_distance"] < 1


def test_a_log_normal_spectrum_has_no_exponent_although_its_tail_may_fit() -> None:
    values = descending(np.random.default_rng(2).lognormal(0, 1, 400))
    law = tails.power_law(values)._replace(smallest=float(np.sort(values)[200] / values[0]), tail=200)
    assert tails.over_log_normal(values, law) < -2


def test_an_exponent_is_given_where_the_power_law_is_long_fits_and_is_likeliest() -> None:
    measured = tails.power_law_metrics(pareto(300, 0))
    assert measured["power_law_exponent"] == pytest.approx(2.5, abs=0.3)
    tail = tails.power_law(pareto(300, 0)).tail
    assert measured["power_law_fit"] >= 0.1 and measured["power_law_tail"] == tail > tails.longest_of_log_normal(300)
    assert measured["power_law_over_log_normal"] > tails.LIKELIER
    short = tails.power_law_metrics(pareto(40, 0))  # nothing speaks against it, and it is not shown
    assert math.isnan(short["power_law_exponent"]) and short["power_law_fit"] >= 0.1


@pytest.mark.parametrize(
    ("fit", "ratio", "is_given"), [(0.1, -1.28, True), (0.09, -1.28, False), (0.1, -1.29, False), (1.0, 0.5, True)]
)
def test_an_exponent_takes_both_a_plausible_fit_and_no_likelier_log_normal(
    monkeypatch: pytest.MonkeyPatch, fit: float, ratio: float, is_given: bool
) -> None:
    monkeypatch.setattr(tails, "goodness_of_fit", lambda values, law: fit)
    monkeypatch.setattr(tails, "over_log_normal", lambda values, law: ratio)
    assert math.isfinite(tails.power_law_metrics(pareto(300, 0))["power_law_exponent"]) == is_given


@pytest.mark.parametrize("seed", range(8))
def test_the_statistic_is_negative_exactly_where_a_log_normal_law_is_likelier(seed: int) -> None:
    values = descending(np.random.default_rng(seed).lognormal(0, [0.8, 3.0][seed % 2], 150))
    law = tails.PowerLaw(2.0, 0.1, values[119] / values[0], 120)
    y = np.log(values[:120] / values[119])
    ratio = scipy.stats.variation(y)
    assert tails.over_log_normal(values, law) == exactly(math.sqrt(120) * (ratio - 1))

    def log_normal(parameters: np.ndarray) -> float:
        mean, deviation = parameters[0], math.exp(parameters[1])
        return float((scipy.stats.norm.logpdf(y, mean, deviation) - scipy.stats.norm.logsf(0, mean, deviation)).sum())

    best = scipy.optimize.minimize(
        lambda parameters: -log_normal(parameters), [y.mean(), math.log(y.std())], method="Nelder-Mead",
        options={"maxiter": 2000, "maxfev": 2000},
    )  # fmt: skip
    gain = log_normal(best.x) - scipy.stats.expon.logpdf(y, scale=y.mean()).sum()
    assert (gain > 0.01) == (ratio < 0.99)


def test_of_tails_of_a_power_law_a_tenth_has_a_likelier_log_normal_law() -> None:
    law = tails.PowerLaw(2.5, 0.1, 1.0, 300)
    found = []
    for seed in range(1000):
        values = pareto(300, seed)
        found.append(tails.over_log_normal(values, law._replace(smallest=1 / values[0])))
    assert scipy.stats.binomtest(sum(one < tails.LIKELIER for one in found), 1000, 0.1).pvalue > 0.01


def test_a_tail_that_is_heavier_than_a_power_law_is_no_log_normal() -> None:
    """The spread of its logarithms is above an exponential's, which those of log-normal laws are not."""
    logs = np.random.default_rng(0).exponential(size=200) ** 1.5
    values = descending(np.exp(logs - logs.min()))
    law = tails.PowerLaw(2.0, 0.1, values[-1] / values[0], 200)
    assert tails.over_log_normal(values, law) > 2


@pytest.mark.parametrize(("size", "deviation"), [(64, 0.2), (256, 1.5), (1024, 4.0)])
def test_one_in_twenty_log_normal_spectra_has_a_longer_tail_whatever_its_width(size: int, deviation: float) -> None:
    random = np.random.default_rng(0)
    found = [tails.power_law(descending(random.lognormal(5, deviation, size))).tail for _ in range(200)]
    longer = sum(tail > tails.longest_of_log_normal(size) for tail in found)
    assert scipy.stats.binomtest(longer, 200, 0.05, alternative="greater").pvalue > 0.01
    assert np.quantile(found, 0.8) < tails.longest_of_log_normal(size) < 1.3 * max(found)


def given_an_exponent(draw: Callable[[np.random.Generator], np.ndarray], simulations: int = 60) -> float:
    spectra = [descending(draw(np.random.default_rng(seed))) for seed in range(simulations)]
    return float(np.mean([math.isfinite(tails.power_law_metrics(values)["power_law_exponent"]) for values in spectra]))


@pytest.mark.parametrize(
    ("draw", "most"),
    [
        (lambda random: random.lognormal(0, 1.5, 256), 0.05),  # 45 % by the fit, Vuong's statistic and 50 eigenvalues
        (lambda random: random.lognormal(0, 1.5, 1024), 0.05),  # 64 %
        (lambda random: descending(random.lognormal(0, 1.5, 512))[:256], 0.1),  # 60 %
        (lambda random: np.r_[random.lognormal(0, 1.5, 256), 1e-16 * random.uniform(size=256)], 0.05),
        (lambda random: random.exponential(size=256), 0.02),
        (lambda random: random.gamma(0.3, size=1024), 0.02),
    ],
    ids=["log-normal", "more", "its upper half", "with rounding errors", "exponential", "gamma"],
)
def test_what_is_no_power_law_is_seldom_given_an_exponent(
    draw: Callable[[np.random.Generator], np.ndarray], most: float
) -> None:
    assert given_an_exponent(draw) <= most


@pytest.mark.parametrize(("size", "least"), [(64, 0.35), (256, 0.65), (1024, 0.75)])
def test_a_power_law_of_most_eigenvalues_is_given_its_exponent(size: int, least: float) -> None:
    assert given_an_exponent(lambda random: random.pareto(1.5, size) + 1) >= least


def test_a_power_law_of_half_of_many_eigenvalues_is_given_its_exponent() -> None:
    assert given_an_exponent(lambda random: np.r_[random.pareto(1.5, 512) + 1, random.uniform(0.1, 1, 512)]) >= 0.6


@given(st.integers(0, 10_000), st.integers(1, 90), st.sampled_from(["pareto", "uniform", "normal", "zeros"]))
@settings(max_examples=40, deadline=None)
def test_bounds_of_all_metrics_of_any_spectrum(seed: int, size: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    values = {
        "pareto": random.pareto(0.05, size) + 1, "uniform": random.uniform(size=size),
        "normal": np.exp(30 * random.normal(size=size)), "zeros": np.r_[1.0, random.integers(0, 3, size - 1) * 0.1],
    }[kind]  # fmt: skip
    measured = tails.power_law_metrics(descending(values))
    assert list(measured) == list(tails.DESCRIPTIONS)
    if np.isnan(measured["power_law_tail"]):
        assert all(map(math.isnan, measured.values()))
    else:
        assert 3 <= measured["power_law_tail"] <= size and 0 < measured["power_law_distance"] < 1
        assert 0 < measured["power_law_fit"] <= 1 and math.isfinite(measured["power_law_over_log_normal"])
        assert math.isnan(measured["power_law_exponent"]) or measured["power_law_exponent"] > 1
    scaled = tails.power_law_metrics(descending(values * 4.0))
    assert list(scaled.values()) == pytest.approx(list(measured.values()), rel=1e-9, nan_ok=True)
