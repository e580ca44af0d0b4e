"""How many small mistakes in the modules that compute the unit tests catch: `make mutation`.

Every mutant is tried with the tests that reach its function, the fastest first, until one fails. What becomes of each
is kept in `.results/` beside this file; `tests/mutation.md` is written from that and from `harmless.yaml`, which says
of survivors why they are no mistakes.

    python -m tests.mutation [--again] [--every=N] [MODULE ...]

--again tries those only that are new, survived or hung: after tests were added, not after a test was changed. --every
tries one of so many of those that were not tried yet: a sample, where all would take too long.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import signal
import sys
import time

import hypothesis
import torch

from tests.conftest import ROOT
from tests.mutation import mutants, report, trial
from tests.watching import watched

PROCESSES = 2
SLOW, LONG = 1.0, 4.0  # seconds of a test that is not worth its time here, and of all that a mutant is tried with
PATIENCE, MORE = 5, 4  # seconds, and times what the tests take as it is, after which a trial hangs; of the processor
HOURGLASS = 300  # seconds by the clock, for what waits without working
HEAVY = """torch.fx torch._dynamo torchvision.models torch_pruning timm delve.torch_utils scipy.optimize scipy.special
    pandas pyarrow.parquet pydantic rich sklearn.decomposition h5py powerlaw pytest"""  # what modules and tests import
TESTS = {  # by module, without the prefix `eigendet.`
    "moments.products": "products",
    "observe.padding": "padding taps",
    "observe.shortcuts": "shortcuts",
    "spectra.similarity": "similarity",
    "spectra.metric_table": "spectrum",
    "widths.derivation": "widths",
    "spectra.metrics": "metrics",
    "spectra.spectrum": "spectrum",
    "spectra.references": "significance level",
    "spectra.significance": "significance level",
    "widths.dimensions": "dimensions",
    "channels.sizes": "sizes operations layers",
    "channels.groups": "groups",
    "channels.record": "tracing operations layers",
    "channels.follower": "tracing channels",
    "channels.operations": "operations layers tracing",
    "channels.weighted": "operations layers tracing",
    "widths.allocation": "allocation",
    "moments.covariance": "accumulator covariance",
    "moments.packs": "accumulator covariance",
    "moments.chunks": "accumulator covariance",
    "channels.tracing": "channels built_networks",
    "channels.trial": "channels",
    "channels.naming": "channels",
    "channels.rebuilding": "channels",
    "widths.controls": "controls",
    "widths.marginal": "marginal",
    "widths.matching": "controls",
    "widths.rounding": "rounding",
    "widths.sources": "sources",
    "widths.stages": "stages",
    "widths.targets": "allocators",
    "widths.views": "allocators sources",
}


def main(arguments: list[str]) -> None:
    again = "--again" in arguments
    every = next((int(one.removeprefix("--every=")) for one in arguments if one.startswith("--every=")), 1)
    modules = [name for name in arguments if not name.startswith("-")] or list(TESTS)
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("mutation", database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutation")
    for name in HEAVY.split():
        importlib.import_module(name)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    gc.freeze()  # what is here by now is never looked through again, in no fork
    report.RESULTS.mkdir(exist_ok=True)
    for module in modules:
        try_all(module, again, every)
        report.write()


def try_all(module: str, again: bool, every: int) -> None:
    """Note what becomes of every mutant of a module: caught, timed out, survived; not tried, if this is ended."""
    file = ROOT / "workflow" / "eigendet" / f"{module.replace('.', '/')}.py"
    source, notes = file.read_text(), report.RESULTS / f"{module}.json"
    before = json.loads(notes.read_text()) if again and notes.exists() else {}
    files = [f"tests/unit/test_{name}.py" for name in TESTS[module].split()]
    known = trial.watched(trial.Exchanged(f"eigendet.{module}", file, source), files, report.RESULTS / "watched")
    found = mutants.of(source)
    outcomes = {key: before.get(key, "not tried") for key in found}
    running: dict[int, tuple[str, float]] = {}
    for place, (key, mutant) in enumerate(watched(found.items(), module)):
        tests = known.reaching(mutant.first_line, SLOW, LONG)
        if outcomes[key] == "caught" or (outcomes[key] == "not tried" and place % every):
            continue
        if not tests:
            outcomes[key] = "survived"
            continue
        while len(running) >= PROCESSES:
            _collect(running, outcomes)
        own = [name for name in files if any(test.startswith(f"{name}::") for test in tests)]
        patience = PATIENCE + MORE * math.ceil(sum(known.seconds[test] for test in tests))
        child = trial.start(trial.Exchanged(f"eigendet.{module}", file, mutant.source), own, tests, patience)
        running[child] = (key, time.monotonic() + HOURGLASS)
        notes.write_text(json.dumps(outcomes, indent=1))
    while running:
        _collect(running, outcomes)
    notes.write_text(json.dumps(outcomes, indent=1))


def _collect(running: dict[int, tuple[str, float]], outcomes: dict[str, str]) -> None:
    """Take the results of trials that have ended, and end those that hang."""
    time.sleep(0.01)
    for child, (key, until) in list(running.items()):
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            outcomes[key] = "timed out"
        else:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
            outcomes[key] = "timed out" if hung else "caught" if status else "survived"
        del running[child]


if __name__ == "__main__":
    main(sys.argv[1:])
