"""Snakemake on a folder of its own, and what its plans and results say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT


def snakemake(folder: Path, configuration: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in a folder, with a configuration file written there."""
    return subprocess.run(
        command(folder, configuration, *arguments), capture_output=True, text=True, check=False, cwd=folder
    )


def command(folder: Path, configuration: dict[str, Any], *arguments: str) -> list[str]:
    """Its command line, once the configuration is written."""
    (folder / "experiment.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    places = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(folder)]
    cores = [] if "--unlock" in arguments else ["--cores", "2"]  # as people type it
    return ["snakemake", *places, "--configfile", str(folder / "experiment.yaml"), *cores, *arguments]


def said(process: subprocess.CompletedProcess[str]) -> str:
    return process.stdout + process.stderr


def planned(folder: Path, configuration: dict[str, Any], *arguments: str) -> dict[str, int]:
    """Rule -> number of jobs that a run would have now; empty if there is nothing to do."""
    plan = snakemake(folder, configuration, "--dry-run", *arguments)
    assert plan.returncode == 0, said(plan)
    return jobs(said(plan))


def jobs(plan: str) -> dict[str, int]:
    """Rule -> number of jobs, of what a dry run prints."""
    lines = plan.split("Job stats:")[-1].split("total")[0].splitlines() if "Job stats:" in plan else []
    rows = [line.split() for line in lines]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and bytes of every result."""
    files = sorted(path for path in (folder / "results").rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
