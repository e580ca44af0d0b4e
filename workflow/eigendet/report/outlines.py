"""Masks as outlines that a page can draw."""

from __future__ import annotations

import numpy as np

from eigendet.data.segmentations import decoded
from eigendet.report.records import Mask

POINTS = 80  # at most, of a mask's outlines together
Point = tuple[int, int]  # across, down


def outline(mask: Mask, width: float, height: float) -> str:
    """Return a mask's outlines, stretched to a width and height, as the data of an SVG path; empty if the mask is.

    >>> outline(Mask(size=[3, 3], counts="414"), 30, 30)
    'M15 10L20 15L15 20L10 15Z'
    """
    pixels = decoded(mask.counts, mask.size)
    loops = boundaries(pixels)
    every = -(-sum(map(len, loops)) // POINTS)
    across, down = width / pixels.shape[1], height / pixels.shape[0]
    paths = []
    for loop in loops:
        middles = [
            ((x + to_x) / 2, (y + to_y) / 2) for (x, y), (to_x, to_y) in zip(loop, loop[1:] + loop[:1], strict=True)
        ]
        points = [f"{x * across:.0f} {y * down:.0f}" for x, y in middles[::every]]
        if len(points) > 2:
            paths.append(f"M{'L'.join(points)}Z")
    return "".join(paths)


def boundaries(pixels: np.ndarray) -> list[list[Point]]:
    """Return the closed courses along the edges between a mask (H, W) and what is not of it, a corner at each pixel.

    >>> boundaries(np.array([[False, True]]))
    [[(1, 0), (2, 0), (2, 1), (1, 1)]]
    """
    inside = np.pad(np.asarray(pixels, bool), 1)
    ways: dict[Point, list[Point]] = {}
    # Along each side of a pixel with the mask to the right: where from (down, across), and one step further.
    for down, across, start, step in ((-1, 0, (0, 0), (0, 1)), (0, 1, (0, 1), (1, 0)),
                                      (1, 0, (1, 1), (0, -1)), (0, -1, (1, 0), (-1, 0))):  # fmt: skip
        for row, column in np.argwhere(inside & ~np.roll(inside, (-down, -across), (0, 1))).tolist():
            y, x = row - 1 + start[0], column - 1 + start[1]
            ways.setdefault((x, y), []).append((x + step[1], y + step[0]))
    loops = []
    while ways:
        loop = [next(iter(ways))]
        while loop[-1] in ways:
            ends = ways[loop[-1]]
            loop.append(ends.pop())
            if not ends:
                del ways[loop[-2]]
        loops.append(loop[:-1])
    return loops
