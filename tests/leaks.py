"""What a test leaves behind: processes, mounts, and files in the checkout or where temporary ones are made."""

from __future__ import annotations

import fnmatch
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# Names of what may be left behind: what git ignores too, such as caches and results, and torch's own cache.
LINES = [line for line in (Path(__file__).parents[1] / ".gitignore").read_text().split() if not line.startswith("!")]
NAMES = [".git", "torchinductor_*", *(Path(line.removesuffix("/*")).name for line in LINES)]
IGNORED = re.compile("|".join(map(fnmatch.translate, NAMES)))
SECONDS = 5.0  # in which a process may still end that was told to


@dataclass(frozen=True)
class Traces:
    """What there is at a moment, by names that say what it is."""

    processes: frozenset[psutil.Process]
    mounts: frozenset[str]
    files: frozenset[Path]

    @classmethod
    def now(cls, checkout: Path) -> Traces:
        """Look at all processes and mounts, through a folder but for its caches, and at what is temporary."""
        mounts = frozenset(part.mountpoint for part in psutil.disk_partitions(all=True))
        temporary = (path for path in Path(tempfile.gettempdir()).iterdir() if not IGNORED.match(path.name))
        return cls(frozenset(psutil.process_iter()), mounts, frozenset([*_files(checkout), *temporary]))

    def left_since(self, before: Traces, test: str) -> list[str]:
        """What was not there before and is of the test with this name, in words; empty if there is nothing."""
        started = [process for process in self.processes - before.processes if _is_of(process, test)]
        _, running = psutil.wait_procs(started, timeout=SECONDS if started else 0)
        return [
            *(f"process {process.pid} ({_command(process)})" for process in running),
            *(f"mount {place}" for place in sorted(self.mounts - before.mounts) if _may_be_of_this_worker(place)),
            *(f"file {path}" for path in sorted(self.files - before.files)),
        ]


def _files(folder: Path) -> Iterator[Path]:
    for place, names, files in os.walk(folder):
        names[:] = [name for name in names if not IGNORED.match(name)]
        yield from (Path(place) / name for name in [*names, *files] if not IGNORED.match(name))


def _may_be_of_this_worker(place: str) -> bool:
    """Tell whether no other worker of pytest, each of which has a folder of its own, made a mount."""
    worker = re.search(r"/popen-(\w+)/", place)
    return worker is None or worker[1] == os.environ.get("PYTEST_XDIST_WORKER", worker[1])


def _is_of(process: psutil.Process, test: str) -> bool:
    """Whether a test started a process: as a descendant of this one, or, if it was let go, by what it inherited."""
    try:
        if psutil.Process() in process.parents():
            return True
        return process.environ().get("PYTEST_CURRENT_TEST", "") == f"{test} (call)"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.NoSuchProcess:
        return "ended meanwhile"
