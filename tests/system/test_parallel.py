"""Several processes on the CPU do what one does; what goes wrong in one ends all."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

from eigendet import config, processes
from eigendet.errors import UserError
from eigendet.observe import store
from eigendet.runs import covariances, parallel, stages
from eigendet.runs.folder import RunFolder

# Of one size, since what is padded to another size depends on the other images; and without sampling of anchors.
EXACT = {"detector": {"plugin": "retinanet", "fpn_channels": 16, "anchor_sizes": [8, 16, 32, 48, 64]}}
TRAINING = {"steps": 20, "batch_size": 4, "log_every": 1, "scale_jitter": [1, 1], "learning_rate": 3e-3}


@pytest.fixture
def experiment(values: dict[str, Any], tmp_path: Path) -> Callable[..., config.Experiment]:
    """Writes c.yaml with changes."""

    def write(norm: str = "group", **changes: Any) -> config.Experiment:
        values["detectors"] = EXACT
        values["backbones"]["tiny"]["norm"] = norm
        values["training"] |= TRAINING | changes
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
        return config.parse(values)

    return write


def command(folder: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "eigendet", *map(str, arguments), "--config", str(folder / "c.yaml")]


def train(folder: Path, name: str, devices: int = 2) -> list[str]:
    return command(folder, "train", "--devices", str(devices), "--output", folder / name)


def losses(folder: Path) -> np.ndarray:
    found: np.ndarray = pd.read_csv(folder / "log.csv").filter(regex="loss|classification|bbox").to_numpy()
    return found


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(RunFolder(folder).snapshot(step), weights_only=True)
    return content["model"]


def test_two_processes_learn_as_one_does(experiment: Callable[..., config.Experiment], tmp_path: Path) -> None:
    one = experiment(tensorboard=True)
    stages.train(one, "scratch", "tiny", "detector", 0, tmp_path / "one")
    both = subprocess.run(
        [*train(tmp_path, "two"), "--log", str(tmp_path / "two.log")], check=True, text=True, stderr=subprocess.PIPE
    )
    for said in (both.stderr, (tmp_path / "two.log").read_text()):
        assert said.count("train scratch seed 0: step 20 of 20, loss ") == 1  # by the first
    assert len(list((tmp_path / "two").glob("events.out.tfevents.*"))) == 1
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    assert losses(tmp_path / "one")[-1, 0] < 0.99 * losses(tmp_path / "one")[0, 0]  # and there is something to learn
    before, alone, shared = weights(tmp_path / "one", 0), weights(tmp_path / "one", 20), weights(tmp_path / "two", 20)
    for name, value in alone.items():
        if value.is_floating_point():
            moved = torch.linalg.norm(value - before[name])
            assert torch.linalg.norm(shared[name] - value) <= 0.01 * moved + 1e-6, name
    assert RunFolder(tmp_path / "two").read().processes == 2
    assert RunFolder(tmp_path / "two").read().identity == RunFolder(tmp_path / "one").read().identity


def test_two_processes_dump_what_one_dumps(experiment: Callable[..., config.Experiment], tmp_path: Path) -> None:
    one = experiment(steps=2)
    stages.train(one, "scratch", "tiny", "detector", 0, tmp_path / "run")
    covariances.compute_covariance(one, tmp_path / "run", tmp_path / "one.h5")
    subprocess.run(
        command(tmp_path, "covariance", tmp_path / "run", "--devices", "2", "--output", tmp_path / "two.h5"), check=True
    )
    assert store.images(tmp_path / "one.h5") == store.images(tmp_path / "two.h5")
    for alone, shared in zip(store.read(tmp_path / "one.h5"), store.read(tmp_path / "two.h5"), strict=True):
        assert (alone.step, alone.key, alone.count) == (shared.step, shared.key, shared.count)
        assert np.linalg.norm(alone.scatter - shared.scatter) <= 1e-12 * np.linalg.norm(alone.scatter)
        assert alone.parts.keys() == shared.parts.keys()


def start(arguments: list[str], folder: Path, rows: int) -> subprocess.Popen[str]:
    """A process that has trained so many steps."""
    process = subprocess.Popen(arguments, text=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "log.csv").is_file() and len((folder / "log.csv").read_text().splitlines()) > rows:
            return process
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no step after two minutes: {process.communicate()[1]}")


@pytest.mark.parametrize(
    ("devices", "ask"),
    [(1, signal.SIGTERM), (1, signal.SIGINT), pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["by Slurm", "by Ctrl-C", "two processes"],
)
def test_a_run_that_is_asked_to_stop_goes_on_to_the_same_weights(
    experiment: Callable[..., config.Experiment], tmp_path: Path, devices: int, ask: signal.Signals
) -> None:
    one = experiment(steps=100, checkpoint_every=1000, snapshots=[0, 100])
    if devices == 1:
        stages.train(one, "scratch", "tiny", "detector", 0, tmp_path / "whole")
    else:
        subprocess.run(train(tmp_path, "whole", devices), check=True)
    log = tmp_path / "stopped.log"
    process = start([*train(tmp_path, "stopped", devices), "--log", str(log)], tmp_path / "stopped", 3)
    process.send_signal(ask)
    _, reports = process.communicate(timeout=60)
    said = log.read_text()
    assert process.returncode == parallel.STOPPED, said
    assert re.fullmatch(r"(train scratch seed 0: step \d+ of 100, loss .*\n)*.* ended after 0:\d\d\n", reports)
    assert "asked to stop after step" in said and "Traceback" not in said
    assert (tmp_path / "stopped/last.ckpt").is_file() and not (tmp_path / "stopped/run.json").exists()
    again = subprocess.run(train(tmp_path, "stopped", devices), check=True, text=True, stderr=subprocess.PIPE)
    assert "resuming from step" in again.stderr
    whole, stopped = weights(tmp_path / "whole", 100), weights(tmp_path / "stopped", 100)
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_a_process_that_dies_ends_all(experiment: Callable[..., config.Experiment], tmp_path: Path) -> None:
    experiment(steps=5000, checkpoint_every=1)
    process = start(train(tmp_path, "run"), tmp_path / "run", 2)
    children = _children(process.pid)
    second = [pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: process 1 of 2 was killed by SIGKILL, so the others were stopped." in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert (tmp_path / "run/last.ckpt").is_file()


def test_all_die_with_the_process_that_started_them(
    experiment: Callable[..., config.Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where what is killed leaves its folder
    experiment(steps=5000, checkpoint_every=1)
    process = start(train(tmp_path, "run"), tmp_path / "run", 2)
    children = [psutil.Process(int(pid)) for pid in _children(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, running = psutil.wait_procs(children, timeout=10)
    assert len(children) >= 2 and not running


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_mistake_is_said_without_a_traceback(experiment: Callable[..., config.Experiment], tmp_path: Path) -> None:
    experiment(batch_size=3)
    result = subprocess.run(train(tmp_path, "run"), text=True, stderr=subprocess.PIPE)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "Error: batch_size is 3; the 2 processes of this job cannot have equal shares of it." in result.stderr
    assert result.stderr.rstrip().endswith("of 2 failed, so the others were stopped.")


def test_batch_norm_over_processes_needs_gpus(
    experiment: Callable[..., config.Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = experiment(norm="sync_batch")
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "wait", lambda: None)
    with pytest.raises(UserError, match=r"norm is 'sync_batch', which needs GPUs where several processes train"):
        stages.train(one, "scratch", "tiny", "detector", 0, tmp_path / "run")


def test_nodes_find_one_another(experiment: Callable[..., config.Experiment], tmp_path: Path) -> None:
    """With an srun that starts the command twice here."""
    one = experiment(steps=3)
    stages.train(one, "scratch", "tiny", "detector", 0, tmp_path / "one")
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nset -e\nwhile [[ $1 == --* ]]; do shift; done\n"$@" & "$@"; wait $!\n')
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PATH": f"{srun.parent}:{os.environ['PATH']}"}
    logged = [*train(tmp_path, "two"), "--log", str(tmp_path / "two.log")]
    subprocess.run([*logged, "--nodes", "2"], check=True, env=environment)
    assert (tmp_path / "two.log").read_text().count("train scratch seed 0: step 3 of 3, loss ") == 1
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    assert RunFolder(tmp_path / "two").read().processes == 2


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three, on paper."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(parallel, "LOCKS", [])


def another_job(count: int = 1) -> list[int]:
    parallel._held.cache_clear()
    return parallel._held(count)


@pytest.mark.usefixtures("gpus")
def test_jobs_beside_one_another_have_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [another_job(), another_job(2)] == [[0], [1, 2]]
    assert parallel._held(2) == [1, 2]  # the same job, asking again
    assert another_job() == [0]  # a fourth shares
    parallel.LOCKS.pop(0).release()  # the first ends
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,1")
    assert another_job() == [1]  # which is called 0
    parallel._held.cache_clear()


@pytest.mark.usefixtures("gpus")
def test_fewer_gpus_than_promised_are_an_error() -> None:
    parallel.check_devices("auto", 3)
    parallel.check_devices("cpu", 8)
    with pytest.raises(UserError, match=r"the job asks for 4 GPUs, and torch finds 3 here"):
        parallel.check_devices("auto", 4)
    with pytest.raises(UserError, match=r"--devices is 3; 2 nodes cannot have equal shares of that"):
        parallel.run(lambda: None, "auto", 3, 2)


@pytest.mark.usefixtures("gpus")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that torchrun starts by hand, each takes the GPU of its number."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert [parallel.device_of("auto")] == taken == [torch.device("cuda", 2)]
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match=r"process 3, counted from 0, has no GPU: torch finds 3 here; start as many"):
        parallel.device_of("cuda")


def test_without_slurm_nodes_are_started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"--nodes is 2, and there is no srun here. Outside of Slurm, run `torchrun"):
        parallel.run(lambda: None, "cpu", 2, 2)
