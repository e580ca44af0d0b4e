"""How good a network is: top-1 accuracy of classifiers, COCO average precision of detectors.

Average precision is computed by pycocotools, in the images' own pixels, over every image of the split. Crowds count as
COCO counts them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from tqdm import tqdm

from eigendet.data.batches import as_float
from eigendet.data.datasets import Classification, Detection

NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
BATCH = 64


@torch.inference_mode()
def top1(model: nn.Module, dataset: Classification, crop: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Share of images whose most likely class is the true one."""
    model.to(device).eval()
    right = 0
    for start in range(0, len(dataset), BATCH):
        samples = [dataset[index] for index in range(start, min(start + BATCH, len(dataset)))]
        images = torch.stack([crop(image) for image, _ in samples]).to(device)
        labels = torch.tensor([label for _, label in samples], device=device)
        right += int((model(images).argmax(1) == labels).sum())
    return right / len(dataset)


@torch.inference_mode()
def average_precision(model: nn.Module, dataset: Detection, device: torch.device) -> dict[str, dict[str, float | None]]:
    """COCO's averages for `boxes`, and for `masks` where both the detector and the data have them.

    A value is between 0 and 1, or None where the data has no object of that size.
    """
    model.to(device).eval()
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.classes, start=1)],
    }
    found: list[dict[str, Any]] = []
    for index in tqdm(range(len(dataset)), unit="image", disable=None):
        image, target = dataset[index]
        truth["images"].append({"id": index, "height": image.shape[1], "width": image.shape[2]})
        for number, box in enumerate(_xywh(target["boxes"])):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": index,
                    "category_id": int(target["labels"][number]),
                    "bbox": box,
                    "area": float(target["area"][number]),
                    "iscrowd": int(target["crowd"][number]),
                }
                | ({"segmentation": target["masks"][number]} if target["masks"] is not None else {})
            )
        found += _detections(model([as_float(image).to(device)])[0], index)
    has_masks = all("segmentation" in entry for entry in [*truth["annotations"], *found])
    kinds = {"boxes": "bbox"} | ({"masks": "segm"} if has_masks and found else {})
    return {name: _coco(truth, found, kind) for name, kind in kinds.items()}


def _detections(output: dict[str, Tensor], index: int) -> list[dict[str, Any]]:
    detections = [
        {"image_id": index, "category_id": int(label), "bbox": box, "score": float(score)}
        for box, label, score in zip(_xywh(output["boxes"].cpu()), output["labels"], output["scores"], strict=True)
    ]
    if "masks" in output:
        for detection, mask in zip(detections, output["masks"].cpu(), strict=True):
            pixels = np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8))
            detection["segmentation"] = coco_mask.encode(pixels)
    return detections


def _coco(truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    if not found:
        return dict.fromkeys(NAMES, 0.0)
    # With a box at hand pycocotools would take the area of a mask's box for the mask's.
    scored = [{key: value for key, value in entry.items() if kind == "bbox" or key != "bbox"} for entry in found]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(scored), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) if value >= 0 else None for name, value in zip(NAMES, evaluator.stats, strict=False)}


def _xywh(boxes: Tensor) -> list[list[float]]:
    left, top, right, bottom = boxes.unbind(1)
    return [[float(v) for v in box] for box in torch.stack([left, top, right - left, bottom - top], 1).tolist()]
