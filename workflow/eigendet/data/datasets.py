"""What a data set is, and the check of a whole data set.

Both kinds are map-style, know their classes and a digest before any image is decoded, and return images as uint8
tensors (3, H, W). The digest identifies the samples: equal digests, equal data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, overload

from torch import Tensor

from eigendet import plugins
from eigendet.config import Experiment, layout
from eigendet.config.sections import Splits
from eigendet.data import checks
from eigendet.data.images import decode as decode
from eigendet.data.notes import shown
from eigendet.errors import UserError, some
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

    @property
    def notes(self) -> list[str]:
        """Sentences for the report."""

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

    @property
    def notes(self) -> list[str]:
        """Sentences for the report."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class DataSummary(TypedDict):
    """What came of checking a split, as its JSON file holds it."""

    version: int
    images: int
    classes: list[str]
    notes: list[str]  # what was dropped or clipped, or may not be meant
    digest: str
    objects: NotRequired[int]  # of detection, crowds left out


@overload
def open_split(experiment: Experiment, task: Literal["detection"], split: str) -> Detection: ...


@overload
def open_split(experiment: Experiment, task: Literal["classification"], split: str) -> Classification: ...


@overload
def open_split(experiment: Experiment, task: Task, split: str) -> Any: ...


def open_split(experiment: Experiment, task: Task, split: str) -> Any:
    """Return the data set of a task for `train` or `val`.

    Raises:
        UserError: it is not usable.
    """
    splits: Splits | None = getattr(experiment.data, task)
    if splits is None:
        raise UserError(f"data.{task}: missing; this stage needs it.")
    choice = getattr(splits, split)
    dataset = plugins.bind("dataset", choice, f"data.{task}.{split}")()
    checks.check_dataset(dataset, str(plugins.find("dataset", choice.plugin)))
    return dataset


def check_data(experiment: Experiment, task: Task, split: str) -> DataSummary:
    """Decode every image of a split once, so that a bad one is known before training starts; return a summary.

    Raises:
        UserError: an image cannot be read, is not of the annotated size, or would be resized to nothing; or the data
            set is not usable at all, or has other classes than that for the other split.
    """
    other = "val" if split == "train" else "train"
    theirs = _outline(open_split(experiment, task, other))
    dataset = open_split(experiment, task, split)
    alike = _compared(_outline(dataset), theirs, f"data.{task}: {split} and {other}")
    if task == "detection":
        for settings in [experiment.training_of(arm) for arm in experiment.all_arms]:
            checks.check_sides(dataset, settings)
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
        "notes": [*dataset.notes, *alike],
        "digest": dataset.digest,
    }
    if hasattr(dataset, "objects"):
        summary["objects"] = objects
    return summary


def require_same_classes(one: Sequence[str], other: Sequence[str], which: str) -> None:
    """Raise UserError unless two splits have the same classes; `which` names them.

    >>> require_same_classes(["cat", "dog"], ["cat", "dog"], "data.detection: train and val")
    """
    if list(one) != list(other):
        apart = some(sorted(shown(name) for name in set(one) ^ set(other))) or "the same names in another order"
        raise UserError(f"{which} have different classes ({apart}); expected the same in both.")


class _Outline(NamedTuple):
    """What splits are compared by; a data set itself may take much memory."""

    classes: list[str]
    digest: str
    files: set[str]  # of the images, where the data set names them


def _outline(dataset: Any) -> _Outline:
    """Return what a data set is compared with another by."""
    names = map(dataset.name, range(len(dataset))) if hasattr(dataset, "name") else ()
    return _Outline(list(dataset.classes), dataset.digest, {os.path.realpath(name) for name in names})


def _compared(one: _Outline, other: _Outline, which: str) -> list[str]:
    """Say whether two splits share data.

    Raises:
        UserError: they have different classes.
    """
    require_same_classes(one.classes, other.classes, which)
    if one.digest == other.digest:
        return [f"{which} are the same data, so what is evaluated was learned"]
    shared = len(one.files & other.files)
    return [f"{which} share {shared} images, so part of what is evaluated was learned"] if shared else []
