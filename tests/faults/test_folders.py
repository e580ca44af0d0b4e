"""Folders of images: links, hidden entries, names that lead outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eigendet import config
from eigendet.data.datasets import check_data
from eigendet.data.images import decode
from tests.faults.refusal import refused
from tests.own_data import write_classes, write_images
from tests.unit.test_datasets import open_dataset

Coco = Callable[..., tuple[Path, Path]]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes with two images each."""
    for name in ("ant", "bee"):
        write_images(tmp_path / "classes" / name, ["1.png", "2.png"])
    return tmp_path / "classes"


def files(folder: Path) -> list[str]:
    data = open_dataset(plugin="image_folder", path=folder)
    return [str(Path(data.name(index)).relative_to(folder)) for index in range(len(data))]


def links(targets: dict[Path, str]) -> None:
    """Make links, in folders that are made where they are not there."""
    for place, target in targets.items():
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(target)


USUAL = ["ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png"]
LEFT_OUT: dict[str, Callable[[Path], Any]] = {
    "a hidden folder": lambda folder: (folder / ".ipynb_checkpoints").mkdir(),
    "a hidden folder with images": lambda folder: write_images(folder / ".thumbnails", ["1.png"]),
    "a hidden folder in a class": lambda folder: write_images(folder / "ant/.thumbnails", ["1.png"]),
    "a hidden image": lambda folder: (folder / "ant/._1.png").write_bytes(b"resource fork"),
    "a file beside the classes": lambda folder: (folder / "README.txt").write_text("ants and bees"),
    "a file that is none of images": lambda folder: (folder / "ant/labels.csv").write_text("1,2"),
    "a link to its own folder": lambda folder: (folder / "ant/again").symlink_to(folder / "ant"),
    "a link to a link to itself": lambda folder: links({folder / "ant/a": "b", folder / "ant/b": "."}),
}  # fmt: skip


