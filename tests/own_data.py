"""Data as users have it: COCO files and images, or a folder a class, written small below a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = 60, 40  # width, height
CATEGORIES = {3: "cat", 18: "dog"}


def write_images(folder: Path, names: Sequence[str], size: tuple[int, int] = SIZE) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file)


def coco_content(names: Sequence[str]) -> dict[str, Any]:
    """Return a COCO file over images of `SIZE`: in each a cat of 16x9 and a dog of 20x20 pixels."""
    annotations: list[dict[str, Any]] = []
    for image in range(len(names)):
        for category, (width, height) in zip(CATEGORIES, ((16, 9), (20, 20)), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [5, 5, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for number, name in enumerate(names)
        ],
        "categories": [{"id": identity, "name": name} for identity, name in CATEGORIES.items()],
        "annotations": annotations,
    }


def write_coco(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_detection(
    root: Path, train: Sequence[str] = ("1.png", "2.png", "3.png"), val: Sequence[str] = ("4.png",)
) -> Path:
    """Write annotations/train.json and val.json with images in train/ and val/, and return `root`."""
    for split, names in (("train", train), ("val", val)):
        write_coco(root / f"annotations/{split}.json", coco_content(names))
        write_images(root / split, names)
    return root


def write_classes(root: Path, classes: Sequence[str] = ("ant", "bee")) -> Path:
    """Write train/ and val/ with a folder of images for each class, and return `root`."""
    for split in ("train", "val"):
        for name in classes:
            write_images(root / split / name, ["1.png", "2.JPG"])
    return root
