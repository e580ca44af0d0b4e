from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eigendet import plugins
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance
from eigendet.observe import merging, store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Tap
from eigendet.spectra import metric_table, metrics, spectrum
from eigendet.spectra.tables import RUN_COLUMNS, TAP_COLUMNS

spectra = arrays(np.float64, st.integers(1, 40), elements=st.floats(1e-6, 1e6))
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SCALE_FREE = ("ratio", "energy", "dof", "effective_rank", "participation")
RULES = (*SCALE_FREE, "absolute")


def dimension(values: np.ndarray, rule: str, **options: float) -> float:
    return metrics.intrinsic_dimension(values, plugins.bind("rule", PluginChoice(plugin=rule, **options)))


def test_closed_forms_on_a_flat_spectrum() -> None:
    flat = np.full(8, 3.0)
    assert dimension(flat, "ratio") == 8
    assert dimension(flat, "energy", share=1.0) == 8
    assert dimension(flat, "dof", scale=0.25) == pytest.approx(8 / 1.25)
    assert dimension(flat, "effective_rank") == pytest.approx(8)
    assert dimension(flat, "participation") == pytest.approx(8)


@pytest.mark.parametrize(("share", "k"), [(0.5, 1), (0.51, 2), (0.75, 2), (0.875, 3), (1.0, 4)])
def test_energy_is_the_smallest_sufficient_number(share: float, k: int) -> None:
    assert dimension(np.array([1.0, 4.0, 2.0, 1.0]), "energy", share=share) == k


def test_ratio_counts_what_is_strictly_above() -> None:
    assert dimension(np.array([1.0, 0.1, 0.01]), "ratio", threshold=0.01) == 2
    assert dimension(np.array([1.0, 0.1, 0.01]), "absolute", threshold=0.01) == 2
    assert dimension(7 * np.array([1.0, 0.1, 0.01]), "absolute", threshold=0.01) == 3


@given(spectra)
def test_effective_rank_agrees_with_scipy_entropy(values: np.ndarray) -> None:
    assert dimension(values, "effective_rank") == pytest.approx(np.exp(scipy.stats.entropy(values)), rel=1e-9)


@given(spectra, st.floats(1e-3, 10))
def test_degrees_of_freedom_are_the_trace_of_the_shrinkage(values: np.ndarray, scale: float) -> None:
    matrix = np.diag(values)
    shrunk = np.linalg.solve(matrix + scale * values.mean() * np.eye(values.size), matrix)
    assert dimension(values, "dof", scale=scale) == pytest.approx(np.trace(shrunk), rel=1e-9)


@given(spectra, st.sampled_from(SCALE_FREE), st.floats(1e-3, 1e3))
def test_rules_ignore_scale_and_order_and_keep_their_bounds(values: np.ndarray, rule: str, factor: float) -> None:
    found = dimension(values, rule)
    assert (0 if rule == "dof" else 1) < found * (1 + 1e-9) <= values.size * (1 + 2e-9)
    assert dimension(values[::-1], rule) == pytest.approx(found, rel=1e-9)
    power = 2.0 ** round(np.log2(factor))  # exact in floating point, so that no eigenvalue crosses a threshold
    assert dimension(values * power, rule) == pytest.approx(found, rel=1e-9)


@given(st.sampled_from(RULES), st.integers(1, 9))
def test_a_map_that_never_varies_has_no_dimension(rule: str, channels: int) -> None:
    assert dimension(np.zeros(channels), rule) == 0


def test_negative_noise_counts_as_zero() -> None:
    noisy, clean = np.array([1.0, 0.5, -1e-17]), np.array([1.0, 0.5, 0.0])
    for rule in RULES:
        assert dimension(noisy, rule) == dimension(clean, rule)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), -1.0, "5", None, 3 + 0j, np.ones(2)])
def test_a_rule_must_give_a_number_of_channels(given: Any) -> None:
    def mine(values: np.ndarray) -> Any:
        return given

    with pytest.raises(UserError, match=r"mine: gave .* for 2 eigenvalues; expected a number of channels"):
        metrics.intrinsic_dimension(np.ones(2), mine)


def test_a_rule_may_find_no_channel() -> None:
    assert metrics.intrinsic_dimension(np.ones(2), lambda values: 0) == 0


