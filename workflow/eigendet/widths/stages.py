"""The stage of every channel group: by the side of the maps that its layers work on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from eigendet.channels.groups import Channels, Layer


def stage_numbers(channels: Channels, regions: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return every group's stage, from 0: how many halvings of the resolution precede its coarsest map.

    A layer that sees regions of an image works on the map of one region, and one that reads a flattened map on that
    map. What is written from a pooled map alone, as in squeeze-and-excitation, or not in this pass, is of the stage of
    what it reads. Halvings between which nothing lies count as one.

    Args:
        channels: the groups of a network.
        regions: how many regions of an image the layers see whose path begins with the key.
    """
    side_of: dict[str, float] = {}
    pooled: dict[str, set[str]] = {}  # group -> those that its layers read as a single position
    for layer in channels.layers:
        side = _side(layer, regions or {})
        for group, _ in layer.out.terms if layer.kind in ("conv", "linear") else ():
            if side > 1:
                side_of[group] = min(side_of.get(group, side), side)
            else:
                pooled.setdefault(group, set()).update(() if layer.source is None else dict(layer.source.terms))
    _inherit(side_of, pooled)
    finest = max(side_of.values(), default=1.0)
    halvings = {group: round(math.log2(finest / side)) for group, side in side_of.items()}
    order = sorted(set(halvings.values()))
    return {group: order.index(halvings[group]) if group in halvings else 0 for group in channels.widths}


def _side(layer: Layer, regions: Mapping[str, int]) -> float:
    """Return the side of the map of one image, or one region, that a layer works on, in pixels."""
    prefixes = [prefix for prefix in regions if layer.module.startswith(prefix)]
    count = regions[max(prefixes, key=len)] if prefixes else 1
    flattened = 1.0
    if layer.kind == "linear" and layer.source is not None:
        flattened = max((float(factor) for _, factor in layer.source.terms), default=1.0)
    return math.sqrt(max(layer.positions / count, 1.0) * max(flattened, 1.0))


def _inherit(side_of: dict[str, float], pooled: Mapping[str, set[str]]) -> None:
    """Give groups without a map of their own the coarsest side of those that they were pooled from, else 1."""
    waiting = [group for group in pooled if group not in side_of]
    while waiting:
        ready = [group for group in waiting if pooled[group] & side_of.keys()]
        for group in ready or waiting:
            side_of[group] = min((side_of[source] for source in pooled[group] if source in side_of), default=1.0)
        waiting = [group for group in waiting if group not in side_of]
