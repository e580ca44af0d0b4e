"""The memory, the slabs, the blocks and the precision of products of samples with themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from eigendet.moments import products
from eigendet.moments.products import CHUNK_BYTES, Workspace, gram, positions_of_chunk, row_blocks, slabs_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 64, 1000, 4096])
def test_a_chunk_holds_as_many_samples_as_its_memory_and_no_more(channels: int, dtype: torch.dtype) -> None:
    positions = positions_of_chunk(channels, dtype, CPU)
    size = torch.empty(0, dtype=dtype).element_size()
    assert positions * channels * size <= CHUNK_BYTES["cpu"] < (positions + 1) * channels * size
    assert CHUNK_BYTES == {"cpu": 1 << 24, "cuda": 1 << 27}


def test_one_sample_fits_however_many_channels_it_has() -> None:
    assert positions_of_chunk(CHUNK_BYTES["cpu"], torch.float64, CPU) == 1


def test_memory_is_taken_once_and_again_only_for_more() -> None:
    workspace = Workspace()
    chunk, square = workspace.take("chunk", (4, 6), torch.float32, CPU), workspace.take("b", (5, 5), torch.float32, CPU)
    assert (chunk.shape, square.shape) == ((4, 6), (5, 5))
    assert chunk.untyped_storage().data_ptr() != square.untyped_storage().data_ptr()
    for shape, dtype in [((4, 6), torch.float32), ((2, 5), torch.float32), ((4, 3), torch.float64)]:
        again = workspace.take("chunk", shape, dtype, CPU)
        assert again.data_ptr() == chunk.data_ptr() and (again.dtype, again.shape) == (dtype, shape)
    assert workspace.take("chunk", (4, 7), torch.float32, CPU).untyped_storage().nbytes() == 4 * 7 * 4


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("channels", [1, 12, 13, 256])
@pytest.mark.parametrize("positions", [1, 7, 950, 1024, 1025, 2048, 2049, 3800, 60_800, 243_200])
def test_slabs_hold_all_positions_and_none_is_longer_than_it_may_be(
    positions: int, channels: int, device: torch.device
) -> None:
    count, length = slabs_of(channels, positions, device)
    assert positions <= count * length < positions + 8 * count
    assert length <= (256 if channels < 13 else products.SLAB[device.type])
    assert count == 1 or length % 8 == 0


def elements(blocks: Iterator[tuple[int, int]], channels: int) -> float:
    return sum((end - begin) * (channels - begin) for begin, end in blocks) / channels**2


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 255, 256, 300, 1024, 1500, 4096])
def test_blocks_of_rows_follow_one_another_from_the_first_to_the_last(channels: int) -> None:
    blocks = list(row_blocks(channels))
    assert blocks[0][0] == 0 and blocks[-1][1] == channels
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(blocks))
    assert all(begin < end for begin, end in blocks)


def test_a_quarter_of_the_rows_at_a_time_is_five_eighths_of_the_arithmetic() -> None:
    for channels in (256, 512, 1024):
        assert elements(row_blocks(channels), channels) == 5 / 8
    assert list(row_blocks(64)) == [(0, 64)] and list(row_blocks(100)) == [(0, 64), (64, 100)]
    assert next(row_blocks(2048)) == (0, 256)  # as much as stays in a processor's cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 64, 65, 150])
@pytest.mark.parametrize("slabs", [1, 2, 5])
def test_products_fill_the_blocks_on_and_above_the_diagonal(channels: int, slabs: int, dtype: torch.dtype) -> None:
    samples = torch.randn(slabs, channels, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = samples.double().movedim(1, 0).flatten(1)
    workspace = Workspace()
    for layout in (samples, samples.mT.contiguous().mT):
        for _ in range(2):  # in memory that holds what was there before
            product = gram(layout, workspace)
            torch.testing.assert_close(
                product.triu().double(), (rows @ rows.T).triu(), rtol=0, atol=1e-4 if dtype.itemsize == 4 else 1e-12
            )


def test_as_many_slabs_are_multiplied_at_once_as_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = torch.randn(7, 8, 40, generator=torch.Generator().manual_seed(0))
    rows = samples.double().movedim(1, 0).flatten(1)
    sizes: list[int] = []
    bmm = torch.bmm

    def noting(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        sizes.append(len(left))
        return bmm(left, right, out=out)

    monkeypatch.setattr(torch, "bmm", noting)
    for bytes_, expected in [(1, [1] * 7), (3 * 8 * 8 * 4, [3, 3, 1]), (1 << 24, [7])]:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", bytes_)
        sizes.clear()
        torch.testing.assert_close(gram(samples, Workspace()), rows @ rows.T, rtol=1e-6, atol=1e-4)
        assert sizes == expected


def test_the_precision_of_the_process_comes_back_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision

    def failing(*operands: torch.Tensor, out: torch.Tensor) -> None:
        assert backend.fp32_precision == "ieee"
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr(torch, "bmm", failing)
        gram(torch.zeros(1, 3, 4), Workspace())
    assert backend.fp32_precision == before
    samples = torch.randn(1, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = samples[0].double() @ samples[0].double().mT
        torch.testing.assert_close(gram(samples, Workspace()).double(), expected, rtol=1e-6, atol=1e-5)
        assert torch.mm(samples[0], samples[0].T).dtype == torch.bfloat16
