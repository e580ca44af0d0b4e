"""What the demo took beside training, observing and analysis: `make benchmark NAME=overhead` writes overhead.md.

Times are from the benchmark files that Snakemake wrote in results/digits. A core's seconds that no job used count as
overhead: the workflow's own start, and waiting for what others need first. So do the checks before any run. Everything
else is work that was asked for, but each job starts a process of its own; the last column is what it takes to import
what the stage needs, measured now, with nothing else running, times the number of jobs.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from eigendet.errors import UserError

BENCHMARKS = Path("results/digits/benchmarks")
NETWORKS = "eigendet.runs.stages, eigendet.runs.covariances, torchvision.models.detection"
# Rules by what they are for, in the order of the workflow, with the modules that their jobs import.
STAGES = {
    "checks": {"check_data": "eigendet.data.datasets", "check_network": NETWORKS},
    "training": dict.fromkeys(("pretrain", "train"), NETWORKS + ", torch._dynamo"),
    "observing": {"covariance": NETWORKS, "readings": NETWORKS},
    "analysis": {
        "spectra": "eigendet.spectra.spectrum", "comparison": "eigendet.spectra.comparison",
        "report": "eigendet.report.page",
        **dict.fromkeys(("widths", "front", "evaluate", "latency"), NETWORKS),
    },
}  # fmt: skip
RUNS = 3


def jobs() -> pd.DataFrame:
    """Rule, start and end of every job, in seconds."""
    rows = []
    for file in BENCHMARKS.rglob("*.tsv"):
        seconds, end = float(pd.read_csv(file, sep="\t")["s"].iloc[0]), file.stat().st_mtime
        rule = file.relative_to(BENCHMARKS).parts[0].removesuffix(".tsv")
        rows.append({"rule": rule, "start": end - seconds, "end": end, "seconds": seconds})
    if not rows:
        raise UserError(f"{BENCHMARKS}: holds no times; run `make demo` first.")
    return pd.DataFrame(rows)


def start_up(modules: str) -> float:
    """Median seconds of a process that imports these and ends."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    done, cores = jobs(), os.cpu_count() or 1
    wall = float(done["end"].max() - done["start"].min())
    whole = cores * wall
    starts = {modules: start_up(modules) for rules in STAGES.values() for modules in rules.values()}
    lines = [
        "# What the demo takes beside its work", "", *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"{platform.machine()}, {cores} cores, torch {torch.__version__}. From the first job's start to the last one's "
        f"end: {wall:.0f} s.", "",
        "| | jobs | seconds of a core | share | of that to start processes |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    overhead = whole - float(done["seconds"].sum())
    idle, starting = overhead, 0.0
    for stage, rules in STAGES.items():
        here = done[done["rule"].isin(rules)]
        seconds = float(here["seconds"].sum())
        start = sum(starts[modules] * int((here["rule"] == rule).sum()) for rule, modules in rules.items())
        lines.append(f"| {stage} | {len(here)} | {seconds:.0f} | {seconds / whole:.1%} | {start:.0f} |")
        if stage == "checks":
            overhead += seconds
        else:
            starting += start
    lines.append(f"| no job | | {idle:.0f} | {idle / whole:.1%} | |")
    lines += [
        "",
        f"Overhead: {overhead / whole:.1%}; with the start of every process, {(overhead + starting) / whole:.1%}.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
