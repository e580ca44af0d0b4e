"""Figures of a user's own data, quickly: names, JSON files, and the headers of a sample of images.

What `check-data` finds out is not looked for here: it opens every image, and checks every annotation.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, with_config

from eigendet.data import folders, images
from eigendet.data.folders import Pair, Tree
from eigendet.errors import UserError, some

MOST_PIXELS = 1_000_000  # of a side
SAMPLE = 100  # image files of a data set that are opened
EXPECTED = "a COCO file: an object with the lists 'images', 'annotations' and 'categories'"
PLAIN = ConfigDict(strict=True)  # no number for a text


@with_config(PLAIN)
@dataclass(frozen=True, slots=True)
class _Image:
    id: int
    file_name: Annotated[str, Field(min_length=1)]
    width: Annotated[int, Field(gt=0, le=MOST_PIXELS)]
    height: Annotated[int, Field(gt=0, le=MOST_PIXELS)]


@with_config(PLAIN)
@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: int
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]  # left, top, width, height in pixels
    iscrowd: int = 0
    segmentation: Annotated[bool, BeforeValidator(bool)] = False


@with_config(PLAIN)
@dataclass(frozen=True, slots=True)
class _Category:
    id: int
    name: str


@with_config(PLAIN)
@dataclass(frozen=True, slots=True)
class _Coco:
    images: Annotated[list[_Image], Field(min_length=1)]
    annotations: Annotated[list[_Annotation], Field(min_length=1)]
    categories: Annotated[list[_Category], Field(min_length=1)]


class Range(NamedTuple):
    """What lies in the middle of some numbers, and what 5 % of them are below and above."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Detections:
    """Figures of a COCO file and its images.

    Attributes:
        annotations: the file.
        folder: of the images.
        classes: boxes of each, crowds left out, in the order of labels.
        images: how many there are.
        empty: how many of these have no box, or crowds alone; training leaves them out.
        shorter: side of the images, pixels.
        longer: side, as a multiple of the shorter.
        boxes: square root of their area, pixels.
        shares: the same as a share of the shorter side of their image.
        objects: boxes of an image that has some.
        masks: whether each has a segmentation.
        opened: how many image files were looked at.
    """

    annotations: Path
    folder: Path
    classes: dict[str, int]
    images: int
    empty: int
    shorter: Range
    longer: Range
    boxes: Range
    shares: Range
    objects: Range
    masks: bool
    opened: int


@dataclass(frozen=True)
class Classes:
    """Figures of a folder of a folder of images for each class.

    Attributes:
        folder: of the classes.
        images: how many there are of each class.
        shorter: side of the images that were looked at, pixels.
        opened: how many these are.
    """

    folder: Path
    images: dict[str, int]
    shorter: Range
    opened: int


@dataclass(frozen=True)
class Survey:
    """What is in a user's folder.

    Attributes:
        detection: training and validation.
        classification: likewise, if there is any.
        aside: JSON files and folders that were seen, and are not used.
    """

    detection: Pair[Detections]
    classification: Pair[Classes] | None
    aside: list[str]


def survey(
    root: Path, annotations: Sequence[Path] = (), images: Sequence[Path] = (), classes: Sequence[Path] = ()
) -> Survey:
    """Look at the data below a folder.

    Args:
        root: the folder.
        annotations: COCO files for training and validation, if their names do not say which they are.
        images: folders of their images, likewise; one for both, or one each.
        classes: folders of class folders, likewise.

    Raises:
        UserError: something is missing, not what it should be, or could be meant in two ways.
    """
    tree = folders.walk(root)
    files = _named_twice(annotations, "--annotations") or folders.annotation_pair(tree, root)
    if len(images) > 2:
        raise UserError(f"--images: given {len(images)} times; expected once, or for training and then for validation.")
    places = Pair(images[0], images[-1]) if images else Pair(None, None)
    detection = Pair(_detections(files.train, places.train, tree, root), _detections(files.val, places.val, tree, root))
    pair, aside = _named_twice(classes, "--classes"), []
    if pair is None:
        pairs = folders.class_pairs(tree, root, [split.folder for split in detection])
        pair = pairs[0] if len(pairs) == 1 else None
        aside = [] if pair else [str(folder) for unclear in pairs for folder in unclear]
    classification = Pair(_classes(pair.train, tree), _classes(pair.val, tree)) if pair else None
    _same_classes("detection", list(detection.train.classes), list(detection.val.classes))
    if classification:
        _same_classes("pre-training", list(classification.train.images), list(classification.val.images))
    aside += [str(file) for contents in tree.values() for file in contents.files if file not in files]
    return Survey(detection, classification, aside)


