from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from eigendet import config, plugins
from eigendet.config.sections import PluginChoice
from eigendet.data import datasets
from eigendet.errors import UserError
from eigendet.plugins import find, importing


def open_dataset(**choice: Any) -> Any:
    return plugins.bind("dataset", PluginChoice(**choice))()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two images each."""
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def test_scenes_depend_on_seed_split_and_index_alone() -> None:
    first, second = (open_dataset(plugin="digit_scenes", split="train", images=5) for _ in range(2))
    for index in (4, 0, 4):
        assert torch.equal(first[index][0], second[index][0])
    for other in ({"split": "val"}, {"split": "train", "seed": 1}):
        assert not torch.equal(first[0][0], open_dataset(plugin="digit_scenes", images=5, **other)[0][0])
        assert first.digest != open_dataset(plugin="digit_scenes", images=5, **other).digest


def test_scenes_have_tight_boxes_around_disjoint_masks_and_every_class_occurs() -> None:
    dataset = open_dataset(plugin="digit_scenes", split="train", images=60)
    labels: set[int] = set()
    for index in range(len(dataset)):
        image, target = dataset[index]
        masks = np.stack([coco_mask.decode(rle) for rle in target["masks"]]).astype(bool)
        assert image.shape == (3, *dataset.size(index))
        assert dataset.objects(index) == len(masks) == len(target["boxes"]) > 0
        assert masks.sum(0).max() == 1
        for mask, (left, top, right, bottom) in zip(masks, target["boxes"].int().tolist(), strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
        assert target["area"].tolist() == masks.sum((1, 2)).tolist()
        labels |= set(target["labels"].tolist())
    assert labels == set(range(1, 11))


def test_no_digit_and_no_pixel_of_a_photograph_is_in_two_uses() -> None:
    material = importing._import(find("dataset", "digit_scenes").file)._Material
    uses = [material(task, split, 0) for task in ("detection", "classification") for split in ("train", "val")]
    digits = [{image.tobytes() for image in use._images} for use in uses]
    assert len(set.union(*digits)) == sum(map(len, digits))
    addresses = [
        [np.lib.array_utils.byte_bounds(strip[0]) for strip in use._strips] for use in uses
    ]  # the first row of each strip
    for photograph in range(2):
        bounds = sorted(strips[photograph] for strips in addresses)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(bounds))


def test_crops_are_classified_images() -> None:
    dataset = open_dataset(plugin="digit_crops", split="val", images=30, size=24)
    assert dataset[0][0].shape == (3, 24, 24)
    assert {dataset[index][1] for index in range(30)} <= set(range(10))


def test_a_folder_for_each_class(folder: Path) -> None:
    dataset = open_dataset(plugin="image_folder", path=folder)
    assert dataset.classes == ["ant", "bee"]
    assert [dataset[index][1] for index in range(4)] == [0, 0, 1, 1]
    assert dataset[1][0].shape == (3, 10, 20)


def test_folders_without_classes_or_images_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "cat").mkdir()
    with pytest.raises(UserError, match=r"set/cat: class folder without images; expected files .bmp, .jpeg"):
        open_dataset(plugin="image_folder", path=folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no folders; expected one folder of images for each class"):
        open_dataset(plugin="image_folder", path=tmp_path / "empty")


def test_a_truncated_image_is_named_by_the_check(values: dict[str, Any], folder: Path) -> None:
    choice = {"plugin": "image_folder", "path": str(folder)}
    values["data"]["classification"] = {"train": choice, "val": choice}
    experiment = config.parse(values)
    summary = datasets.check_data(experiment, "classification", "train")
    assert (summary["images"], summary["classes"]) == (4, ["ant", "bee"])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "bee" / "2.jpg")
    content = (folder / "bee" / "2.jpg").read_bytes()
    (folder / "bee" / "2.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"bee/2.jpg: not a readable image, perhaps truncated"):
        datasets.check_data(experiment, "classification", "train")


def test_sizes_that_differ_from_the_annotations_are_named(
    values: dict[str, Any], coco: Callable[..., tuple[Path, Path]]
) -> None:
    file, images = coco(lambda content: content["images"][1].update(width=80))
    choice = {"plugin": "coco", "annotations": str(file), "images": str(images)}
    values["data"]["detection"] = {"train": choice, "val": choice}
    with pytest.raises(UserError, match=r"b.png: the image is 60x40 pixels; its annotations say 80x40"):
        datasets.check_data(config.parse(values), "detection", "val")


def test_splits_with_different_classes_are_refused(values: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "other" / "ant").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "ant" / "x.png")
    values["data"]["classification"] = {
        "train": {"plugin": "image_folder", "path": str(folder)},
        "val": {"plugin": "image_folder", "path": str(tmp_path / "other")},
    }
    with pytest.raises(UserError, match=r"data.classification: train and val have different classes \('bee'\)"):
        datasets.check_data(config.parse(values), "classification", "train")
