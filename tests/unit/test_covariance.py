from __future__ import annotations

import numpy as np
import pytest
import torch

from eigendet.covariance import Covariance


def correlated(mean: float, samples: int = 6000, channels: int = 24) -> np.ndarray:
    """Float32 samples with a spectrum over six decades; the mean in standard deviations of the first direction."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(channels, channels)))[0]
    spread = np.logspace(0, -3, channels)
    drawn = random.normal(size=(samples, channels)) * spread @ basis.T + mean * basis[:, 0]
    return drawn.astype(np.float32)


def relative_error(found: torch.Tensor, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found.numpy() - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("mean", [0, 1, 10, 100])
def test_agrees_with_float64_numpy_however_far_the_mean(mean: float) -> None:
    samples = correlated(mean)
    covariance = Covariance(samples.shape[1])
    for batch in np.array_split(samples, 7):
        covariance.update(torch.from_numpy(batch))
    exact = np.cov(samples.astype(np.float64), rowvar=False, bias=True)
    assert covariance.count == len(samples)
    assert relative_error(covariance.covariance(), exact) < 1e-6
    raw = samples.astype(np.float64).T @ samples.astype(np.float64) / len(samples)
    assert relative_error(covariance.covariance(centred=False), raw) < 1e-6
    np.testing.assert_allclose(covariance.mean.numpy(), samples.astype(np.float64).mean(0), rtol=1e-6, atol=1e-7)
    found, wanted = np.linalg.eigvalsh(covariance.covariance().numpy()), np.linalg.eigvalsh(exact)
    kept = wanted > 1e-6 * wanted[-1]
    np.testing.assert_allclose(found[kept], wanted[kept], rtol=0.01)


def test_layouts_of_the_same_samples_agree() -> None:
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).relu()
    rows = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    exact = np.cov(rows.double().numpy(), rowvar=False, bias=True)
    for batch in (maps, maps.to(memory_format=torch.channels_last), maps.flatten(2), rows):
        covariance = Covariance(5)
        covariance.update(batch)
        assert covariance.count == 3 * 4 * 6
        assert relative_error(covariance.covariance(), exact) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_widened_before_the_product(dtype: torch.dtype) -> None:
    samples = torch.from_numpy(correlated(1.0)).to(dtype)
    covariance = Covariance(samples.shape[1])
    covariance.update(samples)
    exact = np.cov(samples.double().numpy(), rowvar=False, bias=True)
    assert relative_error(covariance.covariance(), exact) < 1e-6


def test_autocast_of_the_process_does_not_reach_the_product() -> None:
    samples = torch.from_numpy(correlated(10.0))
    plain, cast = Covariance(samples.shape[1]), Covariance(samples.shape[1])
    plain.update(samples)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(samples)
    assert torch.equal(plain.scatter, cast.scatter)


def test_merging_disjoint_samples_equals_seeing_them_all() -> None:
    samples = torch.from_numpy(correlated(30.0))
    whole, merged = Covariance(samples.shape[1]), Covariance(samples.shape[1])
    whole.update(samples)
    for part in samples.split([1000, 1, 4999]):
        shard = Covariance(samples.shape[1])
        shard.update(part + 0)
        merged.merge(shard)
    merged.merge(Covariance(samples.shape[1]))
    assert merged.count == whole.count
    assert relative_error(merged.scatter, whole.scatter.numpy()) < 1e-6
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-7, atol=1e-8)


def test_wrong_shapes_and_no_samples_are_refused() -> None:
    covariance = Covariance(4)
    with pytest.raises(ValueError, match=r"expected samples of shape \(N, 4, ...\), got \(2, 5\)"):
        covariance.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="cannot merge 5 channels into 4"):
        covariance.merge(Covariance(5))
    with pytest.raises(ValueError, match="no samples yet"):
        covariance.covariance()
    covariance.update(torch.zeros(0, 4))
    assert covariance.count == 0
