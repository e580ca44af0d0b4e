"""The workflow itself: planned, run from data to report on a minimal experiment, run again, and given bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
import torch
import yaml

from eigendet import cli_plugins, report
from tests.conftest import ROOT, minimal_experiment

WIDTHS_AND_AFTER = {"derive_widths", "pareto_front", "retrain", "evaluate", "latency", "report"}
ARMS = ("finetune", "scratch", "derived", "uniform_parameters", "profile")


def snakemake(folder: Path, configuration: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in a folder of its own, with a configuration file written there."""
    (folder / "experiment.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    line = [*command(folder), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)


def command(folder: Path) -> list[str]:
    workflow = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(folder)]
    return ["snakemake", *workflow, "--configfile", str(folder / "experiment.yaml"), "--cores", "2"]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and bytes of every result."""
    files = sorted(path for path in (folder / "results").rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def jobs(plan: str) -> dict[str, int]:
    """Rule -> number of jobs of a dry run."""
    lines = plan.split("Job stats:")[-1].split("total")[0].splitlines() if "Job stats:" in plan else []
    rows = [line.split() for line in lines]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which the minimal experiment has run with two seeds, and its configuration.

    Its detector is a plugin of the folder's own, as `eigendet plugins new` writes it.
    """
    folder = tmp_path_factory.mktemp("workflow")
    configuration = minimal_experiment() | {"seeds": [0, 1]}
    configuration["detectors"]["rcnn"] = {"plugin": "my_rcnn", "fpn_channels": 16, "head_channels": 32, "proposals": 20}
    cli_plugins.write("detector", "my_rcnn", folder / "plugins")
    result = snakemake(folder, configuration)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, configuration


def test_everything_from_data_to_report_is_there(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[0] / "results/minimal"
    summary = pd.read_csv(results / "summary.csv")
    runs = sorted(zip(summary["arm"], summary["seed"], strict=True))
    assert runs == [(arm, seed) for arm in sorted(ARMS) for seed in (0, 1)]
    assert summary["AP"].between(0, 1).all()
    macs = summary.groupby("arm")["backbone_macs"].first()
    parameters = summary.groupby("arm")["backbone_parameters"].first()
    assert macs["derived"] <= macs["scratch"] == macs["finetune"]
    assert parameters["uniform_parameters"] == pytest.approx(parameters["derived"], rel=0.2)
    page = (results / "report.html").read_text()
    for words in (
        "minimal",
        "Accuracy and cost",
        "Over training",
        "Arms and seeds",
        "Widths before and after",
        "my_rcnn",
    ):
        assert words in page
    assert "<script src" not in page and '<link rel="stylesheet' not in page
    assert len(page) < 10e6
    assert "no difference can be established (p = " in page  # of two seeds
    figures = {file.name for file in (results / "figures").iterdir()}
    assert {"widths-rcnn-tiny.svg", "spread-rcnn-tiny.svg", "scores-backbone_macs.svg"} <= figures


def test_figures_and_page_are_in_snakemakes_report_with_captions(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    result = snakemake(*finished, "--report", str(tmp_path / "report.zip"))
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        names = archive.namelist()
        text = "".join(archive.read(name).decode(errors="ignore") for name in names if name.endswith((".html", ".js")))
    for found in ("spread-rcnn-tiny.svg", "report.html", "summary.csv"):
        assert any(name.endswith(found) for name in names), names
    assert "of two seeds of one arm" in text and "Figures" in text


def test_a_page_can_be_made_without_intervals(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    results = finished[0] / "results/minimal"
    shutil.copytree(results, tmp_path / "minimal", ignore=shutil.ignore_patterns("*.pt", "*.h5"))
    file = tmp_path / "minimal/widths/tiny/rcnn/derived.json"
    content = json.loads(file.read_text())
    for key in ("dimension_intervals", "width_intervals", "undetermined"):
        del content[key]
    file.write_text(json.dumps(content))
    assert "10 runs" in report.write(tmp_path / "minimal")
    assert "jackknife's" not in (tmp_path / "minimal/report.html").read_text()


def test_spectra_come_from_every_position_of_every_probe_image(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[0] / "results/minimal"
    with h5py.File(results / "covariance/scratch/tiny/rcnn/seed_1.h5") as file:
        assert list(file) == ["images", "step_0000000", "step_0000001", "step_0000004"]
        assert len(file["images"]) == 3
        assert {tap: int(file["step_0000004"][tap]["count"][()]) for tap in ("relu#0:act", "layer4.1.relu#1:act")} == {
            "relu#0:act": 3 * 32 * 32,
            "layer4.1.relu#1:act": 3 * 2 * 2,
        }
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["run"] == {"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": 1}
    assert provenance["probe"]["images"] == 3
    eigenvalues = pd.read_parquet(results / "spectra/scratch/tiny/rcnn/seed_1/eigenvalues.parquet")
    assert eigenvalues["module"].nunique() == 9 and set(eigenvalues["step"]) == {0, 1, 4}


def test_the_fine_tuned_arm_starts_where_pre_training_ended(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[0] / "results/minimal"
    start = torch.load(results / "runs/finetune/tiny/rcnn/seed_1/checkpoints/step_0000000.pt", weights_only=True)
    for name, tensor in torch.load(results / "pretrained/tiny/backbone.pt", weights_only=True).items():
        assert torch.equal(start["model"][f"backbone.body.{name}"], tensor)


def test_a_second_run_finds_nothing_to_do(finished: tuple[Path, dict[str, Any]]) -> None:
    before = contents(finished[0])
    result = snakemake(*finished)
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr
    assert contents(finished[0]) == before


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"training": minimal_experiment()["training"] | {"workers": 1, "log_every": 1}}, set()),
        ({"widths": {"round_to": 4, "rule": "energy"}}, WIDTHS_AND_AFTER),
        ({"covariance": {"images": 2}}, {"dump_covariance", "spectrum", "compare"} | WIDTHS_AND_AFTER),
        (
            {"arms": {arm: {"steps": 5} if arm == "finetune" else {} for arm in ARMS}},
            {"finetune", "dump_covariance", "spectrum", "compare", "evaluate", "latency", "report"},
        ),
    ],
)
def test_a_change_of_settings_redoes_what_depends_on_it(
    finished: tuple[Path, dict[str, Any]], change: dict[str, Any], rules: set[str]
) -> None:
    folder, configuration = finished
    plan = snakemake(folder, configuration | change, "--dry-run")
    assert jobs(plan.stdout + plan.stderr).keys() - {"all"} == rules


def test_a_wrong_configuration_is_one_message_and_touches_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, configuration = finished
    before = contents(folder)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"trainig": {}}, "experiment.yaml: trainig: unknown key; did you mean 'training'?"),
        ({"seeds": "two"}, "experiment.yaml: seeds: got 'two'; input should be a valid list"),
        (
            {"backbones": {"tiny": {"plugin": "resnet", "depth": 19}}},
            "backbones.tiny.depth: got 19; input should be 18, 34, 50 or 101",
        ),
        ({"detectors": {"rcnn": {"plugin": "my_rcn"}}}, "unknown detector plugin 'my_rcn'. Did you mean 'my_rcnn'?"),
    ]
    for change, message in changes:
        result = snakemake(folder, configuration | change)
        assert result.returncode != 0
        assert message in result.stdout + result.stderr
        assert "Traceback" not in result.stdout + result.stderr
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("images"), "annotations.json: no list 'images'; expected a COCO file"),
        (lambda content: content["annotations"][0].update(category_id=77), "annotations id 1: unknown category_id 77"),
    ],
)
def test_bad_data_is_found_before_anything_is_trained(
    finished: tuple[Path, dict[str, Any]], coco: Any, edit: Any, message: str
) -> None:
    folder, configuration = finished
    before = contents(folder)
    file, images = coco(edit)
    choice = {"plugin": "coco", "annotations": str(file), "images": str(images)}
    data = configuration["data"] | {"detection": {"train": choice, "val": choice}}
    result = snakemake(folder, configuration | {"data": data})
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert message in output and "Traceback" not in output
    after = contents(folder)
    results = {file for file in before if "/runs/" in file or "/covariance/" in file or file.endswith(".html")}
    assert len(results) > 40
    assert all(after[file] == before[file] for file in results)
    # The right configuration again: only the checks are repeated, since what they found is as it was.
    assert snakemake(folder, configuration).returncode == 0
    repeated = contents(folder)
    assert all(repeated[file] == before[file] for file in results)


