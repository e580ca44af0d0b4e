"""The parts of the accumulator: its shifts, its packs of samples, what it forgets, and what was not finite."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from eigendet.moments import covariance as accumulator
from eigendet.moments.chunks import _thinned, shift_of
from eigendet.moments.covariance import Covariance, NonFiniteError
from eigendet.moments.packs import packs
from eigendet.moments.products import Workspace
from tests.tapping import error, exact


def test_the_shift_is_the_mean_to_few_bits_of_the_spread() -> None:
    """The nearest multiple of a power of two, that is a quarter to a sixteenth of the mean deviation."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-6, 6, 40)[:, None]
    samples = torch.randn(40, 100, generator=generator) * scale + torch.randn(40, 1, generator=generator) * 5 * scale
    shift = shift_of([samples]).double()
    mean = samples.double().mean(1)
    deviation = (samples.double() - mean[:, None]).abs().mean(1)
    finest, coarsest = (2.0 ** torch.floor(torch.log2(deviation) - bits) for bits in (4, 2))
    assert torch.equal(shift / finest, (shift / finest).round())
    assert bool(((shift - mean).abs() <= coarsest * 0.501).all())


def test_a_mean_of_millions_of_standard_deviations_is_shifted_away_as_far_as_samples_tell() -> None:
    samples = torch.randn(3, 500) + torch.tensor([[1e3], [1e7], [-1e7]])
    shift = shift_of([samples])
    assert bool(((shift.double() - samples.double().mean(1)).abs() <= 2).all())


