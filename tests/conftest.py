"""Fixtures that several tests share: small experiments, small COCO files, and where the real data would be."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from tests import chromium, detectron2
from tests.cluster import slurm
from tests.leaks import Traces

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("eigendet", deadline=None)
settings.load_profile("eigendet")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def real_data(name: str) -> pytest.MarkDecorator:
    """Mark for tests on real images that a checkout does not hold."""
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"real data {name} is not on this machine")


# Marker -> why what its tests need is not here; empty if it is.
NEEDS: dict[str, Callable[[], str]] = {
    "browser": chromium.unavailable,
    "detectron2": detectron2.unavailable,
    "slurm": slurm.unavailable,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, unavailable in NEEDS.items():
        if item.get_closest_marker(name) and (reason := unavailable()):
            pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    """Give this process a folder for temporary files, and those that it starts one thread each.

    pytest's own folders, which it keeps, stay outside. Two workers' processes of several threads get in each other's
    way, and the order of a sum would differ from that in this process.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    temporary = tempfile.TemporaryDirectory(prefix="eigendet-", dir=os.environ["PYTEST_DEBUG_TEMPROOT"])
    config.add_cleanup(temporary.cleanup)
    os.environ["TMPDIR"] = tempfile.tempdir = temporary.name


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    before = Traces.now(ROOT)
    yield
    if left := Traces.now(ROOT).left_since(before, request.node.nodeid):
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _same_start(_nothing_is_left_behind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the checkout, with one thread and the same random numbers, whichever tests ran before."""
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def values() -> dict[str, Any]:
    return minimal_experiment()


def minimal_experiment() -> dict[str, Any]:
    """A valid experiment that trains in seconds, as plain values."""
    detection = {"plugin": "digit_scenes", "size": 64, "digits": 3}
    optimization = {"optimizer": "adamw", "learning_rate": 1e-3, "snapshots": 3, "log_every": 2, "checkpoint_every": 2}
    return {
        "name": "minimal",
        "device": "cpu",
        "seeds": [0],
        "data": {
            "classification": {
                "train": {"plugin": "digit_crops", "split": "train", "images": 64},
                "val": {"plugin": "digit_crops", "split": "val", "images": 16},
            },
            "detection": {
                "train": detection | {"split": "train", "images": 12},
                "val": detection | {"split": "val", "images": 4},
            },
        },
        "backbones": {"tiny": {"plugin": "resnet", "depth": 18, "width": 0.125, "norm_groups": 4}},
        "detectors": {
            "rcnn": {
                "plugin": "faster_rcnn",
                "fpn_channels": 16,
                "head_channels": 32,
                "anchor_sizes": [8, 16, 32, 48, 64],
                "proposals": 20,
                "box_samples": 16,
            }
        },
        "pretraining": optimization | {"steps": 4, "batch_size": 8, "image_size": 32, "flip": False},
        "training": optimization | {"steps": 4, "batch_size": 2, "min_size": 64, "max_size": 64},
        "covariance": {"images": 3},
        "widths": {"round_to": 4},
    }


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a COCO file over two images, changed by `edit(content)`; returns the file and the image folder."""

    def write(edit: Callable[[dict[str, Any]], Any] = lambda content: None) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        random = np.random.default_rng(0)
        for name in ("a.png", "b.png"):
            Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / name)
        content = coco_content()
        edit(content)
        file = tmp_path / "annotations.json"
        file.write_text(json.dumps(content))
        return file, folder

    return write


def coco_content() -> dict[str, Any]:
    """Annotations of two images, a.png and b.png, of 60 x 40 pixels."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 9, "file_name": "b.png", "width": 60, "height": 40},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            _annotation(1, 7, 3, [5, 5, 20, 10]),
            _annotation(2, 7, 18, [30, 10, 20, 20]),
            _annotation(3, 9, 18, [0, 0, 30, 30]),
        ],
    }


def _annotation(identity: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }
