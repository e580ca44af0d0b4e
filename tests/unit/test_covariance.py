"""The accumulator against torch, scikit-learn, delve and float64, over means, layouts, splits, orders and merges."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from delve.torch_utils import TorchCovarianceMatrix
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

from eigendet.moments.covariance import Covariance, NonFiniteError
from eigendet.moments.products import CHUNK_BYTES


def correlated(mean: float, samples: int = 6000, channels: int = 24, seed: int = 0) -> np.ndarray:
    """Float32 samples with a spectrum over six decades; the mean in standard deviations of the first direction."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(channels, channels)))[0]
    spread = np.logspace(0, -3, channels)
    drawn = random.normal(size=(samples, channels)) * spread @ basis.T + mean * basis[:, 0]
    return drawn.astype(np.float32)


def exact(rows: Tensor) -> Tensor:
    """Covariance of (N, C) in float64 by torch."""
    return torch.cov(rows.double().T, correction=0)


def error(computed: Tensor, expected: Tensor) -> float:
    return float((computed - expected).norm() / expected.norm())


@pytest.mark.parametrize("mean", [0, 1, 10, 100])
def test_agrees_with_float64_numpy_however_far_the_mean(mean: float) -> None:
    samples = correlated(mean)
    covariance = Covariance(samples.shape[1])
    for batch in np.array_split(samples, 7):
        covariance.update(torch.from_numpy(batch))
    expected = np.cov(samples.astype(np.float64), rowvar=False, bias=True)
    assert covariance.count == len(samples)
    assert error(covariance.covariance(), torch.from_numpy(expected)) < 1e-6
    raw = torch.from_numpy(samples.astype(np.float64).T @ samples.astype(np.float64) / len(samples))
    assert error(covariance.covariance(centered=False), raw) < 1e-6
    np.testing.assert_allclose(covariance.mean.numpy(), samples.astype(np.float64).mean(0), rtol=1e-6, atol=1e-7)
    computed, values = np.linalg.eigvalsh(covariance.covariance().numpy()), np.linalg.eigvalsh(expected)
    kept = values > 1e-6 * values[-1]
    np.testing.assert_allclose(computed[kept], values[kept], rtol=0.01)


@pytest.mark.parametrize("mean", [0, 1, 10, 100])
def test_agrees_on_wide_maps_over_many_batches(mean: float) -> None:
    samples = torch.from_numpy(correlated(mean, 40_000, 256))
    covariance = Covariance(256)
    for batch in samples.split(4000):
        covariance.update(batch)
    computed, expected = torch.linalg.eigvalsh(covariance.covariance()), torch.linalg.eigvalsh(exact(samples))
    assert error(covariance.covariance(), exact(samples)) < 2e-7
    kept = expected > 1e-6 * expected[-1]
    torch.testing.assert_close(computed[kept], expected[kept], rtol=0.01, atol=0)


