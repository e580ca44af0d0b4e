"""Sizes, costs and names of channel groups, of a network made up by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest

from eigendet import channels
from eigendet.channels import groups, tables
from eigendet.channels.groups import ChannelError, Channels, Layer, Size
from eigendet.channels.trial import TRIALS, other_widths
from tests import odd_blocks, odd_layers  # noqa: F401, they note themselves
from tests.blocks import BLOCKS
from tests.handmade import LAYERS, MACS, NETWORK, PARAMETERS, size


@pytest.mark.parametrize(("a", "b"), [(8, 6), (4, 9), (12, 3)])
def test_costs_of_every_layer_and_of_all_in_closed_form(a: int, b: int) -> None:
    widths = {"a": a, "b": b}
    for layer in LAYERS:
        assert layer.macs(widths) == MACS[layer.module](a, b)
        assert layer.parameters(widths) == PARAMETERS[layer.module](a, b)
    assert NETWORK.macs(widths) == sum(cost(a, b) for cost in MACS.values())
    assert NETWORK.parameters(widths) == 1000 + sum(cost(a, b) for cost in PARAMETERS.values())
    assert isinstance(NETWORK.macs(widths), int)


def test_what_is_not_said_of_a_layer_costs_nothing() -> None:
    plain = Layer("plain", "linear", size(a=1), size(b=1))
    assert plain.macs({"a": 8, "b": 6}) == 0 and plain.parameters({"a": 8, "b": 6}) == 48
    assert (plain.kernel, plain.groups, plain.depthwise, plain.dim) == (1, 1, False, 0)


def test_a_size_is_a_sum_of_multiples_and_whole_or_exact() -> None:
    assert size(2, a=3, b=Fraction(1, 2))({"a": 5, "b": 8}) == 2 + 15 + 4
    assert type(size(2, a=3)({"a": 5})) is int
    assert size(a=Fraction(1, 2))({"a": 5}) == Fraction(5, 2)
    assert size(2, a=3)({"a": 0.5}) == 3.5


def test_a_cost_that_is_not_whole_is_refused_but_for_relaxed_widths() -> None:
    with pytest.raises(ChannelError, match="a size of 5/2 is not whole; widths must be multiples of what divides them"):
        groups.whole(Fraction(5, 2))
    assert groups.whole(Fraction(4, 2)) == 2 and type(groups.whole(Fraction(4, 2))) is int
    assert groups.whole(2.5) == 2.5
    assert NETWORK.macs({"a": 8.5, "b": 6.0}) == pytest.approx(
        MACS["stem"](8.5, 6) + MACS["deep"](8.5, 6) + 9 * 8.5 * 6 * 10 + 5100 + 20 * 5 * (1 + 4.25 + 6) + 306 + 72
    )


def test_multiples_of_a_rounding_are_those_of_both() -> None:
    assert NETWORK.rounded_to(6) == {"a": 12, "b": 6}
    assert NETWORK.rounded_to(1) == NETWORK.multiples


def test_members_are_the_layers_that_read_and_write_a_group() -> None:
    assert NETWORK.members("b") == [
        ("parts", "out"), ("twin", "in"), ("scale", "out"), ("mixed", "in"), ("product@7", "out"), ("written", "out")
    ]  # fmt: skip
    assert NETWORK.members("a")[:4] == [("stem", "out"), ("norm", "out"), ("deep", "in"), ("deep", "out")]
    assert NETWORK.members("z") == []


def test_names_lose_a_prefix_wherever_they_stand() -> None:
    def named(prefix: str) -> Channels:
        def own(part: Size | None) -> Size | None:
            return part and Size(part.constant, tuple((prefix + name, factor) for name, factor in part.terms))

        return replace(
            NETWORK,
            widths={prefix + name: width for name, width in NETWORK.widths.items()},
            multiples={prefix + name: multiple for name, multiple in NETWORK.multiples.items()},
            layers=tuple(replace(layer, source=own(layer.source), out=own(layer.out) or layer.out) for layer in LAYERS),
            outputs={(prefix + path, call): prefix + group for (path, call), group in NETWORK.outputs.items()},
        )

    assert named("body.").renamed("body.") == NETWORK
    assert NETWORK.renamed("body.") == NETWORK


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"a": 8, "b": 6, "stern": 3}, "unknown channel group 'stern'"),
        ({"a": 8, "b": 6, "c": 3}, "channel group 'c' cannot be resized: a slice"),
        ({"a": True, "b": 6}, "'a': width True; expected a positive integer"),
        ({"a": 8.0, "b": 6}, "'a': width 8.0; expected a positive integer"),
        ({"a": 0, "b": 6}, "'a': width 0; expected a positive integer"),
        ({"a": -4, "b": 6}, "'a': width -4; expected a positive integer"),
        ({"a": 8, "b": 4}, "'b': width 4; expected a multiple of 3"),
        ({"a": 8}, "no width for the channel groups b; every group needs one"),
    ],
)
def test_widths_must_be_of_every_group_and_fit_it(widths: dict[str, int], message: str) -> None:
    with pytest.raises(ChannelError, match=message):
        groups.check_widths(NETWORK, widths)


def test_widths_that_fit_are_accepted_the_smallest_too() -> None:
    groups.check_widths(NETWORK, {"a": 4, "b": 3})
    groups.check_widths(replace(NETWORK, multiples={"a": 1, "b": 1}), {"a": 1, "b": 1})


def test_widths_may_be_named_after_any_layer_that_writes_the_group_alone() -> None:
    assert groups.by_group(NETWORK, {"twin": 8, "written": 6}) == {"a": 8, "b": 6}
    assert groups.by_group(NETWORK, {"a": 8, "twin": 8, "b": 6}) == {"a": 8, "b": 6}
    for other in ("parts", "mixed", "nowhere"):  # of twice the group, of a constant, of none
        assert groups.by_group(NETWORK, {other: 8}) == {other: 8}
    joined = replace(NETWORK, layers=(*LAYERS, Layer("joined", "conv", None, size(a=1, b=1))))
    joined = replace(joined, layers=(*joined.layers, Layer("more", "conv", None, size(3, a=1))))
    assert groups.by_group(joined, {"joined": 8, "more": 3}) == {"joined": 8, "more": 3}
    with pytest.raises(ChannelError, match="'a' is 8 and 'twin' is 4; they are tied, so one width for both"):
        groups.by_group(NETWORK, {"a": 8, "twin": 4})


def test_scaled_sizes_are_the_nearest_multiples_and_at_least_one() -> None:
    sizes, multiples = {"a": 64, "b": 30, "c": 3}, {"a": 8, "b": 4, "c": 8}
    assert groups.scaled(sizes, 0.5, multiples) == {"a": 32, "b": 16, "c": 8}
    assert groups.scaled(sizes, 0.3, multiples) == {"a": 16, "b": 8, "c": 8}
    assert groups.scaled(sizes, 1.6, {"a": 1, "b": 1, "c": 1}) == {"a": 102, "b": 48, "c": 5}


def test_the_table_has_a_line_for_every_group_and_every_layer_that_is_kept() -> None:
    lines = tables.table(NETWORK, {"a": 8, "b": 6}).splitlines()
    of_a = "stem (out), norm (out), deep (in+out), parts (in), twin (out), mixed (in), product@7 (in)"
    of_b = "parts (out), twin (in), scale (out), mixed (in), product@7 (out), written (out)"
    assert [re.split(" {2,}", line) for line in lines[:3]] == [
        ["group", "width", "multiple of", "parameters", "MACs", "layers"],
        ["a", "8", "4", "888", "56,400", of_a],  # what the layers cost that write the group first
        ["b", "6", "3", "480", "4,680", of_b],
    ]
    assert lines[0].index("layers") == lines[1].index("stem") == lines[2].index("parts")
    assert (
        lines[3] == f"in all {NETWORK.parameters(NETWORK.widths):,} parameters, {NETWORK.macs(NETWORK.widths):,} MACs"
    )
    assert lines[4:] == ["kept: mixed: an output", "kept: c: a slice"]


def test_the_frame_has_a_row_for_every_group_at_the_widths_as_built_or_at_others() -> None:
    frame = tables.frame(NETWORK)
    assert list(frame.columns) == ["name", "width", "multiple", "parameters", "macs", "layers"]
    assert frame.drop(columns="layers").to_numpy().tolist() == [["a", 8, 4, 888, 56_400], ["b", 6, 3, 480, 4_680]]
    assert frame.layers[1] == "parts (out), twin (in), scale (out), mixed (in), product@7 (out), written (out)"
    wider = tables.frame(NETWORK, {"b": 9, "a": 4})
    assert wider[["name", "width"]].to_numpy().tolist() == [["b", 9], ["a", 4]]
    assert wider.parameters[0] == PARAMETERS["parts"](4, 9) + PARAMETERS["scale"](4, 9) + PARAMETERS["written"](4, 9)
    nothing = tables.frame(replace(NETWORK, widths={}))
    assert nothing.empty and list(nothing.columns) == list(frame.columns)


def test_of_a_concatenation_the_sum_is_a_multiple_and_not_each_part() -> None:
    traced = channels.trace(BLOCKS["groups_over_a_concatenation"], (32, 32))
    parts = {"1.left", "1.right"}
    assert {group for group, multiple in traced.multiples.items() if multiple == 8} == parts
    for widths in (traced.widths, traced.widths | {"1.left": 21, "1.right": 3}):
        channels.rebuild(BLOCKS["groups_over_a_concatenation"], traced, widths)
    message = "channel groups 1.left, 1.right: widths 21, 12, together 33; expected a multiple of 8"
    with pytest.raises(ChannelError, match=message):
        channels.rebuild(BLOCKS["groups_over_a_concatenation"], traced, traced.widths | {"1.left": 21})


def test_trials_move_a_group_by_numbers_without_a_common_divisor_and_its_neighbors_by_others() -> None:
    names = [str(number) for number in range(40)]
    wide = Channels(dict.fromkeys(names, 96), dict.fromkeys(names, 8), (), {}, {}, 0, None)
    moves = [tuple((other_widths(wide, trial)[name] - 96) // 8 for trial in range(TRIALS)) for name in names]
    assert {math.gcd(*pair) for pair in moves} == {1} and not any(0 in pair for pair in moves)
    assert all(len(set(moves[start : start + 14])) == 14 for start in range(26))
    narrow = Channels(dict.fromkeys(names, 8), dict.fromkeys(names, 8), (), {}, {}, 0, None)
    assert all(width >= 8 for trial in range(TRIALS) for width in other_widths(narrow, trial).values())
