"""From data sets to batches: augmentation, the same in every arm, and an order that depends on nothing but the seed.

Sample number p of a training run is fixed by (seed, p): which image, and every random choice of its augmentation. So it
does not matter how many processes load data, how many train, or where a run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from eigendet import processes
from eigendet.config.sections import DetectorTraining, Optimization, Pretraining
from eigendet.data.checks import check_sides
from eigendet.data.datasets import Classification, Detection, Target
from eigendet.errors import UserError

Sample = Any
Batch = Any


class _TrainingSamples(Dataset[Sample]):
    """Augmented samples by their number in the training run; every epoch is a permutation of `indices`."""

    def __init__(self, dataset: Any, indices: Sequence[int], augment: Callable[[Any, Any], Sample], seed: int) -> None:
        self.dataset, self.indices, self.augment, self.seed = dataset, indices, augment, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __getitem__(self, number: int) -> Sample:
        epoch, position = divmod(number, len(self.indices))
        image, target = self.dataset[self.indices[self._order(epoch)[position]]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.seed, "sample", number))
            return self.augment(image, target)

    def _permutation(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch."""
        seed = stream_seed(self.seed, "order", epoch)
        return np.random.default_rng(seed).permutation(len(self.indices))


def stream_seed(seed: int, stream: str, number: int) -> int:
    """Return a 63-bit seed for the random stream of that name and number.

    >>> stream_seed(0, "order", 1)
    7236596369731202572
    """
    entropy = [seed, number, *stream.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def classification_batches(
    dataset: Classification, settings: Pretraining, seed: int, start: int, pinned: bool = False
) -> DataLoader[Batch]:
    """Return batches (images (N, 3, S, S) float in [0, 1], labels (N,)) for the steps from `start` to the last.

    They lie in pinned memory on request, from which a GPU copies while it computes.

    >>> from eigendet.data.samples import Colors
    >>> settings = Pretraining(steps=3, batch_size=2, image_size=32)
    >>> [labels.tolist() for _, labels in classification_batches(Colors(48), settings, seed=0, start=1)]
    [[0, 2], [2, 0]]
    """
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(settings.image_size, settings.crop_scale, antialias=True),
            v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    samples = _TrainingSamples(dataset, range(len(dataset)), lambda image, label: (transform(image), label), seed)
    return _loader(samples, settings, start, pinned, collate=torch.utils.data.default_collate)


def detection_batches(
    dataset: Detection, settings: DetectorTraining, seed: int, start: int, masks: bool, pinned: bool = False
) -> DataLoader[Batch]:
    """Return batches (list of images (3, H, W) float in [0, 1], list of targets) for the steps from `start` on.

    Crowds are left out, and images without any object. Images come resized, with scale jitter. They lie in pinned
    memory on request, from which a GPU copies while it computes.

    >>> from eigendet.data.samples import Rectangles
    >>> settings = DetectorTraining(steps=1, batch_size=2, min_size=48, max_size=48)
    >>> [(images, targets)] = detection_batches(Rectangles(64), settings, seed=0, start=0, masks=True)
    >>> len(images), sorted(targets[0])
    (2, ['boxes', 'labels', 'masks'])

    Raises:
        UserError: no image has an object, one would be resized to nothing, or `masks` is asked of data without any.
    """
    used = [index for index in range(len(dataset)) if dataset.objects(index)]
    if not used:
        raise UserError("the training images hold no objects other than crowds; expected at least one.")
    check_sides(dataset, settings)
    low, high = (max(1, round(settings.min_size * factor)) for factor in settings.scale_jitter)
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0),
            v2.RandomShortestSize(
                list(range(low, high + 1)),
                max(low, round(settings.max_size * settings.scale_jitter[1])),
                antialias=True,
            ),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        ]
    )

    def augment(image: Tensor, target: Target) -> Sample:
        objects = learned_objects(target, masks)
        size = tuple(image.shape[1:])
        objects["boxes"] = tv_tensors.BoundingBoxes(objects["boxes"], format="XYXY", canvas_size=size)
        if masks:
            objects["masks"] = tv_tensors.Mask(objects["masks"])
        image, objects = transform(tv_tensors.Image(image), objects)
        return image.as_subclass(Tensor), {key: value.as_subclass(Tensor) for key, value in objects.items()}

    samples = _TrainingSamples(dataset, used, augment, seed)
    return _loader(samples, settings, start, pinned, collate=_lists)


def learned_objects(target: Target, masks: bool) -> dict[str, Tensor]:
    """Return the objects of an image that a detector learns from, crowds left out.

    Args:
        target: all objects of the image.
        masks: whether it learns masks.

    Returns:
        boxes (N, 4), labels (N,), and masks (N, H, W) uint8.

    Raises:
        UserError: there are no masks.

    Examples:
        >>> from eigendet.data.samples import Rectangles
        >>> objects = learned_objects(Rectangles(64)[0][1], masks=True)
        >>> {name: tuple(values.shape) for name, values in objects.items()}
        {'boxes': (2, 4), 'labels': (2,), 'masks': (2, 64, 64)}
    """
    kept = ~target["crowd"]
    objects = {"boxes": target["boxes"][kept], "labels": target["labels"][kept]}
    if not masks:
        return objects
    if target["masks"] is None:
        raise UserError(
            "the detector learns masks, but not every object of the training data has a segmentation that is valid "
            "('eigendet check-data' says which); use a detector without "
            "masks, or data with 'segmentation' for each annotation."
        )
    decoded = [coco_mask.decode(rle) for rle, keep in zip(target["masks"], kept.tolist(), strict=True) if keep]
    return objects | {"masks": torch.from_numpy(np.stack(decoded))}


def evaluation_crop(settings: Pretraining) -> Callable[[Tensor], Tensor]:
    """Return the central crop that a classifier is tested on, as float in [0, 1].

    >>> evaluation_crop(Pretraining(steps=1, image_size=32))(torch.zeros(3, 80, 60, dtype=torch.uint8)).shape
    torch.Size([3, 32, 32])
    """
    return v2.Compose(
        [
            v2.Resize(round(settings.image_size * 256 / 224), antialias=True),
            v2.CenterCrop(settings.image_size),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def as_float(image: Tensor) -> Tensor:
    """Return a uint8 image as float32 in [0, 1].

    >>> as_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return image.float() / 255


def _loader(
    samples: Dataset[Sample],
    settings: Optimization,
    start: int,
    pinned: bool,
    collate: Callable[[list[Sample]], Batch],
) -> DataLoader[Batch]:
    """Return batches of the samples that this process takes at each step."""
    size, rank, count = settings.batch_size, processes.rank(), processes.size()
    if size % count:
        raise UserError(f"batch_size is {size}; the {count} processes of this job cannot have equal shares of it.")
    # Made as they are asked for: a list of all steps might not fit memory.
    numbers: Any = (range(step * size + rank, (step + 1) * size, count) for step in range(start, settings.steps))
    workers = math.ceil(settings.workers / count)
    return DataLoader(
        samples,
        batch_sampler=numbers,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # plugins exist in this process alone
        collate_fn=collate,
        pin_memory=pinned,
    )


def _lists(samples: list[Sample]) -> Batch:
    """Return a list of images and one of targets, which have no common size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
