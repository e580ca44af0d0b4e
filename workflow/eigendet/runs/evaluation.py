"""How good a network is: top-1 accuracy of classifiers, average precision of detectors as COCO defines it.

faster-coco-eval computes average precision as pycocotools does, in less time: which detection matches which object,
over which overlaps, recalls and sizes, and that crowds and what lies in them count neither for nor against. What this
module adds:

- Every image of the split counts, by its number; boxes and masks are in the images' own pixels.
- Objects are those of the data set: boxes clipped to their image, those without area left out.
- A mask is where the detector's probability is above one half.
- Masks are scored if every object and every detection has one; then COCO's small, medium and large go by the mask.
- A detector that detects nothing at all scores 0, for which COCO's evaluator has no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor, nn

from eigendet.data.batches import as_float
from eigendet.data.datasets import RLE, Classification, Detection, Target
from eigendet.progress import Reporter
from eigendet.runs.folder import RunNames
from eigendet.runs.images import ahead, pinned_for

SIZES = ["small", "medium", "large"]
NAMES = ["AP", "AP50", "AP75", *(f"AP_{size}" for size in SIZES)]  # average precision
NAMES += ["AR1", "AR10", "AR100", *(f"AR_{size}" for size in SIZES)]  # average recall, of so many detections an image
BATCH = 64

Scores = dict[str, float | None]  # by NAMES, between 0 and 1; None where the data has no object of that size


class AveragePrecision(TypedDict):
    """COCO's averages of boxes, and of masks where both the detector and the data have them; AP of each class alone."""

    boxes: Scores
    masks: NotRequired[Scores]
    classes: Scores  # AP of boxes by the class's name; None where no object is of it


class SnapshotScores(AveragePrecision):
    """The averages of one snapshot."""

    step: int


class Evaluation(TypedDict):
    """What an evaluation's JSON file holds: `top1` of a classifier, or `boxes` and perhaps `masks` of a detector.

    Those are of the last snapshot; `snapshots` holds the averages of all that were scored, the last among them.
    """

    version: int
    run: RunNames
    step: int  # of the snapshot
    images: int
    data: str  # digest of the data set
    top1: NotRequired[float]
    boxes: NotRequired[Scores]
    masks: NotRequired[Scores]
    classes: NotRequired[Scores]
    snapshots: NotRequired[list[SnapshotScores]]


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


@torch.inference_mode()
def top1(
    model: nn.Module,
    dataset: Classification,
    crop: Callable[[Tensor], Tensor],
    device: torch.device,
    job: str = "evaluate",
) -> float:
    """Return the share of images whose most likely class is the true one; `job` opens the reports of progress."""
    model.to(device).eval()
    right = torch.zeros((), dtype=torch.int64, device=device)

    def read(start: int) -> tuple[Tensor, Tensor]:
        samples = [dataset[index] for index in range(start, min(start + BATCH, len(dataset)))]
        images = torch.stack([crop(image) for image, _ in samples])
        labels = torch.tensor([label for _, label in samples])
        return pinned_for(device, images), pinned_for(device, labels)

    done = 0
    with Reporter(job, "image", len(dataset)) as reporter:
        for images, labels in ahead(read, range(0, len(dataset), BATCH)):
            answers = model(images.to(device, non_blocking=True)).argmax(1)
            right += (answers == labels.to(device, non_blocking=True)).sum()
            done += len(images)
            reporter.reach(done, images=len(images))
    return int(right) / len(dataset)


@torch.inference_mode()
def average_precision(
    model: nn.Module, dataset: Detection, device: torch.device, job: str = "evaluate"
) -> AveragePrecision:
    """Return COCO's averages of a detector over a data set; `job` opens the reports of progress."""
    model.to(device).eval()
    sizes: list[tuple[int, int]] = []
    annotations: list[Annotation] = []
    detections: list[Detected] = []

    def read(index: int) -> tuple[Tensor, Target]:
        image, target = dataset[index]
        return pinned_for(device, as_float(image)), target

    with Reporter(job, "image", len(dataset)) as reporter:
        for index, (image, target) in enumerate(ahead(read, range(len(dataset)))):
            output = model([image.to(device, non_blocking=True)])[0]
            sizes.append((image.shape[1], image.shape[2]))
            annotations += _annotations(target, index, len(annotations) + 1)
            detections += _detections(output, index)
            reporter.reach(index + 1, images=1)
    truth = _ground_truth(dataset.classes, sizes, annotations)
    boxes, classes = _scores(truth, detections, "bbox")
    averages: AveragePrecision = {"boxes": boxes, "classes": dict(zip(dataset.classes, classes, strict=True))}
    if detections and all("segmentation" in entry for entry in [*annotations, *detections]):
        averages["masks"], _ = _scores(truth, detections, "segm")
    return averages


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


def _ground_truth(classes: list[str], sizes: list[tuple[int, int]], annotations: list[Annotation]) -> COCO:
    """Return all objects as COCO's evaluator takes them."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(sizes)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
    }
    truth.createIndex()
    return truth


def _scores(
    truth: COCO, detections: list[Detected], kind: Literal["bbox", "segm"]
) -> tuple[Scores, list[float | None]]:
    """Return COCO's averages of detections, and AP of each class alone."""
    if not detections:
        return dict.fromkeys(NAMES, 0.0), [0.0] * len(truth.cats)
    scored = [detection.copy() for detection in detections]
    if kind == "segm":  # with a box at hand the evaluator would take the area of a mask's box for the mask's
        for detection in scored:
            del detection["bbox"]
    evaluator = COCOeval_faster(truth, truth.loadRes(scored), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    averages = [_defined(float(value)) for value in evaluator.stats[: len(NAMES)]]
    of_classes = np.moveaxis(evaluator.eval["precision"][..., 0, -1], 2, 0)  # over overlaps and recalls; of all sizes
    classes = [_defined(float(own[own > -1].mean()) if (own > -1).any() else -1.0) for own in of_classes]
    return dict(zip(NAMES, averages, strict=True)), classes


def _defined(average: float) -> float | None:
    """Return an average, or None where the evaluator says by -1 that there is nothing to average."""
    return average if average >= 0 else None


def _xywh(boxes: Tensor) -> list[list[float]]:
    """Return boxes (N, 4) of left, top, right, bottom as lists of left, top, width, height."""
    left, top, right, bottom = boxes.unbind(1)
    return [[float(v) for v in box] for box in torch.stack([left, top, right - left, bottom - top], 1).tolist()]
