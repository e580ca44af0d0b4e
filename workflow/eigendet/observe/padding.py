"""Which positions of a feature map are padding, once the model has said how large its images are.

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
    """A batch of images, each in the upper left corner of a canvas. Sizes are (height, width) in pixels."""

    sizes: tuple[tuple[int, int], ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, sizes: Iterable[Sequence[int]], size: Sequence[int]) -> Canvas:
        return cls(tuple((int(height), int(width)) for height, width in sizes), (int(size[0]), int(size[1])))

    def real(self, feature_map: Tensor, channel_dim: int) -> list[tuple[int, int]] | None:
        """Rows and columns of each image in a map of the whole batch; None: the map is not one of images."""
        if feature_map.dim() != 4 or len(feature_map) != len(self.sizes):
            return None
        rows, columns = (size for dim, size in enumerate(feature_map.shape) if dim not in (0, channel_dim % 4))
        return [
            (min(rows, -(-height * rows // self.size[0])), min(columns, -(-width * columns // self.size[1])))
            for height, width in self.sizes
        ]


def canvas_in(output: Any) -> Canvas | None:
    """The canvas that a module's output describes, if it does."""
    for part in output if isinstance(output, tuple) else (output,):
        sizes = getattr(part, "image_sizes", None)
        images = getattr(part, "tensors", getattr(part, "tensor", None))
        if sizes is not None and isinstance(images, Tensor) and images.dim() == 4:
            return Canvas.of(sizes, images.shape[-2:])
    return None


def region_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths under which modules see pooled regions: those of the poolings' parents."""
    poolings = [path for path, module in model.named_modules() if POOLING_NAME.search(type(module).__name__)]
    return tuple(path.rpartition(".")[0] + "." for path in poolings if "." in path)
