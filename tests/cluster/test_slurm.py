"""The minimal experiment through a real Slurm, and through a stand-in for another scheduler, with our profiles."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from eigendet import config
from eigendet.runs import stages
from eigendet.runs.folder import RunFolder
from tests.cluster import slurm
from tests.conftest import ROOT, minimal_experiment

# There is no accounting on the test cluster, and nothing to be gained by looking seldom.
QUICK = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
QUICK += ["--seconds-between-status-checks", "1"]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with slurm.cluster() as found:
        yield found


def experiment() -> dict[str, Any]:
    """The minimal experiment with trainings that are long enough to be stopped, and dumps of two shards.

    Checkpoints come too seldom: there is one only where a run was asked to stop.
    """
    values = minimal_experiment()
    values["arms"] = {"finetune": {}, "scratch": {}, "derived": {}}
    values["training"] |= {"steps": 200, "checkpoint_every": 1000}
    values["covariance"] |= {"shards": 2, "arms": ["scratch"]}
    return values


def command(folder: Path, profile: str, *arguments: str) -> list[str]:
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment()))
    places = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(folder)]
    choice = ["--workflow-profile", str(ROOT / "workflow/profiles" / profile)]
    return ["snakemake", *places, *choice, *arguments, "--configfile", str(folder / "experiment.yaml")]


def queue(environment: dict[str, str], *columns: str) -> list[list[str]]:
    """The waiting and running jobs, as squeue says."""
    line = ["squeue", "--noheader", f"--format={'|'.join(columns)}"]
    answer = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    return [row.split("|") for row in answer.splitlines()]


def requeue(environment: dict[str, str], arm: str, run: Path) -> str:
    """Have the training of an arm started anew in the middle of its run; its number."""
    _until((run / "log.csv").exists, "no training has begun")
    number = next(
        job for job, comment in queue(environment, "%i", "%k") if comment.startswith(f"rule_train_wildcards_{arm}")
    )
    subprocess.run(["scontrol", "requeue", number], env=environment, check=True)
    _until((run / "last.ckpt").exists, "no checkpoint was written")
    _until(lambda: [number, "PENDING"] in queue(environment, "%i", "%T"), f"job {number} is not waiting again")
    subprocess.run(["scontrol", "update", f"jobid={number}", "StartTime=now"], env=environment, check=True)
    return number


def _until(reached: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 600
    while not reached():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@pytest.mark.slurm
def test_a_job_that_is_requeued_goes_on_to_the_weights_of_one_that_was_not(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "results/minimal/runs/scratch/tiny/rcnn/seed_0"
    target = str((run / "run.json").relative_to(tmp_path))
    with submitted(tmp_path, environment, target) as process:
        number = requeue(environment, "scratch", run)
        assert process.wait() == 0, output(tmp_path)
    assert f"has been submitted with SLURM jobid {number} " in output(tmp_path)
    log = (tmp_path / "results/minimal/logs/train/scratch/tiny/rcnn/seed_0.log").read_text()
    assert "resuming from step" in log
    stages.train(config.parse(experiment()), "scratch", "tiny", "rcnn", 0, tmp_path / "here")
    first, second = (
        torch.load(RunFolder(place).snapshot(200), weights_only=True) for place in (run, tmp_path / "here")
    )
    assert tensors(first) == tensors(second)


@contextlib.contextmanager
def submitted(folder: Path, environment: dict[str, str], *targets: str) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake on the cluster, while it runs."""
    with (folder / "output").open("w") as file:
        line = command(folder, "slurm", *QUICK, *targets)
        process = subprocess.Popen(line, env=environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def output(folder: Path) -> str:
    return (folder / "output").read_text()


@pytest.mark.slurm
@pytest.mark.slow
def test_the_experiment_gives_the_same_on_slurm_although_a_job_is_requeued(
    environment: dict[str, str], tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    local = subprocess.run([*command(here, "default", "--cores", "2")], capture_output=True, text=True, check=False)
    assert local.returncode == 0, local.stdout + local.stderr

    run = Path("results/minimal/runs/scratch/tiny/rcnn/seed_0")
    with submitted(there, environment) as process:
        requeue(environment, "scratch", there / run)
        assert process.wait() == 0, output(there)
    said = output(there)
    for rule in (
        "check_data",
        "pretrain",
        "train",
        "covariance_shard",
        "merge",
        "spectra",
        "evaluate",
    ):
        assert f"rule_{rule}/" in said, f"{rule} was not run by Slurm"
    for rule in ("widths", "report"):
        assert f"localrule {rule}:" in said
    log = (there / "results/minimal/logs/train/scratch/tiny/rcnn/seed_0.log").read_text()
    assert "resuming from step" in log
    same_results(here / "results/minimal", there / "results/minimal")


def same_results(here: Path, there: Path) -> None:
    """Every file is there, and says the same but for times and places."""
    names = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
    assert names == {path.relative_to(there) for path in there.rglob("*") if path.is_file()}
    assert not [name for name in names if "_of_" in name.name and name.suffix == ".h5"], "a shard has been left"
    for name in sorted(names):
        match name.suffix:
            case ".pt":
                first, second = (torch.load(place / name, weights_only=True) for place in (here, there))
                assert tensors(first) == tensors(second), name
            case ".parquet":
                pd.testing.assert_frame_equal(pd.read_parquet(here / name), pd.read_parquet(there / name))
    for folder in ("evaluation", "widths"):
        for file in (here / folder).rglob("*.json"):
            again = there / file.relative_to(here)
            assert json.loads(file.read_text()) == json.loads(again.read_text()), file


def tensors(content: Any) -> Any:
    """Tensors as bytes, wherever they are."""
    if isinstance(content, torch.Tensor):
        return content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: tensors(value) for key, value in content.items()}
    return content


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["train:slurm_partition=nosuch", "pretrain:gpu=1"], "invalid partition specified: nosuch"),
        pytest.param(
            ["train:gpu=1", "--config", "device=auto"],
            "the job asks for 1 GPUs, and torch finds 0 here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine"),
        ),
    ],
    ids=["no such partition", "no GPU where one is asked for"],
)
def test_a_job_that_cannot_run_stops_with_an_error_and_no_others(
    environment: dict[str, str], tmp_path: Path, wrong: list[str], message: str
) -> None:
    targets = [
        "results/minimal/pretrained/tiny/seed_0/run.json",
        "results/minimal/runs/scratch/tiny/rcnn/seed_0/run.json",
    ]
    line = command(tmp_path, "slurm", *QUICK, "--retries", "0", *targets, "--set-resources", *wrong)
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stdout + result.stderr
    assert (tmp_path / targets[0]).exists() and not (tmp_path / targets[1]).exists()


