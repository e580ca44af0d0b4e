"""Check that a data set plugin returns what its contract says; if not, say so with the plugin's file and line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eigendet.config.sections import DetectorTraining
from eigendet.errors import UserError, kind


def thinnest(height: int, width: int) -> float:
    """Return the least width and height of a box in an image of that size, in pixels.

    Thinner ones have no area in float32, here or once the image is resized; detectors stop at such a box.

    >>> thinnest(480, 640)
    0.001
    """
    return max(1e-3, 1e-6 * max(height, width))


def check_dataset(data: Any, name: str) -> None:
    """Raise UserError unless it knows what a data set must know before any image is decoded; `name` says which it is.

    >>> from eigendet.data.samples import Rectangles
    >>> check_dataset(Rectangles(32), "rectangles")
    """
    for attribute in ("__len__", "__getitem__", "classes", "digest", "notes"):
        if not hasattr(data, attribute):
            raise UserError(f"{name}: gave {kind(data)} without '{attribute}'; see eigendet.data.datasets.")
    if not len(data) or not data.classes:
        raise UserError(f"{name}: has {len(data)} images of {len(data.classes)} classes.")
    if hasattr(data, "size") != hasattr(data, "objects"):
        raise UserError(f"{name}: has only one of 'size' and 'objects'; a data set of boxes has both.")


def check_sides(data: Any, settings: DetectorTraining) -> None:
    """Raise UserError if an image is so long that its shorter side would be 0 once it is resized for a detector.

    >>> from eigendet.data.samples import Rectangles
    >>> check_sides(Rectangles(32), DetectorTraining(steps=1, min_size=16, max_size=16))
    """
    longest = min(settings.max_size, round(settings.max_size * settings.scale_jitter[1]))
    for index in range(len(data)):
        height, width = data.size(index)
        if min(height, width) * longest < 1.001 * max(height, width):  # detectors compute in float32
            which = data.name(index) if hasattr(data, "name") else f"image {index} of the data set"
            raise UserError(
                f"{which}: is {width}x{height} pixels; resized to a longer side of {longest} (training.max_size), the "
                "shorter one would be 0: leave it out, cut it, or raise max_size."
            )


def check_sample(data: Any, index: int, name: str) -> int:
    """Decode an image, and raise UserError unless it and its label or objects are what its data set says.

    Returns:
        The number of its objects, crowds left out.

    >>> from eigendet.data.samples import Rectangles
    >>> check_sample(Rectangles(32), 0, "rectangles")
    2
    """
    image, target = data[index]
    which = data.name(index) if hasattr(data, "name") else f"{name}: image {index}"
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3:
        raise UserError(f"{which} is {kind(image)}; expected a tensor (3, H, W) of uint8.")
    if not isinstance(target, dict):
        if not 0 <= int(target) < len(data.classes):
            raise UserError(f"{which} has the label {target}; expected 0 to {len(data.classes) - 1}.")
        return 0
    (height, width), said = image.shape[1:], tuple(data.size(index))
    if said != (height, width):
        raise UserError(f"{which}: the image is {width}x{height} pixels; its annotations say {said[1]}x{said[0]}.")
    missing = {"boxes", "labels", "crowd", "area", "masks"} - target.keys()
    if missing:
        raise UserError(f"{which} has no '{min(missing)}'; expected what eigendet.data.Target lists.")
    boxes, labels, objects = target["boxes"], target["labels"], data.objects(index)
    if objects != int((~target["crowd"]).sum()):
        raise UserError(f"{which}: objects({index}) is {objects}, which is not the number of its objects.")
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    # Half of what is asked of a box before it is rounded to float32.
    if not (inside and (boxes[:, 2:] - boxes[:, :2] > thinnest(height, width) / 2).all()):
        raise UserError(f"{which} has a box outside of it, or without area; expected left, top, right, bottom.")
    if not ((labels >= 1) & (labels <= len(data.classes))).all():
        raise UserError(f"{which} has a label outside of 1 to {len(data.classes)}.")
    return int(objects)
