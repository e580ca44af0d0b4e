from __future__ import annotations

from eigendet.networks.widths_file import ChosenWidths, Cost
from eigendet.report.findings import settled


def rounds(*widths: int) -> list[ChosenWidths]:
    steps, cost = {"a": 8, "b": 8}, Cost(100, 100)
    return [
        ChosenWidths(
            widths={"a": width, "b": 40}, reference=steps, multiples=steps, rule="dof", parameters=cost, macs=cost
        )
        for width in widths
    ]


def test_the_page_says_whether_widths_settle() -> None:
    assert settled(rounds(60)) == ""
    assert settled(rounds(60, 64)).startswith(
        "The widths have settled: in the last round 1 of 2 groups changed, the farthest, a, by 4 channels"
    )
    far = settled(rounds(60, 100, 80))
    assert far.startswith(
        "The widths have not settled: in the last round 1 of 2 groups changed, the farthest, a, by 20"
    )
    assert far.endswith("Share of all channels that moved, round by round: 40.0 %, 14.3 %.")
