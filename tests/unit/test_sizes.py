from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigendet.sizes import Sizes, scaled


def test_equal_unknowns_become_one_and_the_earlier_gives_the_name() -> None:
    sizes = Sizes()
    first, second = sizes.new("first", 8), sizes.new("second", 8)
    sizes.equate(second, first)
    assert sizes.resolve(second) == first


def test_a_multiple_is_found() -> None:
    sizes = Sizes()
    narrow, wide = sizes.new("narrow", 4), sizes.new("wide", 8)
    sizes.equate(scaled(narrow, 49), scaled(wide, Fraction(49, 2)))
    assert sizes.resolve(wide) == scaled(narrow, 2)


def test_a_sum_with_a_concatenation_makes_one_unknown_the_sum_of_others() -> None:
    sizes = Sizes()
    total, left, right = sizes.new("total", 8), sizes.new("left", 3), sizes.new("right", 5)
    sizes.equate(total, left + right)
    assert sizes.resolve(total) == left + right


def test_concatenations_with_other_seams_are_cut_at_all_of_them() -> None:
    sizes = Sizes()
    a, b, c, d = (sizes.new(name, size) for name, size in zip("abcd", (5, 3, 4, 4), strict=True))
    sizes.equate(a + b, c + d)
    assert [sizes.size((term,)) for term in sizes.resolve(a + b)] == [4, 1, 3]
    assert sizes.resolve(a + b) == sizes.resolve(c + d)


def test_halves_need_an_even_number_of_channels() -> None:
    sizes = Sizes()
    axis = sizes.new("conv", 24)
    halves = sizes.cut(axis, [12, 12])
    assert halves == [scaled(axis, Fraction(1, 2))] * 2
    sizes.require(halves[0], 1)
    assert sizes.multiples() == {0: 2}
    sizes.require(axis, 3)
    assert sizes.multiples() == {0: 6}


def test_what_equals_something_fixed_is_fixed_for_the_same_reason() -> None:
    sizes = Sizes()
    image, conv, more = sizes.constant(3, "the image"), sizes.new("conv", 3), sizes.new("more", 5)
    sizes.equate(conv, image)
    sizes.fix(conv + more, "later")
    assert [sizes.fixed[unknown] for unknown, _ in sizes.resolve(conv + more)] == ["the image", "later"]


def test_unequal_sizes_are_refused() -> None:
    sizes = Sizes()
    with pytest.raises(ValueError, match="sizes 3 and 4 cannot be equal"):
        sizes.equate(sizes.new("a", 3), sizes.new("b", 4))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_any_two_partitions_of_a_number_can_be_equated_and_keep_their_sizes(
    left: list[int], data: st.DataObject
) -> None:
    total, right = sum(left), list[int]()
    while sum(right) < total:
        right.append(data.draw(st.integers(1, total - sum(right))))
    sizes = Sizes()
    axes = [tuple(term for size in sides for term in sizes.new("", size)) for sides in (left, right)]
    sizes.equate(*axes)
    assert sizes.resolve(axes[0]) == sizes.resolve(axes[1])
    assert sizes.size(sizes.resolve(axes[0])) == total
    # Any other widths of what is left free satisfy the equation too.
    sizes.built = [7 * value + unknown for unknown, value in enumerate(sizes.built)]
    assert sizes.size(sizes.resolve(axes[0])) == sizes.size(sizes.resolve(axes[1]))
