"""What arms start from: weights of their own, and backbones that are pre-trained with other widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eigendet import config, files
from eigendet.config import Experiment
from eigendet.errors import UserError
from eigendet.networks.widths_file import read_widths
from eigendet.runs import definitions, stages
from eigendet.runs.folder import RunFolder


def narrow(experiment: Experiment, file: Path, heads: bool = False) -> Path:
    """Write a file of widths that are half of the reference's."""
    _, reference = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads).reference(64)
    files.write_json(file, {"widths": {group: width // 2 for group, width in reference.items()}})
    return file


def tensors(file: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return content


@pytest.mark.parametrize("heads", [False, True])
def test_a_backbone_is_pre_trained_with_the_widths_that_its_detector_has(
    values: dict[str, Any], tmp_path: Path, heads: bool
) -> None:
    values["arms"] = {"scratch": {}, "derived": {}, "derived_finetune": {}}
    values["covariance"]["arms"] = ["scratch", "derived_finetune"]
    values["covariance"]["heads"] = values["widths"]["heads"] = heads
    experiment = config.parse(values)
    file = narrow(experiment, tmp_path / "widths.json", heads)
    widths = definitions.backbone_widths(experiment, "tiny", "rcnn", file)
    whole = read_widths(file, definitions.definition_for_widths(experiment, "tiny", "rcnn", heads))
    assert widths.items() <= whole.items() and (len(whole) > len(widths)) == heads
    stages.pretrain(experiment, "tiny", 3, tmp_path / "pre", widths)
    record = json.loads((tmp_path / "pre/run.json").read_text())
    assert record["identity"]["seed"] == record["run"]["seed"] == 3
    assert record["definition"]["widths"] == record["identity"]["widths"] == widths
    init = tmp_path / "pre/backbone.pt"
    stages.train(experiment, "derived_finetune", "tiny", "rcnn", 0, tmp_path / "run", init=init, widths=file)
    start = torch.load(RunFolder(tmp_path / "run").snapshot(0), weights_only=True)["model"]
    for name, tensor in tensors(init).items():
        assert torch.equal(start[f"backbone.body.{name}"], tensor)
    half = tensors(init)["conv1.weight"].shape[0]
    assert half == record["definition"]["widths"]["conv1"]
    with pytest.raises(UserError, match=r"backbone\.pt"):  # of other widths than those of scratch
        stages.train(
            config.parse(values | {"arms": values["arms"] | {"other": {"init": str(init)}}}),
            "other", "tiny", "rcnn", 0, tmp_path / "refused", init=init,
        )  # fmt: skip


def test_another_seed_gives_another_backbone_and_goes_on_as_no_other(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    for seed in (0, 1):
        stages.pretrain(experiment, "tiny", seed, tmp_path / str(seed))
    first, other = (tensors(tmp_path / f"{seed}/backbone.pt") for seed in (0, 1))
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    with pytest.raises(UserError, match="belongs to another run: seed is 0 there and 1 now"):
        stages.pretrain(experiment, "tiny", 1, tmp_path / "0")


def test_weights_are_fetched_into_the_widths_of_the_arm(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    file = narrow(experiment, tmp_path / "widths.json")
    widths = definitions.backbone_widths(experiment, "tiny", "rcnn", file)
    stages.pretrain(experiment, "tiny", 0, tmp_path / "pre", widths)
    own = {"init": str(tmp_path / "pre/backbone.pt")}
    values["arms"] = {"scratch": {}, "mine": own | {"widths": str(file)}, "unfit": own}
    experiment = config.parse(values)
    stages.fetch(experiment, "mine", "tiny", tmp_path / "fetched")
    before, after = (tensors(tmp_path / place / "backbone.pt") for place in ("pre", "fetched"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match=r"backbone\.pt: .*conv1"):
        stages.fetch(experiment, "unfit", "tiny", tmp_path / "unfit")
    assert not (tmp_path / "unfit/run.json").exists()


@pytest.mark.parametrize("arm", ["scratch", "finetune", "nobody"])
def test_only_arms_with_weights_from_elsewhere_are_fetched(values: dict[str, Any], tmp_path: Path, arm: str) -> None:
    values["arms"] = {"scratch": {}, "finetune": {}, "dino": {"init": "w.pt"}}
    with pytest.raises(UserError, match=f"--arm: unknown arm whose weights come from elsewhere '{arm}'.*dino"):
        stages.fetch(config.parse(values), arm, "tiny", tmp_path)


@pytest.mark.parametrize(
    ("arm", "files_given", "message"),
    [
        ("dino", {}, "arm dino starts from pre-trained weights: give --init FILE"),
        ("dino", {"init", "widths"}, "arm dino has the reference's widths: leave --widths out"),
        ("both", {"init"}, "arm both has widths of its own: give --widths FILE"),
        ("both", {"widths"}, "arm both starts from pre-trained weights: give --init FILE"),
        ("mine", {"init", "widths"}, "arm mine starts from random weights: leave --init out"),
    ],
)
def test_an_arm_takes_just_the_files_that_it_has(
    values: dict[str, Any], tmp_path: Path, arm: str, files_given: set[str], message: str
) -> None:
    values["arms"] = {
        "scratch": {}, "dino": {"init": "w.pt"}, "both": {"init": "w.pt", "widths": "w.json"},
        "mine": {"widths": "w.json"},
    }  # fmt: skip
    paths = {name: tmp_path / name for name in files_given}
    with pytest.raises(UserError, match=message):
        stages.train(config.parse(values), arm, "tiny", "rcnn", 0, tmp_path / "run", **paths)