def test_a_rule_that_fails_is_named_and_bad_eigenvalues_are_not_its_fault() -> None:
    def mine(values: np.ndarray) -> float:
        return float(values[20])

    with pytest.raises(UserError, match=r"mine: fails for 2 eigenvalues .IndexError: index 20"):
        metrics.intrinsic_dimension(np.ones(2), mine)
    with pytest.raises(UserError, match="one of 2 eigenvalues is NaN"):
        metrics.intrinsic_dimension(np.array([1.0, np.nan]), mine)


def test_a_broken_rule_costs_its_own_metric_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mine.py").write_text(
        "from eigendet.plugins import rule\n\n@rule\ndef broken(values): return values[99]\n\n"
        "@rule\ndef odd(values, *, k: '1/0' = 3): return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    covariance = Covariance(4)
    covariance.update(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    run = {"arm": "scratch", "backbone": "b", "detector": "d", "seed": 0}
    taps = [Tap(TapKey("m", 0, "act"), 0, "none", covariance)]
    store.write_covariances(tmp_path / "c.h5", [(0, taps), (1, taps)], {"run": run})
    spectrum.write_spectra(tmp_path / "c.h5", tmp_path)
    found = metric_table.metric_table(pd.read_parquet(tmp_path / "eigenvalues.parquet"), plugins.rules())
    assert set(found["metric"]) >= {*RULES, "trace"} and "broken" not in set(found["metric"])
    assert "rule broken: fails for 4 eigenvalues" in caplog.text
    assert "rule plugin 'odd'" in caplog.text and "division by zero" in caplog.text
    store.write_covariances(tmp_path / "own.h5", [(0, taps)], {"model": "Mine"})
    with pytest.raises(UserError, match=r"own.h5: names no run; expected a file written by 'eigendet covariance'"):
        spectrum.write_spectra(tmp_path / "own.h5", tmp_path)


def planted(*spectra: list[float]) -> pd.DataFrame:
    """The table of eigenvalues of as many modules, the last first, of 100 samples worth 50 each."""
    tap = dict.fromkeys([*RUN_COLUMNS, *TAP_COLUMNS], 0) | {"samples": 100, "effective_samples": 50.0}
    parts = [
        pd.DataFrame(tap | {"module": f"m{number}", "value": values})
        for number, values in reversed(list(enumerate(spectra)))
    ]
    return pd.concat(parts, ignore_index=True)


def test_numbers_of_a_spectrum_are_in_its_unit_or_shares_of_its_largest_eigenvalue() -> None:
    raw = [0.5, 0.25, 0.125, -1e-9]
    table = metric_table.metric_table(planted(raw), plugins.rules())
    found = table.set_index("metric")["value"]
    assert found["trace"] == pytest.approx(0.875 - 1e-9, rel=1e-12) and found["largest"] == 0.5
    assert found["rounding"] == pytest.approx(2e-9, rel=1e-12)
    assert (found["samples"], found["effective_samples"]) == (100, 50)
    clean = np.array([0.5, 0.25, 0.125, 0])
    for name, value in metrics.all_metrics(clean, 50).items():
        assert found[name] == pytest.approx(value, nan_ok=True)
    for rule in RULES:
        assert found[rule] == dimension(clean, rule)
    assert set(table["module"]) == {"m0"} and len(table) == len(found)


def test_a_spectrum_without_negative_eigenvalues_has_no_rounding() -> None:
    found = metric_table.metric_table(planted([4.0, 2, 1, 0.5]), plugins.rules()).set_index("metric")["value"]
    assert found["rounding"] == 0 and found["largest"] == 4
    assert metric_table.metric_table(planted([3.0]), plugins.rules()).set_index("metric")["value"]["stable_rank"] == 1


def test_a_map_that_never_varies_or_is_not_finite_has_no_numbers_of_its_shape() -> None:
    table = metric_table.metric_table(planted([1.0, 0.5], [0.0, 0.0], [np.nan, 1.0]), plugins.rules())
    assert list(dict.fromkeys(table["module"])) == ["m2", "m1", "m0"]  # as they come
    found = {module: set(rows["metric"]) for module, rows in table.groupby("module")}
    assert found["m2"] == {"samples", "effective_samples"}
    assert found["m1"] == {"samples", "effective_samples", "trace", "largest", *RULES}
    assert found["m0"] == {*RULES, *metric_table.COUNTED, *metrics.DESCRIPTIONS}


def test_every_number_of_a_table_is_described_and_those_that_count_channels_are_named() -> None:
    found = set(metric_table.metric_table(planted([1.0, 0.5, 0.2]), plugins.rules())["metric"])
    assert found == metric_table.metric_descriptions(plugins.summaries("rule")).keys()
    assert metric_table.dimension_descriptions(plugins.summaries("rule")).keys() == {*RULES, "stable_rank"}
    assert all(
        text and "\n" not in text for text in metric_table.metric_descriptions(plugins.summaries("rule")).values()
    )


def test_a_rule_with_the_name_of_another_number_is_left_out_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mine.py").write_text(
        "from eigendet.plugins import rule\n\n@rule\ndef entropy(values): return 1.0\n\n"
        "@rule\ndef zeroth(values): return 0.0\n"
    )
    monkeypatch.chdir(tmp_path)
    assert set(plugins.rules(taken=metric_table.OWN_METRICS)) == {*RULES, "zeroth"}
    assert "no metric of the rule entropy: another one has its name" in caplog.text


