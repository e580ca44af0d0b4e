from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from eigendet import config
from eigendet.data import batches
from eigendet.data.coco import CocoDetection
from eigendet.data.datasets import open_split
from eigendet.errors import UserError

Coco = Callable[..., tuple[Path, Path]]


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(equal(first[key], second[key]) for key in first)
    return all(equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_start_or_workers(values: dict[str, Any], workers: int) -> None:
    values["training"] |= {"steps": 9, "workers": workers}
    settings = config.parse(values).training
    data = open_split(config.parse(values), "detection", "train")
    plain = config.parse(values | {"training": values["training"] | {"workers": 0}}).training
    whole = list(batches.detection_batches(data, plain, 0, 0, masks=True))
    torch.manual_seed(99)
    rest = list(batches.detection_batches(data, settings, 0, 5, masks=True))
    assert len(whole) == 9 and len(rest) == 4
    assert equal(whole[5:], rest)
    assert not equal(whole[:1], list(islice(batches.detection_batches(data, plain, 1, 0, masks=True), 1)))


def test_loading_leaves_the_global_random_state_alone(values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    data = open_split(experiment, "detection", "train")
    torch.manual_seed(5)
    stream = iter(batches.detection_batches(data, experiment.training, 0, 0, masks=False))
    state = torch.get_rng_state()
    next(stream)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_epoch_holds_every_image_once(values: dict[str, Any]) -> None:
    values["pretraining"] |= {"steps": 16, "batch_size": 8}
    experiment = config.parse(values)
    data = open_split(experiment, "classification", "train")
    assert experiment.pretraining is not None
    loader = batches.classification_batches(data, experiment.pretraining, 0, 0)
    labels = torch.cat([labels for _, labels in loader])
    every = sorted(data[index][1] for index in range(64))
    assert sorted(labels[:64].tolist()) == sorted(labels[64:].tolist()) == every
    assert labels[:64].tolist() != labels[64:].tolist()


def test_mirrored_boxes_and_masks_stay_on_their_objects(values: dict[str, Any]) -> None:
    values["training"] |= {"steps": 10, "scale_jitter": [0.7, 1.4]}
    experiment = config.parse(values)
    data = open_split(experiment, "detection", "train")
    sizes = set()
    for images, targets in batches.detection_batches(data, experiment.training, 0, 0, masks=True):
        for image, target in zip(images, targets, strict=True):
            sizes.add(tuple(image.shape[1:]))
            assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
            assert type(image) is torch.Tensor and type(target["boxes"]) is torch.Tensor
            for box, mask in zip(target["boxes"], target["masks"], strict=True):
                ys, xs = torch.nonzero(mask, as_tuple=True)
                around = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert (box - around).abs().max() < 2.5  # masks are resized to whole pixels
    assert len(sizes) > 3 and all(44 <= height <= 90 for height, _ in sizes)


def test_crowds_and_images_without_objects_are_left_out_of_training(coco: Coco, values: dict[str, Any]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = content["annotations"][2]["iscrowd"] = 1

    settings = config.parse(values).training
    dataset = CocoDetection(*coco(edit))
    for _, targets in batches.detection_batches(dataset, settings, 0, 0, masks=True):
        assert [target["labels"].tolist() for target in targets] == [[2], [2]]
    only_crowds = CocoDetection(*coco(lambda c: [a.update(iscrowd=1) for a in c["annotations"]]))
    with pytest.raises(UserError, match="hold no objects other than crowds"):
        batches.detection_batches(only_crowds, settings, 0, 0, masks=False)


def test_masks_asked_of_data_without_them_are_refused(coco: Coco, values: dict[str, Any]) -> None:
    dataset = CocoDetection(*coco(lambda content: content["annotations"][0].pop("segmentation")))
    with pytest.raises(UserError, match="the detector learns masks, but not every object"):
        list(batches.detection_batches(dataset, config.parse(values).training, 0, 0, masks=True))
