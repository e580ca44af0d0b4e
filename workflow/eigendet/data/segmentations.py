"""Segmentations in COCO's format: packed while a file is read, checked, and as run lengths."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from eigendet.data.datasets import RLE


def packed(value: Any) -> Any:
    """Return polygons as arrays of float64, a quarter of the memory of lists; anything else as it is.

    >>> packed([[0, 0, 9, 0, 9, 9]])
    [array('d', [0.0, 0.0, 9.0, 0.0, 9.0, 9.0])]
    """
    if type(value) is not list or {*map(type, value)} != {list}:
        return value
    try:
        return [array("d", polygon) for polygon in value]
    except (OverflowError, TypeError):  # an integer that no float64 holds, or no number
        return value


def is_segmentation(value: Any, height: int, width: int) -> bool:
    """Return whether a packed value is polygons about an image of that size, or run lengths that fill it.

    Polygons may overhang the image by its own size: what fills them takes memory for each pixel of their outline.

    >>> [is_segmentation([array("d", [0, 0, 9, 0, 9, far])], 20, 20) for far in (9, 30, 1e9)]
    [True, True, False]
    """
    if isinstance(value, dict):
        counts = value.get("counts")
        counts = _run_lengths(counts) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            return False
        return value.get("size") == [height, width] and sum(counts) == height * width
    return isinstance(value, list) and all(
        isinstance(polygon, array) and len(polygon) >= 6 and len(polygon) % 2 == 0 and _is_near(polygon, height, width)
        for polygon in value
    )


def rle(segmentation: Any, height: int, width: int) -> RLE:
    """Return polygons or run lengths, compressed or not, as compressed run lengths."""
    if isinstance(segmentation, list):
        parts = coco_mask.frPyObjects([polygon.tolist() for polygon in segmentation], height, width)
        merged: RLE = coco_mask.merge(parts)
        return merged
    if isinstance(segmentation["counts"], list):
        whole: RLE = coco_mask.frPyObjects(segmentation, height, width)
        return whole
    return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}


def decoded(counts: str, size: Sequence[int]) -> np.ndarray:
    """Return the pixels (height, width) of compressed run lengths that fill a size, see `is_segmentation`.

    >>> decoded("1", [1, 1]), decoded("01", [1, 1])
    (array([[False]]), array([[ True]]))
    """
    pixels: np.ndarray = coco_mask.decode({"size": list(size), "counts": counts.encode()}) > 0
    return pixels


def _is_near(polygon: array[float], height: int, width: int) -> bool:
    """Return whether all coordinates x, y, x, y … are finite, and within a side's length of the image."""
    numbers, shorter = polygon.tolist(), min(height, width)  # once, instead of at each look
    total, low, high = sum(numbers), min(numbers), max(numbers)
    if total != total:  # one is not a number, which neither min nor max tells
        return False
    if -shorter <= low and high <= 2 * shorter:
        return True
    across, down = polygon[::2], polygon[1::2]
    return -width <= min(across) and max(across) <= 2 * width and -height <= min(down) and max(down) <= 2 * height


def _run_lengths(text: str) -> list[int] | None:
    """Return the counts of COCO's compressed run lengths, or None if they are malformed.

    They are six bits a character, each count from the fourth on a difference from the last but one.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        number |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            number -= (1 << shift) if bits & 0x10 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return None if shift else counts
