from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eigendet import config
from eigendet.config import Experiment
from eigendet.data.folders import Pair
from eigendet.data.survey import Classes, Detections, Range, Survey
from eigendet.runs import proposal
from eigendet.runs.proposal import CPU, GPU, Scale

CELLS = Detections(
    annotations=Path("cells/train.json"),
    folder=Path("cells/train"),
    classes={"red": 2400, "white": 200},
    images=205,
    empty=0,
    shorter=Range(480, 480, 480),
    longer=Range(4 / 3, 4 / 3, 4 / 3),
    boxes=Range(42, 100, 164),
    shares=Range(42 / 480, 100 / 480, 164 / 480),
    objects=Range(6, 14, 20),
    masks=False,
    opened=100,
)
NATURAL = Classes(Path("natural/train"), {"ant": 5000, "bee": 5000}, Range(64, 64, 64), 2)
CELLS_ALONE = Survey(Pair(CELLS, CELLS), None, [])
BOTH = Survey(Pair(CELLS, CELLS), Pair(NATURAL, NATURAL), ["old.json"])


def seen_as(**changes: Any) -> Detections:
    return replace(CELLS, **changes)


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (CELLS, 410),  # 8 epochs of 205 images in batches of 4
        (seen_as(images=20), 300),
        (seen_as(images=205, empty=45), 320),
        (seen_as(images=118_287), 500),
    ],
)
def test_steps_are_epochs_within_limits(data: Detections, steps: int) -> None:
    assert proposal.settings(Survey(Pair(data, data), None, []), CPU, "x")["training"]["steps"] == steps


@pytest.mark.parametrize(
    ("shorter", "ratio", "most", "sides"),
    [
        (480, 4 / 3, 192, (192, 256)),
        (480, 4 / 3, 800, (480, 640)),
        (416, 1.0, 800, (416, 416)),
        (1200, 1.5, 800, (800, 1216)),
        (128, 1.0, 192, (128, 128)),
        (28, 1.0, 192, (96, 96)),
        (100, 9.0, 192, (96, 192)),
    ],
)
def test_images_are_shrunk_to_what_a_device_bears_and_not_enlarged(
    shorter: float, ratio: float, most: int, sides: tuple[int, int]
) -> None:
    data = seen_as(shorter=Range(shorter, shorter, shorter), longer=Range(1, ratio, ratio))
    assert proposal.sides(data, most) == sides


@pytest.mark.parametrize(
    ("low", "high", "anchors"),
    [
        (0.0875, 0.342, [16, 24, 32, 48, 64]),
        (0.01, 0.9, [8, 16, 36, 80, 172]),  # the finest maps have cells of 4 pixels
        (0.5, 0.9, [32, 48, 76, 112, 172]),  # and anchors of no more than eight cells
        (0.1, 0.1, [20, 24, 32, 40, 48]),  # all boxes are alike
    ],
)
def test_anchors_go_from_the_smallest_boxes_to_the_largest(low: float, high: float, anchors: list[int]) -> None:
    assert proposal.anchor_sizes(seen_as(shares=Range(low, low, high)), 192) == anchors


@given(st.floats(1e-4, 1), st.floats(1, 1000), st.integers(96, 800))
def test_anchors_grow_from_level_to_level_whatever_the_boxes(low: float, ratio: float, side: int) -> None:
    anchors = proposal.anchor_sizes(seen_as(shares=Range(low, low, low * ratio)), side)
    assert len(anchors) == 5 and 8 <= anchors[0] <= 32
    assert all(small < large for small, large in pairwise(anchors))


@given(
    st.builds(
        seen_as,
        images=st.integers(2, 10**6),
        empty=st.just(1),
        shorter=st.builds(Range, *[st.floats(1, 1e5)] * 3),
        longer=st.builds(Range, *[st.floats(1, 100)] * 3),
        objects=st.builds(Range, *[st.floats(1, 1e4)] * 3),
    ),
    st.sampled_from([None, Pair(NATURAL, NATURAL)]),
    st.sampled_from([CPU, GPU]),
)
def test_settings_are_valid_and_in_order_whatever_the_data(
    data: Detections, classes: Pair[Classes] | None, scale: Scale
) -> None:
    values = proposal.settings(Survey(Pair(data, data), classes, []), scale, "x")
    experiment = config.parse(values)
    assert ("finetune" in experiment.arms) and experiment.covariance.images <= data.images
    assert list(values) == [key for key in Experiment.model_fields if key in values]


@pytest.mark.parametrize("survey", [CELLS_ALONE, BOTH], ids=["published weights", "class folders"])
def test_what_is_laid_over_for_a_gpu_makes_its_settings(survey: Survey, tmp_path: Path) -> None:
    small, large = (proposal.settings(survey, scale, "x") for scale in (CPU, GPU))
    files = tmp_path / "small.yaml", tmp_path / "gpu.yaml"
    for file, values in zip(files, (small, proposal.changes(small, large)), strict=True):
        file.write_text(yaml.safe_dump(values))
    assert config.load(files) == config.parse(large) != config.load(files[:1])


@pytest.mark.parametrize("survey", [CELLS_ALONE, BOTH], ids=["published weights", "class folders"])
def test_every_reason_stands_above_a_key(survey: Survey) -> None:
    values = proposal.settings(survey, CPU, "x")
    for path in proposal.reasons(survey, values):
        section: Any = values
        for key in path.split("."):
            section = section[key]


def test_reasons_give_the_figures_that_were_seen() -> None:
    said = proposal.reasons(CELLS_ALONE, proposal.settings(CELLS_ALONE, CPU, "x"))
    assert said["training.steps"].startswith("205 images in batches of 4, so 8 epochs")
    assert said["training.min_size"].startswith("images are 640x480 px (median)")
    assert said["detectors.faster_rcnn.anchor_sizes"].startswith("boxes of 42 to 164 px")
    assert "17 to 66 px at this min_size" in said["detectors.faster_rcnn.anchor_sizes"]
    assert "downloaded once" in said["backbones"] and "detectors" not in said


def test_the_way_to_leave_finetune_out_is_valid() -> None:
    values = proposal.settings(CELLS_ALONE, CPU, "x")
    *_, line = proposal.reasons(CELLS_ALONE, values)["backbones"].splitlines()
    assert list(config.parse(values | yaml.safe_load(line)).arms) == list(proposal.FROM_SCRATCH)


def test_masks_and_classes_without_boxes_are_told() -> None:
    data = seen_as(masks=True, classes={"red": 10, "none": 0}, empty=3)
    survey = Survey(Pair(data, CELLS), None, ["captions.json"])
    assert "mask_rcnn" in proposal.reasons(survey, proposal.settings(survey, CPU, "x"))["detectors"]
    lines = "\n".join(proposal.seen(survey))
    assert "205 images (3 without boxes), 10 boxes" in lines
    assert "classes without a box in train: none" in lines
    assert "left aside: captions.json" in lines
