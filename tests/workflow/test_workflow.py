"""The workflow itself: run from data to report on a minimal experiment, run again, changed, and given bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
import torch

from eigendet.report.page import write_page
from tests import chromium
from tests.conftest import ROOT, minimal_experiment
from tests.workflow.conftest import ARMS, Finished
from tests.workflow.running import command, contents, planned, said, snakemake

WIDTHS_AND_AFTER = {"widths", "front", "readings", "train", "evaluate", "latency", "report"}
# In a second round of widths, spectra are of a network with the widths of the first.
SECOND_ROUND = {"covariance", "spectra", "comparison"}


def test_everything_from_data_to_report_is_there(finished: Finished) -> None:
    summary = pd.read_csv(finished.results / "summary.csv")
    runs = sorted(zip(summary["arm"], summary["seed"], strict=True))
    assert runs == [(arm, seed) for arm in sorted(ARMS) for seed in (0, 1)]
    assert summary["AP"].between(0, 1).all()
    for column in ("parameters", "backbone_parameters", "backbone_macs", "macs", "detector_ms", "backbone_ms"):
        assert (summary[column] > 0).all()
    page = (finished.results / "report.html").read_text()
    for words in (
        "minimal",
        "Accuracy and cost",
        "Forecast before training",
        "Over training",
        "Arms and seeds",
        "Widths before and after",
        "my_rcnn",
    ):
        assert words in page
    assert "<script src" not in page and '<link rel="stylesheet' not in page
    assert len(page) < 10e6
    assert "no difference can be established (p = " in page  # of two seeds
    figures = {file.name for file in (finished.results / "figures").iterdir()}
    assert {"widths-rcnn-tiny.svg", "spread-rcnn-tiny.svg", "scores-backbone_macs.svg"} <= figures


@pytest.mark.browser
def test_its_page_is_drawn_by_a_browser(finished: Finished) -> None:
    with chromium.started() as browser, chromium.opened(browser, finished.results / "report.html") as page:
        drawn = page.eval_on_selector_all("figure:not([hidden]) svg", "all => all.length")
        assert drawn >= len(page.query_selector_all("figure:not([hidden])")) > 4


def test_figures_and_page_are_in_snakemakes_report_with_captions(copied: Finished, tmp_path: Path) -> None:
    result = snakemake(*copied, "--report", str(tmp_path / "report.zip"))
    assert result.returncode == 0, said(result)
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        names = archive.namelist()
        text = "".join(archive.read(name).decode(errors="ignore") for name in names if name.endswith((".html", ".js")))
    for found in ("spread-rcnn-tiny.svg", "report.html", "summary.csv"):
        assert any(name.endswith(found) for name in names), names
    assert "of two seeds of one arm" in text and "Figures" in text


def test_a_page_can_be_made_without_intervals(copied: Finished) -> None:
    for arm in ("derived", "derived_2"):
        file = copied.results / f"widths/tiny/rcnn/{arm}.json"
        content = json.loads(file.read_text())
        for key in ("dimension_intervals", "width_intervals", "undetermined", "lacking_intervals"):
            content.pop(key, None)
        file.write_text(json.dumps(content))
    assert "12 runs" in write_page(copied.results)
    assert "jackknife's" not in (copied.results / "report.html").read_text()


def test_spectra_come_from_every_position_of_every_probe_image(finished: Finished) -> None:
    with h5py.File(finished.results / "covariance/scratch/tiny/rcnn/seed_1.h5") as file:
        assert list(file) == ["images", "step_0000000", "step_0000001", "step_0000004"]
        assert len(file["images"]) == 3
        assert {tap: int(file["step_0000004"][tap]["count"][()]) for tap in ("relu#0:act", "layer4.1.relu#1:act")} == {
            "relu#0:act": 3 * 32 * 32,
            "layer4.1.relu#1:act": 3 * 2 * 2,
        }
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["run"] == {"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": 1}
    assert provenance["probe"]["images"] == 3
    eigenvalues = pd.read_parquet(finished.results / "spectra/scratch/tiny/rcnn/seed_1/eigenvalues.parquet")
    assert set(eigenvalues["step"]) == {0, 1, 4}
    modules = {point: set(rows["module"]) for point, rows in eigenvalues.groupby("point")}
    assert len({module for module in modules["act"] if not module.startswith("rpn.")}) == 9
    assert {"conv1", "layer4.1.conv2", "backbone.fpn.inner_blocks.3.0", "rpn.head.conv.0.0"} <= modules["conv"]
    assert modules["linear"] >= {"roi_heads.box_head.fc6", "roi_heads.box_head.fc7"}


def test_the_fine_tuned_arm_starts_where_pre_training_ended(finished: Finished) -> None:
    run = finished.results / "runs/finetune/tiny/rcnn/seed_1"
    start = torch.load(run / "checkpoints/step_0000000.pt", weights_only=True)
    for name, tensor in torch.load(finished.results / "pretrained/tiny/seed_0/backbone.pt", weights_only=True).items():
        assert torch.equal(start["model"][f"backbone.body.{name}"], tensor)


def test_a_second_run_finds_nothing_to_do(copied: Finished) -> None:
    before = contents(copied.folder)
    result = snakemake(*copied)
    assert result.returncode == 0
    assert "Nothing to be done" in said(result)
    assert contents(copied.folder) == before


@pytest.mark.parametrize(
    ("change", "rules", "trained"),
    [
        (
            {"training": minimal_experiment()["training"] | {"workers": 1, "log_every": 1, "tensorboard": True}},
            set(),
            0,
        ),
        (
            {"widths": {"round_to": 4, "heads": True, "rule": "energy"}},
            SECOND_ROUND | WIDTHS_AND_AFTER | {"pretrain_resized"},
            8,
        ),
        (
            {"arms": {arm: {"steps": 5} if arm == "finetune" else {} for arm in ("finetune", "scratch", "derived")}},
            {"train", "covariance", "spectra", "comparison", "forecast", "evaluate", "latency", "report"},
            2,
        ),
    ],
    ids=["nothing that matters", "the rule", "the length of one arm"],
)
def test_a_change_of_settings_redoes_what_depends_on_it(
    copied: Finished, change: dict[str, Any], rules: set[str], trained: int
) -> None:
    found = planned(copied.folder, copied.configuration | change)
    assert found.keys() - {"all"} == rules and found.get("train", 0) == trained  # runs, of two seeds


def test_other_probe_images_redo_every_spectrum(copied: Finished) -> None:
    change = {"covariance": copied.configuration["covariance"] | {"images": 2}}
    found = planned(copied.folder, copied.configuration | change)
    assert found["covariance"] == found["spectra"] == 6
    assert found.keys() - {"all"} == SECOND_ROUND | WIDTHS_AND_AFTER | {"forecast"}


def test_a_wrong_configuration_is_one_message_and_touches_nothing(copied: Finished) -> None:
    folder, configuration = copied
    before = contents(folder)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"trainig": {}}, "experiment.yaml: trainig: unknown key; did you mean 'training'?"),
        ({"seeds": "two"}, "experiment.yaml: seeds: got 'two'; expected a list, for example ['two']"),
        (
            {"backbones": {"tiny": {"plugin": "resnet", "depth": 19}}},
            "backbones.tiny.depth: got 19; input should be 18, 34, 50 or 101",
        ),
        ({"detectors": {"rcnn": {"plugin": "my_rcn"}}}, "unknown detector plugin 'my_rcn'. Did you mean 'my_rcnn'?"),
    ]
    for change, message in changes:
        result = snakemake(folder, configuration | change)
        assert result.returncode != 0
        assert message in said(result)
        assert "Traceback" not in said(result)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("images"), "annotations.json: no list 'images'; expected a COCO file"),
        (lambda content: content["annotations"][0].update(category_id=77), "annotations id 1: unknown category_id 77"),
    ],
    ids=["no images", "unknown category"],
)
def test_bad_data_is_found_before_anything_is_trained(
    copied: Finished, coco: Callable[..., tuple[Path, Path]], edit: Any, message: str
) -> None:
    folder, configuration = copied
    before = contents(folder)
    file, images = coco(edit)
    choice = {"plugin": "coco", "annotations": str(file), "images": str(images)}
    data = configuration["data"] | {"detection": {"train": choice, "val": choice}}
    result = snakemake(folder, configuration | {"data": data})
    assert result.returncode != 0
    assert message in said(result) and "Traceback" not in said(result)
    after = contents(folder)
    results = {file for file in before if "/runs/" in file or "/covariance/" in file or file.endswith(".html")}
    assert len(results) > 40
    assert all(after[file] == before[file] for file in results)
    # The right configuration again: only the checks are repeated, since what they found is as it was.
    assert snakemake(folder, configuration).returncode == 0
    repeated = contents(folder)
    assert all(repeated[file] == before[file] for file in results)


def test_a_killed_workflow_goes_on_from_the_checkpoint_to_a_dump_in_shards(tmp_path: Path) -> None:
    configuration = minimal_experiment()
    configuration["training"] |= {"steps": 60, "checkpoint_every": 5, "snapshots": 2}
    configuration["covariance"] |= {"images": 4, "shards": 2}
    place = "scratch/tiny/rcnn/seed_0"
    run, target = tmp_path / "results/minimal/runs" / place, f"results/minimal/covariance/{place}.h5"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            command(tmp_path, configuration, target),
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(tmp_path)},  # a killed Snakemake leaves files there
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    while not (run / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (run / "last.ckpt").exists() and not (run / "run.json").exists()
    assert snakemake(tmp_path, configuration, "--unlock").returncode == 0
    result = snakemake(tmp_path, configuration, target)
    assert result.returncode == 0, said(result)
    assert "resuming from step" in (tmp_path / "results/minimal/logs/train" / f"{place}.log").read_text()
    for report in (r"train scratch seed 0: step 60 of 60, loss [\d.]+, [\d.]+ images/s, took \d:\d\d",
                   r"covariance scratch seed 0 shard 2/2: snapshot 2 of 2, [\d.]+ images/s, took \d:\d\d"):  # fmt: skip
        assert re.search(f"^{report}$", result.stderr, re.MULTILINE)
    assert not (run / "last.ckpt").exists()
    with h5py.File(tmp_path / target) as file:
        assert len(file["images"]) == 4 and list(file) == ["images", "step_0000000", "step_0000060"]
    assert [file.name for file in (tmp_path / target).parent.iterdir()] == ["seed_0.h5"]  # no shard is left


@pytest.mark.parametrize("name", ["bccd", "tiny_imagenet", "coco_resnet50"])
def test_the_shipped_experiments_can_be_planned(name: str, tmp_path: Path) -> None:
    file = ROOT / f"workflow/experiments/{name}.yaml"
    full = file.with_name(f"{name}_full.yaml")
    for files in [[file]] + ([[file, full]] if full.exists() else []):
        found = planned(tmp_path, {}, "--configfile", *map(str, files))
        assert found.keys() >= {"pretrain", "train", "report"}
    assert not (tmp_path / "results").exists()
