"""Check that a data set plugin returns what its contract says; if not, say so with the plugin's file and line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eigendet.errors import UserError, kind


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
    if not (inside and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise UserError(f"{which} has a box outside of it, or without area; expected left, top, right, bottom.")
    if not ((labels >= 1) & (labels <= len(data.classes))).all():
        raise UserError(f"{which} has a label outside of 1 to {len(data.classes)}.")
    return int(objects)
