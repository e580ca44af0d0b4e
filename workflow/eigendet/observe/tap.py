"""One observed tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eigendet.moments.covariance import Covariance
from eigendet.observe.keys import TapKey


@dataclass(frozen=True)
class Tap:
    """One observed tensor, as it is stored.

    Attributes:
        key: its module, call and point.
        position: its place in the order of execution.
        padding: its positions that are padding: "excluded"; "none" in maps that are not images; "unknown": the model
            did not say which are.
        covariance: its moments.
        image_means: mean over the positions of each image, (images, C); see `taps.Taps.end_image`.
    """

    key: TapKey
    position: int
    padding: str
    covariance: Covariance
    image_means: Tensor | None = None
