"""The command of every stage of a finished experiment, and what it writes, for what happens to any of them."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from tests.workflow.conftest import Finished

RESULTS = "results/minimal"
CONFIG = ["--config", f"{RESULTS}/config.yaml"]
NETWORK = ["--backbone", "tiny", "--detector", "rcnn"]
RUN = "scratch/tiny/rcnn/seed_0"
FOLDER, COVARIANCE = f"{RESULTS}/runs/{RUN}", f"{RESULTS}/covariance/{RUN}.h5"
SPECTRA = [f"{RESULTS}/spectra/{arm}/tiny/rcnn/seed_{seed}" for arm in ("finetune", "scratch") for seed in (0, 1)]
RUNS = [f"{RESULTS}/runs/scratch/tiny/rcnn/seed_{seed}" for seed in (0, 1)]
COVARIANCES = [part for run in RUNS for part in ("--covariance", f"{run.replace('/runs/', '/covariance/')}.h5")]
TRAIN = ["train", *CONFIG, *NETWORK, "--arm", "scratch", "--seed", "0"]
SHARDS = [COVARIANCE.replace(".h5", f".{number}_of_2.h5") for number in (1, 2)]
WIDTHS = f"{RESULTS}/widths/tiny/rcnn"

# Command and outputs of each stage, without the option that says where its output is.
STAGES: dict[str, tuple[list[str], list[str]]] = {
    "check-data": (["check-data", "detection", "train", *CONFIG, "--output"], [f"{RESULTS}/data/killed.json"]),
    "check-network": (["check-network", *CONFIG, *NETWORK, "--output"], [f"{RESULTS}/networks/tiny/rcnn.json"]),
    "pretrain": (["pretrain", *CONFIG, *NETWORK[:2], "--output"], [f"{RESULTS}/pretrained/tiny/seed_0"]),
    "train": ([*TRAIN, "--output"], [FOLDER]),
    "evaluate": (["evaluate", FOLDER, *CONFIG, "--output"], [f"{RESULTS}/evaluation/{RUN}.json"]),
    "covariance": (["covariance", FOLDER, *CONFIG, "--output"], [COVARIANCE]),
    "merge": (["merge", *SHARDS, "--output"], [COVARIANCE]),
    "spectra": (["spectra", COVARIANCE, "--output"], [f"{RESULTS}/spectra/{RUN}"]),
    "comparison": (["comparison", *SPECTRA, "--output"], [f"{RESULTS}/comparison/tiny/rcnn"]),
    "forecast": (["forecast", COVARIANCE, *CONFIG, "--output"], [f"{RESULTS}/forecast/tiny/rcnn.json"]),
    "widths": (["widths", "derived", *SPECTRA[2:], *CONFIG, *NETWORK, "--output"], [f"{WIDTHS}/derived.json"]),
    "front": (["front", *SPECTRA[2:], *CONFIG, *NETWORK, "--output"], [f"{WIDTHS}/front.csv"]),
    "readings": (
        ["readings", *RUNS, *COVARIANCES, *CONFIG, *NETWORK, "--output"], [f"{WIDTHS}/readings.csv"]
    ),
    "report": (["report", RESULTS], [f"{RESULTS}/report.html", f"{RESULTS}/summary.csv", f"{RESULTS}/figures"]),
    "train on two devices": ([*TRAIN, "--devices", "2", "--output"], [FOLDER]),
    "covariance on two devices": (["covariance", FOLDER, *CONFIG, "--devices", "2", "--output"], [COVARIANCE]),
}  # fmt: skip


def command_of(stage: str) -> list[str]:
    """Return its arguments after `eigendet`."""
    command, outputs = STAGES[stage]
    return [*command, outputs[0]] if command[-1] == "--output" else command


def of_every_stage(kind: str) -> list[Any]:
    """Return all stages for a parametrized test; all but one are slow."""
    slow = {name: [pytest.mark.slow] for name in STAGES if name != "spectra"}
    return [
        pytest.param(name, marks=[pytest.mark.fault(kind=kind, stage=name), *slow.get(name, [])]) for name in STAGES
    ]


def prepare(stage: str, where: Finished) -> None:
    """Make what a stage reads that a finished experiment has not kept."""
    for number, shard in enumerate(SHARDS if stage == "merge" else [], start=1):
        eigendet(where, "covariance", FOLDER, *CONFIG, "--shard", f"{number}/2", "--output", shard)


def eigendet(where: Finished, *arguments: str) -> None:
    """Run a command to its end."""
    subprocess.run(["eigendet", *arguments], cwd=where.folder, check=True, capture_output=True, env=environment())


def environment() -> dict[str, str]:
    """Return that of a command which shares two cores with others."""
    return os.environ | {"OMP_NUM_THREADS": "1"}
