from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from eigendet.data.coco import CocoDetection
from eigendet.runs import detections, evaluation
from tests.conftest import SHARED, real_data
from tests.questions import Questions

CPU = torch.device("cpu")


class Noisy(nn.Module):
    """Detects the true objects, displaced, some with a wrong class, some not at all, crowds too."""

    def __init__(self, dataset: CocoDetection, noise: float, masks: bool) -> None:
        super().__init__()
        self.answers = []
        random = np.random.default_rng(0)
        for index in range(len(dataset)):
            target = dataset[index][1]
            kept = torch.from_numpy(random.random(len(target["boxes"])) >= noise / 2)
            wrong = torch.from_numpy(random.random(int(kept.sum())) < noise)
            boxes = target["boxes"][kept]
            labels = torch.where(wrong, target["labels"][kept] % len(dataset.classes) + 1, target["labels"][kept])
            answer = {
                "boxes": boxes + torch.from_numpy(random.normal(0, 10 * noise, boxes.shape)).float(),
                "labels": labels,
                "scores": torch.from_numpy(random.random(len(boxes))).float(),
            }
            if masks and target["masks"] is not None:
                decoded = [coco_mask.decode(rle) for rle, keep in zip(target["masks"], kept, strict=True) if keep]
                answer["masks"] = torch.from_numpy(np.stack(decoded)[:, None]).float() * 0.9
            self.answers.append(answer)
        self.calls = 0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.calls += 1
        return [self.answers[self.calls - 1]]


def test_perfect_detections_score_one(coco: Callable[..., tuple[Path, Path]]) -> None:
    dataset = CocoDetection(*coco())
    scores = evaluation.average_precision(Noisy(dataset, 0, masks=True), dataset, CPU)
    assert scores["boxes"]["AP"] == scores["masks"]["AP"] == pytest.approx(1)
    assert scores["boxes"]["AP_large"] is None and scores["boxes"]["AR100"] == 1
    assert scores["classes"] == {"cat": 1, "dog": pytest.approx(1)}


def test_masks_are_scored_only_where_the_detector_has_them(coco: Callable[..., tuple[Path, Path]]) -> None:
    dataset = CocoDetection(*coco())
    assert set(evaluation.average_precision(Noisy(dataset, 0, masks=False), dataset, CPU)) == {"boxes", "classes"}


def test_no_detection_scores_zero(coco: Callable[..., tuple[Path, Path]]) -> None:
    dataset = CocoDetection(*coco())
    model = Noisy(dataset, 0, masks=False)
    for answer in model.answers:
        for name in answer:
            answer[name] = answer[name][:0]
    assert evaluation.average_precision(model, dataset, CPU)["boxes"]["AP"] == 0


def reference_scores(file: Path, model: Noisy, kind: str, tmp_path: Path) -> list[float]:
    """What pycocotools says of the same detections, from the annotation file itself and a results file."""
    truth = COCO(str(file))
    categories = sorted(truth.cats)
    results: list[dict[str, Any]] = []
    for identity, answer in zip(sorted(truth.imgs), model.answers, strict=True):
        for number, (left, top, right, bottom) in enumerate(answer["boxes"].tolist()):
            result = {
                "image_id": identity,
                "category_id": categories[int(answer["labels"][number]) - 1],
                "score": float(answer["scores"][number]),
            }
            if kind == "bbox":
                result["bbox"] = [left, top, right - left, bottom - top]
            else:
                pixels = np.asfortranarray(answer["masks"][number, 0].numpy() > 0.5).astype(np.uint8, order="F")
                rle = coco_mask.encode(pixels)
                result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            results.append(result)
    (tmp_path / "results.json").write_text(json.dumps(results))
    evaluator = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [float(value) for value in evaluator.stats]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_crowds_count_as_pycocotools_counts_them(
    coco: Callable[..., tuple[Path, Path]], tmp_path: Path, kind: str
) -> None:
    file, folder = coco(lambda content: content["annotations"][2].update(iscrowd=1))
    dataset = CocoDetection(file, folder)
    model = Noisy(dataset, 0.2, masks=True)
    scores = evaluation.average_precision(model, dataset, CPU)["boxes" if kind == "bbox" else "masks"]
    exact = [
        None if value < 0 else pytest.approx(value, abs=1e-12)
        for value in reference_scores(file, model, kind, tmp_path)
    ]
    assert list(scores.values()) == exact


