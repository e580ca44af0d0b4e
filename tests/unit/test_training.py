from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from eigendet import config
from eigendet.cli import main
from eigendet.config import Experiment
from eigendet.config.sections import DetectorTraining
from eigendet.errors import UserError
from eigendet.runs import stages, training
from eigendet.runs.folder import RunFolder
from eigendet.runs.losses import Losses


class InterruptionError(Exception):
    pass


def train(experiment: Experiment, folder: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": 0} | changes
    stages.train(experiment, folder=folder, **arguments)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(RunFolder(folder).snapshot(step), weights_only=True)
    return content["model"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the loop die after some more steps, wherever that is."""
    calls = iter(range(10**6))

    def failing(model: nn.Module, batch: Any, device: torch.device) -> Losses:
        if next(calls) == steps:
            raise InterruptionError
        return original(model, batch, device)

    original = training.detection_losses
    monkeypatch.setattr(training, "detection_losses", failing)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    values["training"] |= {"steps": 7, "optimizer": optimizer, "learning_rate": 1e-3, "log_every": 3}
    experiment = config.parse(values)
    train(experiment, tmp_path / "whole")
    for stop in (3, 1, 2):  # at steps 3, 3 (from 2), 4 (from 2): in the middle of an interval of the log
        with monkeypatch.context() as patch, pytest.raises(InterruptionError):
            interrupt_after(patch, stop)
            train(experiment, tmp_path / "broken")
        assert not (tmp_path / "broken" / "run.json").exists()
    train(experiment, tmp_path / "broken")
    for step in training.snapshot_steps(experiment.training):
        assert same(weights(tmp_path / "whole", step), weights(tmp_path / "broken", step))
    whole, broken = (pd.read_csv(tmp_path / name / "log.csv") for name in ("whole", "broken"))
    pd.testing.assert_frame_equal(whole.iloc[:, :-1], broken.iloc[:, :-1])  # all but images_per_second
    assert whole["step"].tolist() == [3, 6, 7]
    assert not (tmp_path / "broken" / "last.ckpt").exists()


def test_tensorboard_shows_each_row_once_however_often_a_run_was_interrupted(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values["training"] |= {"steps": 7, "log_every": 1}
    with monkeypatch.context() as patch, pytest.raises(InterruptionError):  # without events, which does not matter
        interrupt_after(patch, 3)
        train(config.parse(values), tmp_path)
    values["training"]["tensorboard"] = True
    for stop in (3, 2):  # after steps 5 and 6; they go on from 2 and 4
        with monkeypatch.context() as patch, pytest.raises(InterruptionError):
            interrupt_after(patch, stop)
            train(config.parse(values), tmp_path)
        time.sleep(1)  # names of event files, which give their order, go by the second
    train(config.parse(values), tmp_path)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3
    shown, log = EventAccumulator(str(tmp_path)), pd.read_csv(tmp_path / "log.csv").iloc[2:]
    shown.Reload()
    for column in log.columns.drop("step"):
        scalars = shown.Scalars(f"training/{column}")
        assert [event.step for event in scalars] == log["step"].tolist() == [3, 4, 5, 6, 7]
        assert [event.value for event in scalars] == pytest.approx(log[column].tolist(), rel=1e-6)


def test_seeds_fix_the_weights(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(experiment, tmp_path / name, seed=seed)
    assert same(weights(tmp_path / "a", 4), weights(tmp_path / "b", 4))
    assert not same(weights(tmp_path / "a", 0), weights(tmp_path / "c", 0))


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptionError):
        interrupt_after(patch, 3)
        train(config.parse(values), tmp_path / "run")
    values["training"]["learning_rate"] = 0.5
    values["training"]["log_every"] = 1  # immaterial
    with pytest.raises(UserError, match=r"last.ckpt: .* training.learning_rate is 0.001 there and 0.5 now. Delete it"):
        train(config.parse(values), tmp_path / "run")


def test_a_complete_run_is_kept(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    train(experiment, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    train(experiment, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"run.json: belongs to another run: seed is 0 there and 3 now"):
        train(experiment, tmp_path / "run", seed=3)


@pytest.mark.parametrize("version", [{}, {"version": 99}])
def test_a_record_of_another_format_is_refused_with_what_makes_it_anew(
    values: dict[str, Any], tmp_path: Path, version: dict[str, int]
) -> None:
    experiment, folder = config.parse(values), RunFolder(tmp_path / "run")
    train(experiment, folder.path)
    record = json.loads(folder.record.read_text())
    assert record.pop("version") == 1
    folder.record.write_text(json.dumps(record | version))
    for read in (lambda: train(experiment, folder.path), lambda: stages.evaluate(experiment, folder.path)):
        with pytest.raises(UserError, match=r"run.json: (without a|of) version.* 'eigendet train' writes: delete it"):
            read()


def test_a_run_says_what_it_was(values: dict[str, Any], tmp_path: Path) -> None:
    train(config.parse(values), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["run"] == {"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": 0}
    assert record["snapshots"] == [0, 1, 4]
    assert record["definition"]["classes"] == [str(digit) for digit in range(10)]
    snapshot = torch.load(RunFolder(tmp_path / "run").snapshot(4), weights_only=True)
    assert snapshot["step"] == 4 and snapshot["definition"] == record["definition"]
    assert record["costs"]["parameters"] == sum(
        tensor.numel() for name, tensor in snapshot["model"].items() if "anchor" not in name
    )
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    terms = ["loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"]
    assert set(log) == {"step", "learning_rate", "loss", *terms, "images_per_second"}
    assert log["loss"].to_numpy() == pytest.approx(log[terms].sum(axis=1).to_numpy())


def test_a_loss_that_is_not_finite_stops_the_run_naming_step_and_term(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.detection_losses
    calls = iter(range(10))

    def diverging(model: nn.Module, batch: Any, device: torch.device) -> Losses:
        losses = original(model, batch, device)
        return losses | {"loss_box_reg": losses["loss_box_reg"] * (float("nan") if next(calls) == 2 else 1.0)}

    monkeypatch.setattr(training, "detection_losses", diverging)
    with pytest.raises(UserError, match=r"diverged at step 2: loss_box_reg is nan. Earlier snapshots are kept"):
        train(config.parse(values), tmp_path / "run")
    assert RunFolder(tmp_path / "run").snapshot(1).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": "finetune"}, "arm finetune starts from pre-trained weights: give --init"),
        ({"init": Path("x")}, "arm scratch starts from random weights: leave --init out"),
        ({"arm": "derived"}, "arm derived has widths of its own: give --widths"),
        ({"widths": Path("x")}, "arm scratch has the reference's widths: leave --widths out"),
        ({"backbone": "tin"}, "unknown entry of backbones 'tin'. Did you mean 'tiny'"),
        ({"detector": "yolo"}, "unknown entry of detectors 'yolo'"),
    ],
)
def test_arms_take_what_they_need_and_nothing_else(
    values: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(config.parse(values), tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def settings(**changes: Any) -> DetectorTraining:
    return DetectorTraining(**({"steps": 100, "learning_rate": 1.0} | changes))


def test_learning_rate_warms_up_then_decays() -> None:
    cosine = settings(warmup_steps=10)
    assert [training.learning_rate(cosine, step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert training.learning_rate(cosine, 55) == pytest.approx(0.5)
    assert training.learning_rate(cosine, 99) < 1e-3
    step = settings(schedule="step", milestones=[0.5, 0.9])
    assert [training.learning_rate(step, at) for at in (0, 49, 50, 90)] == pytest.approx([1, 1, 0.1, 0.01])


def test_snapshots_are_first_logarithmic_last_or_as_listed() -> None:
    assert training.snapshot_steps(settings(steps=1000, snapshots=5)) == [0, 1, 10, 100, 1000]
    assert training.snapshot_steps(settings(steps=1000, snapshots=2)) == [0, 1000]
    assert training.snapshot_steps(settings(snapshots=[0, 7])) == [0, 7, 100]


def test_weight_decay_spares_biases_and_normalization() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    decayed, spared = training._optimizer(model, settings(weight_decay=0.1)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)] and decayed["weight_decay"] == 0.1
    assert len(spared["params"]) == 3 and spared["weight_decay"] == 0


def test_pretraining_gives_a_backbone_and_its_accuracy(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    stages.pretrain(experiment, "tiny", 0, tmp_path / "pre")
    record = json.loads((tmp_path / "pre" / "run.json").read_text())
    assert 0 <= record["top1"] <= 1
    train(experiment, tmp_path / "run", arm="finetune", init=tmp_path / "pre" / "backbone.pt")
    start = weights(tmp_path / "run", 0)
    for name, tensor in torch.load(tmp_path / "pre" / "backbone.pt", weights_only=True).items():
        assert torch.equal(start[f"backbone.body.{name}"], tensor)
    assert stages.evaluate(experiment, tmp_path / "pre")["top1"] == record["top1"]


def test_an_arm_may_start_from_a_file_of_weights(values: dict[str, Any], tmp_path: Path) -> None:
    stages.pretrain(config.parse(values), "tiny", 0, tmp_path / "here")
    values["arms"] = {"scratch": {}, "dino": {"init": str(tmp_path / "here/backbone.pt")}}
    stages.fetch(config.parse(values), "dino", "tiny", tmp_path / "given")
    first, second = (torch.load(tmp_path / place / "backbone.pt", weights_only=True) for place in ("here", "given"))
    assert same(first, second)
    assert json.loads((tmp_path / "given/run.json").read_text())["source"] == str(tmp_path / "here/backbone.pt")


def test_an_undisturbed_backbone_is_trained_whole(values: dict[str, Any], tmp_path: Path) -> None:
    train(config.parse(values), tmp_path / "run")
    before, after = weights(tmp_path / "run", 0), weights(tmp_path / "run", 4)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []


@contextlib.contextmanager
def file_sizes_up_to(size: int) -> Iterator[None]:
    """Where the kernel writes no file beyond a size, which it says as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_message_and_nothing_finished_is_lost(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    folder = tmp_path / "run"
    train(config.parse(values), tmp_path / "whole")
    # Enough for a snapshot, and not for a checkpoint, which holds moments of the optimizer too.
    with file_sizes_up_to(RunFolder(tmp_path / "whole").snapshot(0).stat().st_size + 1000):
        result = CliRunner().invoke(main, ["train", "-c", str(tmp_path / "c.yaml"), "-o", str(folder)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"Error: {folder}/last.ckpt: cannot be written (File too large); what was there stands." in result.output
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "log.csv", *(f"step_000000{step}.pt{digest}" for step in (0, 1) for digest in ("", ".sha256")),
    ]  # fmt: skip
    train(config.parse(values), folder)
    assert same(weights(folder, 4), weights(tmp_path / "whole", 4))
