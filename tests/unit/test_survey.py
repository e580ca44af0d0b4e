from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from eigendet.data.coco import CocoDetection
from eigendet.data.survey import spread, survey
from eigendet.errors import UserError
from tests.conftest import SHARED, real_data
from tests.own_data import coco_content, write_classes, write_coco, write_detection, write_images


def test_figures_are_those_of_the_files(tmp_path: Path) -> None:
    write_classes(write_detection(tmp_path) / "natural")
    content = coco_content(["1.png", "2.png", "3.png"])
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1] |= {"bbox": [5, 5, 0, 20], "segmentation": []}
    for annotation in content["annotations"][2:]:
        annotation["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    file = write_coco(tmp_path / "annotations/train.json", content)
    data = survey(tmp_path)
    train = data.detection.train
    assert (train.annotations, train.folder) == (file, tmp_path / "train")
    assert train.classes == {"cat": 2, "dog": 2}
    assert (train.images, train.empty, train.opened, train.masks) == (3, 1, 3, True)
    assert (train.shorter.median, train.longer.median, train.objects.median) == (40, 1.5, 2)
    assert (train.boxes.median, train.shares.median) == (16, 0.4)  # of boxes with roots of 12 and 20 pixels
    assert not data.detection.val.masks
    assert data.classification is not None
    assert data.classification.val.images == {"ant": 2, "bee": 2}
    assert (data.classification.val.shorter.median, data.classification.val.opened) == (40, 2)


def test_a_file_from_windows_is_read(tmp_path: Path) -> None:
    file = write_detection(tmp_path) / "annotations/train.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "Kätzchen"
    file.write_bytes(codecs.BOM_UTF8 + json.dumps(content, ensure_ascii=False).encode())
    write_coco(tmp_path / "annotations/val.json", json.loads(file.read_text("utf-8-sig")) | {"images": [
        {"id": 0, "file_name": "4.png", "width": 60, "height": 40}]})  # fmt: skip
    assert list(survey(tmp_path).detection.train.classes) == ["Kätzchen", "dog"]


def test_options_name_what_names_do_not_say(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_coco(tmp_path / f"{name}.json", coco_content([f"{name}.png"]))
    write_images(tmp_path / "one", ["a.png", "b.png"])
    write_images(tmp_path / "two", ["a.png", "b.png"])
    files = tmp_path / "a.json", tmp_path / "b.json"
    for images in ([tmp_path / "two"], [tmp_path / "one", tmp_path / "two"]):
        detection = survey(tmp_path, files, images).detection
        assert [split.folder for split in detection] == [images[0], images[-1]]
        assert [split.annotations for split in detection] == list(files)
    classes = write_classes(tmp_path / "natural")
    named = survey(tmp_path, files, [tmp_path / "one"], [classes / "train", classes / "val"])
    assert named.classification is not None and named.classification.val.folder == classes / "val"


def test_several_class_folders_are_left_aside(tmp_path: Path) -> None:
    write_detection(tmp_path)
    for name in ("one", "two"):
        write_classes(tmp_path / name)
    data = survey(tmp_path)
    assert data.classification is None
    assert data.aside == [str(tmp_path / name) for name in ("one/train", "one/val", "two/train", "two/val")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": ["a.json"]}, "--annotations: given once; expected twice"),
        ({"classes": ["a", "b", "c"]}, "--classes: given 3 times; expected twice"),
        ({"images": ["a", "b", "c"]}, "--images: given 3 times; expected once"),
        ({"images": ["val"]}, "of the 3 images that were looked at, 3 are not in .*val; the first is '1.png'"),
        ({"annotations": ["train", "val"]}, r"train: cannot be read \(Is a directory\)"),
    ],
)
def test_options_are_given_as_often_as_they_must(tmp_path: Path, options: dict[str, list[str]], message: str) -> None:
    write_detection(tmp_path)
    paths = {option: [tmp_path / name for name in names] for option, names in options.items()}
    with pytest.raises(UserError, match=message):
        survey(tmp_path, **paths)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("categories"), "categories: field required"),
        (lambda c: c.update(annotations=[]), r"annotations is \[\]: list should have at least 1 item"),
        (lambda c: c["images"][1].pop("file_name"), r"images\[1\].file_name: field required"),
        (lambda c: c["images"][1].update(width="60"), r"images\[1\].width is '60': input should be a valid integer"),
        (lambda c: c["images"][0].update(height=0), r"images\[0\].height is 0: input should be greater than 0"),
        (lambda c: c["images"][0].update(height=10**30), r"images\[0\].height is 1000000"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), r"annotations\[0\].bbox is \[1, 2\]: list should have"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), r"\[0\].bbox\[3\] is nan: input"),
        (lambda c: [a.update(bbox=[0, 0, 0, 0]) for a in c["annotations"]], "no annotations with a box of any area"),
        (lambda c: c["images"][1].update(width=61), r"2.png: the image is 60x40 pixels; its annotations say 61x40"),
        (lambda c: c["images"][1].update(file_name="9.png"), "1 are not in .*train; the first is '9.png'"),
        (lambda c: c["categories"].append({"id": 5, "name": "cow"}), r"detection: 3 classes .* 2 for val.*\(cow\)"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_coco_is_one_line(tmp_path: Path, edit: Any, message: str) -> None:
    write_detection(tmp_path)
    content = coco_content(["1.png", "2.png", "3.png"])
    edit(content)
    files = write_coco(tmp_path / "annotations/train.json", content), tmp_path / "annotations/val.json"
    with pytest.raises(UserError, match=message) as error:
        survey(tmp_path, files)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", r"train.json: not JSON \(EOF.*\); expected a COCO file"),
        (b"", r"train.json: not JSON"),
        (b"[1, 2]", "train.json: its content: input should be an object; expected a COCO file"),
        (b'{"images": "\xff"}', "train.json: not JSON"),
    ],
)
def test_a_file_that_is_not_json_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    file = write_detection(tmp_path) / "annotations/train.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match=message):
        survey(tmp_path, [file, tmp_path / "annotations/val.json"])


def test_an_image_that_is_none_is_one_line(tmp_path: Path) -> None:
    (write_detection(tmp_path) / "train/2.png").write_text("no image")
    with pytest.raises(UserError, match=r"2.png: not a readable image .*; expected JPEG, PNG or the like"):
        survey(tmp_path)


def test_classes_must_be_the_same_in_both(tmp_path: Path) -> None:
    write_classes(write_detection(tmp_path) / "natural")
    write_images(tmp_path / "natural/val/wasp", ["1.png"])
    with pytest.raises(UserError, match=r"pre-training: 2 classes for training and 3 for validation, .*\(wasp\)"):
        survey(tmp_path)


def test_a_sample_is_spread_over_all() -> None:
    assert spread(range(1000), 5) == [0, 200, 400, 600, 800]
    assert spread([1, 2], 5) == [1, 2]


@real_data("bccd")
def test_figures_of_real_data_are_those_that_training_sees() -> None:
    data = survey(SHARED / "bccd")
    assert (data.classification, data.aside) == (None, [])
    for split in data.detection:
        dataset = CocoDetection(split.annotations, split.folder)
        assert list(split.classes) == dataset.classes
        assert split.images == len(dataset)
        assert sum(split.classes.values()) == sum(map(dataset.objects, range(len(dataset))))
