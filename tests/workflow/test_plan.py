"""What `eigendet plan` says of an experiment is what Snakemake plans, and what its results take on disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.runs import plan
from tests.conftest import minimal_experiment
from tests.workflow.conftest import Finished
from tests.workflow.running import planned, said, snakemake

OTHER_ARMS: dict[str, dict[str, Any]] = {
    arm: {} for arm in ("scratch", "derived", "reference", "uniform_macs", "permuted", "untrained")
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "minimal": {},
    "shards": {"covariance": {"images": 4, "shards": 3}, "seeds": [0, 1]},
    "controls": {"arms": OTHER_ARMS, "rounds": 2, "covariance": {"images": 3}},
    "starts": {
        "seeds": [0, 1, 2],
        "pretraining": minimal_experiment()["pretraining"] | {"seeds": [0, 1]},
        "backbones": {"a": {"plugin": "resnet"}, "b": {"plugin": "resnet", "pretrained": "w.pt"}},
        "arms": {
            "finetune": {},
            "scratch": {},
            "dino": {"init": "w.pt"},
            "supervised": {"init": "workflow"},
            "derived": {},
            "derived_finetune": {},
        },
    },
    "no widths": {"arms": {"finetune": {}, "scratch": {}}},
    "other weights": {"backbones": {"a": {"plugin": "resnet", "pretrained": "w.pt"}, "b": {"plugin": "resnet"}}},
}


@pytest.mark.parametrize("changes", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_jobs_are_those_that_snakemake_plans(changes: dict[str, Any], tmp_path: Path) -> None:
    values = minimal_experiment() | changes
    found = {
        rule: stage.jobs for rule, stage in plan.by_rule(plan.planned_stages(config.parse(values), tmp_path)).items()
    }
    assert found | {"all": 1} == planned(tmp_path, values)


def disk(folder: Path) -> int:
    """Bytes of the blocks that a folder takes."""
    total = 0
    for path in [folder, *folder.rglob("*")]:
        try:
            total += 512 * path.lstat().st_blocks
        except FileNotFoundError:  # a temporary file
            continue
    return total


def test_disk_of_a_finished_experiment_is_what_its_plan_says(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    known = plan.planned_stages(config.parse(finished.configuration), finished.results)
    assert sum(stage.disk for stage in known) == pytest.approx(disk(finished.folder / "results"), rel=0.1)


@pytest.mark.slow
def test_disk_is_within_a_tenth_of_what_was_planned(tmp_path: Path) -> None:
    """For networks large enough that files are more than folders and logs; at its highest, once widths are known.

    One job runs at a time: when more do, it is chance which of their highest meet, and the plan is an upper bound.
    """
    values = minimal_experiment() | {"arms": {"finetune": {}, "scratch": {}, "derived": {}}}
    values["backbones"]["tiny"] |= {"width": 0.5, "norm_groups": 8}
    values["training"] |= {"steps": 30, "checkpoint_every": 1, "snapshots": 8}
    values["covariance"] = {"images": 6, "points": ["conv", "act"], "shards": 2}
    experiment = config.parse(values)
    found = plan.planned_stages(experiment, tmp_path)
    done, highest = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.05):
            highest[0] = max(highest[0], disk(tmp_path / "results"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = snakemake(tmp_path, values, "--cores", "1")
    finally:
        done.set()
        watcher.join()
    assert result.returncode == 0, said(result)
    assert sum(stage.disk for stage in found) == pytest.approx(disk(tmp_path / "results"), rel=0.1)
    known = plan.planned_stages(experiment, tmp_path / "results/minimal")
    assert sum(stage.disk for stage in known) == pytest.approx(disk(tmp_path / "results"), rel=0.05)
    assert plan.peak(known, 1) == pytest.approx(highest[0], rel=0.1)
    assert highest[0] <= plan.peak(known, 2)
