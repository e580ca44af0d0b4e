"""Outlines of masks, against the pixels that they are of."""

from __future__ import annotations

import re

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from eigendet.report.outlines import POINTS, boundaries, outline
from eigendet.report.records import Mask


def filled(loops: list[list[tuple[int, int]]], height: int, width: int) -> np.ndarray:
    """Fill by the rule of even and odd: a pixel is inside where a ray to its left crosses an odd number of edges."""
    inside = np.zeros((height, width), bool)
    for loop in loops:
        for (x, y), (to_x, to_y) in zip(loop, loop[1:] + loop[:1], strict=True):
            assert abs(x - to_x) + abs(y - to_y) == 1
            if x == to_x:
                inside[min(y, to_y), x:] ^= True
    return inside


def packed(pixels: np.ndarray) -> Mask:
    counts = coco_mask.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
    return Mask(size=list(pixels.shape), counts=counts)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (9, 13)])
def test_boundaries_enclose_just_the_mask(shape: tuple[int, int], share: float) -> None:
    for seed in range(8):
        pixels = np.random.default_rng(seed).random(shape) < share
        assert (filled(boundaries(pixels), *shape) == pixels).all()


def test_a_mask_that_touches_itself_at_a_corner_and_one_with_a_hole_are_closed() -> None:
    corner = np.eye(2, dtype=bool)
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    for pixels in (corner, ring, ~corner):
        assert (filled(boundaries(pixels), *pixels.shape) == pixels).all()
    assert len(boundaries(ring)) == 2 and boundaries(np.zeros((4, 4), bool)) == []


def test_an_outline_is_stretched_and_has_few_points() -> None:
    ys, xs = np.mgrid[:200, :100]
    round_mask = packed((ys - 100) ** 2 / 4 + (xs - 50) ** 2 < 40**2)
    path = outline(round_mask, 300, 600)
    points = np.array([[float(number) for number in point] for point in re.findall(r"(\d+) (\d+)", path)])
    assert len(points) <= POINTS and re.fullmatch(r"M\d+ \d+(L\d+ \d+)+Z", path)
    radii = np.hypot((points[:, 0] - 150) / 3, (points[:, 1] - 300) / 6)
    assert abs(radii - 40).max() < 1.5


def test_noise_takes_no_more_letters_than_its_points() -> None:
    noise = packed(np.random.default_rng(0).random((300, 300)) < 0.5)
    assert len(outline(noise, 320, 320)) <= 10 * POINTS
    assert outline(packed(np.zeros((5, 5))), 320, 320) == ""


def test_every_small_mask_keeps_its_outline() -> None:
    assert outline(packed(np.ones((1, 1))), 10, 10) == "M5 0L10 5L5 10L0 5Z"


@pytest.mark.parametrize("counts", ["", "zz", "0", "\x00", "99999", "0" * 5000])
def test_run_lengths_that_do_not_fill_their_size_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        Mask(size=[3, 3], counts=counts)