def test_a_killed_workflow_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    configuration = minimal_experiment()
    configuration["training"] |= {"steps": 400, "checkpoint_every": 5, "snapshots": 2}
    target = "results/minimal/runs/scratch/tiny/rcnn/seed_0/run.json"
    run = tmp_path / "broken" / Path(target).parent
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/experiment.yaml").write_text(yaml.safe_dump(configuration))
    process = subprocess.Popen(
        [*command(tmp_path / "broken"), target],
        cwd=tmp_path / "broken", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (run / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (run / "last.ckpt").exists() and not (run / "run.json").exists()
    unlocking = [*command(tmp_path / "broken")[:-2], "--unlock"]  # no --cores, as people type it
    assert subprocess.run(unlocking, cwd=tmp_path / "broken", check=False).returncode == 0
    result = snakemake(tmp_path / "broken", configuration, target)
    assert result.returncode == 0, result.stdout + result.stderr
    log = (tmp_path / "broken/results/minimal/logs/scratch/tiny/rcnn/seed_0.log").read_text()
    assert "resuming from step" in log
    assert not (run / "last.ckpt").exists()


@pytest.mark.parametrize("name", ["bccd", "tiny_imagenet", "coco_resnet50"])
def test_the_shipped_experiments_can_be_planned(name: str, tmp_path: Path) -> None:
    file = ROOT / f"workflow/experiments/{name}.yaml"
    full = file.with_name(f"{name}_full.yaml")
    settings = [str(file), *([str(full)] if full.exists() else [])]
    for files in (settings[:1], settings):
        plan = subprocess.run(
            [*command(tmp_path)[:-3], *files, "--dry-run"], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert plan.returncode == 0, plan.stdout + plan.stderr
        assert jobs(plan.stdout + plan.stderr).keys() >= {"pretrain", "scratch", "finetune", "retrain", "report"}
    assert not (tmp_path / "results").exists()
