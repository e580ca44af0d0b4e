from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.linalg import subspace_angles
from scipy.spatial.distance import jensenshannon

from eigendet.spectra import similarity

spectra = arrays(np.float64, st.integers(1, 40), elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e6))).filter(np.any)
seeds = st.integers(0, 2**32 - 1)


def orthonormal(random: np.random.Generator, channels: int, directions: int) -> np.ndarray:
    return np.linalg.qr(random.normal(size=(channels, directions)))[0]


def related(random: np.random.Generator, images: int, channels: int, others: int) -> tuple[np.ndarray, np.ndarray]:
    """Two maps that share three causes, and have noise of their own; far from zero."""
    causes = random.normal(size=(images, 3))

    def shown(width: int) -> np.ndarray:
        return causes @ random.normal(size=(3, width)) + random.normal(size=(images, width)) + 5

    return shown(channels), shown(others)


def slow_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """By definition (Song et al. 2012, section 3): mean over four different images, in any order."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def slow_cka(first: np.ndarray, second: np.ndarray) -> float:
    k, m = first @ first.T, second @ second.T
    return slow_hsic(k, m) / float(np.sqrt(slow_hsic(k, k) * slow_hsic(m, m)))


@given(spectra, spectra)
def test_jensen_shannon_is_that_of_scipy_with_the_shorter_spectrum_filled_up(a: np.ndarray, b: np.ndarray) -> None:
    width = max(a.size, b.size)
    p, q = (np.pad(np.sort(one)[::-1], (0, width - one.size)) for one in (a, b))
    with np.errstate(invalid="ignore"):  # of equal spectra scipy may take the root of what rounding made negative
        expected = np.nan_to_num(jensenshannon(p, q, base=2))
    assert similarity.jensen_shannon(a, b) == pytest.approx(expected, abs=1e-7)


@given(spectra, spectra, spectra)
def test_jensen_shannon_is_a_metric_up_to_1(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    ab, bc, ac = (similarity.jensen_shannon(*pair) for pair in ((a, b), (b, c), (a, c)))
    assert 0 <= ac <= min(1, ab + bc + 1e-12)
    assert similarity.jensen_shannon(b, a) == ab
    assert similarity.jensen_shannon(a, a) == 0


@given(spectra, seeds, st.floats(1e-9, 1e9))
def test_jensen_shannon_ignores_scale_and_the_order_of_channels(a: np.ndarray, seed: int, factor: float) -> None:
    shuffled = np.random.default_rng(seed).permutation(a)
    assert similarity.jensen_shannon(a, shuffled * factor) == pytest.approx(0, abs=1e-14)


def test_jensen_shannon_by_hand() -> None:
    # p = (1, 0), q = (1, 1) / 2, m = (3, 1) / 4
    exact = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5 * np.log2(2))
    assert similarity.jensen_shannon(np.array([7.0]), np.array([3.0, 3.0])) == pytest.approx(np.sqrt(exact), rel=1e-12)
    assert similarity.jensen_shannon(np.array([1.0]), np.ones(100_000)) > 0.99


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_distances_keep_their_digits(size: float) -> None:
    """Near to one another, Σ (p - q)² / (8 p ln 2); the difference of entropies loses this below 1e-8."""
    p = np.array([0.5, 0.3, 0.2])
    change = size * np.array([1.0, -2.0, 1.0])
    exact = np.sqrt(np.sum(change**2 / p) / (8 * np.log(2)))
    assert similarity.jensen_shannon(p, p + change) == pytest.approx(exact, rel=10 * size + 1e-6)


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.floats(0, 1e3)))
def test_all_runs_at_once_have_the_distances_of_every_two(table: np.ndarray) -> None:
    found = similarity.jensen_shannon_matrix(table)
    each = [[similarity.jensen_shannon(a, b) for b in table] for a in table]
    np.testing.assert_allclose(found, each, atol=1e-15)
    np.testing.assert_array_equal(found, found.T)


def test_a_spectrum_without_shape_has_no_distance() -> None:
    good = np.array([2.0, 1.0, -1e-17])
    for bad in ([0.0, 0.0], [-1e-17], [1.0, np.nan, 0.0], [np.inf, 1.0, 1.0]):
        assert np.isnan(similarity.jensen_shannon(good, np.array(bad)))
        assert np.isnan(similarity.jensen_shannon(np.array(bad), np.array(bad)))
    found = similarity.jensen_shannon_matrix(np.array([good, np.zeros(3), good]))
    np.testing.assert_array_equal(np.isnan(found), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    assert similarity.jensen_shannon(good, np.array([2.0, 1.0])) == 0  # negative noise counts as zero


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_overlap_is_the_mean_squared_cosine_of_principal_angles(seed: int, channels: int, directions: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (orthonormal(random, channels, min(directions, channels)) for _ in range(2))
    found = similarity.subspace_overlap(a, b)
    assert found == pytest.approx(np.mean(np.cos(subspace_angles(a, b)) ** 2), abs=1e-12)
    # The same in other bases of both subspaces, and with all directions turned alike.
    turns = [orthonormal(random, a.shape[1], a.shape[1]) for _ in range(2)]
    everything = orthonormal(random, channels, channels)
    assert similarity.subspace_overlap(a @ turns[0], b @ turns[1]) == pytest.approx(found, abs=1e-12)
    assert similarity.subspace_overlap(everything @ a, everything @ b) == pytest.approx(found, abs=1e-12)
    assert similarity.subspace_overlap(a, a @ turns[0]) == pytest.approx(1)


def test_overlap_runs_from_none_to_all_and_is_k_of_c_by_chance() -> None:
    axes = np.eye(6)
    assert similarity.subspace_overlap(axes[:, :2], axes[:, 2:4]) == 0
    assert similarity.subspace_overlap(axes[:, :2], axes[:, 1:3]) == 0.5
    random = np.random.default_rng(0)
    found = [similarity.subspace_overlap(orthonormal(random, 40, 5), orthonormal(random, 40, 5)) for _ in range(400)]
    assert np.mean(found) == pytest.approx(5 / 40, abs=4 * np.std(found) / np.sqrt(len(found)))


@pytest.mark.parametrize("shape", [(7, 2), (6, 3)])
def test_subspaces_of_other_shape_have_no_overlap(shape: tuple[int, int]) -> None:
    assert np.isnan(similarity.subspace_overlap(np.eye(6)[:, :2], np.eye(*shape)))


@pytest.mark.parametrize(("images", "channels", "others"), [(4, 3, 3), (7, 2, 5), (7, 20, 9)])
def test_cka_agrees_with_the_definition_of_unbiased_hsic(images: int, channels: int, others: int) -> None:
    for seed in range(4):
        a, b = related(np.random.default_rng(seed), images, channels, others)
        assert similarity.cka(a, b) == pytest.approx(slow_cka(a, b), abs=1e-8)


@pytest.mark.parametrize(("images", "channels", "others"), [(4, 3, 3), (12, 40, 9), (200, 16, 64)])
def test_cka_is_that_of_the_package_pytorch_cka(images: int, channels: int, others: int) -> None:
    published = pytest.importorskip("cka.hsic")
    for seed in range(4):
        maps = related(np.random.default_rng(seed), images, channels, others)
        grams = [torch.from_numpy(features @ features.T)[None] for features in maps]
        both, first, second = (float(value) for value in published.hsic(*grams))
        assert similarity.cka(*maps) == pytest.approx(both / np.sqrt(first * second), abs=1e-8)


@given(seeds, st.floats(1e-3, 1e3), st.integers(5, 20), st.integers(1, 30))
def test_cka_ignores_scale_shift_rotation_and_the_order_of_channels(
    seed: int, factor: float, images: int, channels: int
) -> None:
    random = np.random.default_rng(seed)
    a, b = related(random, images, channels, 6)
    found = similarity.cka(a, b)
    assert -1 <= found <= 1 + 1e-12 and similarity.cka(b, a) == pytest.approx(found, abs=1e-12)
    turned = a @ orthonormal(random, channels, channels) * factor + random.normal(size=channels)
    assert similarity.cka(turned, b) == pytest.approx(found, abs=1e-8)
    assert similarity.cka(a, turned) == pytest.approx(1, abs=1e-8)
    assert similarity.cka(a[:, random.permutation(channels)], b) == pytest.approx(found, abs=1e-10)
    assert similarity.cka(a + 1e8, b) == pytest.approx(found, abs=1e-4)
    order = random.permutation(images)
    assert similarity.cka(a[order], b[order]) == pytest.approx(found, abs=1e-10)


def test_cka_compares_what_maps_do_with_the_same_images() -> None:
    random = np.random.default_rng(0)
    a, b = related(random, 100, 30, 40)
    assert similarity.cka(a, b) > 0.5
    assert abs(similarity.cka(a, random.permutation(b))) < 0.1


def test_unrelated_maps_have_no_cka_however_few_the_images() -> None:
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=(20, 200)), random.normal(size=(20, 300))) for _ in range(200)]
    found = [similarity.cka(a, b) for a, b in pairs]
    assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found) / np.sqrt(len(found)))
    assert max(np.abs(found)) < 0.5 and min(found) < 0 < max(found)
    a, b = (one - one.mean(0) for one in pairs[0])
    biased = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a @ a.T) / np.linalg.norm(b @ b.T)
    assert biased > 0.85


def test_images_without_features_in_either_map_are_left_out() -> None:
    a, b = related(np.random.default_rng(0), 12, 5, 30)
    expected = similarity.cka(a[3:10], b[3:10])
    a[[0, 10]], b[[1, 2, 11]] = np.nan, np.nan
    a[5, 0], b[5, 1] = np.nan, np.nan
    left = [3, 4, 6, 7, 8, 9]
    assert similarity.cka(a, b) == pytest.approx(similarity.cka(a[left], b[left]), abs=1e-12)
    assert similarity.cka(a, b) != pytest.approx(expected, abs=1e-3)
    assert similarity.cka_of_grams(similarity.gram_of_images(a), similarity.gram_of_images(b)) == similarity.cka(a, b)


def test_too_little_to_compare_has_no_cka() -> None:
    random = np.random.default_rng(0)
    a, b = related(random, 6, 5, 7)
    assert np.isfinite(similarity.cka(a[:4], b[:4]))
    assert np.isnan(similarity.cka(a[:3], b[:3]))
    for constant in (0.0, 0.1, 1e9 / 3):  # no variance
        assert np.isnan(similarity.cka(np.full_like(a, constant), b))
    assert np.isnan(similarity.cka(np.eye(6), b))  # each image as far from all others
    a[:2], b[2:3] = np.nan, np.nan
    assert np.isnan(similarity.cka(a, b))
    assert np.isnan(similarity.cka(np.full_like(a, np.nan), b))
    with pytest.raises(ValueError):
        similarity.cka(a, b[:5])


@pytest.mark.parametrize("scale", [1e-300, 1e300, 1.7e308])
def test_no_scale_is_too_small_or_large_for_the_distance_of_spectra(scale: float) -> None:
    first, second = np.array([1.0, 0.5, 0.5]), np.array([1.0, 0.9, 0.1])
    assert similarity.jensen_shannon(scale * first, second) == pytest.approx(similarity.jensen_shannon(first, second))


def test_a_subspace_has_an_overlap_of_one_with_itself_as_it_is_stored() -> None:
    stored = orthonormal(np.random.default_rng(0), 40, 5).astype(np.float32).astype(np.float64)
    assert similarity.subspace_overlap(stored, stored) == pytest.approx(1.0, abs=1e-15)
