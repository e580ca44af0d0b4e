"""Two tiny data sets, drawn when asked for, on which plugins are tried (`eigendet.testing`)."""

from __future__ import annotations

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor

from eigendet.data.datasets import Target

COLORS = ["red", "green", "blue"]


class Rectangles:
    """Four images of colored rectangles on noise, with boxes and masks.

    >>> image, target = Rectangles(64)[0]
    >>> image.shape, [COLORS[label - 1] for label in target["labels"]]
    (torch.Size([3, 64, 64]), ['red', 'red'])
    """

    def __init__(self, side: int) -> None:
        self.classes = COLORS
        self.notes: list[str] = []
        self.side, self.digest = side, f"rectangles {side}"

    def __len__(self) -> int:
        return 4

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        return self.side, self.side

    def objects(self, index: int) -> int:
        """Return the number of an image's objects."""
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        random = np.random.default_rng(index)
        image = random.integers(0, 60, (3, self.side, self.side), dtype=np.uint8)
        half, boxes, labels, masks = self.side // 2, [], [], []
        for row in range(2):  # one in each half, so that neither hides the other
            height, width = random.integers(half // 2, half, 2)
            top, left = row * half + random.integers(0, half - height + 1), random.integers(0, self.side - width + 1)
            color = int(random.integers(len(COLORS)))
            mask = np.zeros((self.side, self.side), dtype=np.uint8)
            mask[top : top + height, left : left + width] = 1
            image[color][mask == 1] = 230
            boxes.append([left, top, left + width, top + height])
            labels.append(color + 1)
            masks.append(mask)
        return torch.from_numpy(image), {
            "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
            "labels": torch.tensor(labels),
            "crowd": torch.zeros(2, dtype=torch.bool),
            "area": torch.tensor([float(mask.sum()) for mask in masks]),
            "masks": [coco_mask.encode(np.asfortranarray(mask)) for mask in masks],
        }


class Colors:
    """Four images of one color each on noise.

    >>> image, label = Colors(64)[1]
    >>> image.shape, COLORS[label]
    (torch.Size([3, 64, 64]), 'green')
    """

    def __init__(self, side: int) -> None:
        self.classes = COLORS
        self.notes: list[str] = []
        self.side, self.digest = side, f"colors {side}"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = np.random.default_rng(index).integers(0, 120, (3, self.side, self.side), dtype=np.uint8)
        image[index % 3] += 100
        return torch.from_numpy(image), index % 3
