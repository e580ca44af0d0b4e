"""Sums over the positions of each image, of every tensor that is accumulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from eigendet.moments.covariance import Covariance
from eigendet.observe.keys import TapKey


class ImageSums:
    """Weights and sums of images, which end when `end` says so.

    >>> key, covariance, sums = TapKey("", 0, "act"), Covariance(1), ImageSums()
    >>> for image in (torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0]])):
    ...     covariance.update(image)
    ...     sums.end({key: covariance})
    >>> sums.means(key).tolist()
    [[1.5], [5.0]]
    """

    def __init__(self) -> None:
        self.images = 0  # that have ended
        self._sums: dict[TapKey, list[tuple[float, Tensor]]] = {}
        self._partial: dict[TapKey, tuple[float, Tensor]] = {}  # of the present image, see `follow`

    def end(self, accumulators: Mapping[TapKey, Covariance]) -> None:
        """End an image: it has what the accumulators took since the last one did."""
        for key, covariance in accumulators.items():
            weight, total = covariance.take_sum()
            if key in self._partial:
                before, of_before = self._partial.pop(key)
                weight, total = weight + before, total + of_before
            # A tensor that is new had no samples in the images before.
            sums = self._sums.setdefault(key, [(0.0, torch.zeros_like(total))] * self.images)
            sums.append((weight, total))
        self.images += 1

    def means(self, key: TapKey) -> Tensor | None:
        """Return the mean over the positions of every image, (images, C); NaN: it has none. None: there are none."""
        sums = self._sums.get(key, [])
        if not self.images or len(sums) != self.images:
            return None
        totals = torch.stack([total for _, total in sums])
        return totals / totals.new_tensor([weight for weight, _ in sums])[:, None]

    def follow(
        self,
        keys: Iterable[TapKey],
        accumulators: Mapping[TapKey, Covariance],
        root: Callable[[TapKey], TapKey],
        mapped: Callable[[TapKey, Tensor], Tensor],
    ) -> None:
        """Compute the sums of tensors that follow from accumulated ones, since they will do so no longer.

        Args:
            keys: of all tensors that are observed.
            accumulators: those that there have been.
            root: gives the accumulator behind a tensor.
            mapped: gives rows of the accumulator behind a tensor as rows of the tensor.
        """
        recent = {key: covariance.take_sum() for key, covariance in accumulators.items()}
        sums: dict[TapKey, list[tuple[float, Tensor]]] = {}
        for key in keys:
            means = self.means(root(key))
            if means is not None:
                weights = [weight for weight, _ in self._sums[root(key)]]
                rows = mapped(key, means)
                sums[key] = [(weight, (weight * row).nan_to_num()) for weight, row in zip(weights, rows, strict=True)]
            weight, total = recent[root(key)]
            self._partial[key] = weight, weight * mapped(key, (total / (weight or 1))[None])[0]
        self._sums = sums

    def clear(self) -> None:
        """Forget all images."""
        self.images = 0
        self._sums.clear()
        self._partial.clear()
