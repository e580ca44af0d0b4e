"""Kill a command at moments at which it changes files, and run it again: `python -m tests.faults.killing < trial.json`.

The command runs in forks of one process that has imported the library, so that a moment costs no start of Python. Its
moments are counted in a first run, which says what it writes: opening a file to write, renaming, removing, making a
folder, all below one folder. At each moment of a choice the fork and all that it started get SIGKILL. What is then
there of its outputs must be what the first run wrote, never a part; run again, it must write all of that. What works
in several processes is killed after shares of the first run's time, since the others' changes are not seen here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What differs between two runs of the same: times, and where and when. CSV columns and keys of JSON.
TIMES = {"seconds", "images_per_second", "written", "took", "runs"}
FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Trial:
    """A command of eigendet, the folder that it works in, what it writes there, and how often it is killed."""

    command: list[str]
    folder: Path
    outputs: list[str]
    kills: int
    by_time: bool = False

    def run(self, moment: int | None = None) -> int:
        """Run the command in a fork; return its moments, or, killed at one of them, -1.

        A moment is a change of files, or with `by_time` a hundredth of a second.
        """
        reading, writing = os.pipe()
        began = time.monotonic()
        process = os.fork()
        if not process:
            os.setsid()
            os._exit(self._inside(writing, None if self.by_time else moment))
        os.close(writing)
        if self.by_time and moment is not None:
            time.sleep(moment / 100)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        with os.fdopen(reading) as file:
            said = file.read()
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return -1
        if status:
            raise SystemExit(f"{' '.join(self.command)} ended with {status}")
        return int(100 * (time.monotonic() - began)) if self.by_time else int(said)

    def _inside(self, writing: int, moment: int | None) -> int:
        from eigendet.cli import main

        os.chdir(self.folder)
        sys.argv = [str(shutil.which("eigendet")), *self.command]  # which several processes are started by
        count = 0

        def notice(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if not (event in CHANGES or (event == "open" and arguments[2] & FLAGS)):
                return
            if _is_below(arguments[0], self.folder):
                count += 1
                if count == moment:
                    os.killpg(0, signal.SIGKILL)

        sys.addaudithook(notice)
        with Path(os.devnull).open("w") as nowhere:
            sys.stderr = sys.stdout = nowhere
            try:
                main(self.command, standalone_mode=False)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.__stderr__)
                return 1
        os.write(writing, str(count).encode())
        return 0

    def contents(self) -> dict[str, Any]:
        """Return what is there of the outputs, without times; raises ValueError for a JSON file that is cut off."""
        places = [self.folder / output for output in self.outputs]
        files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
        return {str(file.relative_to(self.folder)): content(file) for file in files if _counts(file)}

    def remove(self) -> None:
        """Remove the outputs, and whatever stands beside them for the next run."""
        for output in self.outputs:
            place = self.folder / output
            shutil.rmtree(place, ignore_errors=True)
            for beside in place.parent.glob(f"*{place.name}*"):
                shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink()


def _is_below(path: Any, folder: Path) -> bool:
    """Tell whether what an event names, which may be a number of an open file, is below a folder."""
    return not isinstance(path, int) and (Path.cwd() / os.fsdecode(path)).is_relative_to(folder)


def _counts(file: Path) -> bool:
    """Tell whether a file is a result: no folder, lock or temporary file, nor what an interrupted run goes on from."""
    return file.is_file() and not file.name.startswith((".", "last.ckpt")) and ".parts" not in str(file)


def content(file: Path) -> Any:
    """Return what a file holds, without times."""
    if file.suffix == ".json":
        return without_times(json.loads(file.read_text()))
    if file.suffix == ".csv":
        rows = [line.split(",") for line in file.read_text().splitlines()]
        kept = [place for place, name in enumerate(rows[0]) if name not in TIMES]
        return [[row[place] for place in kept] for row in rows]
    return file.read_bytes()


def _is_whole(name: str, there: Any, whole: Any) -> bool:
    """Tell whether a file is as it is in the end; a log may be what it was after fewer steps."""
    return there == (whole[: len(there)] if name.endswith("log.csv") and whole else whole)


def without_times(plain: Any) -> Any:
    if isinstance(plain, Mapping):
        return {name: without_times(value) for name, value in plain.items() if name not in TIMES}
    return [without_times(value) for value in plain] if isinstance(plain, list) else plain


def main() -> int:
    values = json.load(sys.stdin)
    trial = Trial(**values | {"folder": Path(values["folder"])})
    import eigendet.cli.commands
    import eigendet.runs.stages  # noqa: F401  what takes long to import, once

    trial.remove()
    moments = trial.run()
    whole = trial.contents()
    killed = 0
    for number in range(trial.kills):
        trial.remove()
        moment = 1 + number * moments // trial.kills
        killed += trial.run(moment) == -1
        there = trial.contents()
        part = [name for name, own in there.items() if not _is_whole(name, own, whole.get(name))]
        if part:
            raise SystemExit(f"killed at {moment} of {moments}: {', '.join(part)} is there in part")
        trial.run()
        again = trial.contents()
        other = [name for name in whole.keys() | again.keys() if again.get(name) != whole.get(name)]
        if other:
            raise SystemExit(f"killed at {moment} of {moments}, and run again: {', '.join(other)} is otherwise")
    print(json.dumps({"moments": moments, "killed": killed, "files": len(whole)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
