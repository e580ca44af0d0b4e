"""The default data, which needs no download: real handwritten digits on crops of real photographs.

Digits are the UCI ones and photographs the two samples that scikit-learn ships. Detection and classification, training
and validation, each have digits of their own and a strip of each photograph of their own, so no pixel is in two splits.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from eigendet.errors import UserError, lacking
from eigendet.files import value_digest
from eigendet.plugins import dataset

if TYPE_CHECKING:
    from eigendet.data import Classification, Detection

Split = Literal["train", "val"]
Size = Annotated[int, Field(ge=16)]  # pixels
CLASSES = [str(digit) for digit in range(10)]
# Share of the digits, and of the width of each photograph, that each use has to itself.
SHARES = {
    ("detection", "train"): 0.40,
    ("detection", "val"): 0.20,
    ("classification", "train"): 0.25,
    ("classification", "val"): 0.15,
}


@dataset
def digit_scenes(
    *, split: Split, images: PositiveInt = 400, size: Size = 128, digits: PositiveInt = 6, seed: NonNegativeInt = 0
) -> "Detection":
    """Draw scenes of up to `digits` handwritten digits, of varying size and color, partly overlapping, with masks."""
    return DigitScenes(split, images, size, digits, seed)


@dataset
def digit_crops(
    *, split: Split, images: PositiveInt = 4000, size: Size = 32, seed: NonNegativeInt = 0
) -> "Classification":
    """Draw single handwritten digits on photographs, to pre-train on; other digits than those of `digit_scenes`."""
    return DigitCrops(split, images, size, seed)


class DigitScenes:
    """Scenes that are drawn when asked for; each depends on seed, split and index alone."""

    def __init__(self, split: Split, images: int, size: int, digits: int, seed: int) -> None:
        self.classes = CLASSES
        self.notes: list[str] = []
        self.digest = value_digest(["digit_scenes", 1, split, images, size, digits, seed])
        self._material = _Material("detection", split, seed)
        self._images, self._size, self._digits = images, size, digits

    def __len__(self) -> int:
        return self._images

    def name(self, index: int) -> str:
        """Name an image in messages."""
        return f"digit_scenes image {index}"

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width."""
        return self._size, self._size

    def objects(self, index: int) -> int:
        """Return the number of digits."""
        return len(self._scene(index)[1])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch
        from faster_coco_eval.core import mask as coco_mask

        canvas, labels, masks = self._scene(index)
        boxes = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] for ys, xs in map(np.nonzero, masks)]
        target = {
            "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
            "labels": torch.tensor(labels) + 1,
            "crowd": torch.zeros(len(labels), dtype=torch.bool),
            "area": torch.tensor([mask.sum() for mask in masks], dtype=torch.float32),
            "masks": [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks],
        }
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), target

    def _scene(self, index: int) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
        """Draw pixels (size, size, 3) uint8, the digits' labels, and the mask of what is visible of each."""
        random = self._material.random(index)
        canvas = self._material.background(random, self._size)
        labels: list[int] = []
        masks: list[np.ndarray] = []
        for _ in range(random.integers((self._digits + 1) // 2, self._digits + 1)):
            side = int(self._size * np.exp(random.uniform(np.log(0.18), np.log(0.45))))
            left, top = random.integers(0, self._size - side + 1, size=2)
            label, ink = self._material.digit(random, side)
            mask = np.zeros((self._size, self._size), dtype=bool)
            mask[top : top + side, left : left + side] = ink > 0.4
            visible = [other & ~mask for other in masks]
            # At least 70 % of what was visible of a digit stays so, and every digit can be told from the others.
            if any(after.sum() < 0.7 * before.sum() for after, before in zip(visible, masks, strict=True)):
                continue
            _paint(canvas, ink, left, top, random)
            labels, masks = [*labels, label], [*visible, mask]
        return canvas, labels, masks


class DigitCrops:
    """Digits that are drawn when asked for; each depends on seed, split and index alone."""

    def __init__(self, split: Split, images: int, size: int, seed: int) -> None:
        self.classes = CLASSES
        self.notes: list[str] = []
        self.digest = value_digest(["digit_crops", 1, split, images, size, seed])
        self._material = _Material("classification", split, seed)
        self._images, self._size = images, size

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch

        random = self._material.random(index)
        canvas = self._material.background(random, self._size)
        side = int(self._size * random.uniform(0.6, 1.0))
        left, top = random.integers(0, self._size - side + 1, size=2)
        label, ink = self._material.digit(random, side)
        _paint(canvas, ink, left, top, random)
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), label


class _Material:
    """The digits and the strips of photographs that one use has to itself."""

    def __init__(self, task: str, split: Split, seed: int) -> None:
        use = list(SHARES).index((task, split))
        bounds = np.cumsum([0.0, *SHARES.values()])[use : use + 2]
        self._stream = [seed, use]
        images, labels, photographs = _sources()
        order = np.random.default_rng(0).permutation(len(images))
        mine = order[slice(*(bounds * len(order)).astype(int))]
        self._images, self._labels = images[mine], labels[mine]
        self._strips = [photo[:, slice(*(bounds * photo.shape[1]).astype(int))] for photo in photographs]

    def random(self, index: int) -> np.random.Generator:
        return np.random.default_rng([*self._stream, index])

    def background(self, random: np.random.Generator, size: int) -> np.ndarray:
        """Crop a square of a photograph at a random scale and dim it, (size, size, 3) uint8."""
        strip = self._strips[random.integers(len(self._strips))]
        side = int(random.uniform(0.4, 1.0) * min(strip.shape[:2]))
        top, left = (int(random.integers(0, length - side + 1)) for length in strip.shape[:2])
        crop = Image.fromarray(strip[top : top + side, left : left + side])
        return np.array(crop.resize((size, size), Image.Resampling.BILINEAR)) // 2

    def digit(self, random: np.random.Generator, side: int) -> tuple[int, np.ndarray]:
        """Draw a label and its ink, (side, side) float32 in [0, 1]."""
        number = random.integers(len(self._images))
        ink = Image.fromarray(self._images[number]).resize((side, side), Image.Resampling.BICUBIC)
        return int(self._labels[number]), np.clip(np.array(ink), 0.0, 1.0)


@cache
def _sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Read digits (n, 8, 8) float32 in [0, 1], their labels, and the photographs (H, W, 3) uint8.

    They come from the files that scikit-learn installs; importing it would take longer than all else that a job loads.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError(f"scikit-learn ships the digits; {lacking(['sklearn'])}")
    folder = Path(package.origin).parent / "datasets"
    digits = np.loadtxt(folder / "data/digits.csv.gz", delimiter=",", dtype=np.float32)
    photographs = [np.array(Image.open(folder / "images" / name)) for name in ("china.jpg", "flower.jpg")]
    return digits[:, :-1].reshape(-1, 8, 8) / 16, digits[:, -1].astype(np.int64), photographs


def _paint(canvas: np.ndarray, ink: np.ndarray, left: int, top: int, random: np.random.Generator) -> None:
    """Lay a light color of any hue over the canvas where there is ink, so that it stands out from the dimmed photo."""
    color = 255 * (1 - random.uniform(0, 0.6) * random.permutation([0.0, random.uniform(), 1.0]))
    alpha, height, width = ink[..., None], *ink.shape
    part = canvas[top : top + height, left : left + width]
    part[:] = (part * (1 - alpha) + color * alpha).round().astype(np.uint8)
