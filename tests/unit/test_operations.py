"""What every kind of operation does to the axes of its operands: rule by rule, on maps whose axes have names."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.following import Followed, Named

MAP: Named = ((2, 8, 4, 6), ".a..")


@pytest.mark.parametrize(
    ("operation", "shape", "names", "wanted"),
    [
        # Dimensions in another order.
        (lambda x: x.permute(0, 2, 3, 1), *MAP, "...a"),
        (lambda x: x.permute(0, -2, -1, -3), *MAP, "...a"),
        (lambda x: x.permute(3, 1, 0, 2), (2, 8, 4, 5), "ab.c", "cba."),
        (lambda x: x.transpose(1, 3), *MAP, "...a"),
        (lambda x: x.transpose(-3, -1), *MAP, "...a"),
        (lambda x: x.transpose(2, 0), (3, 8, 5), "a.b", "b.a"),
        (lambda x: x.t(), (3, 8), "ab", "ba"),
        (lambda x: torch.ops.aten.permute(x, dims=[0, 2, 3, 1]), *MAP, "...a"),
        (lambda x: torch.ops.aten.transpose(x, dim1=1, dim0=3), *MAP, "...a"),
        # More and fewer of them.
        (lambda x: x.unsqueeze(0), *MAP, "..a.."),
        (lambda x: x.unsqueeze(2), *MAP, ".a..."),
        (lambda x: x.unsqueeze(-1), *MAP, ".a..."),
        (lambda x: x.unsqueeze(-4), *MAP, "..a.."),
        (lambda x: x.unsqueeze_(1), (3, 8), ".a", "..a"),
        (lambda x: x.squeeze(), (1, 8, 1, 5), ".a.b", "ab"),
        (lambda x: x.squeeze(2), (1, 8, 1, 5), ".a.b", ".ab"),
        (lambda x: x.squeeze(-2), (1, 8, 1, 5), ".a.b", ".ab"),
        (lambda x: x.squeeze((0, 2)), (1, 8, 1, 5), ".a.b", "ab"),
        (lambda x: x.squeeze(1), (1, 8, 1, 5), ".a.b", ".a.b"),
        (lambda x: x[1], *MAP, "a.."),
        (lambda x: x.select(-1, 0), *MAP, ".a."),
        (lambda x: x.select(2, 0), (2, 8, 4, 5), ".a.b", ".ab"),
        (lambda x: x.unbind(), *MAP, "a.."),
        (lambda x: x.unbind(3), *MAP, ".a."),
        # Numbers of several positions.
        (lambda x: x.mean((2, 3)), *MAP, ".a"),
        (lambda x: x.mean((2, 3), keepdim=True), *MAP, ".a.."),
        (lambda x: x.mean((-1, -2)), *MAP, ".a"),
        (lambda x: x.sum(0), *MAP, "a.."),
        (lambda x: x.sum(2, keepdim=True), (2, 8, 4, 5), ".a.b", ".a.b"),
        (lambda x: x.sum(3, keepdim=True), (2, 8, 4, 5), ".a.b", ".a.."),
        (lambda x: x.amax(-1), (2, 8, 4, 5), "ba.c", "ba."),
        (lambda x: x.amax(), *MAP, ""),
        (lambda x: x.mean([]), *MAP, ""),
        (lambda x: torch.ops.aten.sum(x, dim=[2]), (2, 8, 4, 5), ".a.b", ".ab"),
        (lambda x: x.max(2), *MAP, ".a."),
        (lambda x: x.min(0), *MAP, "a.."),
        (lambda x: x.prod(2), *MAP, ".a."),
        (lambda x: x.var((2, 3)), *MAP, ".a"),
        (lambda x: x.std((0, 2, 3), keepdim=True), *MAP, ".a.."),
        # Element by element, and what changes the size of other dimensions.
        (lambda x: x.relu() + 1, *MAP, ".a.."),
        (lambda x: F.interpolate(x, scale_factor=2), *MAP, ".a.."),
        (lambda x: F.max_pool2d(x, 2), *MAP, ".a.."),
        (lambda x: x.softmax(1), *MAP, ".a.."),
        (lambda x: x.cumsum(2), (2, 8, 4, 5), ".abc", ".abc"),
        (lambda x: x.relu(), (8, 4, 6), "a..", "a.."),
        (lambda x: x.sum(), *MAP, ""),
        (lambda x: x.max(), *MAP, ""),
        # Parts.
        (lambda x: x[:, :, 1:], *MAP, ".a.."),
        (lambda x: x[1:], *MAP, ".a.."),
        (lambda x: x[:, :, :, ::2], *MAP, ".a.."),
        (lambda x: x.split(1), *MAP, ".a.."),
        (lambda x: x.split(1), (2, 8), ".a", ".a"),
        (lambda x: x.chunk(2, 3), (2, 8, 4, 6), ".ab.", ".ab."),
        # Other shapes.
        (lambda x: x.flatten(2), *MAP, ".a."),
        (lambda x: x.reshape(2, 8, 2, 2, 6), *MAP, ".a..."),
        (lambda x: x.reshape(2, 8, 3, 8), *MAP, ".a.."),
        (lambda x: x.reshape(1, 2, 8, 24), *MAP, "..a."),
        (lambda x: x.view(2, 8, 1, 24), *MAP, ".a.."),
        (lambda x: x.reshape(2, 1, 8, 4, 6), *MAP, "..a.."),
        (lambda x: x.reshape(2, 8, 24, 1), *MAP, ".a.."),
        (lambda x: x.reshape(2, 8, 4, 6), (2, 8, 24, 1), ".a..", ".a.."),
        (lambda x: x.reshape(8), (1, 8), "ab", "b"),
        (lambda x: x.reshape(2, 2, 2, 4), (2, 2, 8), ".a.", ".a.."),
    ],
)
def test_axes_go_where_their_dimensions_go(
    operation: Callable[[Tensor], Any], shape: tuple[int, ...], names: str, wanted: str
) -> None:
    found = Followed(operation, (shape, names))
    assert "".join(found.axes) == wanted
    assert not found.fixed and not found.multiples


@pytest.mark.parametrize(
    ("operation", "shape", "names", "wanted", "multiples"),
    [
        (lambda x: x[:, 2:6], *MAP, [".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: x[:, :2], *MAP, [".", "1/4a", ".", "."], {"a": 4}),
        (lambda x: x[:, -2:], *MAP, [".", "1/4a", ".", "."], {"a": 4}),
        (lambda x: x[:, -6:-2], *MAP, [".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: x[:, -20:4], *MAP, [".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: x.chunk(2, 1), *MAP, [".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: x.chunk(4, -3), *MAP, [".", "1/4a", ".", "."], {"a": 4}),
        (lambda x: x.split([2, 6], 1), *MAP, [".", "1/4a", ".", "."], {"a": 4}),
        (lambda x: x[:, ::2], *MAP, [".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: x[:, 3::4], *MAP, [".", "1/4a", ".", "."], {"a": 4}),
        (lambda x: F.glu(x, 1), *MAP, [".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: F.unfold(x, 3).view(2, 2, 4, 9, -1), *MAP, [".", ".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: torch.view_as_real(torch.fft.rfft2(x)), *MAP, [".", "a", ".", ".", "."], {}),
        (lambda x: torch.view_as_complex(torch.stack([x, x], -1)), *MAP, [".", "a", ".", "."], {}),
        (lambda x: x.flatten(1), *MAP, [".", "24a"], {}),
        (lambda x: x.flatten(0, 1), *MAP, ["2a", ".", "."], {}),
        (lambda x: x.flatten(), (1, 8, 4, 6), ".a..", ["24a"], {}),
        (lambda x: x.reshape(2, 2, 4, 4, 6), *MAP, [".", ".", "1/2a", ".", "."], {"a": 2}),
        (lambda x: x.reshape(2, 4, 2, 4, 6), *MAP, [".", "1/2a", ".", ".", "."], {"a": 2}),
        (lambda x: x.reshape(2, 4, 4, 6), (2, 16, 6), ".a.", [".", ".", "1/4a", "."], {"a": 4}),
        (lambda x: x.reshape(2, 2, 4, 5), (2, 1, 8, 5), "..a.", [".", ".", "1/2a", "."], {"a": 2}),
        (lambda x: F.pixel_shuffle(x, 2), *MAP, [".", "1/4a", ".", "."], {"a": 4}),
        (lambda x: F.pixel_unshuffle(x, 2), *MAP, [".", "4a", ".", "."], {}),
        (lambda x: F.pixel_shuffle(x, 2), (8, 4, 6), "a..", ["1/4a", ".", "."], {"a": 4}),
        (lambda x: F.channel_shuffle(x, 2), *MAP, [".", "a", ".", "."], {"a": 2}),
        (lambda x: F.group_norm(x, 4), *MAP, [".", "a", ".", "."], {"a": 4}),
    ],
)
def test_parts_and_multiples_of_an_axis_are_so_many_times_its_unknown(
    operation: Callable[[Tensor], Any], shape: tuple[int, ...], names: str, wanted: list[str], multiples: dict[str, int]
) -> None:
    found = Followed(operation, (shape, names))
    assert found.axes == wanted
    assert found.multiples == multiples and not found.fixed


def test_every_part_of_a_split_has_its_own_share() -> None:
    found = Followed(lambda x: x.split([2, 4, 2], 1), MAP)
    assert [found.axes_of(part)[1] for part in found.output] == ["1/4a", "1/2a", "1/4a"]
    assert [found.axes_of(part)[0] for part in Followed(lambda x: x.split([1, 1]), MAP).output] == [".", "."]


def test_single_channels_beside_others_are_no_share_of_them() -> None:
    """As where one score of each position is made beside keys and values."""
    found = Followed(lambda x: x.split([1, 4, 4], 1), ((2, 9, 4, 6), ".a.."))
    score, key, value = (found.axes_of(part)[1] for part in found.output)
    assert (score, key, value) == ("1", "1/2a", "1/2a") and found.multiples == {"a": 2}
    for lengths in ([1, 4, 1, 3], [1, 1, 7, 1, 2]):
        apart = Followed(lambda x, lengths=lengths: x.split(lengths, 1), ((2, sum(lengths), 4, 6), ".a.."))
        total = sum(lengths)
        assert [apart.axes_of(part)[1] for part in apart.output] == [str(Fraction(n, total)) + "a" for n in lengths]


@pytest.mark.parametrize(
    ("operation", "shape", "names", "reason"),
    [
        (lambda x: x[:, ::3], *MAP, "a slice with steps in Sequential"),
        (lambda x: x[:, 0], *MAP, "'select' of channels in Sequential"),
        (lambda x: x.unbind(1), *MAP, "'unbind' of channels in Sequential"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)), *MAP, "'constant_pad_nd' in Sequential"),
        (lambda x: F.layer_norm(x, (4, 6)), (2, 8, 4, 6), "...a", "'native_layer_norm' in Sequential"),
        (lambda x: F.conv1d(x, torch.ones(1, 1, 3, device="meta")), (1, 1, 8), "..a", "a convolution along the"),
    ],
)
def test_what_cannot_be_followed_keeps_its_size_and_says_where(
    operation: Callable[[Tensor], Any], shape: tuple[int, ...], names: str, reason: str
) -> None:
    found = Followed(operation, (shape, names))
    assert found.fixed["a"].startswith(reason)
    assert "a" not in "".join(found.axes)


def test_of_axes_that_a_reshape_mixes_only_the_longest_can_vary() -> None:
    found = Followed(lambda x: x.reshape(24, 2), ((6, 8), "ab"))
    assert set(found.fixed) == {"a"} and found.axes == ["3b", "."]


@pytest.mark.parametrize(
    ("operation", "axes", "fixed"),
    [
        (lambda x, chosen: x[:, chosen], [".", ".", ".", "."], {"a"}),
        (lambda x, chosen: x[:, :, chosen], [".", "a", ".", "."], set()),
        (lambda x, chosen: x[chosen, :, chosen], [".", "a", "."], set()),
    ],
)
def test_what_chooses_along_channels_keeps_their_number(
    operation: Callable[..., Any], axes: list[str], fixed: set[str]
) -> None:
    chosen = torch.zeros(8, dtype=torch.long, device="meta")
    found = Followed(lambda x: operation(x, chosen), ((8, 8, 8, 6), ".a.."))
    assert set(found.fixed) == fixed and found.axes == axes


# Several maps.


def test_a_concatenation_is_a_sum_along_its_dimension_and_ties_the_others() -> None:
    found = Followed(lambda x, y: torch.cat([x, y], 1), ((2, 8, 4, 6), ".ac."), ((2, 3, 4, 6), ".bd."))
    assert found.axes == [".", "a+b", "c", "."]
    assert found.text(found.known["d"]) == "c"
    assert Followed(lambda x, y: torch.cat([x, y], -3), MAP, ((2, 3, 4, 6), ".b..")).axes == [".", "a+b", ".", "."]
    assert Followed(lambda x: torch.cat([x, x]), MAP).axes == [".", "a", ".", "."]
    assert Followed(lambda x: torch.cat([x, x]), ((8, 4), "ab")).axes == ["2a", "b"]
    assert Followed(lambda x: torch.cat([x, x], 2), MAP).axes == [".", "a", ".", "."]


def test_what_is_no_map_is_a_constant_of_a_concatenation() -> None:
    found = Followed(lambda x: torch.cat([torch.ones(2, 3, 4, 6, device="meta"), x], 1), MAP)
    assert found.axes == [".", "3+a", ".", "."]
    nothing = Followed(lambda x: torch.cat([torch.empty(0, device="meta"), x], 1), MAP)  # as old code begins a list
    assert nothing.axes == [".", "a", ".", "."]


def test_parts_of_equal_length_are_tied() -> None:
    maps = (MAP, ((2, 8, 4, 6), ".b.."))
    found = Followed(lambda x, y: torch.cat([x, y], 1).chunk(2, 1), *maps)
    assert [found.axes_of(part)[1] for part in found.output] == ["a", "a"]
    uneven = Followed(lambda x, y: torch.cat([x, y], 1).chunk(2, 1), MAP, ((2, 4, 4, 6), ".b.."))
    assert [uneven.axes_of(part)[1] for part in uneven.output] == ["1/2a+1/2b", "1/2a+1/2b"]
    apart = Followed(lambda x, y: torch.cat([x, y], 1).split([10, 6], 1), *maps)
    assert [apart.axes_of(part)[1] for part in apart.output] == ["a+1/4b", "3/4b"]


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (slice(6, 12), "1/4a+1/2b"),
        (slice(-10, -2), "1/4a+3/4b"),
        (slice(None, 12), "a+1/2b"),
        (slice(-4, None), "1/2b"),
        (slice(-20, 12), "a+1/2b"),
        (slice(-1, None), "1/8b"),
    ],
)
def test_a_slice_of_a_concatenation_is_what_lies_there(part: slice, wanted: str) -> None:
    found = Followed(lambda x, y: torch.cat([x, y], 1)[:, part], MAP, ((2, 8, 4, 6), ".b.."))
    assert found.axes == [".", wanted, ".", "."]


def test_vectors_are_joined_too() -> None:
    assert Followed(lambda x, y: torch.cat([x, y]), ((8,), "a"), ((3,), "b")).axes == ["a+b"]


@pytest.mark.parametrize("shape", [(2, 8, 4, 6), (8, 1, 1), (1, 8, 4, 1)])
def test_operands_are_aligned_from_the_last_dimension(shape: tuple[int, ...]) -> None:
    names = ".b.." if len(shape) == 4 else "b.."
    found = Followed(lambda x, y: x * y, MAP, (shape, names))
    assert found.axes == [".", "a", ".", "."]
    assert found.text(found.known["b"]) == "a"


def test_a_dimension_of_one_is_spread_and_says_nothing() -> None:
    found = Followed(lambda x: x * torch.ones(2, 1, 4, 6, device="meta"), MAP)
    assert found.axes == [".", "a", ".", "."] and not found.fixed
    later = Followed(lambda x: torch.ones(2, 1, 4, 6, device="meta") + x, MAP)
    assert later.axes == [".", "a", ".", "."]
    single = Followed(lambda x: x + torch.ones(1, 1, 1, 1, device="meta"), ((2, 1, 4, 6), ".a.."))
    assert single.axes == [".", "a", ".", "."]


# Products of maps: `positions` is what is left of all multiplications after the two widths.


def product(*maps: Named, operation: Callable[..., Tensor] = torch.matmul) -> tuple[Followed, str, str, int]:
    found = Followed(operation, *maps)
    call = found.call
    assert call.kind == "product" and not call.owned and call.path == "Sequential@0"
    return found, found.text(call.source), found.text(call.axis), call.positions


def test_a_product_of_two_maps_ties_what_it_sums_over() -> None:
    found, source, axis, positions = product(((4, 8), ".a"), ((8, 6), "bc"))
    assert found.axes == [".", "c"]
    assert found.text(found.known["b"]) == "a"
    assert (source, axis, positions) == ("a", "c", 4)


@pytest.mark.parametrize(
    ("left", "right", "axes", "widths", "positions"),
    [
        (".a", "..", "..", (".", "a"), 4 * 6),
        ("a.", "..", "a.", (".", "a"), 8 * 6),
        ("..", "a.", "..", (".", "a"), 4 * 6),
        ("..", ".a", ".a", (".", "a"), 4 * 8),
        ("a.", ".b", "ab", ("a", "b"), 8),
        ("ab", "..", "a.", ("a", "b"), 6),
    ],
)
def test_a_product_costs_its_widths_times_all_else(
    left: str, right: str, axes: str, widths: tuple[str, str], positions: int
) -> None:
    found, source, axis, rest = product(((4, 8), left), ((8, 6), right))
    assert "".join(found.axes) == axes
    assert ((source, axis), rest) == (widths, positions)
    assert not found.fixed


def test_a_third_width_of_a_product_keeps_its_size() -> None:
    found, source, axis, positions = product(((2, 4, 8), ".pa"), ((2, 8, 6), ".aq"))
    assert found.axes == [".", "p", "q"]
    assert (source, axis, positions) == ("p", "a", 2 * 6)
    assert found.fixed == {"q": "a product of more than two widths in Sequential"}


def test_products_of_a_batch_tie_what_they_sum_over() -> None:
    found, source, axis, positions = product(((2, 4, 8), "..a"), ((2, 8, 6), ".b."))
    assert found.text(found.known["b"]) == "a" and found.axes == [".", ".", "."]
    assert (source, axis, positions) == (".", "a", 2 * 4 * 6)


def test_matrices_of_a_batch_share_its_axis() -> None:
    found, source, axis, positions = product(((3, 4, 8), "h.a"), ((3, 8, 6), "ga."))
    assert found.axes == ["h", ".", "."] and found.text(found.known["g"]) == "h"
    assert (source, axis, positions) == ("h", "a", 4 * 6)
