"""What a run has shown so far, as gpu.json for programs and gpu.md for people. Imports the standard library alone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from tests.gpu.plan import ROOT

FORMAT, VERSION = "eigendet-gpu", 1
Outcome = Literal["passed", "failed", "stopped", "not run", "left out"]


class Line(TypedDict):
    """A figure as a check's process writes it: see `figures.Figure`. NaN and infinities are strings."""

    name: str
    value: float | str
    unit: str
    limit: float | None
    at_least: bool
    note: str
    ok: bool | None


@dataclass
class Result:
    """What became of one check.

    Attributes:
        name: of the check.
        what: it shows.
        outcome: "stopped" at its limit or with the run; "not run" for lack of time; "left out" where it cannot run.
        reason: of any outcome but "passed".
        seconds: that its process took.
        figures: as far as it came.
    """

    name: str
    what: str
    outcome: Outcome = "not run"
    reason: str = "the run ended before it"
    seconds: float = 0.0
    figures: list[Line] = field(default_factory=list)

    def judge(self, stop: str, failure: str) -> None:
        """Set the outcome by the figures, why the process was stopped, and why it failed; both empty if not."""
        beyond = [line for line in self.figures if line["ok"] is False]
        why = [
            stop or failure or ("" if self.figures else "it has shown nothing"),
            f"{len(beyond)} of {len(self.figures)} figures are beyond their limits" if beyond else "",
        ]
        self.reason = "; ".join(filter(None, why))
        self.outcome = "failed" if beyond else "stopped" if stop else "failed" if self.reason else "passed"


@dataclass
class Record:
    """A run.

    Attributes:
        date: of its start, UTC.
        commit: of the checkout; empty if git does not know.
        changed: whether files differ from that commit.
        small: whether sizes are cut down.
        minutes: that it was given.
        machine: names and values.
        missing: a line for each package that is not there.
        checks: in order, those ahead among them.
    """

    date: str
    commit: str
    changed: bool
    small: bool
    minutes: float
    machine: dict[str, str]
    missing: list[str]
    checks: list[Result]

    def write(self, folder: Path) -> None:
        """Write both files, each whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        _replace(folder / "gpu.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        _replace(folder / "gpu.md", "\n".join(_page(self)))


def one_line(error: BaseException) -> str:
    """Return an error's kind and first sentence, and of any path that it names the last part."""
    sentence = re.split(r"(?<=[^.]{3}[.!])\s|\n", str(error).strip())[0]
    return without_folders(f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__)[:300]


def without_folders(text: str) -> str:
    """Return the text with the last part of each absolute path alone: where a machine has its files tells nobody."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@-]+/)+", "", text)


def commit() -> tuple[str, bool]:
    """Return the checkout's commit and whether files differ from it; ("", False) if git does not know."""

    def git(*arguments: str) -> str:
        try:
            answer = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return answer.stdout.strip() if answer.returncode == 0 else ""

    top = git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != ROOT:
        return "", False
    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))


def read_lines(path: Path) -> tuple[list[Line], str]:
    """Return the figures that a check's process wrote, and why it ended if it raised. A line cut short is left out."""
    figures: list[Line] = []
    raised = ""
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            value: Any = json.loads(text)
        except ValueError:
            continue
        if "raised" in value:
            raised = value["raised"]
        else:
            value["name"], value["note"] = without_folders(value["name"]), without_folders(value["note"])
            figures.append(value)
    return figures, raised


def summary(result: Result) -> str:
    """Return one line on a check, for the screen."""
    seconds = f"{_seconds(result)} s" if result.seconds else ""
    what = result.reason or f"{len(result.figures)} figures"
    return f"{result.name:<18} {result.outcome:<9} {seconds:>6}  {what}"


def conclusion(results: Sequence[Result]) -> Iterator[str]:
    """Yield how many checks passed, and every figure beyond its limit."""
    left_out = sum(result.outcome == "left out" for result in results)
    passed = sum(result.outcome == "passed" for result in results)
    yield f"{passed} of {len(results)} checks passed in {sum(result.seconds for result in results):.0f} seconds" + (
        f", {left_out} left out" if left_out else ""
    )
    for result in results:
        for line in result.figures:
            if line["ok"] is False:
                note = f" ({line['note']})" if line["note"] else ""
                yield f"{result.name}: {line['name']}: {number(line)}, {bound(line)}{note}"


def number(line: Line) -> str:
    """Return a figure's value in words."""
    value = line["value"]
    digits = value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{digits} {line['unit']}".rstrip()


def bound(line: Line) -> str:
    """Return a figure's limit in words; empty if it has none."""
    return "" if line["limit"] is None else f"at {'least' if line['at_least'] else 'most'} {line['limit']:.3g}"


def _page(record: Record) -> Iterable[str]:
    yield f"# Checks on {record.machine.get('device', 'a GPU')}"
    yield ""
    yield "; ".join(f"{name} {value}" for name, value in record.machine.items() if name != "device") + "."
    version = f"commit {record.commit[:12]}{', with changes' if record.changed else ''}" if record.commit else ""
    yield ", ".join(part for part in (record.date, version, f"{record.minutes:g} minutes at most") if part) + "."
    yield "`python tests/gpu/run.py` writes this page anew."
    yield from ["", "Sizes are cut down: times mean nothing."] if record.small else []
    yield from ["", *(f"- {line}" for line in record.missing)] if record.missing else []
    yield ""
    rows = [[check.name, check.what, check.outcome, _seconds(check), check.reason] for check in record.checks]
    yield from _table(["check", "what it shows", "outcome", "seconds", "why"], rows)
    for check in record.checks:
        if check.figures:
            yield from ["", f"## {check.name}", ""]
            yield from _table(["figure", "value", "limit", "kept", "note"], [_row(line) for line in check.figures])
    yield ""


def _seconds(result: Result) -> str:
    return f"{result.seconds:.0f}" if result.seconds else ""


def _row(line: Line) -> list[str]:
    kept = {None: "", True: "yes", False: "**no**"}[line["ok"]]
    return [line["name"], number(line), bound(line), kept, line["note"]]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
