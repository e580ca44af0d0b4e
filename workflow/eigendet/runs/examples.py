"""A few images with their objects and what was detected there, small enough to be shown on a page.

Which images, no detector has a say in: of those with objects the same number of images apart, the first among them.
Everything is in the pixels of a picture that is made smaller, so that a page needs neither the images nor their sizes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from torch import Tensor

from eigendet.data.datasets import RLE, Detection
from eigendet.report.records import CONFIDENT, FEW, MOST
from eigendet.runs.detections import Annotation, Detected, Seen

IMAGES = 4
SIDE = 320  # of a picture, the longer one, in pixels
QUALITY = 75  # of JPEG
LETTERS = 1000  # of a mask's run lengths


class Mask(TypedDict):
    """A mask as COCO's compressed run lengths, of as many pixels or of fewer than the picture has."""

    size: list[int]  # height, width
    counts: str


class Thing(TypedDict):
    """An object, or a detection, which has a score; its box is left, top, width, height."""

    name: str  # of the class
    box: list[float]
    score: NotRequired[float]
    mask: NotRequired[Mask]


class Example(TypedDict):
    """An image, by its number in the data set from 0; the picture is JPEG in base64."""

    index: int
    picture: str
    width: int
    height: int
    objects: int  # of which the largest are `truth`
    truth: list[Thing]
    detections: list[Thing]


def chosen(seen: Seen, count: int = IMAGES) -> list[int]:
    """Return the images that are shown: of those with objects, crowds aside, evenly spread ones.

    >>> object = {"iscrowd": 0}
    >>> chosen(Seen(["cat"], [], [{"image_id": image, **object} for image in (0, 0, 2, 5, 6, 7, 9)], []), 3)
    [0, 5, 7]
    """
    images = sorted({entry["image_id"] for entry in seen.annotations if not entry["iscrowd"]})
    return [images[place * len(images) // count] for place in range(count)] if len(images) > count else images


def examples(dataset: Detection, seen: Seen) -> list[Example]:
    """Return a few images of a data set with their objects and detections."""
    return [_example(dataset[index][0], index, seen) for index in chosen(seen)]


def _example(image: Tensor, index: int, seen: Seen) -> Example:
    """Return an image (3, H, W) of bytes with its objects, the largest first, and its detections, the best first."""
    picture = Image.fromarray(image.byte().permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    objects = [entry for entry in seen.annotations if entry["image_id"] == index and not entry["iscrowd"]]
    objects.sort(key=lambda entry: -entry["area"])
    detections = [entry for entry in seen.detections if entry["image_id"] == index and _is_finite(entry)]
    detections.sort(key=lambda entry: -entry["score"])
    good = [entry for entry in detections if entry["score"] >= CONFIDENT][:MOST] or detections[:FEW]
    size = seen.sizes[index]
    return Example(
        index=index,
        picture=base64.b64encode(file.getvalue()).decode(),
        width=picture.width,
        height=picture.height,
        objects=len(objects),
        truth=[_thing(entry, seen.classes, size, picture.size) for entry in objects[:MOST]],
        detections=[
            {**_thing(entry, seen.classes, size, picture.size), "score": round(entry["score"], 3)} for entry in good
        ],
    )


def _is_finite(entry: Detected) -> bool:
    return all(map(math.isfinite, [entry["score"], *entry["bbox"]]))


def _thing(
    entry: Annotation | Detected, classes: Sequence[str], size: tuple[int, int], shown: tuple[int, int]
) -> Thing:
    """Return an object or a detection of an image of a height and width, as a picture of a width and height has it."""
    across, down = shown[0] / size[1], shown[1] / size[0]
    left, top, width, height = entry["bbox"]
    thing: Thing = {
        "name": classes[entry["category_id"] - 1],
        "box": [round(value, 1) for value in (left * across, top * down, width * across, height * down)],
    }
    if "segmentation" in entry and (mask := _mask(entry["segmentation"], shown)):
        thing["mask"] = mask
    return thing


def _mask(rle: RLE, size: tuple[int, int]) -> Mask | None:
    """Return a mask that is at most of a width and height, of half of it while it takes too many letters."""
    pixels = Image.fromarray(255 * coco_mask.decode(rle))
    while min(size) > 0:
        smaller: Any = np.asarray(pixels.resize(size, Image.Resampling.BOX)) > 127
        counts = coco_mask.encode(np.asfortranarray(smaller, np.uint8))["counts"].decode()
        if len(counts) <= LETTERS:
            return {"size": list(smaller.shape), "counts": counts} if smaller.any() else None
        size = (size[0] // 2, size[1] // 2)
    return None