@pytest.mark.parametrize("centered", [True, False])
def test_tables_hold_every_eigenvalue_of_the_chosen_moment(centered: bool, tmp_path: Path) -> None:
    covariance = Covariance(4)
    samples = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) + 3
    covariance.update(samples)
    images = samples.reshape(5, 100, 4).mean(1)
    run = {"arm": "scratch", "backbone": "b", "detector": "d", "seed": 0}
    taps = [Tap(TapKey("m", 1, "act"), 0, "none", covariance, images)]
    store.write_covariances(tmp_path / "c.h5", [(7, taps)], {"run": run}, images=range(5))
    spectrum.write_spectra(tmp_path / "c.h5", tmp_path, centered)
    eigenvalues = pd.read_parquet(tmp_path / "eigenvalues.parquet")
    assert pd.read_parquet(tmp_path / "jackknife.parquet").empty
    assert list(eigenvalues) == [*RUN_COLUMNS, *TAP_COLUMNS, "index", "value"]
    exact = np.cov(samples.double().numpy(), rowvar=False, bias=True)
    exact = exact if centered else samples.double().numpy().T @ samples.double().numpy() / 500
    values, vectors = np.linalg.eigh(exact)
    np.testing.assert_allclose(eigenvalues["value"], values[::-1], rtol=1e-5)
    assert eigenvalues["index"].tolist() == [0, 1, 2, 3] and set(eigenvalues["centered"]) == {centered}
    with h5py.File(tmp_path / "similarity.h5") as file:
        node = file["step_0000007/m#1:act"]
        assert abs(node["directions"][:, 0] @ vectors[:, -1]) == pytest.approx(1, abs=1e-5)
        centered_images = (images - images.mean(0)).double().numpy()
        np.testing.assert_allclose(
            node["images"][()] @ node["images"][()].T, centered_images @ centered_images.T, atol=1e-6
        )
    numbers = metric_table.metric_table(eigenvalues, plugins.rules()).set_index("metric")["value"]
    assert numbers["trace"] == pytest.approx(np.trace(exact), rel=1e-5)
    assert set(numbers.index) == {*RULES, *metric_table.COUNTED, *metrics.DESCRIPTIONS}
    assert np.isnan(numbers["effective_samples"]) and np.isnan(numbers["noise_share"])  # no parts were kept


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 300])
def test_leading_eigenvectors_are_those_of_the_whole_decomposition(channels: int) -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(channels, channels)))[0]
    exact = 0.9 ** np.arange(channels)
    values, vectors = spectrum.eigen((basis * exact) @ basis.T, spectrum.leading(channels))
    np.testing.assert_allclose(values, exact, atol=1e-13)
    assert vectors.shape == (channels, max(1, min(16, channels // 8)))
    np.testing.assert_allclose(np.abs(np.sum(vectors * basis[:, : vectors.shape[1]], axis=0)), 1, atol=1e-10)
    np.testing.assert_allclose(spectrum.eigenvalues((basis * exact) @ basis.T), exact, atol=1e-13)


@pytest.mark.parametrize("images", [3, 9])
def test_compact_features_keep_all_inner_products_and_what_is_missing(images: int) -> None:
    means = np.random.default_rng(0).normal(size=(images, 5)) + 10
    means[1] = np.nan
    found = spectrum.compact(means)
    assert len(found) == images and found.shape[1] <= min(images, 5) and np.isnan(found[1]).all()
    rest = np.delete(means, 1, 0) - np.delete(means, 1, 0).mean(0)
    found = np.delete(found, 1, 0)
    np.testing.assert_allclose(found @ found.T, rest @ rest.T, atol=1e-12)


def test_each_part_of_the_images_is_left_out_in_turn(tmp_path: Path) -> None:
    blocks = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 1e-2, 1e-4]) + 2
    paths = []
    for number, block in enumerate(blocks):
        covariance = Covariance(4)
        covariance.update(block)
        paths.append(tmp_path / f"{number}.h5")
        run = {"arm": "scratch", "backbone": "b", "detector": "d", "seed": 0}
        taps = [Tap(TapKey("m", 0, "act"), 0, "none", covariance)]
        store.write_covariances(paths[-1], [(5, taps)], {"run": run, "experiment": "x"}, [number])
    merging.merge(tmp_path / "all.h5", paths, range(len(paths)))
    spectrum.write_spectra(tmp_path / "all.h5", tmp_path)
    jackknife = pd.read_parquet(tmp_path / "jackknife.parquet")
    assert jackknife.attrs["experiment"] == "x"
    for left_out in range(3):
        rest = np.delete(blocks.double().numpy(), left_out, 0).reshape(-1, 4)
        exact = np.linalg.eigvalsh(np.cov(rest, rowvar=False, bias=True))[::-1]
        found = jackknife[jackknife["left_out"] == left_out]["value"]
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-8 * exact[0])
    whole, *without = (
        np.cov(kept.reshape(-1, 4), rowvar=False, bias=True)
        for kept in (blocks.double().numpy(), *(np.delete(blocks.double().numpy(), part, 0) for part in range(3)))
    )
    expected = min(metrics.effective_samples(whole, without), 150.0)
    np.testing.assert_allclose(jackknife["effective_samples"], expected, rtol=1e-3)
    merging.merge(tmp_path / "again.h5", [tmp_path / "all.h5"])  # keeps the parts
    assert len(next(store.read(tmp_path / "again.h5")).parts) == 3


