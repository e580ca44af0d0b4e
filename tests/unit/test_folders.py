from __future__ import annotations

from pathlib import Path

import pytest

from eigendet.data import folders
from eigendet.errors import UserError
from tests.own_data import coco_content, write_classes, write_coco, write_detection, write_images


def pair(root: Path) -> tuple[str, str]:
    train, val = folders.annotation_pair(folders.walk(root), root)
    return str(train.relative_to(root)), str(val.relative_to(root))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("train.json", "val.json"),
        ("Training/labels.json", "Validation/labels.json"),
        ("blood_trainval.json", "blood_minival.json"),
        ("my train-1.json", "my dev-1.json"),
    ],
)
def test_names_of_files_or_their_folders_say_what_is_for_training(tmp_path: Path, train: str, val: str) -> None:
    for name in (train, val, "test/_annotations.coco.json", "old/backup.json", ".hidden/train.json"):
        write_coco(tmp_path / name, coco_content(["1.png"]))
    assert pair(tmp_path) == (train, val)


def test_other_json_is_no_annotation(tmp_path: Path) -> None:
    write_detection(tmp_path)
    write_coco(tmp_path / "annotations/captions_train.json", {"images": [], "annotations": [{"caption": "a cat"}]})
    write_coco(tmp_path / "train/sizes.json", [1, 2])
    (tmp_path / "empty.json").touch()
    assert pair(tmp_path) == ("annotations/train.json", "annotations/val.json")


def test_files_of_keypoints_are_left_aside_as_in_coco_itself(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path / f"instances_{split}2017.json", coco_content(["1.png"]))
        points = coco_content(["1.png"])
        points["categories"][0]["keypoints"] = ["nose"]
        write_coco(tmp_path / f"person_keypoints_{split}2017.json", points)
    assert pair(tmp_path) == ("instances_train2017.json", "instances_val2017.json")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no COCO file in it; expected JSON with the lists 'images'"),
        (["train.json"], r"train.json: the only COCO file in .*: --annotations FILE --annotations FILE"),
        (["a.json", "b.json"], r"2 COCO files, .*a.json, .*b.json; which are for training"),
        (["train.json", "test.json"], "2 COCO files"),
        (["a_train.json", "a_val.json", "b_train.json", "b_val.json"], "4 COCO files"),
        (["train.json", "training.json", "val.json"], "3 COCO files"),
        (["train_val.json", "val.json"], "2 COCO files"),
    ],
)
def test_what_is_not_clear_is_said_and_not_guessed(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write_coco(tmp_path / name, coco_content(["1.png"]))
    with pytest.raises(UserError, match=message):
        pair(tmp_path)


def test_a_folder_with_json_of_another_kind_names_it(tmp_path: Path) -> None:
    write_coco(tmp_path / "labels.json", {"shapes": []})
    with pytest.raises(UserError, match=r"no COCO file in it \(.*labels.json: JSON, but not COCO\); expected"):
        pair(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"images": [],\n "annotations": [{"id"', r"line 2, column 23: Expecting ':' delimiter"),
        (b"", "line 1, column 1: Expecting value"),
        (b'{"images": "\xff"}', "'utf-8' codec can't decode byte 0xff in position 12"),
    ],
    ids=["truncated", "empty", "not text"],
)
def test_json_that_breaks_off_says_where(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "train.json").write_bytes(text)
    with pytest.raises(UserError, match=rf"no COCO file in it \(.*train.json: cannot be read as JSON: {message}"):
        pair(tmp_path)
    write_coco(tmp_path / "labels.json", {"shapes": []})
    with pytest.raises(UserError, match=rf"{message}.*; .*labels.json: JSON, but not COCO\); expected"):
        pair(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("none", "none: no such folder"), ("file", "file: not a folder")])
def test_a_folder_must_be_one(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        folders.walk(tmp_path / name)


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["1.png"])
    (tmp_path / "images/again").symlink_to(tmp_path)
    assert list(folders.walk(tmp_path)) == [tmp_path, tmp_path / "images"]


def images_of(root: Path, file: str, *names: str) -> str:
    folder = folders.image_folder(root / file, names, folders.walk(root), root)
    return str(folder.relative_to(root))


def test_images_are_in_the_folder_that_holds_them(tmp_path: Path) -> None:
    write_images(tmp_path, ["all/x/1.png", "all/x/2.png", "beside/2.png", "train/1.png", "val/1.png"])
    assert images_of(tmp_path, "annotations/a.json", "x/1.png", "x/2.png") == "all"
    assert images_of(tmp_path, "annotations/a.json", "1.png", "2.png") == "all/x"
    assert images_of(tmp_path, "beside/a.json", "2.png") == "beside"
    assert images_of(tmp_path, "annotations/val.json", "1.png") == "val"
    assert images_of(tmp_path, "a.json", "val/1.png") == "."


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png"], r"its images could be those in .*/all, .*/some; name the folder"),
        (
            ["1.png", "2.png", "3.png"],
            r"of the 3 images that were looked at, 1 are not in .*/all; the first is '3.png'",
        ),
        (["4.png"], r"its images, '4.png' for example, are in no folder below .*: --images FOLDER"),
    ],
)
def test_images_that_are_not_there_or_at_two_places(tmp_path: Path, names: list[str], message: str) -> None:
    write_images(tmp_path, ["all/1.png", "all/2.png", "some/1.png"])
    with pytest.raises(UserError, match=message):
        images_of(tmp_path, "a.json", *names)


def test_class_folders_are_told_from_images_of_detection(tmp_path: Path) -> None:
    write_detection(tmp_path / "coco", train=["x/1.png"], val=["x/2.png"])
    write_classes(tmp_path / "natural")
    taken = [tmp_path / "coco/train", tmp_path / "coco/val"]
    tree = folders.walk(tmp_path)
    assert folders.class_pairs(tree, tmp_path, taken) == [(tmp_path / "natural/train", tmp_path / "natural/val")]
    assert folders.class_counts(tmp_path / "natural/train", tree) == {"ant": 2, "bee": 2}


def test_class_folders_must_be_several_and_hold_images(tmp_path: Path) -> None:
    write_classes(tmp_path, ["ant"])
    with pytest.raises(UserError, match="val: holds 1 class folders; expected a folder of images for each class"):
        folders.class_counts(tmp_path / "val", folders.walk(tmp_path))
    (tmp_path / "val/bee/deep").mkdir(parents=True)
    with pytest.raises(UserError, match="val: class folders without images: bee; expected images in each"):
        folders.class_counts(tmp_path / "val", folders.walk(tmp_path))
