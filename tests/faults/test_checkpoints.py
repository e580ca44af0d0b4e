"""Snapshots, and what training goes on from, that someone damaged or changed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigendet import config
from eigendet.files import alone, digest_file
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import store
from eigendet.runs import stages
from eigendet.runs.covariances import compute_covariance
from eigendet.runs.folder import RunFolder
from tests.conftest import minimal_experiment
from tests.faults.refusal import one_line_or_nothing, refused
from tests.unit.test_training import InterruptionError, interrupt_after

FIRST = "backbone.body.conv1.weight"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after three of four steps, and goes on from the second."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptionError):
        interrupt_after(patch, 3)
        train(folder)
    return folder


def train(folder: Path) -> None:
    stages.train(config.parse(minimal_experiment()), "scratch", "tiny", "rcnn", 0, folder)


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Put a value at a place of a content."""

    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def without(*keys: Any) -> Callable[[dict[str, Any]], Any]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


def with_nan(content: dict[str, Any]) -> None:
    content["model"][FIRST].view(-1)[0] = torch.nan


SNAPSHOTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step missing": without("step"),
    "step negative": at("step", value=-1),
    "step a truth": at("step", value=True),
    "step a text": at("step", value="last"),
    "step a fraction": at("step", value=1.5),
    "weights missing": without("model"),
    "weights a list": at("model", value=[1, 2]),
    "weights none": at("model", value=None),
    "a weight missing": without("model", FIRST),
    "a weight more": at("model", "more", value=torch.zeros(1)),
    "a weight of another shape": at("model", FIRST, value=torch.zeros(3)),
    "a weight a number": at("model", FIRST, value=3),
    "a weight NaN": with_nan,
    "definition missing": without("definition"),
    "definition a text": at("definition", value="resnet"),
    "definition without classes": without("definition", "classes"),
    "definition without a backbone": without("definition", "backbone"),
    "definition with a size of one": at("definition", "size", value=[64]),
    "definition with classes of numbers": at("definition", "classes", value=[1, 2]),
    "definition with another backbone": at("definition", "backbone", "plugin", value="nothing"),
    "definition of negative width": at("definition", "backbone", "width", value=-1.0),
    "definition of another depth": at("definition", "backbone", "depth", value=50),
    "definition of more classes": at("definition", "classes", value=["a"] * 3),
}


@pytest.mark.fault(kind="changed checkpoints", stage="covariance")
@pytest.mark.parametrize("edit", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_a_snapshot_that_cannot_be_so_is_refused(
    interrupted: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    content = torch.load(RunFolder(interrupted).snapshot(0), weights_only=True)
    edit(content)
    file = tmp_path / "step_0000000.pt"
    torch.save(content, file)
    with refused(file):
        read_snapshot(file)


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "beyond the last step": at("progress", "step", value=9),
    "at the last step": at("progress", "step", value=4),
    "before the first step": at("progress", "step", value=-2),
    "step a text": at("progress", "step", value="two"),
    "step missing": without("progress", "step"),
    "of no seconds": at("progress", "seconds", value=torch.inf),
    "of no images": at("progress", "images", value=None),
    "losses NaN": at("progress", "sums", value={"loss": torch.nan}),
    "losses texts": at("progress", "sums", value={"loss": "low"}),
    "since nothing": at("progress", "since", value=[]),
    "rows a number": at("progress", "rows", value=3),
    "more progress": at("progress", "more", value=3),
    "progress missing": without("progress"),
    "progress a text": at("progress", value="far"),
    "identity missing": without("identity"),
    "identity a text": at("identity", value="mine"),
    "identity of another seed": at("identity", "seed", value=3),
    "weights missing": without("model"),
    "a weight missing": without("model", FIRST),
    "a weight of another shape": at("model", FIRST, value=torch.zeros(3)),
    "weights a list": at("model", value=[1]),
    "optimizer missing": without("optimizer"),
    "optimizer a list": at("optimizer", value=[1]),
    "optimizer of other parameters": at("optimizer", "param_groups", value=[]),
    "optimizer without state": without("optimizer", "state"),
    "scaler missing": without("scaler"),
}


@pytest.mark.fault(kind="changed checkpoints", stage="train")
@pytest.mark.parametrize("edit", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_what_training_goes_on_from_is_refused_if_it_cannot_be_so(
    interrupted: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    file = RunFolder(folder).checkpoint
    content = torch.load(file, weights_only=True)
    edit(content)
    torch.save(content, file)
    with refused(file, "damaged"):  # by its digest
        train(folder)
    digest_file(file).unlink()
    with refused(file, "[Dd]elete it to train"):
        train(folder)


@pytest.mark.fault(kind="no checkpoints", stage="covariance")
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x04]", b"text", b"PK\x05\x06" + bytes(18), bytes(1000)], ids=repr
)
def test_what_is_no_snapshot_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "step_0000000.pt"
    file.write_bytes(content)
    with refused(file, "expected a snapshot"):
        read_snapshot(file)


@pytest.mark.fault(kind="no checkpoints", stage="covariance")
def test_code_in_a_snapshot_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "step_0000000.pt"
    torch.save({"step": 0, "model": print, "definition": {}}, file)
    with refused(file, "expected a snapshot"):
        read_snapshot(file)


def copied(source: Path, folder: Path) -> Path:
    file = folder / source.name
    for path in (source, digest_file(source)):
        shutil.copy(path, folder)
    return file


@pytest.mark.fault(kind="flipped bits", stage="train")
def test_a_flipped_bit_is_found(interrupted: Path, tmp_path: Path) -> None:
    file, places = copied(RunFolder(interrupted).snapshot(0), tmp_path), random.Random(0)
    content, refusals = bytearray(file.read_bytes()), 0
    for _ in range(50):
        place, bit = places.randrange(len(content)), 1 << places.randrange(8)
        content[place] ^= bit
        file.write_bytes(content)
        refusals += "damaged" in one_line_or_nothing(lambda: read_snapshot(file))
        content[place] ^= bit
    assert refusals == 50
    file.write_bytes(content)
    read_snapshot(file)


@pytest.mark.fault(kind="truncated checkpoints", stage="train")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "none"])
def test_a_snapshot_that_was_cut_off_is_refused(interrupted: Path, tmp_path: Path, share: float, digest: bool) -> None:
    file = copied(RunFolder(interrupted).snapshot(0), tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    if not digest:
        digest_file(file).unlink()
    with refused(file):
        read_snapshot(file)


@pytest.mark.fault(kind="locks", stage="train")
def test_a_second_training_of_one_run_is_refused(interrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    with alone(folder / ".lock", "trains this run"), refused(folder / ".lock", "another process trains this run; wait"):
        train(folder)
    train(folder)
    assert RunFolder(folder).read().snapshots[-1] == 4 and not (folder / ".lock").exists()


@pytest.mark.fault(kind="locks", stage="covariance")
def test_a_second_job_of_covariances_of_one_run_is_refused(tmp_path: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "covariance.h5"
    train(folder)
    experiment = config.parse(minimal_experiment())
    lock = tmp_path / "covariance.h5.parts/.lock"
    with alone(lock, f"computes {output}"), refused(lock, f"another process computes {output}; wait"):
        compute_covariance(experiment, folder, output)
    compute_covariance(experiment, folder, output)
    assert len(list(store.read(output))) > 0 and not lock.parent.exists()
