"""COCO files whose lists, ids, boxes, areas, crowds or segmentations are not what they should be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eigendet.data.batches import learned_objects
from eigendet.data.checks import check_sample, thinnest
from eigendet.data.coco import CocoDetection
from tests.faults.refusal import refused

Coco = Callable[..., tuple[Path, Path]]
Edit = Callable[[dict[str, Any]], Any]


def entry(key: str, **changes: Any) -> Edit:
    """Change the second entry of a list; its id is 9 among images, 2 among annotations, 18 among categories."""
    return lambda content: content[key][1].update(changes)


def without(key: str, field: str) -> Edit:
    return lambda content: content[key][1].pop(field)


def whole(key: str, value: Any) -> Edit:
    return lambda content: content.update({key: value})


def inserted(key: str, value: Any) -> Edit:
    return lambda content: content[key].insert(1, value)


def box(*numbers: Any) -> Edit:
    return entry("annotations", bbox=list(numbers))


def segmentation(value: Any) -> Edit:
    return entry("annotations", segmentation=value)


NO_LISTS: list[Any] = [None, {}, [], "text", 3]
NO_ENTRIES: list[Any] = [None, [], 7, "text"]
NO_SEGMENTATIONS: list[Any] = [None, [], {}, ""]
BAD_SEGMENTATIONS: list[Any] = [
    [[1, 2]], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [1, 2, 3, 4, 5, 6], "text", 7, [None], [{}],
    [[1, 2, 3, 4, 5, "6"]], [[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, math.nan]], [[math.nan, 2, 3, 4, 5, 6]],
    [[1, 2, 3, 4, 5, math.inf]], [[1, 2, 3, 4, 5, 1e9]], [[1e7, 2, 3, 4, 5, 6]], [[-1e9, 2, 3, 4, 5, 6]],
    [[1, 2, 3, 4, 5, 10**400]], [[0, 0, 9, 0, 9, 9], [1, 2]], [[[1, 2], [3, 4], [5, 6]]], {"size": [40, 60]},
    {"counts": [2400]}, {"size": [5, 5], "counts": [25]}, {"size": [60, 40], "counts": [2400]},
    {"size": [40, 60], "counts": [3]}, {"size": [40, 60], "counts": [-1, 2401]},
    {"size": [40, 60], "counts": [2400.0]}, {"size": [40, 60], "counts": None},
    {"size": [40, 60], "counts": "52203"}, {"size": [40, 60], "counts": "\x00"},
    {"size": [40, 60], "counts": "oooooooooooooooooooooooo"}, {"size": [40, 60], "counts": "ü"},
    {"size": ["40", "60"], "counts": [2400]}, {"size": [40, 60], "counts": [10**30]},
]  # fmt: skip

WRONG: dict[str, tuple[Edit, str]] = {
    **{
        f"{key} is {value!r}": (whole(key, value), key)
        for key in ("images", "annotations", "categories")
        for value in NO_LISTS
    },
    **{
        f"an entry of {key} is {value!r}": (inserted(key, value), rf"{key}\[1\] has no integer 'id'")
        for key in ("images", "annotations", "categories")
        for value in NO_ENTRIES
    },
    **{
        f"an id of {key} is {value!r}": (entry(key, id=value), rf"{key}\[1\] has no integer 'id'")
        for key in ("images", "annotations", "categories")
        for value in (None, "9", 9.0, True, [9])
    },
    "an image's id twice": (entry("images", id=7), "images id 7 occurs twice"),
    "an annotation's id twice": (entry("annotations", id=1), "annotations id 1 occurs twice"),
    "a category's id twice": (entry("categories", id=3), "categories id 3 occurs twice"),
    "an annotation of an absent image": (entry("annotations", image_id=10**30), "id 2: image_id 1000.* is not the id"),
    "an annotation of the image null": (entry("annotations", image_id=None), "id 2: 'image_id' is None"),
    "an annotation without an image": (without("annotations", "image_id"), "id 2: 'image_id' is None"),
    "an image id that is a text": (entry("annotations", image_id="7"), "id 2: 'image_id' is '7'; expected int"),
    "an absent category": (entry("annotations", category_id=0), "id 2: unknown category_id 0; .* are 3, 18"),
    "no category": (without("annotations", "category_id"), "id 2: 'category_id' is None"),
    "a category that is true": (entry("annotations", category_id=True), "id 2: 'category_id' is True"),
    "no box": (without("annotations", "bbox"), "id 2: bbox is None"),
    "a box null": (entry("annotations", bbox=None), "id 2: bbox is None"),
    "an empty box": (box(), r"id 2: bbox is \[\]"),
    "three numbers": (box(1, 2, 3), "id 2: bbox is"),
    "five numbers": (box(1, 2, 3, 4, 5), "id 2: bbox is"),
    "a thousand numbers": (box(*range(1000)), "id 2: bbox is"),
    "an object": (entry("annotations", bbox={"x": 1, "y": 2, "w": 3, "h": 4}), "id 2: bbox is"),
    "a text": (entry("annotations", bbox="1 2 3 4"), "id 2: bbox is"),
    **{
        f"{value!r} among its numbers"[:40]: (box(*(value if at == place else 5 for at in range(4))), "id 2: bbox is")
        for value, place in (
            ("5", 0), (None, 1), (True, 2), ([5], 3), (math.nan, 0), (math.nan, 2), (math.inf, 3), (-math.inf, 1),
            (1e300, 2), (10**400, 2), (-(10**400), 0),
        )
    },
    "right of its image": (box(60, 5, 9, 9), "id 2: bbox .* lies outside image id 7"),
    "below its image": (box(5, 40, 9, 9), "id 2: bbox .* lies outside image id 7"),
    "left of its image": (box(-9, 5, 9, 9), "id 2: bbox .* lies outside image id 7"),
    "above its image": (box(5, -9, 9, 9), "id 2: bbox .* lies outside image id 7"),
    "far beyond": (box(1e8, 1e8, 9, 9), "id 2: bbox .* lies outside image id 7"),
    **{
        f"iscrowd is {value!r}": (entry("annotations", iscrowd=value), "annotations id 2: iscrowd is")
        for value in (None, 2, -1, "0", "crowd", [0])
    },
    **{
        f"area is {value!r}"[:30]: (entry("annotations", area=value), "annotations id 2: area is")
        for value in (None, "9", math.nan, math.inf, [9], True, 10**400)
    },
    **{
        f"a side of an image is {value!r}"[:40]: (entry("images", width=value), "images id 9: ")
        for value in (None, "60", 60.0, 0, -60, True, 10**30, [60])
    },
    "an image without a height": (without("images", "height"), "images id 9: 'height' is None"),
    **{
        f"file_name is {value!r}": (entry("images", file_name=value), "images id 9: 'file_name' is")
        for value in (None, 7, ["b.png"])
    },
    **{
        f"file_name is {value!r}"[:40]: (entry("images", file_name=value), r"images are not in .*\(image id 9\)")
        for value in ("", ".", "absent.png", "a\0.png", "b.png/", "\ud800.png", "\x1b[31m.png", "x" * 5000, "a\nb.png")
    },
    **{
        f"a category's name is {value!r}": (entry("categories", name=value), "categories id 18: 'name' is")
        for value in (None, 7, ["dog"])
    },
    "all boxes of no area": (
        lambda content: [one.update(bbox=[1, 1, 0, 9]) for one in content["annotations"]],
        "no annotations with a box of any area",
    ),
}  # fmt: skip


@pytest.mark.fault(kind="COCO entries", stage="check-data")
@pytest.mark.parametrize(("edit", "message"), WRONG.values(), ids=map(ascii, WRONG))
def test_what_cannot_be_is_refused_with_file_and_id(coco: Coco, edit: Edit, message: str) -> None:
    file, folder = coco(edit)
    with refused(file, message):
        CocoDetection(file, folder)


FIRST = [5, 5, 25, 15]  # the boxes of the first image
TWO = [FIRST, [30, 10, 50, 30]]
COUNTED: dict[str, tuple[Edit, str, Any]] = {
    **{
        f"{width} by {height}": (box(30, 10, width, height), r"1 boxes of no area dropped .*id 2\)", [FIRST])
        for width, height in ((0, 9), (9, 0), (0, 0), (-9, 9), (9, -9), (1e-7, 9), (9, 9e-4), (1e-300, 1e-300))
    },
    "a sliver after clipping": (box(60 - 1e-4, 10, 9, 9), "1 boxes of no area dropped", [FIRST]),
    "a sliver above": (box(30, -9, 9, 9 + 1e-7), "1 boxes of no area dropped", [FIRST]),
    "overhanging right": (box(50, 10, 30, 5), r"1 boxes clipped to their image \(annotations id 2\)",
                          [FIRST, [50, 10, 60, 15]]),
    "overhanging left": (box(-5, 10, 30, 5), "1 boxes clipped", [FIRST, [0, 10, 25, 15]]),
    "larger than its image": (box(-5, -5, 900, 900), "1 boxes clipped", [FIRST, [0, 0, 60, 40]]),
    "in shares of its image": (box(0.5, 0.25, 0.25, 0.5), "1 boxes within the first pixel .* shares .*id 2",
                               [FIRST, [0.5, 0.25, 0.75, 0.75]]),
    "a negative area": (entry("annotations", area=-3), r"1 areas below 0 replaced .*\(annotations id 2\)", TWO),
    "a crowd": (entry("annotations", iscrowd=1), r"1 crowds, left out of training .*\(annotations id 2\)", TWO),
    "an image without a box": (
        lambda content: content["annotations"].pop(), r"1 images without a box, left .*\(images id 9\)", TWO
    ),
    "a class that never occurs": (
        lambda content: content["categories"].append({"id": 5, "name": "cow"}), r"1 classes of which .* \('cow'\)", TWO
    ),
    "two categories of one name": (
        entry("categories", name="cat"), r"2 categories are all named 'cat' \(categories id 3, 18\)", TWO
    ),
    "one file under two ids": (
        entry("images", file_name="a.png"), r"2 images whose file another id has too \(images id 7, 9\)", TWO
    ),
    "corners instead of sides": (
        lambda content: [one.update(bbox=[30, 20, 50, 35]) for one in content["annotations"]],
        "most boxes overhang .* as if they were", [[30, 20, 60, 40]] * 2,
    ),
    **{
        f"the segmentation {str(value)[:50]}": (
            segmentation(value), r"1 segmentations dropped, .* masks are not used \(annotations id 2\)", TWO
        )
        for value in BAD_SEGMENTATIONS
    },
    **{
        f"no segmentation but {value!r}": (
            segmentation(value), "1 objects without a segmentation, so masks are not used", TWO
        )
        for value in NO_SEGMENTATIONS
    },
}  # fmt: skip


@pytest.mark.fault(kind="COCO boxes and masks", stage="check-data")
@pytest.mark.parametrize(("edit", "said", "boxes"), COUNTED.values(), ids=map(ascii, COUNTED))
def test_what_can_be_dropped_is_counted_with_its_id(
    coco: Coco, edit: Edit, said: str, boxes: list[list[float]]
) -> None:
    file, folder = coco(edit)
    dataset = CocoDetection(file, folder)
    assert any(note.startswith(f"{file}: ") and re.search(said, note) for note in dataset.notes), dataset.notes
    assert dataset[0][1]["boxes"].tolist() == boxes
    assert check_sample(dataset, 0, "coco") == dataset.objects(0)
    assert dataset.has_masks == ("masks are not used" not in said)


ACCEPTED: dict[str, Edit] = {
    "polygons that overhang": segmentation([[-30, -20, 90, -20, 90, 60]]),
    "a crowd's polygons": entry("annotations", iscrowd=1),
    "two polygons": segmentation([[0, 0, 9, 0, 9, 9], [20, 20, 30, 20, 30, 30.5]]),
    "run lengths": segmentation({"size": [40, 60], "counts": [100, 50, 2250]}),
    "half a pixel of overhang": box(30, 10, 30.5, 30),
    "a box a thousandth wide": box(30, 10, 1.01e-3, 9),
    "no area and no iscrowd": lambda content: [content["annotations"][1].pop(key) for key in ("area", "iscrowd")],
    "keys of others": entry("annotations", attributes={"occluded": True}, score=math.nan, caption="\ud800"),
    "ids that are 0, negative or huge": lambda content: [
        content["images"][1].update(id=-(10**40)), content["annotations"][2].update(image_id=-(10**40), id=0),
        content["categories"][1].update(id=0), content["annotations"][1].update(category_id=0),
        content["annotations"][2].update(category_id=0), content["annotations"][0].update(id=10**40),
    ],
}  # fmt: skip


@pytest.mark.fault(kind="COCO entries", stage="check-data")
@pytest.mark.parametrize("edit", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_unusual_but_right_is_accepted(coco: Coco, edit: Edit) -> None:
    dataset = CocoDetection(*coco(edit))
    samples = [dataset[index][1] for index in range(2)]
    assert sum(len(target["boxes"]) for target in samples) == 3
    for index, target in enumerate(samples):
        assert check_sample(dataset, index, "coco") == dataset.objects(index)
        assert target["masks"] is not None
        assert {coco_mask.decode(mask).shape for mask in target["masks"]} == {(40, 60)}


def test_polygons_are_filled_as_pycocotools_fills_them(coco: Coco) -> None:
    polygons = [[-30, -20.5, 90, -20, 55.25, 60], [3, 3, 9, 3, 9, 9]]
    masks = CocoDetection(*coco(segmentation(polygons)))[0][1]["masks"]
    assert masks is not None
    reference = coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60))
    np.testing.assert_array_equal(coco_mask.decode(masks[1]), coco_mask.decode(reference))


@pytest.mark.fault(kind="COCO boxes and masks", stage="train")
@pytest.mark.parametrize("side", [40, 900, 20_000, 1_000_000])
def test_the_thinnest_box_that_is_kept_has_an_area_however_it_is_resized(side: int) -> None:
    thin = thinnest(side, 10)
    for left in (0.0, side / 3, side - 1.5 * thin):
        corners = torch.tensor([left, left + thin], dtype=torch.float32)
        for factor in (1.0, 128 / side, 1333 / side):
            for kept in (corners * factor, (side - corners.flip(0)) * factor):
                assert kept[1] > kept[0]


@pytest.mark.fault(kind="COCO boxes and masks", stage="train")
def test_a_detector_of_masks_says_where_to_find_which_segmentations_lack(coco: Coco) -> None:
    data = CocoDetection(*coco(segmentation([[1, 2]])))
    assert len(learned_objects(data[0][1], masks=False)["boxes"]) == 2
    with refused("eigendet check-data", "not every object .* has a segmentation that is valid"):
        learned_objects(data[0][1], masks=True)
