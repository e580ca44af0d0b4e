from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigendet.channels.sizes import Sizes, times


def test_equal_unknowns_become_one_and_the_earlier_gives_the_name() -> None:
    sizes = Sizes()
    first, second = sizes.new("first", 8), sizes.new("second", 8)
    sizes.equate(second, first)
    assert sizes.resolve(second) == first


def test_a_multiple_is_found() -> None:
    sizes = Sizes()
    narrow, wide = sizes.new("narrow", 4), sizes.new("wide", 8)
    sizes.equate(times(narrow, 49), times(wide, Fraction(49, 2)))
    assert sizes.resolve(wide) == times(narrow, 2)


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
    assert halves == [times(axis, Fraction(1, 2))] * 2
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


def test_neighbors_of_one_unknown_are_one_term_and_others_are_not() -> None:
    sizes = Sizes()
    a, b = sizes.new("a", 8), sizes.new("b", 4)
    assert sizes.resolve(a + a + b + a) == times(a, 2) + b + a
    assert sizes.resolve(b + a + times(a, 3)) == b + times(a, 4)
    sizes.equate(b, times(a, Fraction(1, 2)))
    assert sizes.resolve(a + b) == times(a, Fraction(3, 2))


def test_pieces_go_on_where_the_last_one_ended() -> None:
    sizes = Sizes()
    a, b = sizes.new("a", 8), sizes.new("b", 6)
    half, quarter, third = Fraction(1, 2), Fraction(1, 4), Fraction(1, 3)
    assert sizes.cut(a + b, [2, 2, 6, 4]) == [
        times(a, quarter), times(a, quarter), times(a, half) + times(b, third), times(b, 2 * third)
    ]  # fmt: skip
    assert sizes.cut(a + b, [8, 6]) == [a, b] and sizes.cut(a + b, [14]) == [a + b]
    eighth = Fraction(1, 8)
    assert sizes.cut(a + b + a, [1, 7, 6, 8]) == [times(a, eighth), times(a, 7 * eighth), b, a]
    assert sizes.cut(a, [3]) == [times(a, Fraction(3, 8))] and sizes.cut(a, [0, 8]) == [(), a]


def test_what_both_sides_begin_with_says_nothing_of_the_rest() -> None:
    sizes = Sizes()
    a, b, c = sizes.new("a", 8), sizes.new("b", 4), sizes.new("c", 4)
    sizes.equate(a + b, a + c)
    assert sizes.resolve(c) == b and sizes.resolve(a) == a
    d, e = sizes.new("d", 4), sizes.new("e", 4)
    sizes.equate(times(a, Fraction(3, 2)) + d, a + e + times(a, Fraction(1, 2)))
    assert sizes.resolve(e) == times(a, Fraction(1, 2))
    assert sizes.resolve(d) == times(a, Fraction(1, 2))


def test_what_both_sides_begin_with_is_the_smaller_of_both_first_terms() -> None:
    sizes = Sizes()
    a, b, c = sizes.new("a", 6), sizes.new("b", 3), sizes.new("c", 3)
    left, right = times(a, 2) + b, a + times(c, 3)
    sizes.equate(left, right)
    assert sizes.resolve(left) == sizes.resolve(right)
    assert sizes.size(left) == sizes.size(right) == 15
    assert all(factor > 0 for _, factor in sizes.resolve(c))


def test_a_rest_has_the_unit_of_what_it_is_a_part_of() -> None:
    """A flattened map of 5 channels of 9 pixels is one of 2 and what is left, which has 3."""
    sizes = Sizes()
    whole, part, rest = sizes.new("whole", 5), sizes.new("part", 2), sizes.new("rest", 3)
    sizes.equate(times(whole, 9), times(part, 9) + times(rest, 9))
    assert sizes.resolve(whole) == part + rest
    flat, seven = sizes.new("flat", 5), sizes.new("seven", 7)
    sizes.equate(times(flat, 2), seven + sizes.new("three", 3))
    assert sizes.size(sizes.resolve(flat)) == 5
    assert sizes.resolve(times(flat, 2))[0] == seven[0]


def test_the_first_reason_stays_and_follows_what_is_equated() -> None:
    sizes = Sizes()
    a, b, c = sizes.new("a", 8), sizes.new("b", 8), sizes.new("c", 8)
    sizes.fix(a, "first")
    sizes.fix(a, "second")
    sizes.equate(b, a)
    sizes.equate(b, c)
    assert sizes.fixed[0] == "first" and sizes.resolve(c) == a
    free, kept = sizes.new("free", 4), sizes.new("kept", 4)
    sizes.fix(kept, "kept")
    sizes.equate(free, kept)  # the earlier unknown stays, and is fixed with the later
    assert sizes.resolve(kept) == free and sizes.fixed[free[0][0]] == "kept"


def test_multiples_are_what_every_requirement_divides() -> None:
    sizes = Sizes()
    a, b = sizes.new("a", 24), sizes.new("b", 24)
    sizes.require(times(a, Fraction(1, 4)), 1)
    sizes.require(a, 6)
    sizes.require(times(a, 3), 9)
    sizes.require(times(b, 2), 2)
    assert sizes.multiples() == {0: 12}


def test_sizes_are_sums_of_parts_and_constants_have_no_name() -> None:
    sizes = Sizes()
    a, three = sizes.new("a", 8), sizes.constant(3, "given")
    assert sizes.size(times(a, Fraction(3, 4)) + three) == 9 and sizes.size(()) == 0
    assert sizes.names == ["a", ""] and sizes.fixed == {1: "given"}
    with pytest.raises(ValueError, match="sizes 8 and 3 cannot be equal"):
        sizes.equate(a, three)
