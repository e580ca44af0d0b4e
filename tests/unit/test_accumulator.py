"""The parts of the accumulator: its shift, its packs of samples, what it forgets, and what was not finite."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from eigendet.observe import covariance as accumulator
from eigendet.observe.covariance import Covariance, NonFiniteError
from eigendet.observe.packs import packs
from eigendet.observe.products import Workspace
from tests.tapping import error, exact


def test_the_shift_is_the_mean_to_few_bits_of_the_spread() -> None:
    """The nearest multiple of a power of two, that is a quarter to an eighth of the standard deviation."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-6, 6, 40)[:, None]
    samples = torch.randn(40, 500, generator=generator) * scale + torch.randn(40, 1, generator=generator) * 5 * scale
    shift = accumulator._shift(samples).double()
    mean, spread = samples.double().mean(1), samples.double().std(1, correction=0)
    unit = 2.0 ** torch.floor(torch.log2(spread) - 2)
    assert bool(((unit > spread / 8) & (unit <= spread / 4)).all())
    assert torch.equal(shift / unit, (shift / unit).round())
    assert bool(((shift - mean).abs() <= unit * 0.501).all())


def test_what_is_not_finite_is_not_shifted_and_what_never_varies_has_no_covariance() -> None:
    values = torch.tensor([1 / 3, 0, torch.inf, torch.nan])
    shift = accumulator._shift(values[:, None].expand(4, 8))
    assert shift[0] == pytest.approx(1 / 3) and shift[1:].tolist() == [0, 0, 0]
    for count in (8, 50, 1000):
        covariance = Covariance(2)
        for _ in range(3):
            covariance.update(torch.stack([torch.full((count,), 1 / 3), torch.arange(float(count))], 1))
        assert covariance.covariance()[0].tolist() == [0, 0]


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


def test_sums_are_those_of_the_samples_whatever_the_shift() -> None:
    first, second = torch.randn(60, 3) + 7, torch.randn(40, 3) - 2
    covariance, other = Covariance(3), Covariance(3)
    assert [part.tolist() for part in covariance.count_and_sum()] == [0, [0, 0, 0]]
    covariance.update(first)
    other.update(second)
    covariance.merge(other)
    count, total = covariance.count_and_sum()
    assert int(count) == 100
    torch.testing.assert_close(total, torch.cat([first, second]).double().sum(0), rtol=1e-6, atol=1e-4)
    covariance.update(first)
    assert int(count) == 100  # a copy


def test_what_forgets_its_samples_keeps_its_shift_and_counts_anew() -> None:
    covariance = Covariance(3)
    covariance.update(torch.randn(60, 3).double() + 7)
    shift = covariance.state_dict()["shift"].clone()
    covariance.forget()
    assert covariance.count == 0 and not covariance.scatter.any()
    with pytest.raises(ValueError, match="no samples yet"):
        covariance.covariance()
    samples = torch.randn(60, 3).double()
    covariance.update(samples)
    assert torch.equal(covariance.state_dict()["shift"], shift)
    assert covariance.count == 60 and error(covariance.covariance(), exact(samples)) < 1e-12
    assert not Covariance(3).scatter.any()


@pytest.mark.parametrize("update", [0, 3])
def test_the_first_update_that_was_not_finite_is_told_and_kept_in_merges(update: int) -> None:
    """As a GPU notes it; on a CPU the update itself raises."""
    covariance = Covariance(2)
    covariance.update(torch.randn(9, 2))
    assert covariance.first_rejected is None and int(covariance.state_dict()["rejected"]) < 0
    spoilt = Covariance.from_state_dict(covariance.state_dict() | {"rejected": torch.tensor(update)})
    for one, other in ((spoilt, covariance), (covariance, spoilt)):
        one.merge(other)
        assert one.first_rejected == update
        with pytest.raises(NonFiniteError, match=f"update {update}: NaN, infinity"):
            one.covariance()


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
    workspace = Workspace(torch.device("cpu"))
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
