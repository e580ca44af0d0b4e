"""Run every fault and write `tests/faults.md`: how many of each kind were tried at each stage, and held."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


class Outcomes:
    """What became of every fault, by its kind and stage; a plugin of pytest."""

    def __init__(self) -> None:
        self.tried: Counter[tuple[str, str]] = Counter()
        self.held: Counter[tuple[str, str]] = Counter()
        self.skipped: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        marker = item.get_closest_marker("fault")
        if marker is not None and (report.when == "call" or not report.passed):
            place = (marker.kwargs["kind"], marker.kwargs["stage"])
            self.tried[place] += not report.skipped
            self.held[place] += report.passed
            self.skipped[place] += report.skipped
        return report


def page(outcomes: Outcomes) -> str:
    """Return the table."""
    places = sorted(outcomes.tried | outcomes.skipped)
    rows = [
        f"| {kind} | {stage} | {outcomes.tried[kind, stage]} | {outcomes.held[kind, stage]} |" for kind, stage in places
    ]
    left_out = sum(outcomes.skipped.values())
    return "\n".join(
        [
            "# Faults",
            "",
            "Made by `python -m tests.faults`. A fault counts as held where it was refused in one line that names the "
            "file, accepted rightly, or recovered from with nothing lost. One of `kills` is a stage killed at eight "
            "moments; one of `files changed by chance` is sixty files.",
            "",
            "| kind | stage | tried | held |",
            "| --- | --- | --- | --- |",
            *rows,
            f"| all | | {outcomes.tried.total()} | {outcomes.held.total()} |",
            *(["", f"{left_out} were left out, since this machine lacks what they need."] if left_out else []),
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    outcomes = Outcomes()
    code = pytest.main([str(FOLDER), "-q", *arguments], plugins=[outcomes])
    if not arguments:
        (FOLDER.parent / "faults.md").write_text(page(outcomes))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
