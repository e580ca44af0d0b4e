"""What a detector may say of itself, beside what it computes."""

from __future__ import annotations

from torch import nn


def learns_masks(model: nn.Module) -> bool:
    """Return whether a detector asks for masks in training: its attribute `learns_masks`, or False without one.

    >>> learns_masks(nn.Identity())
    False
    """
    return bool(getattr(model, "learns_masks", False))
