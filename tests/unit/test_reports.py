"""What a command says, and where: in processes of their own, since standard output and error are sent elsewhere."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from eigendet import progress
from eigendet.cli import reports

START = """
import os, subprocess, sys, warnings
from pathlib import Path
from eigendet.cli import reports
from eigendet.progress import Reporter

reports.start()
reports.send_to(Path("some/job.log"))
"""
REPORT = """
with Reporter("train scratch seed 0", "step", 2) as reporter:
    reporter.reach(2)
"""
LINE = "train scratch seed 0: step 2 of 2, took 0:00"


def run(code: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run code that logs, and return also the lines of the log."""
    line = [sys.executable, "-c", START + code]
    result = subprocess.run(line, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return result, (folder / "some/job.log").read_text().splitlines()


def test_everything_goes_to_the_log_in_order_and_progress_to_the_terminal_too(tmp_path: Path) -> None:
    result, log = run(
        'print("by print")\n'
        'os.write(2, b"by a library in C\\n")\n'
        'subprocess.run("echo by a child; echo and its error >&2", shell=True)\n'
        'warnings.warn("by a warning")\n' + REPORT + 'print("last")\nraise RuntimeError("in the end")',
        tmp_path,
    )
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"{LINE}\n")
    assert log[:4] == ["by print", "by a library in C", "by a child", "and its error"]
    assert "UserWarning: by a warning" in log[4]
    rest = log[5:]
    assert rest[-1] == "RuntimeError: in the end" and "Traceback (most recent call last):" in rest
    assert [line.partition(" ")[2] for line in rest if LINE in line] == [LINE]  # after the time of day
    assert rest.index("last") < rest.index("Traceback (most recent call last):")


def test_a_log_is_made_anew(tmp_path: Path) -> None:
    assert run('print("first")', tmp_path)[1] == ["first"]
    assert run('print("second")', tmp_path)[1] == ["second"]


@pytest.mark.parametrize(
    ("standard_input", "lines"), [("", [LINE, LINE]), (", stdin=subprocess.DEVNULL", [LINE])], ids=["child", "srun"]
)
def test_processes_that_it_starts_again_report_where_it_did(
    tmp_path: Path, standard_input: str, lines: list[str]
) -> None:
    again = START + REPORT
    result, log = run(
        f"{REPORT}subprocess.run([sys.executable, '-c', {again!r}], check=True{standard_input})", tmp_path
    )
    assert (result.returncode, result.stderr.splitlines()) == (0, lines)
    assert len(log) == 2 and all(line.endswith(LINE) for line in log)


def test_a_terminal_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    line = [sys.executable, "-c", START + REPORT + 'print("done")']
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
    assert process.returncode == 0
    log = (tmp_path / "some/job.log").read_text().splitlines()
    assert len(log) == 2 and log[0].endswith(LINE) and log[1] == "done"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_has_one_line_that_changes(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal() if terminal else io.StringIO()
    handler = reports.Reports(stream)

    def emit(name: str, text: str, **extra: object) -> None:
        handler.emit(logging.makeLogRecord({"name": name, "msg": text, **extra}))

    emit(progress.logger.name, "train: step 1 of 3, loss 4", last=False)
    emit(progress.logger.name, "train: step 2 of 3, loss 4", last=False)
    emit("eigendet.runs", "other news")
    emit(progress.logger.name, "train: step 3 of 3, loss 4", last=True)
    emit("eigendet.runs", "the end")
    if terminal:
        assert stream.getvalue() == (
            "\rtrain: step 1 of 3,\x1b[K\rtrain: step 2 of 3,\x1b[K\nother news\n\rtrain: step 3 of 3,\x1b[K\nthe end\n"
        )
    else:
        assert [line[:13] for line in stream.getvalue().splitlines()] == [
            "train: step 1", "train: step 2", "other news", "train: step 3", "the end",
        ]  # fmt: skip


def test_names_from_a_users_file_move_no_terminal(tmp_path: Path) -> None:
    code = "import logging; logging.getLogger('eigendet').warning('class %s', 'red \\x1b[31m')"
    result = subprocess.run(
        [sys.executable, "-c", f"from eigendet.cli import reports; reports.start(); {code}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert r"class red \x1b[31m" in result.stderr and "\x1b" not in result.stderr
