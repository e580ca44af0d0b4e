"""Modules of this folder run in processes of their own, which end with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

from tests.gpu import plan

GRACE = 5.0  # seconds in which processes that are asked to end may do so


def run(
    module: str, arguments: Sequence[str], output: IO[str], seconds: float, variables: Mapping[str, str] | None = None
) -> int | None:
    """Run a module with the checkout on its path; return its exit status, or None if its time was over.

    What it prints goes to a file, and whatever it has started ends with it: also where this process is interrupted.
    """
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **(variables or {}), "PYTHONPATH": _path()}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_group(process)


def ending(status: int) -> str:
    """Say how a process ended that neither succeeded nor said why it did not; empty if it succeeded."""
    if status >= 0:
        return f"its process ended with status {status}" if status else ""
    with contextlib.suppress(ValueError):
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process was ended by signal {-status}"


def _path() -> str:
    """Return where modules are looked for, by those processes too that a check starts."""
    standin = [] if plan.is_there("lazy_loader") else [str(plan.ROOT / "tests/gpu/standin")]
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return os.pathsep.join([str(plan.ROOT), str(plan.ROOT / "workflow"), *standin, *inherited])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and those that it started to end, and kill what is left after a while."""
    end = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):  # none is left
        try:
            os.killpg(process.pid, signal.SIGTERM)
            while time.monotonic() < end:
                process.poll()  # takes the process itself off the group, once it has ended
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        finally:  # also where this process is interrupted meanwhile
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
