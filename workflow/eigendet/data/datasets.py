"""What a data set is, how images are decoded, and the check of a whole data set.

Both kinds are map-style, know their classes and a digest before any image is decoded, and return images as uint8
tensors (3, H, W). The digest identifies the samples: equal digests, equal data.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict, overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from eigendet import plugins
from eigendet.config import Experiment, layout
from eigendet.config.sections import Splits
from eigendet.data import checks
from eigendet.errors import UserError
from eigendet.progress import Reporter

Task = Literal["classification", "detection"]


class RLE(TypedDict):
    """A mask as COCO's compressed run lengths."""

    size: list[int]  # height, width
    counts: bytes


class Target(TypedDict):
    """The objects of one image, crowds included."""

    boxes: Tensor  # (N, 4) float32: left, top, right, bottom in pixels
    labels: Tensor  # (N,) int64, from 1
    crowd: Tensor  # (N,) bool: groups, left out of training and ignored in evaluation
    area: Tensor  # (N,) float32, pixels; of the mask where there is one
    masks: list[RLE] | None


class Detection(Protocol):
    """Images with boxes. `classes[k - 1]` names label k; `notes` says what was dropped or clipped."""

    classes: list[str]
    digest: str
    notes: list[str]

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image, without decoding it."""

    def objects(self, index: int) -> int:
        """Return the number of objects that training uses, crowds left out, without decoding the image."""

    def __getitem__(self, index: int) -> tuple[Tensor, Target]: ...


class Classification(Protocol):
    """Images with one class each; labels count from 0."""

    classes: list[str]
    digest: str
    notes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class DataSummary(TypedDict):
    """What came of checking a split, as its JSON file holds it."""

    version: int
    images: int
    classes: list[str]
    notes: list[str]  # what was dropped or clipped
    digest: str
    objects: NotRequired[int]  # of detection, crowds left out


def decode(path: Path) -> Tensor:
    """Return an image file as uint8 (3, H, W), RGB.

    Raises:
        UserError: the file is missing, truncated, or not an image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file.") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable image, perhaps truncated ({error}); expected JPEG, PNG or the like."
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@overload
def open_splits(experiment: Experiment, task: Literal["detection"]) -> dict[str, Detection]: ...


@overload
def open_splits(experiment: Experiment, task: Literal["classification"]) -> dict[str, Classification]: ...


def open_splits(experiment: Experiment, task: Task) -> Any:
    """Return the data sets `train` and `val` of a task.

    Raises:
        UserError: a data set is not usable, or the two have different classes.
    """
    splits: Splits | None = getattr(experiment.data, task)
    if splits is None:
        raise UserError(f"data.{task}: missing; this stage needs it.")
    opened = {}
    for name in ("train", "val"):
        choice = getattr(splits, name)
        opened[name] = plugins.bind("dataset", choice, f"data.{task}.{name}")()
        checks.check_dataset(opened[name], str(plugins.find("dataset", choice.plugin)))
    if opened["train"].classes != opened["val"].classes:
        first, second = (set(opened[name].classes) for name in ("train", "val"))
        apart = ", ".join(sorted(first ^ second)) or "the same names in another order"
        raise UserError(f"data.{task}: train and val have different classes ({apart}); expected the same in both.")
    return opened


def check_data(experiment: Experiment, task: Task, split: str) -> DataSummary:
    """Decode every image of a split once, so that a bad one is known before training starts; return a summary.

    Raises:
        UserError: an image cannot be read or is not of the annotated size, or the data set is not usable at all.
    """
    dataset = open_splits(experiment, task)[split]
    plugin = plugins.find("dataset", getattr(getattr(experiment.data, task), split).plugin)

    def look(index: int) -> int:
        with plugins.failures_named(plugin):
            return checks.check_sample(dataset, index, str(plugin))

    objects = 0
    reporter = Reporter(f"check-data {task} {split}", "image", len(dataset))
    with ThreadPoolExecutor(os.cpu_count()) as pool, reporter:
        for start in range(0, len(dataset), 1000):  # an executor holds all that it was given
            few = range(start, min(start + 1000, len(dataset)))
            for index, count in zip(few, pool.map(look, few), strict=True):
                objects += count
                reporter.reach(index + 1, images=1)
    summary: DataSummary = {
        "version": layout.DATA_VERSION,
        "images": len(dataset),
        "classes": dataset.classes,
        "notes": dataset.notes,
        "digest": dataset.digest,
    }
    if hasattr(dataset, "objects"):
        summary["objects"] = objects
    return summary
