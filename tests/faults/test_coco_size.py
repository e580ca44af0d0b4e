"""Large COCO files: no more time and memory than pycocotools takes, and only for the split that is needed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eigendet import config
from eigendet.data.datasets import check_data, open_split
from eigendet.files import read_json

Coco = Callable[..., tuple[Path, Path]]
OBJECTS, POINTS = 10, 30  # of an image, of a polygon
READERS = {"pycocotools": "COCO(str(file))", "own": "CocoDetection(file, file.parent)"}
CODE = r"""
import re, sys, time
from pathlib import Path
from pycocotools.coco import COCO
from eigendet.data.coco import CocoDetection
file = Path(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before, start = peak(), time.process_time()
data = {reader}
print(time.process_time() - start, peak() - before)
"""


class Cost(NamedTuple):
    """What it takes to read a file."""

    seconds: float  # of the processor
    memory: float  # bytes, above that of the modules


def write(folder: Path, images: int) -> Path:
    """Write a COCO file of so many images, which are empty files, and ten times as many polygons."""
    draw = random.Random(0).uniform
    annotations = []
    for number in range(images * OBJECTS):
        left, top, width, height = (round(draw(*bounds), 2) for bounds in ((0, 300), (0, 200), (20, 300), (20, 250)))
        points = [(left + draw(0, width), top + draw(0, height)) for _ in range(POINTS)]
        annotations.append({
            "id": number, "image_id": number // OBJECTS, "category_id": number % 80, "bbox": [left, top, width, height],
            "area": width * height, "iscrowd": 0,
            "segmentation": [[round(number, 2) for point in points for number in point]],
        })  # fmt: skip
    names = [f"{number:06}.jpg" for number in range(images)]
    for name in names:
        (folder / name).touch()
    entries = [{"id": at, "file_name": name, "width": 640, "height": 480} for at, name in enumerate(names)]
    classes = [{"id": number, "name": str(number)} for number in range(80)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": classes}))
    return file


def cost(reader: str, file: Path) -> Cost:
    """Read a file in a process of its own."""
    command = [sys.executable, "-c", CODE.replace("{reader}", READERS[reader]), str(file)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Cost(*map(float, answer.splitlines()[-1].split()))


def least(file: Path, times: int) -> dict[str, Cost]:
    """Read a file several times by each in turn; return the least cost of each."""
    costs: dict[str, list[Cost]] = {reader: [] for reader in READERS}
    for _ in range(times):
        for reader, among in costs.items():
            among.append(cost(reader, file))
    return {reader: Cost(*map(min, zip(*among, strict=True))) for reader, among in costs.items()}


@pytest.mark.fault(kind="large COCO files", stage="any")
@pytest.mark.parametrize(
    ("images", "times"), [(2000, 3), pytest.param(20_000, 3, marks=pytest.mark.slow)], ids=["2000", "20000"]
)
def test_reading_takes_less_memory_than_with_pycocotools(images: int, times: int, tmp_path: Path) -> None:
    costs = least(write(tmp_path, images), times)
    memory, seconds = (costs["own"][which] / costs["pycocotools"][which] for which in (1, 0))
    print(f"{images} images: {memory:.2f} times the memory, {seconds:.2f} times the seconds; {costs}")
    assert memory <= 0.75


@pytest.mark.fault(kind="large COCO files", stage="any")
def test_only_the_split_that_is_needed_is_read(
    coco: Coco, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, folder = coco()
    other = tmp_path / "val.json"
    other.write_bytes(file.read_bytes() + b"\n")
    values["data"]["detection"] = {
        split: {"plugin": "coco", "annotations": str(path), "images": str(folder)}
        for split, path in (("train", file), ("val", other))
    }
    experiment, opened = config.parse(values), list[Path]()

    def reading(path: Path, *others: Any) -> Any:
        opened.append(path)
        return read_json(path, *others)

    monkeypatch.setattr("eigendet.data.coco.read_json", reading)
    open_split(experiment, "detection", "train")
    assert opened == [file]
    open_split(experiment, "detection", "val")
    assert opened == [file, other]
    notes = check_data(experiment, "detection", "train")["notes"]
    assert opened[2:] == [other, file]  # its classes and images are compared with those of the other split
    assert notes == ["data.detection: train and val share 2 images, so part of what is evaluated was learned"]