def test_what_never_varies_has_no_covariance() -> None:
    values = torch.tensor([1 / 3, 0, 1e30, -7e-30])
    assert torch.equal(shift_of([values[:, None].expand(4, 8)]), values)
    for count in (8, 50, 1000, 70_000):
        covariance = Covariance(2)
        for _ in range(3):
            covariance.update(torch.stack([torch.full((count,), 1 / 3), torch.arange(float(count))], 1))
        assert covariance.covariance()[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    "shape", [(3, 5), (3, 250), (3, 700), (3, 1, 9000), (3, 2, 300, 200), (3, 1, 20, 4000), (3, 8, 1, 2000)]
)
def test_the_shift_is_taken_from_few_rows_of_a_large_map_and_all_of_a_small_one(shape: tuple[int, ...]) -> None:
    part = torch.arange(float(torch.Size(shape[1:]).numel())).view(shape[1:]).expand(shape)
    some, positions = _thinned(part), part[0].numel()
    assert some[0].numel() == positions if positions < 256 else 128 <= some[0].numel() <= max(positions // 2, 5000)
    assert float(some.mean()) == pytest.approx(float(part.mean()), rel=0.2)


def test_a_first_batch_unlike_the_rest_costs_nothing() -> None:
    """A black image, then one whose mean is a thousand standard deviations: shifted by the first, it would lose 0.1."""
    generator = torch.Generator().manual_seed(0)
    bright = 1000 + torch.randn(400, 24, generator=generator) * torch.logspace(0, -2, 24)
    covariance, rest = Covariance(24), Covariance(24)
    covariance.update(torch.zeros(400, 24))
    for accumulated in (covariance, rest):
        accumulated.update(bright)
    assert error(rest.covariance(), exact(bright)) < 5e-7
    both = torch.cat([torch.zeros(400, 24), bright])
    assert error(covariance.covariance(), exact(both)) < 1e-9
    # What lies across the direction of the two means is the bright image's alone.
    basis = torch.linalg.qr(torch.cat([torch.ones(24, 1), torch.eye(24)[:, 1:]], 1).double())[0][:, 1:]
    across = basis.T @ covariance.covariance() @ basis
    assert error(across, exact(both.double() @ basis)) < 5e-7


@pytest.mark.parametrize("channels", [3, 4, 64])
@pytest.mark.parametrize("positions", [64, 256, 8192])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_a_value_that_is_held_again_and_again_costs_nothing(channels: int, positions: int, share: float) -> None:
    """The flat background of an image: its squares would round the same way each time, and be off by up to 6e-6."""
    generator = torch.Generator().manual_seed(positions)
    background = torch.rand(1, channels, generator=generator)
    objects = background + 0.1 * torch.randn(positions, channels, generator=generator)
    samples = torch.where(torch.rand(positions, 1, generator=generator) < share, background, objects)
    covariance = Covariance(channels)
    covariance.update(samples)
    assert error(covariance.covariance(), exact(samples)) < 1e-6


def test_more_chunks_than_are_pending_at_once_are_all_counted() -> None:
    parts = [torch.randn(7, 3) + number for number in range(2 * accumulator.PENDING + 5)]
    covariance = Covariance(3)
    for number, part in enumerate(parts, start=1):
        covariance.update(part)
        assert covariance.count == 7 * number
    assert error(covariance.covariance(), exact(torch.cat(parts))) < 1e-7
    assert len(covariance._pending) == 0


@pytest.mark.parametrize("fits", [1, 7, 10, 64, 10_000])
def test_packs_hold_what_fits_in_order_and_nothing_twice(fits: int) -> None:
    shapes = [(3, 4), (0, 5), (2, 2), (1, 1), (9, 6), (1, 30), (2, 3), (2, 5, 6), (4,)]
    parts = [torch.randn(2, *shape) for shape in shapes]
    packed = list(packs(parts, fits))
    sizes = [[piece[0].numel() for piece in pack] for pack in packed]
    assert all(0 < sum(pack) <= fits and min(pack) > 0 for pack in sizes)
    for pack, following in itertools.pairwise(sizes):
        assert sum(pack) + following[0] > fits  # as few as possible
    pieces = [piece.flatten(1) for pack in packed for piece in pack]
    flat = [part.flatten(1) for part in parts if part.numel()]
    if fits < 30:  # cut along the first dimension that can be, rows before columns
        assert sorted(torch.cat(pieces, 1)[0].tolist()) == sorted(torch.cat(flat, 1)[0].tolist())
    else:
        assert torch.equal(torch.cat(pieces, 1), torch.cat(flat, 1))


def test_sums_are_those_of_the_samples_since_they_were_taken_whatever_the_shift() -> None:
    parts = [torch.randn(60, 3) + 7, torch.randn(40, 3) - 2, torch.randn(1, 3, 2000, 1000) + 1, torch.randn(5, 3)]
    rows = [part if part.dim() == 2 else part[0].flatten(1).T for part in parts]
    covariance, other = Covariance(3), Covariance(3)
    count, total = covariance.take_sum()
    assert (count, total.tolist()) == (0, [0, 0, 0])
    covariance.forget()
    covariance.update(parts[0])
    other.update(parts[1])
    covariance.merge(other)

    def check(taken: tuple[float, torch.Tensor], expected: list[torch.Tensor]) -> None:
        all_rows = torch.cat(expected).double()
        assert taken[0] == len(all_rows)
        torch.testing.assert_close(taken[1], all_rows.sum(0), rtol=1e-6, atol=1e-4)

    first = covariance.take_sum()
    check(first, rows[:2])
    covariance.update(parts[2])
    check(covariance.take_sum(), rows[2:3])
    assert covariance.take_sum()[0] == 0
    for part in parts:
        covariance.update(part)
    check(covariance.take_sum(), rows)
    check(first, rows[:2])  # a copy


def test_taking_sums_adds_up_nothing_but_what_is_new() -> None:
    covariance = Covariance(3)
    for number in range(1, 3 * accumulator.PENDING):
        covariance.update(torch.full((2, 3), float(number)))
        count, total = covariance.take_sum()
        assert (count, total.tolist()) == (2, [2.0 * number] * 3)
    assert len(covariance._pending) > 1


def test_what_forgets_its_samples_counts_anew() -> None:
    covariance = Covariance(3)
    for _ in range(2):
        covariance.update(torch.randn(60, 3).double() + 7)
        covariance.forget()
        assert covariance.count == 0 and not covariance.scatter.any()
        with pytest.raises(ValueError, match="no samples yet"):
            covariance.covariance()
    samples = torch.randn(60, 3).double()
    covariance.update(samples)
    assert covariance.count == 60 and error(covariance.covariance(), exact(samples)) < 1e-12
    assert not Covariance(3).scatter.any()


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the device for a value before a result is read."""
    monkeypatch.setattr(accumulator, "_answers_at_once", lambda device: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("update", [0, 3, accumulator.PENDING + 1])
@pytest.mark.parametrize("shape", [(9, 3), (1, 3, 1500, 1000)])
def test_the_first_update_that_was_not_finite_is_told_when_a_result_is_read(
    update: int, bad: float, shape: tuple[int, ...]
) -> None:
    covariance = Covariance(3)
    for number in range(accumulator.PENDING + 3):
        samples = torch.randn(shape if number == update else (9, 3))
        if number >= update:
            samples.view(-1)[-1] = bad
        covariance.update(samples)
    assert covariance.first_rejected == update
    mapped = covariance.affine(torch.eye(3), torch.ones(3))
    total, clean = Covariance(3), Covariance(3)
    clean.update(torch.randn(9, 3))
    total.merge(clean)
    total.merge(mapped)
    again = Covariance.from_state_dict(covariance.state_dict())
    for spoilt in (covariance, mapped, total, again):
        with pytest.raises(NonFiniteError, match=f"update {update}: NaN, infinity"):
            spoilt.covariance()
    assert clean.first_rejected is None and int(clean.state_dict()["rejected"]) < 0
    covariance.forget()
    covariance.update(torch.randn(9, 3))
    assert covariance.count == 9 and covariance.covariance().isfinite().all()


@pytest.mark.parametrize("scale", [1e-15, 1e-19, 1e-23, 1e-30])
@pytest.mark.parametrize("mean", [0, 1])
def test_values_whose_squares_underflow_are_multiplied_in_float64(scale: float, mean: float) -> None:
    samples = (torch.randn(500, 6) + mean) * scale
    covariance = Covariance(6)
    covariance.update(samples)
    assert error(covariance.covariance(), exact(samples)) < 1e-6


def test_and_are_said_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance, large, constant = Covariance(6), Covariance(6), Covariance(6)
    monkeypatch.setattr("eigendet.moments.chunks.UNDERFLOW", 0.0)
    covariance.update(torch.randn(500, 6) * 1e-23)
    large.update(torch.randn(500, 6))
    constant.update(torch.full((500, 6), 1e-23))
    assert not covariance.underflows
    monkeypatch.setattr(accumulator, "_answers_at_once", lambda device: False)
    assert [one.underflows for one in (covariance, large, constant)] == [True, False, False]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_is_finite_is_the_same_where_nobody_waits() -> None:
    parts = [torch.randn(2, 5, 1500, 500) * 3 + 1, torch.randn(2, 5, 6, 7)]
    covariance = Covariance(5)
    for part in parts:
        covariance.update(part)
    rows = torch.cat([part.movedim(1, -1).flatten(0, 2) for part in parts])
    assert covariance.count == len(rows) and covariance.first_rejected is None
    assert error(covariance.covariance(), exact(rows)) < 1e-7


def test_channels_are_where_they_are_said_to_be() -> None:
    covariance = Covariance(3)
    covariance.update(torch.ones(3), channel_dim=-1)
    covariance.update(torch.ones(3), channel_dim=0)
    covariance.update(torch.ones(2, 3), channel_dim=-1)
    assert covariance.count == 4
    for samples, channel_dim in (
        (torch.ones(3), 1),
        (torch.ones(3, 4), 1),
        (torch.ones(3, 4), -1),
        (torch.ones(4, 3), 0),
    ):
        with pytest.raises(ValueError, match=f"expected 3 channels in dimension {channel_dim}"):
            covariance.update(samples, channel_dim)
    assert covariance.count == 4


def test_memory_may_be_shared_and_a_failed_first_update_leaves_no_shift() -> None:
    workspace = Workspace()
    one, other, samples = Covariance(3), Covariance(5), torch.randn(40, 5).double() + 2
    with pytest.raises(NonFiniteError):
        one.update(torch.full((4, 3), torch.nan), workspace=workspace)
    assert "shift" not in one.state_dict() and one.count == 0
    for _ in range(2):
        one.update(samples[:, :3], workspace=workspace)
        other.update(samples, workspace=workspace)
    assert error(one.covariance(), exact(samples[:, :3])) < 1e-12
    assert error(other.covariance(), exact(samples)) < 1e-12


@pytest.mark.parametrize("channels", [1, 5, 64, 150])
def test_a_matrix_is_mirrored_from_its_upper_triangle(channels: int) -> None:
    matrix = torch.randn(channels, channels).double()
    expected = matrix.triu() + matrix.triu(1).T
    assert torch.equal(accumulator._symmetric(matrix), expected)


def test_gradients_and_inference_mode_do_not_reach_the_accumulator() -> None:
    covariance = Covariance(3)
    samples = (torch.randn(20, 3) * nn.Parameter(torch.ones(3))).requires_grad_()
    covariance.update(samples)
    assert not covariance.scatter.requires_grad and not covariance.affine(samples[0].detach()).mean.requires_grad
    with torch.inference_mode():
        covariance.merge(Covariance.from_moments(4, torch.zeros(3), torch.eye(3)))
        fresh = Covariance(3)
    fresh.update(samples)
    covariance.update(samples)
    assert not covariance.mean.is_inference() and covariance.count == 44
