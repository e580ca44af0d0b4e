"""Fuzz what reads files, guided by which lines of the library an input reaches: `python -m tests.faults.fuzz`.

Each reader of `readers.py` has a process of its own, and so many seconds. An input is a file, begun from whole ones: to
accept it is right, and so is to refuse it in one line that can be printed. Anything else is a fault: another exception,
a crash, more than 30 s or 4 GB. Faults are kept in the folder, each with its input. Without names all readers are run,
and `tests/fuzzing.md` is written. Needs atheris (`pip install atheris`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MOST_SECONDS, MOST_MEMORY = 30, 4096  # of one input; MB


class Outcome(NamedTuple):
    """What came of a reader: inputs that were tried, edges of code that they reached, and faults."""

    reader: str
    tried: int
    edges: int
    faults: int
    ended: bool  # by its time, not by a crash


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", help="their names; all, if none is given")
    parser.add_argument("--seconds", type=int, default=3600, help="of each reader")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/fuzz", help="of inputs and faults")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        fuzz(options.readers[0], options.seconds, options.folder)
        return 0
    from tests.faults.readers import READERS

    outcomes = []
    for name in options.readers or READERS:
        outcomes.append(run(name, options.seconds, options.folder / name))
        print(*outcomes[-1], flush=True)
    if not options.readers:
        (ROOT / "tests/fuzzing.md").write_text(page(outcomes, options.seconds))
    return int(any(outcome.faults or not outcome.ended for outcome in outcomes))


def run(name: str, seconds: int, folder: Path) -> Outcome:
    """Fuzz a reader in a process of its own."""
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.faults.fuzz",
        "--inside",
        name,
        f"--seconds={seconds}",
        f"--folder={folder}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, log = process.communicate(timeout=seconds + 4 * MOST_SECONDS)
    except subprocess.TimeoutExpired:  # libFuzzer ends while it holds what pyarrow's threads wait for
        process.kill()
        _, log = process.communicate()
    (folder / "log.txt").write_text(log)
    tried = [int(number) for number in re.findall(r"^#(\d+)\s", log, re.MULTILINE)]
    edges = [int(number) for number in re.findall(r"\bcov: (\d+)", log)]
    ended = re.search(r"^Done \d+ runs in \d+ second", log, re.MULTILINE) is not None
    faults = len(list(folder.glob("fault_*.txt"))) + len(list(folder.glob("*-*[0-9a-f]")))
    return Outcome(name, max(tried, default=0), max(edges, default=0), faults, ended)


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Fuzz a reader in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["eigendet"]):
        readers = importlib.import_module("tests.faults.readers")
    from tests.faults.refusal import lines_or_nothing

    warnings.simplefilter("ignore")
    shared = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    place = Path(tempfile.mkdtemp(dir=shared))
    (place / "made").mkdir()
    reader = readers.READERS[name](place / "made")
    for number, content in enumerate(reader.contents):
        (folder / f"inputs/whole_{number}").write_bytes(content)
    file = place / "tried" / reader.name
    file.parent.mkdir()
    faults: dict[str, int] = {}

    def one(content: bytes) -> None:
        file.write_bytes(content)
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                lines_or_nothing(lambda: reader.read(file))
        except Exception as error:  # what is looked for
            frames = traceback.extract_tb(error.__traceback__)
            where = next((frame for frame in reversed(frames) if "eigendet" in frame.filename), frames[-1])
            kind = re.sub(r"\W+", "_", f"{type(error).__name__}_{Path(where.filename).stem}_{where.lineno}")
            faults[kind] = faults.get(kind, 0) + 1
            if faults[kind] == 1:
                (folder / f"fault_{kind}.bin").write_bytes(content)
                (folder / f"fault_{kind}.txt").write_text(traceback.format_exc())
        if time.monotonic() - began > MOST_SECONDS:
            (folder / f"fault_slow_{len(content)}.txt").write_text(f"{time.monotonic() - began} s")

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        source = random.Random(seed)
        other = reader.changed(content, source) if source.random() < 0.7 else None
        return atheris.Mutate(content, longest) if other is None or len(other) > longest else other

    limits = [f"-max_total_time={seconds}", f"-timeout={2 * MOST_SECONDS}", f"-rss_limit_mb={MOST_MEMORY}"]
    longest = 4 * max(map(len, reader.contents))
    atheris.Setup(
        [sys.argv[0], *limits, f"-max_len={longest}", f"-artifact_prefix={folder}/", f"{folder}/inputs"],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def page(outcomes: Sequence[Outcome], seconds: int) -> str:
    """Return the table."""
    rows = [
        f"| {name} | {tried} | {edges} | {faults}{'' if ended else ', crashed'} |"
        for name, tried, edges, faults, ended in outcomes
    ]
    about = (__doc__ or "").split("\n\n", 1)[1].strip().split("\n")
    head = ["# Fuzzing", "", *about, "", f"{seconds} s each.", ""]
    return "\n".join([*head, "| reader | inputs | edges reached | faults |", "| --- | --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
