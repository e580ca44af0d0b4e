"""What a detector may say of itself, beside what it computes; the contract of plugins describes it for authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class LearnsMasks(Protocol):
    """A detector that says whether it asks for masks in training."""

    learns_masks: bool


@runtime_checkable
class LooksAtRegions(Protocol):
    """A detector that says how many regions of an image a part of it looks at, by the beginning of module paths."""

    regions: Mapping[str, int]


def learns_masks(model: nn.Module) -> bool:
    """Return whether a detector asks for masks in training; one that does not say so does not.

    >>> learns_masks(nn.Identity())
    False
    """
    return isinstance(model, LearnsMasks) and bool(model.learns_masks)


def regions(model: nn.Module) -> Mapping[str, int]:
    """Return how many regions of an image the parts of a detector look at; none where it does not say so.

    >>> regions(nn.Identity())
    {}
    """
    return model.regions if isinstance(model, LooksAtRegions) else {}
