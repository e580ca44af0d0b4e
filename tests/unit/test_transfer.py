from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from eigendet.spectra import metrics
from eigendet.spectra.transfer import alpha_req, logme, rankme

SHAPES = [(40, 5), (40, 40), (20, 60)]


def features(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """Of decaying variance about a common mean, as pooled feature maps have."""
    random = np.random.default_rng(seed)
    return 2.0 + random.normal(size=(n, channels)) * np.arange(1.0, channels + 1) ** -0.8


def presence(rows: np.ndarray, seed: int = 1) -> np.ndarray:
    """Of three classes: one that features tell of, one that they do not, one of a single image."""
    random = np.random.default_rng(seed)
    told = rows[:, 0] + random.normal(size=len(rows)) > 2.0
    return np.stack([told, random.random(len(rows)) < 0.4, np.arange(len(rows)) == 3], axis=1)


def log_evidence(rows: np.ndarray, label: np.ndarray, alpha: float, beta: float) -> float:
    """The density of the labels themselves, weights integrated out: of one normal law over all images."""
    covariance = np.eye(len(rows)) / beta + rows @ rows.T / alpha
    return float(scipy.stats.multivariate_normal(np.zeros(len(rows)), covariance).logpdf(label))


def fixed_point(rows: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """α and β by MacKay's updates, with matrices instead of singular values."""
    n, channels = rows.shape
    alpha = beta = 1.0
    for _ in range(3000):
        inverse = np.linalg.inv(alpha * np.eye(channels) + beta * rows.T @ rows)
        mean = beta * inverse @ rows.T @ label
        well_determined = channels - alpha * np.trace(inverse)
        alpha = well_determined / float(mean @ mean)
        beta = (n - well_determined) / float(np.sum((label - rows @ mean) ** 2))
    return alpha, beta


def test_rankme_is_that_of_the_features_themselves() -> None:
    rows = features(300, 30)
    singular = np.linalg.svd(rows, compute_uv=False)
    shares = singular / singular.sum() + 1e-7  # as the paper writes it
    assert rankme(np.linalg.eigvalsh(rows.T @ rows / 300)) == pytest.approx(
        math.exp(-np.sum(shares * np.log(shares))), rel=1e-4
    )


def test_what_the_paper_adds_to_shares_changes_little() -> None:
    shares = np.zeros(2048)
    shares[:100] = 0.01
    added = math.exp(-np.sum((shares + 1e-7) * np.log(shares + 1e-7)))
    assert 1.002 < added / rankme(shares**2) < 1.004


def test_rankme_has_bounds_and_no_unit() -> None:
    assert rankme(np.array([7.0, 0.0, 0.0])) == 1.0
    assert rankme(np.full(50, 1e-300)) == pytest.approx(50)
    values = np.random.default_rng(0).lognormal(0, 2, 50)
    assert rankme(values) == pytest.approx(rankme(1e9 * values[::-1]))
    assert rankme(np.append(values, -1e-12)) == rankme(np.append(values, 0.0))


def test_zeros_with_the_errors_of_float32_count_as_zeros() -> None:
    """As of 12 positions of 64 channels: eleven directions, and beside them errors on both sides of zero."""
    values = np.arange(1.0, 12.0) ** -1.0
    errors = np.random.default_rng(0).uniform(-1e-8, 1e-8, 53)
    assert rankme(np.append(values, errors)) == rankme(values)
    assert math.isnan(alpha_req(np.append(values, errors)))
    assert rankme(np.append(values, np.abs(errors))) > 1.005 * rankme(values)  # they would not be nothing


def test_rankme_is_another_number_than_the_entropy_of_eigenvalues() -> None:
    values = np.array([9.0, 4.0, 1.0])
    assert rankme(values) == pytest.approx(math.exp(metrics.entropy(np.sqrt(values))))
    assert rankme(values) > math.exp(metrics.entropy(values))


@pytest.mark.parametrize("values", [np.zeros(4), np.array([1.0, math.nan]), np.array([1.0, math.inf])])
def test_what_has_no_rankme_is_nan(values: np.ndarray) -> None:
    assert math.isnan(rankme(values))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_is_that_of_a_power_law_whatever_its_head_and_end(alpha: float) -> None:
    values = np.arange(1.0, 301.0) ** -alpha
    values[:10] *= 100
    values[50:] = 0.0
    assert alpha_req(values) == pytest.approx(alpha, abs=1e-10)
    assert alpha_req(1e-30 * values[::-1]) == pytest.approx(alpha, abs=1e-10)


def test_alpha_is_the_weighted_line_of_least_squares() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(0, 2, 64))[::-1]
    places = np.arange(11.0, 51.0)

    def misfit(line: np.ndarray) -> float:
        return float(np.sum((np.log(values[10:50]) + line[0] * np.log(places) - line[1]) ** 2 / places))

    best = scipy.optimize.minimize(misfit, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    assert alpha_req(values) == pytest.approx(best.x[0], abs=1e-5)


@pytest.mark.parametrize("channels", [1, 19])
def test_few_eigenvalues_have_no_alpha(channels: int) -> None:
    assert math.isnan(alpha_req(np.ones(channels)))
    assert math.isnan(alpha_req(np.append(np.ones(channels), np.zeros(100))))
    assert alpha_req(np.ones(20)) == pytest.approx(0.0, abs=1e-12)


def test_what_is_not_finite_or_all_zero_has_no_alpha() -> None:
    assert math.isnan(alpha_req(np.append(np.ones(60), math.nan)))
    assert math.isnan(alpha_req(np.zeros(60)))


@pytest.mark.parametrize("shape", SHAPES)
def test_logme_is_the_largest_log_evidence(shape: tuple[int, int]) -> None:
    """By a search over both precisions of the density of the labels, which knows no singular value."""
    rows = features(*shape)
    labels = presence(rows)
    for k, score in enumerate(logme(rows, labels)):

        def negative(logs: np.ndarray, k: int = k) -> float:
            return -log_evidence(rows, labels[:, k].astype(float), *np.exp(logs)) / len(rows)

        starts = [np.array([a, b]) for a in (-2.0, 3.0, 8.0) for b in (0.0, 3.0)]
        bounds = [(-9.0, 14.0), (-3.0, 12.0)]
        found = min(scipy.optimize.minimize(negative, start, bounds=bounds).fun for start in starts)
        assert score >= -found - 1e-9  # nothing that is found is larger
        if k == 0:  # features tell of this class, so that the best precisions are within the bounds
            assert score == pytest.approx(-found, abs=1e-5)


def test_logme_is_the_evidence_at_the_papers_fixed_point() -> None:
    rows = features(60, 6)
    labels = presence(rows)
    label = labels[:, 0].astype(float)
    alpha, beta = fixed_point(rows, label)
    assert logme(rows, labels)[0] == pytest.approx(log_evidence(rows, label, alpha, beta) / 60, abs=1e-9)


def test_logme_depends_on_neither_scale_nor_rotation_nor_order_nor_dead_channels() -> None:
    rows = features(50, 12)
    labels = presence(rows)
    expected = pytest.approx(logme(rows, labels), abs=1e-7)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0]
    assert logme(1e4 * rows @ rotation, labels) == expected
    assert logme(1e-200 * rows, labels) == expected
    assert logme(rows[::-1], labels[::-1]) == expected
    assert logme(np.hstack([rows, np.zeros((50, 30))]), labels) == expected


def test_features_that_tell_of_a_class_score_more() -> None:
    rows = features(100, 10)
    told, untold, _ = logme(rows, presence(rows))
    other, _, _ = logme(features(100, 10, seed=5), presence(rows))
    assert told > other + 0.05
    assert untold == pytest.approx(logme(np.ones((100, 1)), presence(rows))[1], abs=0.05)


def test_images_without_samples_are_left_out() -> None:
    rows = features(50, 12)
    labels = presence(rows)
    rows[[5, 9]] = math.nan
    there = np.isfinite(rows).all(1)
    assert logme(rows, labels) == pytest.approx(logme(rows[there], labels[there]))


def test_a_class_in_all_or_none_of_the_images_has_no_evidence() -> None:
    rows = features(10, 3)
    labels = np.array([[True, False, i < 5] for i in range(10)])
    assert [math.isfinite(score) for score in logme(rows, labels)] == [False, False, True]
    rows[:5] = math.nan  # the only images with the last class
    assert np.isnan(logme(rows, labels)).all()
    assert np.isnan(logme(np.zeros((10, 3)), labels)).all()
    assert logme(rows, labels[:, :0]).shape == (0,)


def test_labels_without_error_have_unbounded_evidence() -> None:
    labels = np.arange(10) < 4
    rows = np.stack([labels, np.linspace(0, 1, 10)], axis=1).astype(np.float32)
    assert logme(rows, labels[:, None]).tolist() == [math.inf]
    assert np.isfinite(logme(features(10, 30), labels[:, None])).all()  # as many directions as images


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="10 rows of features and 9 of labels"):
        logme(features(10, 2), np.ones((9, 1), bool))