def spread(items: Sequence[folders.Item], number: int = SAMPLE) -> list[folders.Item]:
    """Return so many items, spread evenly, or all if there are fewer.

    >>> spread("abcdefgh", 4)
    ['a', 'c', 'e', 'g']
    """
    return [items[position * len(items) // number] for position in range(number)] if len(items) > number else [*items]


def _named_twice(paths: Sequence[Path], option: str) -> Pair[Path] | None:
    """Return what an option names for training and validation, if it is given."""
    if len(paths) not in (0, 2):
        times = "once" if len(paths) == 1 else f"{len(paths)} times"
        raise UserError(f"{option}: given {times}; expected twice, for training and then for validation.")
    return Pair(*paths) if paths else None


def _same_classes(task: str, train: list[str], val: list[str]) -> None:
    """Raise UserError unless training and validation have the same classes."""
    if train != val:
        apart = sorted(set(train) ^ set(val)) or ["the same names in another order"]
        raise UserError(
            f"{task}: {len(train)} classes for training and {len(val)} for validation, not the same ({some(apart)}); "
            "expected the same in both."
        )


def _detections(file: Path, folder: Path | None, tree: Tree, root: Path) -> Detections:
    """Read a COCO file, and look at some of its images."""
    content = _read_coco(file)
    sample = spread(content.images)
    names = [image.file_name for image in sample]
    if folder is None:
        folder = folders.image_folder(file, names, tree, root)
    else:
        folders.require_images(file, names, folder)
    for image in sample:
        images.check_size(folder / image.file_name, (image.height, image.width))
    sides = {image.id: sorted((image.width, image.height)) for image in content.images}
    boxes = [
        annotation
        for annotation in content.annotations
        if min(annotation.bbox[2:]) > 0 and not annotation.iscrowd and annotation.image_id in sides
    ]
    if not boxes:
        raise UserError(f"{file}: no annotations with a box of any area; expected at least one.")
    width, height = np.sqrt([box.bbox[2:] for box in boxes]).T
    roots = width * height
    shorter, longer = np.array(list(sides.values())).T
    of_category = Counter(box.category_id for box in boxes)
    of_image = Counter(box.image_id for box in boxes)
    return Detections(
        annotations=file,
        folder=folder,
        classes={
            category.name: of_category[category.id]
            for category in sorted(content.categories, key=lambda category: category.id)
        },
        images=len(sides),
        empty=len(sides) - len(of_image),
        shorter=_range(shorter),
        longer=_range(longer / shorter),
        boxes=_range(roots),
        shares=_range(roots / np.array([sides[box.image_id][0] for box in boxes])),
        objects=_range(list(of_image.values())),
        masks=all(box.segmentation for box in boxes),
        opened=len(sample),
    )


def _read_coco(file: Path) -> _Coco:
    """Read what is needed of a COCO file; pydantic leaves out the rest, which is most of it, while it parses."""
    try:
        text = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected {EXPECTED}.") from None
    try:
        return TypeAdapter(_Coco).validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if fault["type"] == "json_invalid":
            raise UserError(f"{file}: not JSON ({fault['ctx']['error']}); expected {EXPECTED}.") from None
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        value = "" if fault["type"] == "missing" or not where else f" is {fault['input']!r}"[:60]
        message = fault["msg"][:1].lower() + fault["msg"][1:]
        raise UserError(f"{file}: {where or 'its content'}{value}: {message}; expected {EXPECTED}.") from None


def _range(numbers: np.ndarray | Sequence[float]) -> Range:
    return Range(*(float(number) for number in np.quantile(numbers, (0.05, 0.5, 0.95))))


def _classes(folder: Path, tree: Tree) -> Classes:
    """Count the images of each class, and look at one of some classes."""
    counts = folders.class_counts(folder, tree)
    first = [next(folders.images_in(folder / name)) for name in spread(list(counts))]
    shorter = [min(images.header_size(file)) for file in first]
    return Classes(folder, counts, _range(shorter), len(shorter))
