"""A GPU that is there and that nobody asked for is left alone: not even a context is made on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from eigendet import config, monitor, suggest_widths
from eigendet.data import batches
from eigendet.data.datasets import open_split
from eigendet.runs import covariances, latency, stages, training
from eigendet.spectra import spectrum

Run = tuple[config.Experiment, Path]


@pytest.fixture
def run(values: dict[str, Any], tmp_path: Path) -> Run:
    values |= {"device": "cpu", "covariance": {"images": 2, "jackknife": 2}}
    experiment = config.parse(values)
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, tmp_path / "run")
    return experiment, tmp_path / "run"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU that torch sees, which fails where anything is asked of it, and is worth the way for all matrices.

    torch's own optimizers ask whether it records a graph, so what is trained is trained before.
    """

    def refuse() -> None:
        raise AssertionError("a GPU was used that nobody asked for")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    monkeypatch.setattr(spectrum, "GPU_CHANNELS", 1)
    return torch.device("cuda", 0)


def test_what_is_asked_of_it_fails_here(gpu: torch.device) -> None:
    with pytest.raises(AssertionError, match="nobody asked"):
        torch.zeros(1).cuda()
    with pytest.raises(AssertionError, match="nobody asked"):
        spectrum.eigenvalues(torch.eye(2).numpy(), gpu)


def test_an_experiment_on_the_cpu_leaves_it_alone(run: Run, gpu: torch.device, tmp_path: Path) -> None:
    covariances.compute_covariance(*run, tmp_path / "c.h5")
    assert stages.evaluate(*run)["boxes"]
    assert latency.measure_latency(run[0], [run[1]], rounds=1)["device"] == "cpu"


def test_spectra_leave_it_alone(run: Run, gpu: torch.device, tmp_path: Path) -> None:
    """Their jobs are promised none, whatever the experiment's device is."""
    covariances.compute_covariance(*run, tmp_path / "c.h5")
    spectrum.write_spectra(tmp_path / "c.h5", tmp_path / "spectra")
    with pytest.raises(AssertionError, match="nobody asked"):
        spectrum.write_spectra(tmp_path / "c.h5", tmp_path / "spectra", device=gpu)


def test_a_model_on_the_cpu_is_watched_and_sized_without_it(gpu: torch.device) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    windows: list[Any] = []
    with monitor(model, writer=windows.append):
        model(torch.rand(10, 3))
    assert windows
    suggested = suggest_widths(resnet18(), [torch.rand(2, 3, 32, 32)], 0.5, build=partial(resnet18, weights=None))
    assert suggested.macs.share <= 0.5


def test_batches_lie_in_pinned_memory_for_a_gpu_alone(values: dict[str, Any], gpu: torch.device) -> None:
    experiment = config.parse(values)
    detection = open_split(experiment, "detection", "train")
    classification = open_split(experiment, "classification", "train")
    assert experiment.pretraining is not None
    for device in (torch.device("cpu"), gpu):
        model = nn.Module()
        of_boxes: Any = training.detection_task(model, detection, experiment.training, 0, device).batches(0)
        of_classes: Any = training.classification_task(classification, experiment.pretraining, 0, device).batches(0)
        assert of_boxes.pin_memory == of_classes.pin_memory == (device is gpu)
    assert not batches.detection_batches(detection, experiment.training, 0, 0, masks=False).pin_memory
