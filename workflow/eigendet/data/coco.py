"""Read detection data in COCO format: one JSON file and a folder of images, checked in full before use."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eigendet.data.checks import thinnest
from eigendet.data.datasets import Target
from eigendet.data.folders import files_in
from eigendet.data.images import Range, check_range, decode
from eigendet.data.notes import Notes, shown
from eigendet.data.segmentations import is_segmentation, packed, rle
from eigendet.errors import UserError, some
from eigendet.files import file_digest, read_json

EXPECTED = "a COCO file: an object with the lists 'images', 'annotations' and 'categories'"
MOST_PIXELS = 1_000_000  # of a side
FARTHEST = 1e9  # pixels; beyond are infinity and what no float32 holds exactly

# What is worth a count; the ids are of annotations, or of images.
NO_AREA = "boxes of no area dropped"
CLIPPED = "boxes clipped to their image"
SHARES = "boxes within the first pixel of their image, as if they were shares of its sides; expected pixels"
NO_MASK = "objects without a segmentation, so masks are not used"
BAD_MASK = (
    "segmentations dropped, neither polygons about their image nor run lengths that fill it, so masks are not used"
)
NEGATIVE_AREA = "areas below 0 replaced by those of the boxes"
CROWDS = "crowds, left out of training and ignored in evaluation"
EMPTY = "images without a box, left out of training"
SHARED = "images whose file another id has too"

Entry = dict[str, Any]  # of a list of the file; whoever wrote it may have put anything in


class _Object(NamedTuple):
    """An annotation that was checked."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    label: int
    crowd: bool
    area: float
    segmentation: Any  # packed polygons, or run lengths, see `is_segmentation`; or nothing


class _Image(NamedTuple):
    """An image, and the objects in it."""

    identity: int
    file: str
    height: int
    width: int
    thinnest: float  # box that is kept
    objects: list[_Object]


