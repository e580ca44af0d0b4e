"""What counts alike in moments."""

from __future__ import annotations

from typing import Literal

Weighting = Literal["positions", "images"]
"""What has a weight of 1: every position, or every entry of the first dimension, whatever its positions."""