@pytest.mark.parametrize("activation", ["relu", "relu6", "sigmoid", "silu"])
@pytest.mark.parametrize("channels", [1, 4, 64, 512])
def test_one_value_held_again_and_again_does_not_bias_the_products(activation: str, channels: int) -> None:
    """A ReLU's zeros, shifted by a mean with all its bits, would make the error of a float32 product 1.2e-6."""
    torch.manual_seed(0)
    mixed = (torch.randn(8192, channels) @ torch.randn(channels, channels) / channels**0.5) * torch.rand(channels) - 0.3
    samples = getattr(torch.nn.functional, activation)(3 * mixed)
    covariance = Covariance(channels)
    covariance.update(samples)
    assert error(covariance.covariance(), exact(samples).view(channels, channels)) < 2e-7


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 12, 13, 16, 64, 256])
def test_a_long_chunk_is_as_exact_as_a_short_one(channels: int) -> None:
    """One float32 product over all positions of few channels is 1e-5 to 1e-3 off: it adds one after another."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(1, channels, 2**22 // channels, generator=generator)
    for maps in (samples, samples.relu(), samples.mT.contiguous().mT):
        covariance = Covariance(channels)
        covariance.update(maps)
        assert error(covariance.covariance(), exact(maps[0].T).view(channels, channels)) < 1e-7


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8, 12, 13, 16, 17, 24, 31, 33, 48, 65, 100, 257, 600, 1024, 2048])
@pytest.mark.parametrize("positions", [90, 1000, 5000])
def test_every_width_and_length_is_exact_to_float32(channels: int, positions: int) -> None:
    """A float32 product itself is off by 2e-7 where there are no more positions than channels."""
    if channels * positions > 2**21:
        positions = 2**21 // channels
    generator = torch.Generator().manual_seed(channels + positions)
    mixed = torch.randn(positions, channels, generator=generator) @ torch.randn(channels, channels, generator=generator)
    mixed /= channels**0.5
    for samples in (mixed + 2, mixed.relu(), (mixed * 40 + 128).clamp(0, 255).round() / 255):
        covariance = Covariance(channels)
        covariance.update(samples)
        assert error(covariance.covariance(), exact(samples).view(channels, channels)) < 2.5e-7


def test_agrees_with_torch_cov_scikit_learn_and_delve() -> None:
    samples = torch.from_numpy(correlated(1.0, channels=12))
    covariance, delve, pca = Covariance(12), TorchCovarianceMatrix(device="cpu"), IncrementalPCA(12)
    for batch in samples.split(600):
        covariance.update(batch)
        delve.update(batch, vae=False)
        pca.partial_fit(batch.double().numpy())
    assert error(covariance.covariance(), torch.cov(samples.double().T, correction=0)) < 1e-6
    assert error(covariance.covariance(), delve.fix()) < 1e-6
    assert error(covariance.covariance(centered=False), delve.fix(center=False)) < 1e-6
    unbiased = pca.get_covariance() * (len(samples) - 1) / len(samples)
    assert error(covariance.covariance(), torch.from_numpy(unbiased)) < 1e-6
    np.testing.assert_allclose(covariance.mean.numpy(), pca.mean_, rtol=1e-6)


def layouts(maps: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The same samples of (N, C, H, W), with the dimension of their channels."""
    rows = maps.permute(0, 2, 3, 1)
    yield from ((maps, 1), (maps.to(memory_format=torch.channels_last), 1), (maps.flatten(2), 1), (maps.flatten(2), -2))
    yield from ((rows, -1), (rows.contiguous(), 3), (rows.flatten(1, 2), 2), (rows.reshape(-1, maps.shape[1]), 1))
    yield from ((maps.transpose(2, 3), 1), (maps.permute(1, 0, 2, 3), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_layouts_and_precisions_of_the_same_samples_agree(dtype: torch.dtype) -> None:
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    expected = exact(maps.permute(0, 2, 3, 1).reshape(-1, 5))
    for samples, channel_dim in layouts(maps):
        covariance = Covariance(5)
        covariance.update(samples, channel_dim)
        assert covariance.count == 3 * 4 * 6
        assert error(covariance.covariance(), expected) < (1e-14 if dtype == torch.float64 else 3e-7)


def test_a_vector_is_one_sample_and_no_samples_are_none() -> None:
    covariance = Covariance(4)
    covariance.update(torch.zeros(0, 4))
    covariance.update(torch.zeros(2, 4, 0, 3))
    assert covariance.count == 0
    covariance.update(torch.arange(4.0), channel_dim=0)
    covariance.update(torch.ones(1, 4))
    assert covariance.count == 2
    assert covariance.mean.tolist() == [0.5, 1, 1.5, 2]


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_larger_than_a_chunk_are_cut(channels_last: bool) -> None:
    maps = torch.randn(3, 40, 250, 260, generator=torch.Generator().manual_seed(0)).relu() + 5
    assert maps.numel() * 4 > 1.5 * CHUNK_BYTES["cpu"]
    covariance = Covariance(40)
    covariance.update(maps.to(memory_format=torch.channels_last) if channels_last else maps)
    assert covariance.count == 3 * 250 * 260
    assert error(covariance.covariance(), exact(maps.movedim(1, -1).flatten(0, 2))) < 1e-6


def test_padding_is_left_out() -> None:
    maps = torch.randn(3, 5, 8, 7) + 2
    sizes = [(8, 7), (3, 7), (0, 4)]
    covariance = Covariance(5)
    covariance.update(maps, sizes=sizes)
    rows = [entry[:, :height, :width].flatten(1) for entry, (height, width) in zip(maps, sizes, strict=True)]
    assert covariance.count == 8 * 7 + 3 * 7
    assert error(covariance.covariance(), exact(torch.cat(rows, dim=1).T)) < 1e-6


@pytest.fixture
def process_settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.set_default_dtype(before[1])


@pytest.mark.usefixtures("process_settings")
def test_settings_of_the_process_do_not_reach_the_product() -> None:
    """On a CPU with bfloat16 units `medium` makes torch's own float32 products wrong by 3e-4."""
    samples = torch.from_numpy(correlated(10.0, channels=256))
    plain, changed = Covariance(256), Covariance(256)
    plain.update(samples)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float16)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        changed.update(samples)
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.equal(plain.scatter, changed.scatter)
    assert changed.scatter.dtype == torch.float64
    changed.update(samples)  # outside of inference mode again


def test_eight_shards_merge_to_the_whole() -> None:
    """Every image is shifted by its own mean, so its products are the same wherever it is seen."""
    maps = list(torch.from_numpy(correlated(30.0, 8 * 20 * 30, 64)).view(16, 300, 64).mT.unsqueeze(-1).split(1))
    whole, merged = Covariance(64), Covariance(64)
    for image in maps:
        whole.update(image)
    for number in range(8):
        shard = Covariance(64)
        for image in maps[number::8]:
            shard.update(image)
        merged.merge(shard)
    assert merged.count == whole.count == 4800
    assert error(merged.scatter, whole.scatter) < 1e-12
    assert error(merged.mean, whole.mean) < 1e-12


def test_eight_shards_in_float64_merge_to_the_whole_whatever_their_shifts() -> None:
    samples = torch.from_numpy(correlated(30.0, 8000)).double()
    whole, merged = Covariance(24), Covariance(24)
    whole.update(samples)
    for part in samples.split(1000):
        shard = Covariance(24)
        shard.update(part)
        merged.merge(shard)
    assert error(merged.scatter, whole.scatter) < 1e-12


@settings(max_examples=40)
@given(data=st.data(), channels=st.integers(1, 9), batches=st.integers(1, 6), mean=st.sampled_from([0.0, 3.0, 50.0]))
def test_any_split_order_and_merge_gives_the_same(
    data: st.DataObject, channels: int, batches: int, mean: float
) -> None:
    seed = data.draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    shapes = [data.draw(st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(1, 5))) for _ in range(batches)]
    maps = [torch.randn(n, channels, h, w, generator=generator) + mean for n, h, w in shapes]
    order = data.draw(st.permutations(range(batches)))
    cut = data.draw(st.integers(0, batches))
    left, right = Covariance(channels), Covariance(channels)
    for place, index in enumerate(order):
        (left if place < cut else right).update(maps[index])
    left.merge(right)
    rows = torch.cat([part.movedim(1, -1).flatten(0, 2) for part in maps])
    assert left.count == len(rows)
    if len(rows) > 1:
        scale = max(float(exact(rows).norm()) if channels > 1 else float(rows.double().var(correction=0)), 1e-3)
        expected = exact(rows).reshape(channels, channels)
        assert float((left.covariance() - expected).norm()) < 1e-6 * max(scale, 1.0)
        torch.testing.assert_close(left.mean, rows.double().mean(0), rtol=1e-6, atol=1e-6)


