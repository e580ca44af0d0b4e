"""What is said before anything runs: of files what they take, of time what follows from the throughput."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from eigendet import config
from eigendet.cli import main
from eigendet.files import write_json
from eigendet.runs import covariances, definitions, plan, resuming, stages, throughput, training
from eigendet.runs.folder import RunFolder
from eigendet.runs.footprint import Footprint
from eigendet.runs.throughput import Throughput
from eigendet.spectra import spectrum


@pytest.mark.parametrize(
    "changes", [{}, {"single": True, "jackknife": None}, {"images": 8, "heads": True, "gradients": True}]
)
def test_files_take_what_was_planned(values: dict[str, Any], tmp_path: Path, changes: dict[str, Any]) -> None:
    values["covariance"] = {"images": 5, "points": ["conv", "act", "block", "fpn"]} | changes
    values["training"]["optimizer"] = "sgd"
    experiment = config.parse(values)
    settings = experiment.covariance
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, tmp_path / "run")
    covariances.compute_covariance(experiment, tmp_path / "run", tmp_path / "run.h5")
    spectrum.write_spectra(tmp_path / "run.h5", tmp_path / "spectra")
    classes = ["digit"] * 10
    files = Footprint.of(definitions.definition_of(experiment, "tiny", "rcnn", classes, (64, 64)), settings)
    assert RunFolder(tmp_path / "run").snapshot(4).stat().st_size == pytest.approx(files.snapshot, rel=0.01)
    assert files.covariance(3, settings.images) == pytest.approx((tmp_path / "run.h5").stat().st_size, rel=0.03)
    written = sum(file.stat().st_size for file in (tmp_path / "spectra").iterdir())
    assert files.spectra(3) == pytest.approx(written, rel=0.15)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_checkpoint_takes_what_was_planned(values: dict[str, Any], tmp_path: Path, kind: str) -> None:
    values["training"] |= {"optimizer": kind, "momentum": 0.9}
    experiment = config.parse(values)
    definition = definitions.definition_of(experiment, "tiny", "rcnn", ["digit"] * 10, (64, 64))
    learner = training._Learner(definition.build(), experiment.training, torch.device("cpu"))
    for parameter in learner.model.parameters():
        parameter.grad = parameter.detach().clone()
    learner.optimizer.step()
    resuming.write_checkpoint(RunFolder(tmp_path), {}, learner.stateful, resuming.Progress())
    planned = Footprint.of(definition, experiment.covariance).checkpoint(experiment.training)
    assert (tmp_path / "last.ckpt").stat().st_size == pytest.approx(planned, rel=0.05)


def rates(*definitions: Any) -> Throughput:
    return Throughput(training=10.0, looking=40.0, observing=20.0, pretraining=100.0)


def test_steps_images_and_hours_follow_from_the_settings(values: dict[str, Any], tmp_path: Path) -> None:
    values |= {"seeds": [0, 1]}
    values["arms"] = {"finetune": {"steps": 6}, "scratch": {}, "derived": {}}
    values["covariance"] = {"images": 3, "arms": ["scratch"]}
    found = plan.by_rule(plan.planned_stages(config.parse(values), tmp_path, rates))
    assert (found["pretrain"].steps, found["pretrain"].images, found["pretrain"].seconds) == (4, 32, 0.32)
    # Of two seeds: 6 steps of finetune, 4 of each other arm.
    assert (found["train"].steps, found["train"].images, found["train"].seconds) == (28, 56, 5.6)
    assert (found["covariance"].images, found["covariance"].seconds) == (2 * 3 * 3, 0.9)
    # Of two seeds the last snapshot, once over the probe images.
    assert (found["readings"].jobs, found["readings"].images, found["readings"].seconds) == (1, 2 * 3, 0.3)
    # The three snapshots of the observed arm, and the last of the two others.
    assert (found["evaluate"].images, found["evaluate"].seconds) == (2 * (3 + 1 + 1) * 4, 1.0)
    # Of an arm that is not observed there is one snapshot, of the others three.
    values["covariance"]["arms"] = ["scratch", "finetune"]
    more = plan.by_rule(plan.planned_stages(config.parse(values), tmp_path, rates))
    assert 1.3 < more["train"].disk / found["train"].disk < 1.4


def test_widths_count_where_they_are_known(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    before = plan.by_rule(plan.planned_stages(experiment, tmp_path))
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    groups, usual = network.reference(64)
    narrow = {group: groups.multiples[group] for group in usual}
    for arm in ("derived", "uniform_parameters", "profile"):
        write_json(tmp_path / f"widths/tiny/rcnn/{arm}.json", {"widths": narrow})
    after = plan.by_rule(plan.planned_stages(experiment, tmp_path))
    # Six snapshots of two arms stay as they are; those of three arms, one each, shrink.
    assert 6 / 9 < after["train"].disk / before["train"].disk < 0.93


def test_the_peak_is_what_is_there_and_what_runs() -> None:
    found = [plan.Stage("a", 4, disk=100, meanwhile=50), plan.Stage("b", 1, disk=10, meanwhile=5)]
    assert [plan.peak(found, jobs) for jobs in (1, 2, 8)] == [125, 150, 200]
    assert plan.peak([plan.Stage("a", 1, disk=100), plan.Stage("b", 9, disk=10)], 9) == 110


def test_throughput_is_measured_or_inferred(values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    detector = definitions.definition_of(experiment, "tiny", "rcnn", ["digit"] * 10, (64, 64))
    classifier = definitions.classifier_of(experiment, "tiny", ["digit"] * 10)
    found = throughput.measured(experiment, detector, classifier)
    assert all(rate is not None and rate > 0 for rate in found)
    assert found.looking > found.observing
    # Crops of 32 pixels have a quarter of the positions, and no pyramid or heads.
    guessed = throughput.inferred(10.0, experiment, detector, classifier)
    assert guessed.training == 10.0 and guessed.looking == 30.0 and guessed.observing == 15.0
    assert guessed.pretraining is not None and guessed.pretraining > 40.0
    assert throughput.inferred(10.0, experiment, detector, None).pretraining is None
    values["covariance"]["gradients"] = True
    with_gradients = config.parse(values)
    assert throughput.inferred(10.0, with_gradients, detector, None).observing == 5.0
    assert throughput.measured(with_gradients, detector, None).observing < found.observing


def test_the_plan_is_printed(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(config.dump_yaml(config.parse(values)))
    result = CliRunner().invoke(main, ["plan", "--configfile", "c.yaml", "--images-per-second", "2", "--jobs", "3"])
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line}
    assert rows["train"][1:4] == ["5", "20", "40"] and rows["train"][-1] == "0.00556"
    assert "with 3 jobs at once" in result.output and "device-hours" in result.output
    assert "give --images-per-second" in CliRunner().invoke(main, ["plan", "-c", "c.yaml"]).output
    both = CliRunner().invoke(main, ["plan", "-c", "c.yaml", "--measure", "--images-per-second", "2"])
    assert both.exit_code == 1 and "give one of them" in both.output


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (1.5e6, "1.5 MB"), (2.345e12, "2.35 TB")])
def test_sizes_are_readable(count: float, text: str) -> None:
    assert plan.size_text(count) == text
