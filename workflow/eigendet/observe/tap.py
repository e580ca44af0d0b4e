"""One observed tensor, and the gradient of a loss with respect to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from eigendet.moments.covariance import Covariance
from eigendet.observe.keys import TapKey


@dataclass(frozen=True)
class Gradient:
    """Moments of the gradient of a loss with respect to an observed tensor, a sample for each position.

    Attributes:
        moments: of the gradient.
        passes: over how many passes with a backward pass; images, where each shows one.

    Examples:
        >>> import torch
        >>> moments = Covariance(2)
        >>> moments.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 2.0]]))
        >>> gradient = Gradient(moments, passes=2)
        >>> gradient.positions, gradient.second_moment.tolist()
        (2.0, [[1.0, -0.5], [-0.5, 1.0]])
    """

    moments: Covariance
    passes: int

    @property
    def positions(self) -> float:
        """Positions of the tensor in a pass, on average."""
        return self.moments.count / max(self.passes, 1)

    @property
    def second_moment(self) -> np.ndarray:
        """Mean of g gᵀ over all positions, not centered, (C, C) float64; zeros where there are none."""
        if not self.moments.count:
            return np.zeros((self.moments.channels, self.moments.channels))
        moment: np.ndarray = self.moments.covariance(centered=False).cpu().numpy()
        return moment


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
        gradient: of a loss with respect to it; None: it was not observed.
        weighting: what counts alike in its moments: "positions", "images", or "entries" of a first dimension that is
            not that of images, such as the regions of a box head.
    """

    key: TapKey
    position: int
    padding: str
    covariance: Covariance
    image_means: Tensor | None = None
    gradient: Gradient | None = None
    weighting: str = "positions"