def test_merging_is_associative_and_an_empty_one_changes_nothing() -> None:
    parts = [torch.from_numpy(part) for part in np.array_split(correlated(5.0), 3)]

    def merged(order: tuple[int, ...]) -> Covariance:
        total = Covariance(24)
        total.merge(Covariance(24))
        for index in order:
            part = Covariance(24)
            part.update(parts[index])
            total.merge(part)
        return total

    first, *others = (merged(order) for order in itertools.permutations(range(3)))
    for other in others:
        assert error(other.scatter, first.scatter) < 1e-12


def test_affine_maps_of_the_samples() -> None:
    samples = torch.from_numpy(correlated(3.0)).double()
    covariance = Covariance(24)
    covariance.update(samples)
    weight, bias, factor = torch.randn(40, 24).double(), torch.randn(40).double(), torch.randn(24).double()
    for mapped, expected in [
        (covariance.affine(weight, bias), samples @ weight.T + bias),
        (covariance.affine(weight[:5]), samples @ weight[:5].T),
        (covariance.affine(factor, bias[:24]), samples * factor + bias[:24]),
        (covariance.affine(None), samples),
        (covariance.affine(weight).affine(bias), (samples @ weight.T) * bias),
    ]:
        assert (mapped.count, mapped.channels) == (len(samples), expected.shape[1])
        assert error(mapped.covariance(), exact(expected)) < 1e-12
        torch.testing.assert_close(mapped.mean, expected.mean(0), rtol=1e-10, atol=1e-10)
    mapped = covariance.affine(weight, bias)
    mapped.merge(covariance.affine(-weight, bias))
    assert error(mapped.covariance(), exact(torch.cat([samples @ weight.T, -samples @ weight.T]) + bias)) < 1e-12


