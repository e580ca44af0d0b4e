"""How good a network is: top-1 accuracy of classifiers, average precision of detectors as COCO defines it.

faster-coco-eval computes average precision as pycocotools does, in less time: which detection matches which object,
over which overlaps, recalls and sizes, and that crowds and what lies in them count neither for nor against. What this
module adds:

- Every image of the split counts, by its number; boxes and masks are in the images' own pixels.
- Objects are those of the data set: boxes clipped to their image, those without area left out.
- A mask is where the detector's probability is above one half.
- Masks are scored if every object and every detection has one; then COCO's small, medium and large go by the mask.
- A detector that detects nothing at all scores 0, for which COCO's evaluator has no answer.
- Precision is kept over recall, as the mean over classes: the mean of such a curve is the average of its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor, nn

from eigendet.data.datasets import Classification, Detection
from eigendet.progress import Reporter
from eigendet.runs.detections import Annotation, Detected, Seen, detect
from eigendet.runs.examples import Example
from eigendet.runs.folder import RunNames
from eigendet.runs.images import ahead, pinned_for

SIZES = ["small", "medium", "large"]
NAMES = ["AP", "AP50", "AP75", *(f"AP_{size}" for size in SIZES)]  # average precision
NAMES += ["AR1", "AR10", "AR100", *(f"AR_{size}" for size in SIZES)]  # average recall, of so many detections an image
RECALLS = 101  # at which COCO takes precision
BATCH = 64

Scores = dict[str, float | None]  # by NAMES, between 0 and 1; None where the data has no object of that size
OVERLAPS: dict[str, list[float]] = {"AP": [], "AP50": [0.5], "AP75": [0.75]}  # that count as right; AP: the mean of all
Curves = dict[str, list[float]]  # by these names: precision at COCO's 101 recalls, 0 to 1


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
    `curves` are of `boxes` and perhaps `masks`.
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
    curves: NotRequired[dict[str, Curves]]
    examples: NotRequired[list[Example]]


class Scored(NamedTuple):
    """The averages of what was detected, and precision over recall of boxes and perhaps masks, to four digits."""

    averages: AveragePrecision
    curves: dict[str, Curves]


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


def average_precision(
    model: nn.Module, dataset: Detection, device: torch.device, job: str = "evaluate"
) -> AveragePrecision:
    """Return COCO's averages of a detector over a data set; `job` opens the reports of progress."""
    return score(detect(model, dataset, device, job)).averages


def score(seen: Seen) -> Scored:
    """Return COCO's averages of what was detected, and precision over recall."""
    truth = _ground_truth(seen.classes, seen.sizes, seen.annotations)
    boxes, of_classes, curves = _scores(truth, seen.detections, "bbox")
    averages: AveragePrecision = {"boxes": boxes, "classes": dict(zip(seen.classes, of_classes, strict=True))}
    of_kinds = {"boxes": _rounded(curves)}
    if seen.detections and all("segmentation" in entry for entry in [*seen.annotations, *seen.detections]):
        averages["masks"], _, curves = _scores(truth, seen.detections, "segm")
        of_kinds["masks"] = _rounded(curves)
    return Scored(averages, {kind: curves for kind, curves in of_kinds.items() if curves})


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
) -> tuple[Scores, list[float | None], Curves]:
    """Return COCO's averages of detections, AP of each class alone, and precision over recall."""
    if not detections:
        return dict.fromkeys(NAMES, 0.0), [0.0] * len(truth.cats), dict.fromkeys(OVERLAPS, [0.0] * RECALLS)
    scored = [detection.copy() for detection in detections]
    if kind == "segm":  # with a box at hand the evaluator would take the area of a mask's box for the mask's
        for detection in scored:
            del detection["bbox"]
    evaluator = COCOeval_faster(truth, truth.loadRes(scored), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    averages = [_defined(float(value)) for value in evaluator.stats[: len(NAMES)]]
    precision = evaluator.eval["precision"][..., 0, -1]  # (overlaps, recalls, classes), of objects of all sizes
    classes = [_defined(float(own[own > -1].mean()) if (own > -1).any() else -1.0) for own in precision.T]
    return dict(zip(NAMES, averages, strict=True)), classes, _curves(precision, evaluator.params.iouThrs)


def _curves(precision: np.ndarray, overlaps: np.ndarray) -> Curves:
    """Return the means of a precision (overlaps, recalls, classes) over the classes that have objects; empty if none.

    >>> _curves(np.array([[[1.0, 0.5, -1]], [[0.5, 0.5, -1]]]), np.array([0.5, 0.75]))
    {'AP': [0.625], 'AP50': [0.75], 'AP75': [0.5]}
    """
    scored = precision[..., (precision > -1).any(axis=(0, 1))]
    if not scored.size:
        return {}
    rows = {name: [np.abs(overlaps - least).argmin() for least in of] or slice(None) for name, of in OVERLAPS.items()}
    return {name: scored[row].mean(axis=(0, 2)).tolist() for name, row in rows.items()}


def _rounded(curves: Curves) -> Curves:
    return {name: [round(value, 4) for value in curve] for name, curve in curves.items()}


def _defined(average: float) -> float | None:
    """Return an average, or None where the evaluator says by -1 that there is nothing to average."""
    return average if average >= 0 else None
