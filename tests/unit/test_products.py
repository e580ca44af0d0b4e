"""The memory, the blocks and the precision of products of samples with themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from eigendet.observe import products
from eigendet.observe.products import CHUNK_BYTES, Workspace, gram, row_blocks, split_error, split_gram

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 64, 1000, 4096])
def test_a_chunk_holds_as_many_samples_as_its_memory_and_no_more(channels: int, dtype: torch.dtype) -> None:
    positions = Workspace(CPU).positions(channels, dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    assert positions * channels * size <= CHUNK_BYTES["cpu"] < (positions + 1) * channels * size
    assert CHUNK_BYTES == {"cpu": 1 << 24, "cuda": 1 << 27}


def test_one_sample_fits_however_many_channels_it_has() -> None:
    assert Workspace(CPU).positions(CHUNK_BYTES["cpu"], torch.float64) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_chunk_lies_in_memory_as_the_samples_do(channels_last: bool) -> None:
    chunk = Workspace(CPU).chunk(3, 5, torch.float32, channels_last)
    assert chunk.shape == (3, 5)
    assert chunk.stride() == ((1, 3) if channels_last else (5, 1))


def test_memory_is_taken_once_and_again_only_for_more() -> None:
    workspace = Workspace(CPU)
    chunk, square = workspace.chunk(4, 6, torch.float32, False), workspace.square(5, torch.float32)
    assert square.shape == (5, 5)
    assert chunk.untyped_storage().data_ptr() != square.untyped_storage().data_ptr()
    for channels, positions, dtype in [(4, 6, torch.float32), (2, 5, torch.float32), (4, 3, torch.float64)]:
        again = workspace.chunk(channels, positions, dtype, False)
        assert again.data_ptr() == chunk.data_ptr() and again.dtype == dtype
    more = workspace.chunk(4, 7, torch.float32, False)
    assert more.untyped_storage().nbytes() == 4 * 7 * 4
    assert workspace.square(5, torch.float32).data_ptr() == square.data_ptr()


def elements(blocks: Iterator[tuple[int, int]], channels: int) -> float:
    return sum((end - begin) * (channels - begin) for begin, end in blocks) / channels**2


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("channels", [1, 63, 64, 65, 255, 256, 300, 1024, 1500, 4096])
def test_blocks_of_rows_follow_one_another_from_the_first_to_the_last(channels: int, device: torch.device) -> None:
    blocks = list(row_blocks(channels, device))
    assert blocks[0][0] == 0 and blocks[-1][1] == channels
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(blocks))
    assert all(begin < end for begin, end in blocks)


def test_a_quarter_of_the_rows_at_a_time_is_five_eighths_of_the_arithmetic() -> None:
    for channels in (256, 512, 1024):
        assert elements(row_blocks(channels, CPU), channels) == 5 / 8
    for channels in (2048, 4096):
        assert elements(row_blocks(channels, GPU), channels) == 5 / 8
    assert list(row_blocks(64, CPU)) == [(0, 64)] and list(row_blocks(100, CPU)) == [(0, 64), (64, 100)]
    assert list(row_blocks(512, GPU)) == [(0, 512)] and list(row_blocks(600, GPU)) == [(0, 512), (512, 600)]
    assert next(row_blocks(2048, CPU)) == (0, 256)  # as much as stays in a processor's cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_fill_the_blocks_on_and_above_the_diagonal_alone(dtype: torch.dtype) -> None:
    samples = torch.randn(150, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = samples.double() @ samples.double().T
    for product in (gram, split_gram) if dtype == torch.float32 else (gram,):
        out = torch.full((150, 150), -7.0, dtype=dtype)
        assert product(samples, out) is out
        torch.testing.assert_close(
            out.triu().double(), expected.triu(), rtol=0, atol=1e-4 if dtype.itemsize == 4 else 1e-12
        )
        assert bool((out[64:, :64] == -7).all() and (out[128:, :128] == -7).all())


def exactly_tf32(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """A product that refuses operands with more than the ten bits of mantissa that TF32 keeps, but for one of them."""
    for operand in (left, right):
        if bool((operand.contiguous().view(torch.int32) & 0x1FFF == 0).all()):
            break
    else:
        raise AssertionError("neither operand is rounded to TF32")
    product = torch.mm(left.double(), right.double()).float()
    return product if out is None else out.copy_(product)


def test_what_a_sample_is_split_into_adds_up_to_it_but_for_the_square_of_its_rounding() -> None:
    """The high part keeps ten bits, rounded to the nearest, so what is left out is below 2^-22 of each product."""
    torch.manual_seed(0)
    samples = torch.rand(80, 512) + 1  # all of one sign, so that nothing averages out
    assert split_error(samples, exactly_tf32) < 2**-22


@pytest.mark.parametrize(("beyond", "expected"), [(0, 1), (0xFFF, 1), (0x1000, 1 + 2**-10), (0x1FFF, 1 + 2**-10)])
def test_the_high_part_is_rounded_to_the_nearest_and_a_half_away_from_zero(beyond: int, expected: float) -> None:
    seen: list[float] = []

    def noting(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        seen.append(float(left[0, 0]))
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
        return exactly_tf32(left, right, out)

    for sign in (1, -1):
        split_gram(torch.tensor([[sign * (1 + beyond * 2**-23)]]), torch.zeros(1, 1), noting)
    assert seen == [expected, expected, -expected, -expected]


def test_the_error_of_a_split_product_is_relative_to_all_of_the_product() -> None:
    samples = torch.randn(90, 64, generator=torch.Generator().manual_seed(0))

    def too_large(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        product = torch.mm(left, right) * 1.01
        return product if out is None else out.copy_(product)

    assert split_error(samples, too_large) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("capability", "precise"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_split_products_need_tensor_cores_for_tf32(
    capability: tuple[int, int], precise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is played by the CPU, whose products are as good as float32."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert products.split_is_precise.__wrapped__(CPU) == precise
    assert products.SPLIT_TOLERANCE < 1e-6
    monkeypatch.setattr(products, "split_error", lambda samples: products.SPLIT_TOLERANCE)
    assert not products.split_is_precise.__wrapped__(CPU)


def test_the_check_of_split_products_is_on_eigenvalues_over_eight_decades(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def noting(samples: Tensor) -> float:
        seen.append(samples)
        return 0.0

    monkeypatch.setattr(products, "split_error", noting)
    assert products.split_is_precise.__wrapped__(CPU)
    values = torch.linalg.svdvals(seen[0].double()) ** 2
    assert seen[0].shape == (256, 8192)
    assert float(values[0] / values[-1]) == pytest.approx(1e8, rel=0.5)


def test_the_precision_of_the_process_comes_back_also_after_a_failure() -> None:
    backend: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    with pytest.raises(RuntimeError, match="dtype"):
        gram(torch.zeros(3, 4), torch.zeros(3, 3, dtype=torch.float64))
    assert backend.fp32_precision == before
    samples = torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = samples.double() @ samples.double().mT
        torch.testing.assert_close(gram(samples, torch.zeros(8, 8)).double(), expected, rtol=1e-6, atol=1e-5)
        assert torch.mm(samples, samples.T).dtype == torch.bfloat16
