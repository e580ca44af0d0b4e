"""What a detector may say of itself, beside what it computes; the contract of plugins describes it for authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class Detector(Protocol):
    """A detector's own attributes; a module without one of them has its default."""

    learns_masks: bool  # whether it asks for masks in training; else it does not
    regions: Mapping[str, int]  # how many regions of an image a part looks at, by the beginning of module paths


def learns_masks(model: nn.Module | Detector) -> bool:
    """Return whether a detector asks for masks in training.

    >>> learns_masks(nn.Identity())
    False
    """
    return bool(getattr(model, "learns_masks", False))


def regions(model: nn.Module | Detector) -> Mapping[str, int]:
    """Return how many regions of an image the parts of a detector look at.

    >>> regions(nn.Identity())
    {}
    """
    looked_at: Mapping[str, int] = getattr(model, "regions", {})
    return looked_at
