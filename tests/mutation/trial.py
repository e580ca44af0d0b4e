"""One module under test, whole or mutated: what its tests say, in a process of their own.

Every trial is a fork of a process that has imported torch, which takes seconds, but nothing of this project. The fork
imports the project anew with one module's source exchanged, and stops at the first test that fails.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

MEMORY = 12 << 30  # that a trial may ask for: mutants may want absurd arrays


@dataclass
class Known:
    """What the tests of a module do with it as it is."""

    seconds: dict[str, float] = field(default_factory=dict)  # of every test, of the processor
    calls: dict[str, set[int]] = field(default_factory=dict)  # first lines of the functions that a test reaches

    def reaching(self, first_line: int, slow: float, long: float) -> list[str]:
        """The tests that run a function, or any for what lies outside of functions, the fastest first.

        Args:
            slow: seconds above which a test is left out.
            long: seconds that they may take together; what does not fit is left out.
        """
        reaching = [test for test in self.seconds if not first_line or first_line in self.calls[test]]
        taken, left = [], long
        for test in sorted(reaching, key=self.seconds.__getitem__):
            left -= self.seconds[test]
            if self.seconds[test] > slow or left < 0:
                break
            taken.append(test)
        return taken


class Exchanged:
    """Finds one module, with another source; or with its own, and then nothing is exchanged."""

    def __init__(self, module: str, file: Path, source: str) -> None:
        self.module, self.file, self.source = module, file, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(
            name, self.file, loader=_Loader(name, str(self.file), self.source)
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.changed = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.changed, self.path, "exec", dont_inherit=True)


class _Chosen:
    """Runs some of the tests, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.place = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda item: self.place[item.nodeid])


class _Watching:
    """Notes how long every test takes and which functions of a file it calls."""

    def __init__(self, file: Path) -> None:
        self.file, self.known = str(file), Known()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        called: set[int] = set()

        def call(frame: FrameType, event: str, arg: Any) -> None:
            if frame.f_code.co_filename == self.file:
                called.add(frame.f_code.co_firstlineno)

        begin = time.process_time()
        sys.settrace(call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.known.seconds[item.nodeid] = time.process_time() - begin
            self.known.calls[item.nodeid] = called


def start(exchanged: Exchanged, files: Sequence[str], tests: Sequence[str], patience: int) -> int:
    """The id of a process that runs some tests of some files with a module exchanged, and says so in its exit code.

    Args:
        patience: seconds of the processor, however many others want it, after which the process is ended.
    """
    return _forked(lambda: _run(exchanged, [*files, "-x"], _Chosen(tests)), patience)


def watched(exchanged: Exchanged, files: Sequence[str], notes: Path) -> Known:
    """What the tests of some files do with the module as it is.

    Raises:
        RuntimeError: they fail.
    """

    def work() -> int:
        watching = _Watching(exchanged.file)
        code = _run(exchanged, files, watching)
        calls = {test: sorted(lines) for test, lines in watching.known.calls.items()}
        notes.write_text(json.dumps({"seconds": watching.known.seconds, "calls": calls}))
        return code

    if os.waitpid(_forked(work), 0)[1]:
        raise RuntimeError(f"tests of {exchanged.module} fail as it is: {', '.join(files)}")
    read = json.loads(notes.read_text())
    return Known(read["seconds"], {test: set(lines) for test, lines in read["calls"].items()})


def _forked(work: Callable[[], int], patience: int = resource.RLIM_INFINITY) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()  # so that whoever ends it ends what it started
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (patience, patience))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os._exit(work())
    except BaseException:
        os._exit(70)


def _run(exchanged: Exchanged, arguments: Sequence[str], plugin: Any) -> int:
    sys.meta_path.insert(0, exchanged)
    settings = ["-q", "-p", "no:cacheprovider", "--tb=no", "-o", "addopts="]
    return int(pytest.main([*settings, *arguments], plugins=[plugin]))