def test_going_on_from_moments_that_were_computed() -> None:
    first, second = torch.from_numpy(correlated(1e6)).split(3000)
    seen = Covariance(24)
    seen.update(first)
    for computed, factor in [
        (Covariance.from_moments(3000, seen.mean, seen.scatter), 1),
        (seen.affine(torch.full((24,), 1 / 3, dtype=torch.float64)), 1 / 3),
    ]:
        further = (second.double() * factor).float()
        computed.update(further)
        rows = torch.cat([first.double() * factor, further.double()])
        assert error(computed.covariance(), exact(rows)) < 3e-7
        torch.testing.assert_close(computed.mean, rows.mean(0), rtol=1e-12, atol=1e-5)


def test_going_on_from_a_saved_state_equals_never_having_stopped() -> None:
    first, second = torch.from_numpy(correlated(3.0)).split(3000)
    whole, stopped, unread = Covariance(24), Covariance(24), Covariance(24)
    for covariance in (whole, stopped, unread):
        covariance.update(first)
    assert whole.scatter.any()  # what is read adds up what is pending, as saving does
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = Covariance.from_state_dict(torch.load(file, weights_only=True))
    for covariance in (whole, resumed, unread):
        covariance.update(second)
    assert torch.equal(whole.scatter, resumed.scatter)
    assert error(resumed.scatter, unread.scatter) < 1e-15
    assert torch.equal(whole.mean, resumed.mean)
    assert Covariance.from_state_dict(Covariance(3).state_dict()).count == 0
    moments = Covariance.from_moments(whole.count, whole.mean, whole.scatter)
    assert torch.equal(moments.scatter, whole.scatter)
    assert torch.equal(moments.covariance(), whole.covariance())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e25])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5, 5), (2, 3, 1500, 1000)])
def test_what_is_not_finite_is_refused_and_leaves_what_was_there(bad: float, shape: tuple[int, ...]) -> None:
    covariance = Covariance(3)
    spoilt = torch.randn(shape)
    spoilt.view(-1)[-1] = bad
    for start in (torch.randn(0, 3), torch.randn(50, 3)):
        covariance.update(start)
        before = covariance.state_dict() | {"count": torch.tensor(covariance.count)}
        before = {name: value.clone() for name, value in before.items()}
        with pytest.raises(NonFiniteError, match="NaN, infinity, or numbers whose squares overflow float32"):
            covariance.update(spoilt)
        assert all(torch.equal(value, covariance.state_dict()[name]) for name, value in before.items())


def test_wrong_shapes_and_no_samples_are_refused() -> None:
    covariance = Covariance(4)
    with pytest.raises(ValueError, match=r"expected 4 channels in dimension 1, got samples of shape \(2, 5\)"):
        covariance.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="expected 4 channels in dimension 1"):
        covariance.update(torch.zeros(4))
    with pytest.raises(ValueError, match="cannot merge 5 channels into 4"):
        covariance.merge(Covariance(5))
    with pytest.raises(ValueError, match="no samples yet"):
        covariance.covariance()
