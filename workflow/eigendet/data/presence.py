"""Which classes the objects of images are of: labels of whole images, from a data set of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eigendet.data.datasets import Detection


def presence(dataset: Detection, indices: Sequence[int]) -> np.ndarray:
    """Return whether images have objects of each class, (N, K) bool; crowds of a class count as such.

    Args:
        dataset: the images, each of which is decoded, since no data set need know its objects before.
        indices: numbers of the images.

    >>> from eigendet.data.samples import Rectangles
    >>> presence(Rectangles(32), [0, 1]).shape
    (2, 3)
    """
    present = np.zeros((len(indices), len(dataset.classes)), dtype=bool)
    for row, index in enumerate(indices):
        _, target = dataset[index]
        present[row, target["labels"].numpy() - 1] = True
    return present