@pytest.mark.slurm
def test_more_gpus_than_the_cluster_has_are_refused(environment: dict[str, str], tmp_path: Path) -> None:
    target = "results/minimal/pretrained/tiny/seed_0/run.json"
    line = command(tmp_path, "slurm", *QUICK, "--retries", "0", target, "--set-resources", "pretrain:gpu=3")
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Requested node configuration is not available" in result.stdout + result.stderr


QSUB = """#!/bin/sh
echo "$@" >> {folder}/submitted
for script; do :; done
nohup sh "$script" > {folder}/job.out 2>&1 &
echo $!
"""


def test_another_scheduler_is_a_profile_away(tmp_path: Path) -> None:
    """A stand-in for qsub, which runs what it is given at once, sees the resources of each job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "qsub").write_text(QSUB.format(folder=tmp_path))
    (programs / "qsub").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    target = "results/minimal/pretrained/tiny/seed_0/run.json"
    line = command(tmp_path, "generic", "--latency-wait", "5", target)
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr + (tmp_path / "job.out").read_text()
    assert (tmp_path / target).exists()
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert len(submitted) == 3
    assert "-l gpu=1,h_vmem=32000M,h_rt=172800" in submitted[-1]
    assert all("-l gpu=0,h_vmem=32000M,h_rt=172800" in line for line in submitted[:-1])