def test_eigenvalues_of_4096_channels_and_negative_noise_as_it_is() -> None:
    values = np.logspace(0, -6, 64)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    matrix = (basis * values) @ basis.T
    np.testing.assert_allclose(spectrum.eigenvalues(matrix), values, rtol=1e-8)
    large = np.kron(np.eye(64), matrix)
    np.testing.assert_allclose(spectrum.eigenvalues(large), np.repeat(values, 64), rtol=1e-8)
    singular = matrix - 1e-9 * np.eye(64) - values[-1] * np.outer(basis[:, -1], basis[:, -1])
    assert spectrum.eigenvalues(singular)[-1] == pytest.approx(-1e-9, rel=1e-3)
    with pytest.raises(UserError, match="a matrix of 2 channels holds NaN or infinity"):
        spectrum.eigenvalues(np.array([[1.0, np.nan], [np.nan, 1.0]]))


@pytest.mark.parametrize("failure", ["wrong", "not converged", None])
def test_eigenvalues_from_the_gpu_are_checked_and_fall_back_to_the_cpu(
    failure: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU is played by the CPU: what is tested is the check and the way back."""
    matrix = np.diag(np.arange(1.0, 1101.0))
    solve, calls = torch.linalg.eigvalsh, []

    def eigvalsh(moment: torch.Tensor) -> torch.Tensor:
        calls.append(moment)
        if len(calls) == 1 and failure == "not converged":
            raise RuntimeError("failed to converge")
        return solve(moment) * (1.001 if len(calls) == 1 and failure == "wrong" else 1)

    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    np.testing.assert_allclose(spectrum.eigenvalues(matrix, GPU), np.arange(1100.0, 0, -1))
    assert len(calls) == (1 if failure is None else 2)
    assert ("taken from the CPU" in caplog.text) == (failure is not None)


def symmetric(channels: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix with its eigenvalues and eigenvectors, descending."""
    basis = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(0)).double())[0]
    values = scale * 0.98 ** torch.arange(channels).double()
    return (basis * values) @ basis.T, values, basis


