"""Images that a network is shown: read ahead of the device, and decoded once, as far as memory goes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from eigendet.data.batches import as_float
from eigendet.data.datasets import Detection, Target

Read = TypeVar("Read")

MEMORY = 2**30  # bytes of decoded images that a process keeps, some thousand photographs
AHEAD = 2  # images that are read while the network looks at one


def ahead(read: Callable[[int], Read], indices: Iterable[int]) -> Iterator[Read]:
    """Yield what is read of each index; the next ones are read by a thread meanwhile, which lives no longer than this.

    >>> list(ahead(lambda index: 10 * index, [3, 1, 2]))
    [30, 10, 20]
    """
    reader = ThreadPoolExecutor(1, "images")
    reading = (reader.submit(read, index) for index in indices)
    try:
        begun = deque(islice(reading, AHEAD))
        while begun:
            result = begun.popleft().result()  # or raise here what reading raised there
            begun.extend(islice(reading, 1))
            yield result
    finally:
        reader.shutdown(cancel_futures=True)


def pinned_for(device: torch.device, tensor: Tensor) -> Tensor:
    """Return a tensor of the CPU, for a GPU in memory from which it copies while it computes."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


class Decoded:
    """Images of a data set by their numbers, uint8 (3, H, W): decoded at first use, and kept while memory lasts.

    The data set is asked for one image at a time, by whichever threads.

    Args:
        dataset: the images.
        memory: bytes that images may take; those that no longer fit are decoded again each time.

    Examples:
        >>> from eigendet.data.samples import Rectangles
        >>> Decoded(Rectangles(32))[2].shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, dataset: Detection, memory: int = MEMORY) -> None:
        self._dataset, self._free = dataset, memory
        self._kept: dict[int, tuple[Tensor, Target]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Tensor:
        return self.sample(index)[0]

    def sample(self, index: int) -> tuple[Tensor, Target]:
        """Return an image with its objects."""
        with self._lock:
            if index in self._kept:
                return self._kept[index]
            image, target = self._dataset[index]
            if image.nbytes <= self._free:
                image = image.clone()  # the data set's may be a view of something larger
                self._kept[index] = image, target
                self._free -= image.nbytes
            return image, target


class Images(Sequence[list[Tensor]]):
    """Some images of a data set, each as a batch of its own for a detector on a device.

    Who goes over them finds the next ones read by a thread meanwhile, which lives no longer than that.

    Args:
        decoded: the images.
        indices: numbers of those that are shown, in this order.
        device: of the detector.
        looked: called as each is shown.

    Examples:
        >>> from eigendet.data.samples import Rectangles
        >>> images = Images(Decoded(Rectangles(32)), [2, 0], torch.device("cpu"))
        >>> len(images), [image.shape for image in images[0]]
        (2, [torch.Size([3, 32, 32])])
    """

    def __init__(
        self,
        decoded: Decoded,
        indices: Sequence[int],
        device: torch.device,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self.decoded, self.indices, self.device, self.looked = decoded, indices, device, looked

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self._show(self._read(self.indices[index]))

    def __iter__(self) -> Iterator[list[Tensor]]:
        return map(self._show, ahead(self._read, self.indices))

    def _read(self, index: int) -> Tensor:
        return pinned_for(self.device, as_float(self.decoded[index]))

    def _show(self, image: Tensor) -> list[Tensor]:
        self.looked()
        # The image may go before its copy is done: torch's allocator of pinned memory has noted the copy's event, and
        # gives the memory to nobody before that has passed.
        return [image.to(self.device, non_blocking=True)]
