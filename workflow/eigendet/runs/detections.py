"""What a detector says of a data set, beside what is there, both as COCO's files have it."""

from __future__ import annotations

from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor, nn

from eigendet.data.batches import as_float
from eigendet.data.datasets import RLE, Detection, Target
from eigendet.progress import Reporter
from eigendet.runs.images import ahead, pinned_for


class Annotation(TypedDict):
    """A true object, as a COCO file has it; boxes are left, top, width, height."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    segmentation: NotRequired[RLE]


class Detected(TypedDict):
    """A detection, as a file of COCO results has it."""

    image_id: int
    category_id: int
    bbox: NotRequired[list[float]]
    score: float
    segmentation: NotRequired[RLE]


class Seen(NamedTuple):
    """The objects of a data set, and what was detected; images by their numbers, classes by theirs, from 1."""

    classes: list[str]
    sizes: list[tuple[int, int]]  # height and width of each image
    annotations: list[Annotation]
    detections: list[Detected]


@torch.inference_mode()
def detect(model: nn.Module, dataset: Detection, device: torch.device, job: str = "evaluate") -> Seen:
    """Show a detector every image of a data set, one at a time; `job` opens the reports of progress."""
    model.to(device).eval()
    seen = Seen(dataset.classes, [], [], [])

    def read(index: int) -> tuple[Tensor, Target]:
        image, target = dataset[index]
        return pinned_for(device, as_float(image)), target

    with Reporter(job, "image", len(dataset)) as reporter:
        for index, (image, target) in enumerate(ahead(read, range(len(dataset)))):
            output = model([image.to(device, non_blocking=True)])[0]
            seen.sizes.append((image.shape[1], image.shape[2]))
            seen.annotations.extend(_annotations(target, index, len(seen.annotations) + 1))
            seen.detections.extend(_detections(output, index))
            reporter.reach(index + 1, images=1)
    return seen


def _annotations(target: Target, image: int, first: int) -> list[Annotation]:
    """Return the objects of an image, numbered from `first`."""
    annotations: list[Annotation] = []
    for number, box in enumerate(_xywh(target["boxes"])):
        annotation: Annotation = {
            "id": first + number,
            "image_id": image,
            "category_id": int(target["labels"][number]),
            "bbox": box,
            "area": float(target["area"][number]),
            "iscrowd": int(target["crowd"][number]),
        }
        if target["masks"] is not None:
            annotation["segmentation"] = target["masks"][number]
        annotations.append(annotation)
    return annotations


def _detections(output: dict[str, Tensor], image: int) -> list[Detected]:
    """Return what a detector said of an image; what is read of it crosses from a GPU as a whole."""
    labels, scores = output["labels"].tolist(), output["scores"].tolist()
    detections: list[Detected] = [
        {"image_id": image, "category_id": int(label), "bbox": box, "score": float(score)}
        for box, label, score in zip(_xywh(output["boxes"].cpu()), labels, scores, strict=True)
    ]
    if "masks" in output:
        for detection, mask in zip(detections, (output["masks"] > 0.5).cpu(), strict=True):
            pixels = np.asfortranarray(mask[0].numpy().astype(np.uint8))
            detection["segmentation"] = coco_mask.encode(pixels)
    return detections


def _xywh(boxes: Tensor) -> list[list[float]]:
    """Return boxes (N, 4) of left, top, right, bottom as lists of left, top, width, height."""
    left, top, right, bottom = boxes.unbind(1)
    return [[float(v) for v in box] for box in torch.stack([left, top, right - left, bottom - top], 1).tolist()]