@pytest.mark.parametrize("directions", [0, 1, 5])
def test_the_gpu_gives_the_same_eigenvalues_and_directions(directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by the CPU, which takes other routines for it."""
    matrix, values, basis = symmetric(20)
    monkeypatch.setattr(spectrum, "GPU_CHANNELS", 20)
    sent: list[torch.device] = []

    def send(self: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(device)
        return self

    monkeypatch.setattr(torch.Tensor, "to", send)
    for device in (CPU, GPU):
        found, vectors = spectrum.eigen(matrix.numpy(), directions, device)
        assert sent == ([] if device is CPU else [device])
        np.testing.assert_allclose(found, values, atol=1e-13)
        assert vectors.shape == (20, directions)
        np.testing.assert_allclose(np.abs(np.sum(vectors * basis.numpy()[:, :directions], axis=0)), 1, atol=1e-10)
    sent.clear()
    spectrum.eigen(matrix.numpy()[:19, :19], directions, GPU)
    assert not sent  # smaller ones are not worth the way


@pytest.mark.parametrize("directions", [1, 2])
def test_all_directions_of_the_smallest_matrices(directions: int) -> None:
    values, vectors = spectrum.eigen(np.array([[2.0, 1.0], [1.0, 2.0]]), directions)
    np.testing.assert_allclose(values, [3, 1])
    wanted = np.array([[1.0, 1.0], [1.0, -1.0]])[:, :directions] / np.sqrt(2)
    np.testing.assert_allclose(np.abs(np.sum(vectors * wanted, axis=0)), 1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("directions", [0, 4])
def test_eigenvalues_belong_to_a_matrix_with_their_trace_their_norm_and_their_directions(
    scale: float, directions: int
) -> None:
    matrix, exact, _ = symmetric(120, scale)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    first = vectors[:, :directions]
    assert spectrum.belong(values, first, matrix)
    assert spectrum.belong(exact, first, matrix)
    error = 1e-5 * scale
    same_trace = values.clone()
    same_trace[0] += error
    same_trace[1] -= error
    same_norm = values.clone()
    same_norm[1] = (values[0] ** 2 + values[1] ** 2 - (values[0] - error) ** 2).sqrt()
    same_norm[0] -= error
    for wrong in (same_trace, same_norm, values + error, values * 1.001):
        assert not spectrum.belong(wrong, first, matrix)
    if directions:
        assert not spectrum.belong(values, first.flip(1), matrix)
        assert not spectrum.belong(values, vectors[:, 1 : directions + 1], matrix)
        turned = first.clone()
        turned[:, 0] += 1e-6 * vectors[:, 50]
        assert not spectrum.belong(values, turned, matrix)


def test_zeros_are_the_eigenvalues_of_a_matrix_of_zeros() -> None:
    assert spectrum.belong(torch.zeros(3), torch.eye(3)[:, :1], torch.zeros(3, 3))


def test_one_tensor_under_two_names_is_decomposed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = Covariance(16), Covariance(16)
    samples = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    first.update(samples)
    other.update(2 * samples)
    names = [("a.relu", first), ("a", first), ("b", other)]
    taps = [Tap(TapKey(name, 0, "act"), n, "none", covariance) for n, (name, covariance) in enumerate(names)]
    run = {"arm": "scratch", "backbone": "b", "detector": "d", "seed": 0}
    store.write_covariances(tmp_path / "c.h5", [(0, taps), (1, taps)], {"run": run})
    solve, calls = spectrum.eigen, []
    monkeypatch.setattr(spectrum, "eigen", lambda *arguments: calls.append(1) or solve(*arguments))  # type: ignore[func-returns-value]
    spectrum.write_spectra(tmp_path / "c.h5", tmp_path)
    values = (
        pd.read_parquet(tmp_path / "eigenvalues.parquet").query("index == 0").set_index(["module", "step"])["value"]
    )
    assert len(calls) == 4 and values["a", 0] == values["a.relu", 0] == pytest.approx(values["b", 1] / 4)