def made_up(seed: int) -> tuple[list[tuple[int, int]], list[Any], list[Any]]:
    """Return sizes, objects and detections of images, with crowds, ties of scores, and images without any of these."""
    random = np.random.default_rng(seed)
    sizes = [(int(height), int(width)) for height, width in random.integers(20, 200, (30, 2))]
    annotations: list[Any] = []
    detections: list[Any] = []
    for image, (height, width) in enumerate(sizes):
        for _ in range(random.integers(0, 6)):
            left, top = int(random.integers(0, width - 8)), int(random.integers(0, height - 8))
            w, h = int(random.integers(4, width - left + 1)), int(random.integers(4, height - top + 1))
            mask = np.zeros((height, width), np.uint8, order="F")
            mask[top : top + h, left : left + w] = random.random((h, w)) > 0.2
            label = int(random.integers(1, 4))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": [left, top, w, h],
                 "area": float(w * h), "iscrowd": int(random.random() < 0.15), "segmentation": coco_mask.encode(mask)}
            )  # fmt: skip
            for _ in range(random.integers(0, 4)):
                shift = random.normal(size=4) * 2
                box = [left + shift[0], top + shift[1], max(1.0, w + shift[2]), max(1.0, h + shift[3])]
                other = np.asfortranarray(mask * (random.random(mask.shape) > 0.1).astype(np.uint8))
                detections.append(
                    {"image_id": image, "category_id": label if random.random() < 0.9 else 1, "bbox": box,
                     "score": round(random.random(), 1 + 5 * (seed % 2)), "segmentation": coco_mask.encode(other)}
                )  # fmt: skip
    return sizes, annotations, detections


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_pycocotools(seed: int, kind: Literal["bbox", "segm"]) -> None:
    sizes, annotations, detections = made_up(seed)
    objects = evaluation._ground_truth(list("abcd"), sizes, copy.deepcopy(annotations))
    own, classes, curves = evaluation._scores(objects, detections, kind)
    truth = COCO()
    truth.dataset = {
        "info": {}, "images": [{"id": image, "height": h, "width": w} for image, (h, w) in enumerate(sizes)],
        "annotations": annotations, "categories": [{"id": label, "name": str(label)} for label in (1, 2, 3, 4)],
    }  # fmt: skip
    truth.createIndex()
    kept = ["image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"]
    evaluator = COCOeval(truth, truth.loadRes([{name: one[name] for name in kept} for one in detections]), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    exact = [None if value < 0 else pytest.approx(float(value), abs=1e-12) for value in evaluator.stats]
    assert list(own.values()) == exact and 0.1 < evaluator.stats[0] < 0.9
    precision = evaluator.eval["precision"][:, :, :3, 0, -1]  # of the fourth class there is no object
    for name, rows in {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}.items():
        assert curves[name] == pytest.approx(precision[rows].mean(axis=(0, 2)).tolist(), abs=1e-12)
        assert np.mean(curves[name]) == pytest.approx(own[name], abs=1e-12) and len(curves[name]) == 101
    for number, score in enumerate(classes, start=1):
        evaluator.params.catIds = [number]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        alone = evaluator.stats[0]
        assert score == (None if alone < 0 else pytest.approx(alone, abs=1e-12))
    assert classes[3] is None  # of which there is no object


@real_data("bccd")
def test_real_annotations_score_as_pycocotools_scores_them(tmp_path: Path) -> None:
    file = SHARED / "bccd/annotations/val.json"
    dataset = CocoDetection(file, SHARED / "bccd/val")
    model = Noisy(dataset, 0.3, masks=False)
    scores = evaluation.average_precision(model, dataset, CPU)["boxes"]
    assert 0.05 < scores["AP"] < 0.95  # type: ignore[operator]
    exact = [None if value < 0 else value for value in reference_scores(file, model, "bbox", tmp_path)]
    assert list(scores.values()) == pytest.approx(exact, abs=1e-6)


def test_detections_leave_the_device_as_a_whole(coco: Callable[..., tuple[Path, Path]]) -> None:
    """Not number by number, each of which a GPU would be waited for."""
    answer = Noisy(CocoDetection(*coco()), 0, masks=True).answers[0]
    with Questions() as questions:
        first = detections._detections(answer, 7)[0]
    assert questions.asked == []
    assert (first["image_id"], first["category_id"]) == (7, int(answer["labels"][0]))
    assert first["score"] == float(answer["scores"][0])
    assert (coco_mask.decode(first["segmentation"]) == (answer["masks"][0, 0] > 0.5).numpy()).all()


def test_the_next_images_are_read_while_the_network_looks_at_one(coco: Callable[..., tuple[Path, Path]]) -> None:
    asked: list[str] = []

    class Noting(CocoDetection):
        def __getitem__(self, index: int) -> Any:
            asked.append(threading.current_thread().name)
            return super().__getitem__(index)

    dataset = CocoDetection(*coco())
    scores = evaluation.average_precision(Noisy(dataset, 0, masks=True), Noting(*coco()), CPU)
    assert scores["boxes"]["AP"] == pytest.approx(1)
    assert len(asked) == len(dataset) and len(set(asked)) == 1 and asked[0].startswith("images")


def test_top1_is_the_share_of_right_answers() -> None:
    class Parity(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(images[:, 0, 0, 0].long() % 2, 2).float()

    class Numbers:
        def __init__(self) -> None:
            self.classes = ["even", "odd"]
            self.digest = ""
            self.notes: list[str] = []

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.full((3, 2, 2), index, dtype=torch.uint8), int(index < 25) if index % 4 == 0 else index % 2

    assert evaluation.top1(Parity(), Numbers(), lambda image: image.float(), CPU) == 0.93
