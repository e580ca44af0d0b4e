"""Prove and measure on a GPU: `python tests/gpu/run.py --minutes 8 --out DIR`, without this project's environment.

Imports the standard library alone, so that it can say what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  # this file is what older ones can read
        sys.exit(f"Python 3.11 or newer is needed, not {sys.version.split()[0]}")
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # what is beside this file belongs to a package

from tests.gpu import child, plan, record
from tests.gpu.plan import CHECKS, Check
from tests.gpu.record import Record, Result

ENOUGH = 0.5  # a check is begun if this share of its seconds is left
ON_CPU = 4  # times as long a check may take there
HELP = """
Each check runs in a process of its own under a time limit of its own. DIR/gpu.json and DIR/gpu.md are written anew
after every one; what a check prints is in DIR/NAME.log. A check is begun if half of the time that it may take is left,
and may take four times as long on a CPU. The GPU is the first that CUDA_VISIBLE_DEVICES leaves.

Packages that are missing are named, and the checks that need them left out.

Exit status: 0 if all checks passed, but for those left out unless --only names them; 1 if one failed, was stopped at
its limit or had no time; 2 if none could run; 130 if the run was interrupted.
"""


def main(arguments: Sequence[str], checks: Sequence[Check] = CHECKS) -> int:
    """Run checks; return the exit status."""
    options = _options(arguments, checks)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run(options, [check for check in checks if check.name in options.only or not options.only])
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"{error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, checks: Sequence[Check]) -> int:
    """Say what is missing and what the machine is, then run the checks."""
    deadline = time.monotonic() + 60 * options.minutes
    absent = plan.absent()
    shortcomings = [*plan.missing(absent, checks), *plan.outdated()]
    for line in shortcomings:
        print(line, flush=True)
    if "torch" in absent:
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    machine, reason = _machine(options.device, deadline - time.monotonic())
    if reason:
        print(f"{options.device} cannot be used: {reason}")
        return 2
    print("; ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    commit, changed = record.commit()
    results = [Result(check.name, check.what) for check in checks]
    run = Record(date, commit, changed, options.small, options.minutes, machine, shortcomings, results)
    status = None
    try:
        run.write(options.out)
        for check, result in zip(checks, results, strict=True):
            _settle(check, result, options, absent, deadline - time.monotonic())
            run.write(options.out)
            print(record.summary(result), flush=True)
    except KeyboardInterrupt:
        status = 130
    run.write(options.out)
    print(*record.conclusion(results), options.out / "gpu.md", sep="\n")
    return _status(results, strict=bool(options.only)) if status is None else status


def _settle(check: Check, result: Result, options: argparse.Namespace, absent: Sequence[str], left: float) -> None:
    """Run a check, or say why not; `left` is how many seconds of the run are."""
    longest = check.seconds * (ON_CPU if options.device == "cpu" else 1)
    if packages := plan.lacking(check, absent):
        result.outcome, result.reason = "left out", f"needs {packages}"
    elif check.cuda and options.device != "cuda":
        result.outcome, result.reason = "left out", "shows nothing without a CUDA device"
    elif left < ENOUGH * longest:
        result.reason = f"takes up to {longest / 60:.1f} minutes, and {max(left, 0) / 60:.1f} are left"
    else:
        _execute(check, result, options, min(longest, left))


def _execute(check: Check, result: Result, options: argparse.Namespace, seconds: float) -> None:
    """Run a check in a process of its own; what it has shown is kept however it ends."""
    folder, log = options.out / check.name, options.out / f"{check.name}.log"
    folder.mkdir(exist_ok=True)
    start = time.monotonic()
    status: int | None = None
    stop = "the run was interrupted"
    with tempfile.TemporaryDirectory(prefix="eigendet-gpu-", ignore_cleanup_errors=True) as temporary:
        lines = Path(temporary) / "figures"
        arguments = [check.module, options.device, "small" if options.small else "full", str(lines), str(folder)]
        try:
            with log.open("w") as output:
                variables = {**check.environment, "TMPDIR": temporary}
                status = child.run("tests.gpu.check", arguments, output, seconds, variables)
            stop = f"after {seconds:.0f} seconds" if status is None else ""
        finally:
            result.seconds = time.monotonic() - start
            result.figures, raised = record.read_lines(lines)
            result.judge(stop, raised or child.ending(status or 0))
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless the check has left something there
            if log.exists() and log.stat().st_size == 0:
                log.unlink()


def _machine(device: str, seconds: float) -> tuple[dict[str, str], str]:
    """Return what the run is made on, or why the device cannot be used."""
    with tempfile.TemporaryFile("w+") as output:
        status = child.run("tests.gpu.machine", [device], output, seconds)
        output.seek(0)
        answers = [line for line in output.read().splitlines() if line.startswith("{")]  # among torch's warnings
    if status is None:
        return {}, f"torch had not started after {seconds:.0f} seconds"
    if status or not answers:
        return {}, child.ending(status) or "its process said nothing"
    answer = json.loads(answers[-1])
    return answer.get("facts", {}), answer.get("reason", "")


def _status(results: Sequence[Result], strict: bool) -> int:
    outcomes = {result.outcome for result in results} - (set() if strict else {"left out"})
    return 2 if not outcomes else 0 if outcomes == {"passed"} else 1


def _options(arguments: Sequence[str], checks: Sequence[Check]) -> argparse.Namespace:
    names = [check.name for check in checks]
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="that the whole run may take (8)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what the run shows")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the checks, and is small")
    parser.add_argument("--small", action="store_true", help="cut sizes down: the checks are tried, times mean nothing")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    options = parser.parse_args(arguments)
    options.small = options.small or options.device == "cpu"
    return options


def _minutes(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of minutes")
    return value


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the run, once: a second signal while it ends is left alone."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