class CocoDetection:
    """COCO annotations over an image folder; see `eigendet.data.Detection`.

    Boxes of no area and segmentations that are not valid are dropped, and boxes that overhang the image are clipped;
    `notes` counts these, and what else may not be meant, with the ids.

    Args:
        annotations: the file.
        images: their folder.
        pixel_range: values of black and white in images deeper than 8 bits; without it these are refused.
        outside: whether images may lie outside of the folder, where links, `..` and absolute names lead.

    Raises:
        UserError: the file is not COCO, or names images, categories or boxes that cannot be; the message names the file
            and the id.
    """

    def __init__(
        self, annotations: Path, images: Path, pixel_range: Range | None = None, outside: bool = False
    ) -> None:
        check_range(pixel_range)
        self.folder = images
        self._file, self._pixel_range = annotations, pixel_range
        self._notes = Notes(str(annotations))
        with _garbage_collected_later():
            self._read(outside)

    def _read(self, outside: bool) -> None:
        """Read the file, and check all of it."""
        annotations = self._file
        content = read_json(annotations, EXPECTED, _compact)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise UserError(f"{annotations}: no list '{key}'; expected {EXPECTED}.")
        names: dict[int, str] = {
            category["id"]: category["name"]
            for category in self._checked(content["categories"], "categories", {"name": str})
        }
        self.classes = [name for _, name in sorted(names.items())]
        self._labels = {identity: label for label, identity in enumerate(sorted(names), start=1)}
        by_id = dict(self._sized(content["images"]))
        self._images = [by_id[identity] for identity in sorted(by_id)]
        self.digest = self._digest(outside)
        fields: dict[str, type] = {"image_id": int, "category_id": int}
        for annotation in self._checked(content["annotations"], "annotations", fields):
            self._add(annotation, by_id)
        self._note_what_may_not_be_meant(names)

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
        image, size = self._images[index], self.size(index)
        items = image.objects
        target = Target(
            boxes=torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([item.label for item in items], dtype=torch.int64),
            crowd=torch.tensor([item.crowd for item in items], dtype=torch.bool),
            area=torch.tensor([item.area for item in items], dtype=torch.float32),
            masks=[rle(item.segmentation, *size) for item in items] if self.has_masks else None,
        )

        def note(what: str) -> None:
            self._notes.count(what, "images", image.identity)

        return decode(self.folder / image.file, size, self._pixel_range, note), target

    @property
    def has_masks(self) -> bool:
        """Whether every object has a segmentation."""
        return not self._notes.number(NO_MASK) + self._notes.number(BAD_MASK)

    @property
    def notes(self) -> list[str]:
        """What was dropped, clipped or may not be meant; of the images, as far as they were decoded."""
        return self._notes.sentences()

    def _checked(self, entries: list[Any], key: str, fields: dict[str, type]) -> Iterator[Entry]:
        """Yield the entries of a list, after a check of the fields that everything rests on; each is then let go."""
        ids: set[int] = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise UserError(f"{self._file}: {key}[{position}] has no integer 'id'; expected {EXPECTED}.")
            identity = entry["id"]
            for field, kind in fields.items():
                if type(value := entry.get(field)) is not kind:
                    where = f"{self._file}: {key} id {shown(identity)}"
                    raise UserError(f"{where}: '{field}' is {shown(value)}; expected {kind.__name__}.")
            if identity in ids:
                raise UserError(f"{self._file}: {key} id {shown(identity)} occurs twice; expected it once.")
            ids.add(identity)
            entries[position] = None
            yield entry
        if not ids:
            raise UserError(f"{self._file}: '{key}' is empty; expected at least one entry.")

    def _sized(self, entries: list[Any]) -> Iterator[tuple[int, _Image]]:
        """Yield images with their ids, after a check of their sizes."""
        for entry in self._checked(entries, "images", {"file_name": str, "width": int, "height": int}):
            identity, width, height = entry["id"], entry["width"], entry["height"]
            if not (0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS):
                where, size = f"{self._file}: images id {shown(identity)}", f"{shown(width)}x{shown(height)}"
                raise UserError(f"{where}: its size is {size}; expected 1 to {MOST_PIXELS} pixels a side.")
            yield identity, _Image(identity, entry["file_name"], height, width, thinnest(height, width), [])

    def _digest(self, outside: bool) -> str:
        """Return the digest of annotations and images, the latter by name, size and time of change.

        Raises:
            UserError: an image is not in the folder, or outside of it.
        """
        digest = hashlib.sha256(f"{file_digest(self._file)} {self._pixel_range}".encode())
        look, missing = files_in(self.folder), []
        for image in self._images:
            state, inside = look(image.file)
            if state is None:
                missing.append(image)
            elif not (inside or outside):
                raise UserError(
                    f"{self._file}: images id {shown(image.identity)}: {shown(image.file)} lies outside of "
                    f"{self.folder}; if that is meant, set `outside: true` beside `plugin`."
                )
            else:
                digest.update(f"\0{image.file!r} {state.st_size} {state.st_mtime_ns}".encode())
        if missing:
            raise UserError(
                f"{self._file}: {len(missing)} of {len(self._images)} images are not in {self.folder}; the first is "
                f"{shown(missing[0].file)} (image id {shown(missing[0].identity)})."
            )
        return digest.hexdigest()

    def _add(self, annotation: Entry, images: dict[int, _Image]) -> None:
        """Check an annotation, and add it to the objects of its image unless its box has no area."""
        identity, image_id, category = annotation["id"], annotation["image_id"], annotation["category_id"]
        image, label = images.get(image_id), self._labels.get(category)
        if image is None:
            raise self._fault(identity, f"image_id {shown(image_id)} is not the id of any image.")
        if label is None:
            ids = some([shown(known) for known in self._labels], 10)
            raise self._fault(identity, f"unknown category_id {shown(category)}; the categories are {ids}.")
        box = self._clipped(annotation.get("bbox"), image, identity)
        if box is None:
            self._notes.count(NO_AREA, "annotations", identity)
            return
        _, _, width, height = annotation["bbox"]
        crowd, area = annotation.get("iscrowd", 0), annotation.get("area", width * height)
        if crowd not in (0, 1):
            raise self._fault(identity, f"iscrowd is {shown(crowd)}; expected 0 or 1.")
        if not _is_number(area):
            raise self._fault(identity, f"area is {shown(area)}; expected a number of pixels, or none at all.")
        if area < 0:
            self._notes.count(NEGATIVE_AREA, "annotations", identity)
            area = width * height
        if crowd:
            self._notes.count(CROWDS, "annotations", identity)
        segmentation = annotation.get("segmentation")
        if not segmentation:
            self._notes.count(NO_MASK, "annotations", identity)
        elif not is_segmentation(segmentation, image.height, image.width):
            self._notes.count(BAD_MASK, "annotations", identity)
            segmentation = None
        image.objects.append(_Object(box, label, bool(crowd), float(area), segmentation))

    def _clipped(self, box: Any, image: _Image, identity: int) -> tuple[float, float, float, float] | None:
        """Return left, top, right and bottom of the part of a box inside its image; None if that has no area.

        Raises:
            UserError: it is not a box, or not in the image.
        """
        if type(box) is not list or len(box) != 4 or not all(map(_is_number, box)):
            raise self._fault(identity, f"bbox is {shown(box)}; expected [left, top, width, height] in pixels.")
        left, top, width, height = box
        right, bottom, thin = left + width, top + height, image.thinnest
        if width < thin or height < thin:
            return None
        if left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
            raise self._fault(
                identity,
                f"bbox {shown(box)} lies outside image id {shown(image.identity)} ({image.width}x{image.height} "
                "pixels); expected [left, top, width, height] in pixels.",
            )
        if right <= 1 and bottom <= 1 and image.width > 1 and image.height > 1:
            self._notes.count(SHARES, "annotations", identity)
        if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
            return left, top, right, bottom
        inside = max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height)
        if inside[2] - inside[0] < thin or inside[3] - inside[1] < thin:
            return None
        # Half a pixel is how tools round; more is worth a count.
        if left < -0.5 or top < -0.5 or right > image.width + 0.5 or bottom > image.height + 0.5:
            self._notes.count(CLIPPED, "annotations", identity)
        return inside

    def _fault(self, identity: int, what: str) -> UserError:
        """Return the error that says what is wrong with an annotation."""
        return UserError(f"{self._file}: annotations id {shown(identity)}: {what}")

    def _note_what_may_not_be_meant(self, names: dict[int, str]) -> None:
        """Count what is seen of all annotations together.

        Raises:
            UserError: no box is left.
        """
        labels = Counter(item.label for image in self._images for item in image.objects if not item.crowd)
        boxes = sum(len(image.objects) for image in self._images)
        if not boxes:
            raise UserError(f"{self._file}: no annotations with a box of any area; expected at least one.")
        times = Counter(image.file for image in self._images)
        for image in self._images:
            if not image.objects:
                self._notes.count(EMPTY, "images", image.identity)
            if times[image.file] > 1:
                self._notes.count(SHARED, "images", image.identity)
        if 2 * self._notes.number(CLIPPED) > boxes:
            self._notes.say("most boxes overhang their image, as if they were [left, top, right, bottom]; expected "
                            "[left, top, width, height]")  # fmt: skip
        if never := [shown(name) for label, name in enumerate(self.classes, start=1) if label not in labels]:
            self._notes.say(f"{len(never)} classes of which no box is learned ({some(never)})")
        same = defaultdict(list)
        for identity, name in sorted(names.items()):
            same[name].append(shown(identity))
        for name, ids in same.items():
            if len(ids) > 1:
                self._notes.say(f"{len(ids)} categories are all named {shown(name)} (categories id {some(ids)})")


@contextlib.contextmanager
def _garbage_collected_later() -> Iterator[None]:
    """Look for no cycles while millions of values are read, which make none; half of the time would go there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _compact(entry: Entry) -> Entry:
    """Pack the polygons of an annotation as soon as it is parsed: most of a file is these."""
    if "segmentation" in entry:
        entry["segmentation"] = packed(entry["segmentation"])
    return entry


def _is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a number that can be one of pixels."""
    return type(value) in (int, float) and -FARTHEST < value < FARTHEST
