"""A data set plugin: bright rectangles on noise, to change into your own images."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt

from eigendet.files import value_digest
from eigendet.plugins import dataset

if TYPE_CHECKING:
    from eigendet.data import Detection


# The first line of the docstring is what `eigendet plugins` lists; keyword-only parameters are the options, checked by
# their types before anything runs. Files are `pydantic.FilePath`, folders `pydantic.DirectoryPath`.
@dataset
def example(
    *, split: Literal["train", "val"] = "train", images: PositiveInt = 100, size: PositiveInt = 64
) -> "Detection":
    """Draw images of one bright rectangle, wide or tall."""
    return Scenes(split, images, size)


class Scenes:
    """Images by index; everything but the pixels is known before an image is decoded."""

    def __init__(self, split: str, images: int, size: int) -> None:
        self.classes = ["wide", "tall"]  # label 1, label 2
        self.notes: list[str] = []  # sentences for the report: what was dropped or clipped
        self.digest = value_digest([split, images, size])  # the same for the same data
        self._split, self._images, self._size = split, images, size

    def __len__(self) -> int:
        return self._images

    def name(self, index: int) -> str:
        """Name an image in messages."""
        return f"{self._split} image {index}"

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width."""
        return self._size, self._size

    def objects(self, index: int) -> int:
        """Return the number of objects that training uses, that is without crowds."""
        return 1

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch  # here, so that options are checked without waiting for torch

        random = np.random.default_rng([index, self._split == "val"])
        image = random.integers(0, 80, (3, self._size, self._size), dtype=np.uint8)
        long, short = self._size // 2, self._size // 4
        tall = bool(random.integers(2))
        width, height = (short, long) if tall else (long, short)
        left, top = random.integers(0, self._size - width + 1), random.integers(0, self._size - height + 1)
        image[:, top : top + height, left : left + width] += 150
        target = {
            "boxes": torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32),  # pixels
            "labels": torch.tensor([2 if tall else 1]),
            "crowd": torch.tensor([False]),
            "area": torch.tensor([float(width * height)]),
            "masks": None,  # or COCO's run lengths of each object
        }
        return torch.from_numpy(image), target
