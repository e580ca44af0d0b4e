"""Tell which positions of a feature map are padding, once the model has said how large its images are.

Detectors pad images to a common canvas and keep their sizes in an object with `tensors` and `image_sizes`
(torchvision) or `tensor` and `image_sizes` (detectron2). A position of a map belongs to an image if the pixel at its
corner does: with h rows for a canvas of H, the first ceil(h_image · h / H) of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# What follows a pooling of regions holds boxes, not images; every library names the pooling so.
POOLING_NAME = re.compile(r"(RoI|ROI)(Align|Pool|Pooler)(V2)?$")


@dataclass(frozen=True)
class Canvas:
    """A batch of images, each in the upper left corner of a canvas; sizes are (height, width) in pixels.

    Attributes:
        sizes: of the images.
        size: of the canvas.

    Examples:
        >>> import torch
        >>> canvas = Canvas.of([(32, 20), (16, 64)], (32, 64))
        >>> canvas.real(torch.zeros(2, 5, 8, 16), channel_dim=1)
        [(8, 5), (4, 16)]
    """

    sizes: tuple[tuple[int, int], ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, sizes: Iterable[Sequence[int]], size: Sequence[int]) -> Canvas:
        """Return the canvas with these sizes, which may be tensors."""
        return cls(tuple((int(height), int(width)) for height, width in sizes), (int(size[0]), int(size[1])))

    def real(self, feature_map: Tensor, channel_dim: int) -> list[tuple[int, int]] | None:
        """Return rows and columns of each image in a map of the whole batch; None: the map is not one of images."""
        if feature_map.dim() != 4 or len(feature_map) != len(self.sizes):
            return None
        rows, columns = (size for dim, size in enumerate(feature_map.shape) if dim not in (0, channel_dim % 4))
        return [
            (min(rows, -(-height * rows // self.size[0])), min(columns, -(-width * columns // self.size[1])))
            for height, width in self.sizes
        ]

    def fits(self, feature_map: Tensor, channel_dim: int) -> bool:
        """Return whether a map may be one of the batch by its size: as many, and as wide for its height, to a cell.

        >>> import torch
        >>> canvas = Canvas.of([(32, 20)], (32, 64))
        >>> canvas.fits(torch.zeros(1, 5, 4, 8), 1), canvas.fits(torch.zeros(1, 5, 7, 7), 1)
        (True, False)
        """
        if feature_map.dim() != 4 or len(feature_map) != len(self.sizes):
            return False
        rows, columns = (size for dim, size in enumerate(feature_map.shape) if dim not in (0, channel_dim % 4))
        height, width = self.size
        return abs(columns - width * rows / height) <= 1 or abs(rows - height * columns / width) <= 1


def canvas_in(output: Any) -> Canvas | None:
    """Return the canvas that a module's output describes, if it does.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> canvas_in(SimpleNamespace(tensors=torch.zeros(1, 3, 32, 64), image_sizes=[(32, 20)]))
    Canvas(sizes=((32, 20),), size=(32, 64))
    >>> canvas_in(torch.zeros(1, 3, 32, 64)) is None
    True
    """
    for part in output if isinstance(output, tuple) else (output,):
        sizes = getattr(part, "image_sizes", None)
        images = getattr(part, "tensors", getattr(part, "tensor", None))
        if sizes is not None and isinstance(images, Tensor) and images.dim() == 4:
            return Canvas.of(sizes, images.shape[-2:])
    return None


def region_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the paths under which modules see pooled regions: those of the poolings' parents.

    >>> from torchvision.ops import RoIAlign
    >>> region_paths(nn.ModuleDict({"heads": nn.Sequential(RoIAlign(7, 1.0, 2), nn.Linear(49, 10))}))
    ('heads.',)
    """
    poolings = [path for path, module in model.named_modules() if POOLING_NAME.search(type(module).__name__)]
    return tuple(path.rpartition(".")[0] + "." for path in poolings if "." in path)