@pytest.mark.fault(kind="class folders", stage="check-data")
@pytest.mark.parametrize("add", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_no_class_and_no_image_is_left_out(add: Callable[[Path], Any], classes: Path) -> None:
    add(classes)
    assert files(classes) == USUAL


@pytest.mark.fault(kind="class folders", stage="check-data")
def test_links_to_folders_and_images_are_followed(classes: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere/deep", ["4.png"])
    (classes / "ant/more").symlink_to(tmp_path / "elsewhere")
    (classes / "cow").symlink_to(tmp_path / "elsewhere/deep")
    (classes / "bee/3.png").symlink_to(tmp_path / "elsewhere/deep/4.png")
    assert files(classes) == ["ant/1.png", "ant/2.png", "ant/more/deep/4.png", *USUAL[2:], "bee/3.png", "cow/4.png"]


BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "an image": (lambda folder: (folder / "ant/3.png").symlink_to("/absent/3.png"), "ant/3.png", "link to /absent/3"),
    "a file of another kind": (lambda folder: (folder / "ant/3").symlink_to("absent"), "ant/3", "a link to absent"),
    "a class": (lambda folder: (folder / "cow").symlink_to("/absent"), "cow", "a link to /absent, which is not there"),
    "a loop": (lambda folder: (folder / "cow").symlink_to("cow"), "cow", "a link to cow"),
    "a class without images": (lambda folder: (folder / "cow").mkdir(), "cow", "class folder without images"),
    "a class of hidden images": (
        lambda folder: write_images(folder / "cow", [".1.png"]), "cow", "class folder without images"
    ),
    "a class of links to itself": (lambda folder: links({folder / "cow/again": "."}), "cow", "without images"),
}  # fmt: skip


@pytest.mark.fault(kind="class folders", stage="check-data")
@pytest.mark.parametrize(("add", "name", "message"), BROKEN.values(), ids=BROKEN)
def test_what_leads_nowhere_names_itself(add: Callable[[Path], Any], name: str, message: str, classes: Path) -> None:
    add(classes)
    with refused(classes / name, message):
        files(classes)


@pytest.mark.fault(kind="class folders", stage="check-data")
def test_a_folder_that_is_gone_or_empty_is_named(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/.hidden").mkdir(parents=True)
    with refused(tmp_path / "empty", "holds no folders"):
        files(tmp_path / "empty")
    with refused("path", "absent"):
        files(tmp_path / "absent")
    with refused("path", "1.png"):
        files(classes / "ant/1.png")


@pytest.mark.fault(kind="class folders", stage="check-data")
def test_splits_that_share_images_are_told(values: dict[str, Any], tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "natural")
    first = sorted((folder / "train/ant").iterdir())[0]
    (folder / "val/ant/again.png").symlink_to(first)
    values["data"]["classification"] = {
        split: {"plugin": "image_folder", "path": str(folder / split)} for split in ("train", "val")
    }
    notes = check_data(config.parse(values), "classification", "val")["notes"]
    assert notes == ["data.classification: val and train share 1 images, so part of what is evaluated was learned"]


OUTSIDE: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "..": ("../elsewhere/b.png", lambda folder, other: None),
    ".. and back": ("../elsewhere/../elsewhere/b.png", lambda folder, other: None),
    "absolute": ("{other}/b.png", lambda folder, other: None),
    "a link": ("linked.png", lambda folder, other: (folder / "linked.png").symlink_to(other / "b.png")),
    "a link of links": (
        "one.png",
        lambda folder, other: links({folder / "one.png": "two.png", folder / "two.png": str(other / "b.png")}),
    ),
    "a linked folder": ("sub/b.png", lambda folder, other: (folder / "sub").symlink_to(other)),
    "a relative link": ("linked.png", lambda folder, other: (folder / "linked.png").symlink_to("../elsewhere/b.png")),
    "a folder of like name": (
        "../images2/b.png", lambda folder, other: write_images(folder.parent / "images2", ["b.png"])
    ),
}  # fmt: skip


@pytest.mark.fault(kind="names that lead outside", stage="check-data")
@pytest.mark.parametrize(("name", "make"), OUTSIDE.values(), ids=OUTSIDE)
def test_images_outside_of_their_folder_need_a_key(
    name: str, make: Callable[[Path, Path], Any], coco: Coco, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    write_images(other, ["b.png"])
    name = name.format(other=other)
    file, folder = coco(lambda content: content["images"][1].update(file_name=name))
    make(folder, other)
    options = {"plugin": "coco", "annotations": file, "images": folder}
    with refused(file, "images id 9: .* lies outside of", "outside: true"):
        open_dataset(**options)
    data = open_dataset(**options, outside=True)
    assert data[1][0].shape == (3, 40, 60)


INSIDE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a folder": ("deep/er/b.png", lambda folder: write_images(folder / "deep/er", ["b.png"])),
    ".. that stays inside": ("deep/../b.png", lambda folder: (folder / "deep").mkdir()),
    "./": ("./b.png", lambda folder: None),
    "its own absolute name": ("{folder}/b.png", lambda folder: None),
    "a link that stays inside": ("linked.png", lambda folder: (folder / "linked.png").symlink_to("b.png")),
    "spaces and letters": ("ein Käfer, 1.png", lambda folder: write_images(folder, ["ein Käfer, 1.png"])),
}  # fmt: skip


@pytest.mark.fault(kind="names that lead outside", stage="check-data")
@pytest.mark.parametrize(("name", "make"), INSIDE.values(), ids=INSIDE)
def test_names_inside_are_taken_whatever_the_folder_itself_is(
    name: str, make: Callable[[Path], Any], coco: Coco, tmp_path: Path
) -> None:
    _, folder = coco()
    make(folder)
    file, _ = coco(lambda content: content["images"][1].update(file_name=name.format(folder=folder)))
    (tmp_path / "linked").symlink_to(folder)
    for images in (folder, tmp_path / "linked"):
        assert len(open_dataset(plugin="coco", annotations=file, images=images)) == 2


NOT_FILES: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a broken link": lambda path: path.symlink_to("/absent.png"),
    "a loop of links": lambda path: path.symlink_to(path.name),
}


@pytest.mark.fault(kind="names that lead outside", stage="check-data")
@pytest.mark.parametrize("make", NOT_FILES.values(), ids=NOT_FILES)
def test_what_is_not_a_file_is_missing(make: Callable[[Path], Any], coco: Coco) -> None:
    file, folder = coco(lambda content: content["images"][1].update(file_name="c.png"))
    make(folder / "c.png")
    with refused(file, "1 of 2 images are not in .*; the first is 'c.png' .image id 9"):
        open_dataset(plugin="coco", annotations=file, images=folder)


@pytest.mark.fault(kind="names that lead outside", stage="check-data")
def test_a_link_to_an_image_is_decoded(coco: Coco, tmp_path: Path) -> None:
    file, folder = coco()
    pixels = np.array(Image.open(folder / "b.png"))
    (folder / "b.png").rename(tmp_path / "b.png")
    (folder / "b.png").symlink_to(tmp_path / "b.png")
    data = open_dataset(plugin="coco", annotations=file, images=folder, outside=True)
    np.testing.assert_array_equal(data[1][0].permute(1, 2, 0).numpy(), pixels)


@pytest.mark.fault(kind="code in data", stage="data")
@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_an_image_that_is_a_program_is_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, ran = tmp_path / "bin/gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    file = tmp_path / name
    Image.new("RGB", (8, 8)).save(file, "EPS")
    with refused(file, "not a readable image"):
        decode(file)
    assert not ran.exists()
