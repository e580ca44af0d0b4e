"""The table of mutants and the list of survivors: `tests/mutation.md`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections import Counter
from pathlib import Path

import yaml

HERE = Path(__file__).parent
RESULTS = HERE / ".results"
UNEXPLAINED = "Tests are missing, or were added since these were last tried (`python -m tests.mutation --again`)."
OUTCOMES = ("caught", "timed out", "survived", "not tried")


def write() -> None:
    """The document anew, from the results that there are."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    HERE.with_suffix(".md").write_text("\n".join(lines(found)) + "\n")


def lines(found: dict[str, dict[str, str]]) -> list[str]:
    counts = {module: Counter(outcomes.values()) for module, outcomes in found.items()}
    counts["together"] = sum(counts.values(), Counter())
    versions = {name: importlib.metadata.version(name) for name in ("cosmic-ray", "torch")}
    written = [
        "# Whether the unit tests notice mistakes",
        "",
        "Every module that computes is changed in one place at a time, and the unit tests that reach this place run on",
        "it: `make mutation`. Operators become their neighbors, numbers one more and one less, conditions their",
        "opposite; loops, decorators, and calls whose result nobody takes are left out. Texts are kept: they are for",
        "readers. Tests that take more than a second have no part in it, nor, of those that reach a place, the slowest",
        "after the first four seconds.",
        "",
        "Modules without a row were not run. What is noticed is a share of the mutants that were tried.",
        "",
        f"{datetime.date.today()}, two cores of {_processor()}, cosmic-ray {versions['cosmic-ray']} for the mutants,",
        f"torch {versions['torch']}, Python {platform.python_version()}.",
        "",
        f"| module | mutants | {' | '.join(OUTCOMES)} | noticed |",
        "| --- |" + " ---: |" * (len(OUTCOMES) + 2),
    ]
    for module, count in counts.items():
        noticed = count["caught"] + count["timed out"]
        tried = noticed + count["survived"]
        numbers = " | ".join(str(count[outcome]) for outcome in OUTCOMES)
        written.append(f"| {module} | {count.total()} | {numbers} | {noticed / max(tried, 1):.1%} |")
    return [*written, "", *_survivors(found)]


def _survivors(found: dict[str, dict[str, str]]) -> list[str]:
    """The survivors by the reason for which each is harmless; those without one last."""
    left = {
        f"{module}: {key}" for module, one in found.items() for key, outcome in one.items() if outcome == "survived"
    }
    written = ["# Survivors, and why they may stay", ""]
    for group in yaml.safe_load((HERE / "harmless.yaml").read_text()) or []:
        here = [name for name in group["mutants"] if name in left]
        left.difference_update(here)
        if here:
            written += [f"{group['why']}", "", *(f"- `{name}`" for name in here), ""]
    if left:
        written += [
            "# Survivors without a reason",
            "",
            UNEXPLAINED,
            "",
            *(f"- `{name}`" for name in sorted(left)),
            "",
        ]
    return written[:-1]


def _processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"an {names[0]}" if names else platform.machine() or os.name
