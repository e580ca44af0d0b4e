from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from eigendet.data.coco import CocoDetection
from eigendet.errors import UserError
from tests.conftest import SHARED, real_data

Coco = Callable[..., tuple[Path, Path]]


def test_boxes_labels_masks_and_sizes_are_read(coco: Coco) -> None:
    dataset = CocoDetection(*coco())
    image, target = dataset[0]
    assert (len(dataset), dataset.classes, dataset.notes) == (2, ["cat", "dog"], [])
    assert (tuple(image.shape), dataset.size(0), dataset.objects(0)) == ((3, 40, 60), (40, 60), 2)
    assert target["boxes"].tolist() == [[5, 5, 25, 15], [30, 10, 50, 30]]
    assert target["labels"].tolist() == [1, 2]
    assert target["masks"] is not None
    assert [int(coco_mask.area(rle)) for rle in target["masks"]] == target["area"].tolist() == [200, 400]


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_and_crowds(coco: Coco, compressed: bool) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:20, 5:25] = 1

    def edit(content: dict[str, Any]) -> None:
        rle = coco_mask.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode()
        runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0)).tolist()
        counts = np.diff([0, *runs, mask.size]).tolist()
        plain = {"size": [40, 60], "counts": counts}
        content["annotations"][0] |= {"iscrowd": 1, "segmentation": rle if compressed else plain}

    dataset = CocoDetection(*coco(edit))
    _, target = dataset[0]
    assert target["crowd"].tolist() == [True, False]
    assert dataset.objects(0) == 1
    assert target["masks"] is not None
    np.testing.assert_array_equal(coco_mask.decode(target["masks"][0]), mask)


def test_boxes_of_no_area_are_dropped_and_overhanging_ones_clipped_with_a_count(coco: Coco) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 10]
        content["annotations"][1]["bbox"] = [50, 30, 20, 20]

    dataset = CocoDetection(*coco(edit))
    assert dataset[0][1]["boxes"].tolist() == [[50, 30, 60, 40]]
    assert [note.split(": ")[1] for note in dataset.notes] == [
        "1 boxes clipped to their image (annotations id 2)",
        "1 boxes of no area dropped (annotations id 1)",
        "1 classes of which no box is learned ('cat')",
    ]


def test_an_object_without_segmentation_turns_masks_off(coco: Coco) -> None:
    dataset = CocoDetection(*coco(lambda content: content["annotations"][2].pop("segmentation")))
    assert dataset[0][1]["masks"] is None
    assert "masks are not used" in dataset.notes[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("images"), "no list 'images'; expected a COCO file"),
        (lambda c: c.update(annotations={}), "no list 'annotations'"),
        (lambda c: c.update(categories=[]), "'categories' is empty; expected at least one entry"),
        (lambda c: c.update(images=[]), "'images' is empty"),
        (lambda c: c.update(annotations=[]), "'annotations' is empty"),
        (lambda c: c["images"][0].pop("id"), r"images\[0\] has no integer 'id'"),
        (lambda c: c["images"][1].update(width="60"), "images id 9: 'width' is '60'; expected int"),
        (lambda c: c["images"][1].update(id=7), "images id 7 occurs twice"),
        (lambda c: c["images"][1].update(file_name="c.png"), r"1 of 2 images are not in .*; the first is 'c.png'"),
        (lambda c: c["annotations"][1].update(image_id=5), "annotations id 2: image_id 5 is not the id of any image"),
        (lambda c: c["annotations"][1].update(category_id=4), "id 2: unknown category_id 4; the categories are 3, 18"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"id 2: bbox is \[1, 2, 3\]; expected \[left"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, float("nan")]), "annotations id 2: bbox is"),
        (lambda c: c["annotations"][1].update(bbox=[60, 0, 5, 5]), r"id 2: bbox .* outside image id 7 \(60x40"),
        (lambda c: c["annotations"][1].update(bbox=[-9, 0, 5, 5]), "lies outside image id 7"),
        (lambda c: c["annotations"][1].update(iscrowd="0"), "annotations id 2: iscrowd is '0'; expected 0 or 1"),
        (lambda c: c["annotations"][1].update(area=None), "annotations id 2: area is None; expected a number"),
        (lambda c: [a.update(bbox=[0, 0, 0, 0]) for a in c["annotations"]], "no annotations with a box of any area"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_naming_file_and_id(coco: Coco, edit: Any, message: str) -> None:
    file, folder = coco(edit)
    with pytest.raises(UserError, match=message) as error:
        CocoDetection(file, folder)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_json(coco: Coco, tmp_path: Path) -> None:
    file, folder = coco()
    file.write_text("{")
    with pytest.raises(UserError, match=r"annotations.json: not JSON .*; expected a COCO file"):
        CocoDetection(file, folder)


@real_data("bccd")
def test_real_annotations_equal_those_that_pycocotools_reads() -> None:
    file = SHARED / "bccd/annotations/val.json"
    dataset, reference = CocoDetection(file, SHARED / "bccd/val"), COCO(str(file))
    assert dataset.classes == [reference.cats[identity]["name"] for identity in sorted(reference.cats)]
    assert len(dataset) == len(reference.imgs) == 87
    for index, identity in enumerate(sorted(reference.imgs)):
        annotations = reference.loadAnns(reference.getAnnIds(identity))
        boxes = dataset[index][1]["boxes"].numpy()
        exact = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
        exact[:, 2:] += exact[:, :2]
        height, width = dataset.size(index)
        np.testing.assert_allclose(boxes, np.clip(exact, 0, [width, height, width, height]))
