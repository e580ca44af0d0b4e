"""Read detection data in COCO format: one JSON file and a folder of images, checked in full before use."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from eigendet.data.datasets import RLE, Target, decode
from eigendet.errors import UserError
from eigendet.files import file_digest, read_json

EXPECTED = "a COCO file: an object with the lists 'images', 'annotations' and 'categories'"
NO_AREA = "boxes of no area dropped"
CLIPPED = "boxes clipped to their image"
NO_MASK = "objects without a segmentation, so masks are not used"

Entry = dict[str, Any]  # of a list of the file; whoever wrote it may have put anything in


class _Object(NamedTuple):
    """An annotation that was checked."""

    box: list[float]  # left, top, right, bottom in pixels
    label: int
    crowd: bool
    area: float
    segmentation: Any  # polygons or run lengths, see `_is_segmentation`; or nothing


class _Image(NamedTuple):
    """An image, and the objects in it."""

    identity: int
    file: str
    height: int
    width: int
    objects: list[_Object]


class CocoDetection:
    """COCO annotations over an image folder; see `eigendet.data.Detection`.

    Boxes of no area are dropped and boxes that overhang the image are clipped; `notes` counts both.

    Raises:
        UserError: the file is not COCO, or names images, categories or boxes that cannot be; the message names the file
            and the id.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        self.folder = images
        self._file = annotations
        content = read_json(annotations, EXPECTED)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise UserError(f"{annotations}: no list '{key}'; expected {EXPECTED}.")
        categories = self._by_id(content["categories"], "categories", {"name": str})
        self.classes = [category["name"] for _, category in sorted(categories.items())]
        self._labels = {identity: label for label, identity in enumerate(sorted(categories), start=1)}
        entries = self._by_id(content["images"], "images", {"file_name": str, "width": int, "height": int})
        by_id = {
            identity: _Image(identity, entry["file_name"], entry["height"], entry["width"], [])
            for identity, entry in sorted(entries.items())
        }
        self._images = list(by_id.values())
        self._check_files()
        self._counts: Counter[str] = Counter()
        fields: dict[str, type] = {"image_id": int, "category_id": int}
        for annotation in self._by_id(content["annotations"], "annotations", fields).values():
            self._add(annotation, by_id)
        if not any(image.objects for image in self._images):
            raise UserError(f"{annotations}: no annotations with a box of any area; expected at least one.")
        self.notes = [f"{annotations}: {count} {what}" for what, count in sorted(self._counts.items())]
        self.digest = file_digest(annotations)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Return the path of an image, as messages name it."""
        return str(self.folder / self._images[index].file)

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image, without decoding it."""
        return self._images[index].height, self._images[index].width

    def objects(self, index: int) -> int:
        """Return the number of an image's objects, crowds left out."""
        return sum(not item.crowd for item in self._images[index].objects)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        items = self._images[index].objects
        masks = [_rle(item.segmentation, self.size(index)) for item in items] if self.has_masks else None
        target = Target(
            boxes=torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([item.label for item in items], dtype=torch.int64),
            crowd=torch.tensor([item.crowd for item in items], dtype=torch.bool),
            area=torch.tensor([item.area for item in items], dtype=torch.float32),
            masks=masks,
        )
        return decode(self.folder / self._images[index].file), target

    @property
    def has_masks(self) -> bool:
        """Whether every object has a segmentation."""
        return not self._counts[NO_MASK]

    def _by_id(self, entries: list[Any], key: str, fields: dict[str, type]) -> dict[int, Entry]:
        """Return the entries of a list by their ids, after a check of the fields that everything rests on."""
        by_id: dict[int, Entry] = {}
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
                raise UserError(f"{self._file}: {key}[{position}] has no integer 'id'; expected {EXPECTED}.")
            for field, kind in fields.items():
                if not isinstance(entry.get(field), kind):
                    where = f"{self._file}: {key} id {entry['id']}"
                    raise UserError(f"{where}: '{field}' is {entry.get(field)!r}; expected {kind.__name__}.")
            if entry["id"] in by_id:
                raise UserError(f"{self._file}: {key} id {entry['id']} occurs twice; expected it once.")
            by_id[entry["id"]] = entry
        if not by_id:
            raise UserError(f"{self._file}: '{key}' is empty; expected at least one entry.")
        return by_id

    def _check_files(self) -> None:
        """Raise UserError unless every image is in the folder."""
        missing = [image for image in self._images if not (self.folder / image.file).is_file()]
        if missing:
            raise UserError(
                f"{self._file}: {len(missing)} of {len(self._images)} images are not in {self.folder}; the first is "
                f"'{missing[0].file}' (image id {missing[0].identity})."
            )

    def _add(self, annotation: Entry, images: dict[int, _Image]) -> None:
        """Check an annotation, and add it to the objects of its image unless its box has no area."""
        where = f"{self._file}: annotations id {annotation['id']}"
        if annotation["image_id"] not in images:
            raise UserError(f"{where}: image_id {annotation['image_id']} is not the id of any image.")
        if annotation["category_id"] not in self._labels:
            ids = ", ".join(map(str, self._labels))
            raise UserError(f"{where}: unknown category_id {annotation['category_id']}; the categories are {ids}.")
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise UserError(f"{where}: bbox is {box!r}; expected [left, top, width, height] in pixels.")
        if min(box[2:]) < 1e-3:  # thinner ones vanish in single precision
            self._counts[NO_AREA] += 1
            return
        if annotation.get("iscrowd", 0) not in (0, 1):
            raise UserError(f"{where}: iscrowd is {annotation['iscrowd']!r}; expected 0 or 1.")
        area = annotation.get("area", box[2] * box[3])
        if not _is_number(area):
            raise UserError(f"{where}: area is {area!r}; expected a number of pixels, or none at all.")
        image = images[annotation["image_id"]]
        clipped = self._clipped(box, image, where)
        segmentation = annotation.get("segmentation")
        if not segmentation:
            self._counts[NO_MASK] += 1
        elif not _is_segmentation(segmentation, [image.height, image.width]):
            raise UserError(
                f"{where}: segmentation is not valid; expected polygons [[x, y, …], …], or run lengths that fill "
                f"the size [{image.height}, {image.width}] of the image."
            )
        label, crowd = self._labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
        image.objects.append(_Object(clipped, label, crowd, float(area), segmentation))

    def _clipped(self, box: list[float], image: _Image, where: str) -> list[float]:
        """Return left, top, right and bottom of the part of a box inside its image."""
        left, top, width, height = box
        right, bottom = min(left + width, image.width), min(top + height, image.height)
        if left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
            raise UserError(
                f"{where}: bbox {box} lies outside image id {image.identity} ({image.width}x{image.height} pixels); "
                "expected [left, top, width, height] in pixels."
            )
        # Half a pixel is how tools round; more is worth a count.
        if min(left, top) < -0.5 or left + width > right + 0.5 or top + height > bottom + 0.5:
            self._counts[CLIPPED] += 1
        return [max(left, 0.0), max(top, 0.0), right, bottom]


def _is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_segmentation(value: Any, size: list[int]) -> bool:
    """Return whether a value is polygons, or run lengths that fill a mask of that size."""
    if isinstance(value, dict):
        counts = value.get("counts")
        counts = _run_lengths(counts) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
            return False
        return value.get("size") == size and sum(counts) == size[0] * size[1]
    return isinstance(value, list) and all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(_is_number, polygon))
        for polygon in value
    )


def _run_lengths(text: str) -> list[int] | None:
    """Return the counts of COCO's compressed run lengths, or None if they are malformed.

    They are six bits a character, each count from the fourth on a difference from the last but one.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            number -= (1 << shift) if bits & 0x10 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return None if shift else counts


def _rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Return polygons or run lengths, compressed or not, as compressed run lengths."""
    height, width = size
    if isinstance(segmentation, list):
        rle: RLE = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = {"size": segmentation["size"], "counts": segmentation["counts"].encode()}
    return rle
