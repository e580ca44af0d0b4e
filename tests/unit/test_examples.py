"""A few images with what is detected there: which, how small, and how the page shows them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from torch import Tensor

from eigendet import files
from eigendet.data import images
from eigendet.data.segmentations import decoded
from eigendet.errors import UserError
from eigendet.report import examples as shown
from eigendet.report import results
from eigendet.report.page import _page, write_page
from eigendet.report.records import CONFIDENT, FEW, MOST
from eigendet.runs import examples
from eigendet.runs.detections import Annotation, Detected, Seen
from tests.simulated import simulate


class Pictures:
    """Images as a data set, of which nothing else is asked."""

    def __init__(self, pictures: list[Tensor]) -> None:
        self.pictures = pictures

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.pictures[index], None


def annotation(image: int, box: list[float], **changes: Any) -> Annotation:
    plain: Any = {"id": 1, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    return plain | changes


def of(picture: Tensor, annotations: list[Annotation], detections: list[Detected]) -> examples.Example:
    """The example of one image that has these objects and detections."""
    seen = Seen(["cat", "dog"], [(picture.shape[1], picture.shape[2])], annotations, detections)
    (example,) = examples.examples(Pictures([picture]), seen)  # type: ignore[arg-type]
    return example


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 87])
def test_images_are_evenly_spread_among_those_with_objects_whatever_was_detected(count: int) -> None:
    annotations = [annotation(3 * image, [0, 0, 1, 1]) for image in range(count) for _ in range(image % 3 + 1)]
    crowd = [annotation(3 * image + 1, [0, 0, 1, 1], iscrowd=1) for image in range(count)]
    seen = Seen(["cat"], [(8, 8)] * 3 * count, annotations + crowd, [])
    chosen = examples.chosen(seen)
    assert len(chosen) == min(count, examples.IMAGES) and all(image % 3 == 0 for image in chosen)
    assert len({later - earlier for earlier, later in itertools.pairwise(chosen)}) <= 2
    detected: Detected = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [0, 0, 1, 1]}
    assert examples.chosen(seen._replace(detections=[detected])) == chosen


def test_boxes_and_masks_are_in_the_pixels_of_the_picture() -> None:
    mask = np.zeros((400, 1000), np.uint8, order="F")
    mask[100:300, 500:900] = 1
    rle = coco_mask.encode(mask)
    truth = annotation(0, [500.0, 100.0, 400.0, 200.0], category_id=2, segmentation=rle)
    detected: Detected = {"image_id": 0, "category_id": 2, "score": 0.98765, "bbox": [0.0, 0.0, 1000.0, 400.0],
                          "segmentation": rle}  # fmt: skip
    example = of(torch.zeros(3, 400, 1000, dtype=torch.uint8), [truth], [detected])
    assert (example["width"], example["height"]) == (320, 128)
    (object_,), (found,) = example["truth"], example["detections"]
    assert object_["name"] == found["name"] == "dog" and found["score"] == 0.988
    assert object_["box"] == [160, 32, 128, 64] and found["box"] == [0, 0, 320, 128]
    pixels = decoded(object_["mask"]["counts"], object_["mask"]["size"])
    assert pixels.shape == (128, 320) and pixels.sum() == 128 * 64 and pixels[32:96, 160:288].all()


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.9, 0.4, 0.5], [0.9, 0.5]),
        ([0.1, 0.3, 0.2, 0.4], [0.4, 0.3, 0.2]),
        ([], []),
        ([0.49], [0.49]),
        ([0.99] * 50, [0.99] * MOST),
    ],
)
def test_the_best_detections_are_kept(scores: list[float], kept: list[float]) -> None:
    detections: list[Detected] = [
        {"image_id": 0, "category_id": 1, "score": score, "bbox": [0, 0, 4, 4]} for score in scores
    ]
    example = of(torch.zeros(3, 8, 8, dtype=torch.uint8), [annotation(0, [0, 0, 4, 4])], detections)
    assert [thing["score"] for thing in example["detections"]] == kept
    assert (CONFIDENT, FEW) == (0.5, 3)


def test_what_is_not_finite_is_not_shown() -> None:
    detections: list[Detected] = [
        {"image_id": 0, "category_id": 1, "score": score, "bbox": [left, 0, 4, 4]}
        for score, left in [(math.nan, 0.0), (0.9, math.inf), (7.0, 1.0)]
    ]
    example = of(torch.zeros(3, 8, 8, dtype=torch.uint8), [annotation(0, [0, 0, 4, 4])], detections)
    assert [thing["score"] for thing in example["detections"]] == [7.0]


def test_the_largest_objects_are_kept_and_all_are_counted() -> None:
    objects = [annotation(0, [0, 0, 1.0, side]) for side in range(1, 101)]
    example = of(torch.zeros(3, 100, 100, dtype=torch.uint8), objects, [])
    assert example["objects"] == 100
    assert [thing["box"][3] for thing in example["truth"]] == list(range(100, 100 - MOST, -1))


MODES = ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"]


@pytest.mark.parametrize("mode", MODES)
def test_every_image_that_can_be_read_has_a_picture(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    file = tmp_path / ("a.tif" if mode in ("I;16", "CMYK") else "a.png")
    image.save(file)
    picture = images.decode(file, pixel_range=(0, 65535))
    example = of(picture, [annotation(0, [0, 0, 4, 4])], [])
    jpeg = Image.open(io.BytesIO(base64.b64decode(example["picture"])))
    assert jpeg.format == "JPEG" and jpeg.size == (60, 40) and jpeg.mode == "RGB"
    assert abs(np.asarray(jpeg, float).mean() - picture.numpy().mean()) < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 2), (6000, 4000)])
def test_pictures_of_any_shape_are_small(size: tuple[int, int]) -> None:
    example = of(torch.zeros(3, *size, dtype=torch.uint8), [annotation(0, [0, 0, 1, 1])], [])
    assert max(example["width"], example["height"]) <= examples.SIDE
    assert min(example["width"], example["height"]) >= 1 and math.isfinite(example["truth"][0]["box"][2])


def test_a_mask_of_noise_takes_few_letters_and_an_empty_one_is_none() -> None:
    noise = (np.random.default_rng(0).random((500, 500)) > 0.5).astype(np.uint8)
    masks = [noise, np.zeros((500, 500), np.uint8)]
    objects = [annotation(0, [0, 0, 500, 500 - place], segmentation=coco_mask.encode(np.asfortranarray(mask)))
               for place, mask in enumerate(masks)]  # fmt: skip
    first, second = of(torch.zeros(3, 500, 500, dtype=torch.uint8), objects, [])["truth"]
    assert len(first["mask"]["counts"]) <= examples.LETTERS and "mask" not in second


def noisy(images_: int, boxes: int) -> list[examples.Example]:
    """The heaviest examples there can be: noise of 500 by 500, with as many detections and masks as are kept."""
    random = np.random.default_rng(0)
    annotations, detections = [], []
    pictures = [torch.from_numpy(random.integers(0, 256, (3, 500, 500), dtype=np.uint8)) for _ in range(images_)]
    for image in range(images_):
        for place in range(boxes):
            mask = np.zeros((500, 500), np.uint8, order="F")
            mask[5 * place : 5 * place + 200, 5 * place : 5 * place + 200] = np.kron(
                random.random((10, 10)) > 0.3, np.ones((20, 20))
            )
            thing: Any = annotation(
                image, [5.0 * place, 5.0 * place, 200.0, 200.0], segmentation=coco_mask.encode(mask)
            )
            annotations.append(thing)
            detections.append(thing | {"score": 0.5 + random.random() / 2})
    seen = Seen(["a class with a rather long name"], [(500, 500)] * images_, annotations, detections)
    return examples.examples(Pictures(pictures), seen)  # type: ignore[arg-type]


def test_the_page_of_twenty_arms_with_all_there_can_be_stays_below_ten_megabytes(tmp_path: Path) -> None:
    arms = [f"arm_{number}" for number in range(20)]
    simulate(tmp_path, arms, seeds=(0,), layers=2, channels=32)
    heaviest = noisy(examples.IMAGES, MOST + 5)
    assert all(len(example["detections"]) == len(example["truth"]) == MOST for example in heaviest)
    curve = np.linspace(1, 0, 101).round(4).tolist()
    overlaps = {"AP": curve, "AP50": curve, "AP75": curve}
    steps = 20 * np.arange(1, 13_501)
    terms = {f"loss_{number}": np.random.default_rng(number).random(13_500) for number in range(6)}
    log = pd.DataFrame({"step": steps, "loss": sum(terms.values()), **terms}).to_csv(index=False)
    for arm in arms:
        file = tmp_path / f"evaluation/{arm}/tiny/rcnn/seed_0.json"
        content = json.loads(file.read_text()) | {"classes": {"a class with a rather long name": 0.5}, "data": "d"}
        content |= {"curves": {"boxes": overlaps, "masks": overlaps}, "examples": heaviest}
        files.write_json(file, content)
        assert file.stat().st_size < 1e6
        (tmp_path / f"runs/{arm}/tiny/rcnn/seed_0/log.csv").write_text(log)
    page = _page(results.read_results(tmp_path))
    assert page.count('role="img"><title>Image ') == 21 * examples.IMAGES
    assert page.count("<path d=") >= 21 * examples.IMAGES * MOST
    assert 2e6 < len(page.encode()) < 10e6


HOSTILE = ["</svg><script>alert(1)</script>", '" onload="x', "\u2028\x00{{ x }}", "名" * 300, " "]


def with_examples(folder: Path, arms: tuple[str, ...] = ("scratch", "mine"), **changes: Any) -> Any:
    """Write results whose evaluations hold an example; returns the experiment."""
    experiment = simulate(folder, arms, seeds=(0, 1), layers=1, channels=4)
    (example,) = noisy(1, 2)
    for place, name in enumerate(HOSTILE):
        example["truth"].append({"name": name, "box": [4.0 * place, 200.0, 8.0, 9.0]})
    for file in (folder / "evaluation").rglob("*.json"):
        content = json.loads(file.read_text())
        files.write_json(file, content | {"examples": [{**example, **changes}], "data": "d", "images": 9})
    return experiment


def test_the_page_shows_objects_beside_detections_and_escapes_names(tmp_path: Path) -> None:
    with_examples(tmp_path)
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert (
        'id="examples"' in page
        and page.count('role="img"><title>Image 1, ') == 3
        and page.count("data:image/jpeg;base64,") == 1
    )
    assert page.count('<use href="#image-1"/>') == 3 and "alert(1)</script>" not in page and '" onload="x' not in page
    assert "<title>Image 1, scratch</title>" in page and "&lt;/svg&gt;&lt;script" in page
    assert "evenly spread among those that have objects" in page


def test_an_arm_that_was_evaluated_on_other_images_is_left_out_and_said(tmp_path: Path) -> None:
    with_examples(tmp_path)
    file = tmp_path / "evaluation/mine/tiny/rcnn/seed_0.json"
    files.write_json(file, json.loads(file.read_text()) | {"data": "other"})
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count('role="img"><title>Image 1, ') == 2
        and "mine was evaluated on other images, and is not shown." in page
    )


def test_evaluations_of_earlier_versions_have_none(tmp_path: Path) -> None:
    simulate(tmp_path, ("scratch", "mine"), seeds=(0,), layers=1, channels=4)
    write_page(tmp_path)
    assert 'id="examples"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"picture": '"><script>'},
        {"picture": ""},
        {"width": 0},
        {"width": 10**9},
        {"truth": [{"name": "cat", "box": [0, 0, 1]}]},
        {"truth": [{"name": "cat", "box": [0, 0, 1, float("nan")]}]},
        {"detections": [{"name": 3, "box": [0, 0, 1, 1], "score": 0.5}]},
        {"detections": [{"name": "cat", "box": [0, 0, 1, 1], "score": float("inf")}]},
        {"detections": [{"name": "cat", "box": [0, 0, 1, 1], "mask": {"size": [9, 9], "counts": "zz"}}]},
        {"detections": [{"name": "cat", "box": [0, 0, 1, 1], "mask": {"size": [10**6, 10**6], "counts": "0"}}]},
    ],
    ids=str,
)
def test_examples_that_cannot_be_so_are_refused_with_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    with_examples(tmp_path, **changes)
    with pytest.raises(UserError, match=r"seed_0\.json: examples\.0\.") as refused:
        write_page(tmp_path)
    assert "\n" not in str(refused.value)


def test_no_label_covers_another(tmp_path: Path) -> None:
    experiment = with_examples(tmp_path)
    (pictures,) = shown.read(tmp_path, experiment).values()
    for panel in pictures.shown[0].panels:
        areas = [(*box.label, shown.LETTER * len(box.text)) for box in panel.boxes if box.label]
        assert areas
        for place, (x, y, length) in enumerate(areas):
            for other_x, other_y, other in areas[:place]:
                assert abs(y - other_y) >= shown.LINE - 1 or x >= other_x + other - 1 or other_x >= x + length - 1
