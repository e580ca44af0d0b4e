"""What a plugin gives and its contract does not allow, in the words that its author reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from eigendet.data.checks import check_dataset, check_sample
from eigendet.data.samples import Colors, Rectangles
from eigendet.errors import UserError
from eigendet.networks import checks

FOUND = {"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((), r"gave a tuple of 0 for 1 images; expected a list with a dict for each"),
        ([FOUND, FOUND], r"gave a list of 2 for 1 images"),
        ([{}], r"gave a dict with nothing in it for an image; expected a dict of boxes, labels and scores"),
        ([{"boxes": FOUND["boxes"]}], r"gave a dict with boxes for an image"),
        ([FOUND | {"scores": [0.5]}], r"scores of an image are a list of 1; expected a tensor"),
        ([FOUND | {"scores": torch.ones(1, 1)}], r"scores of 1 detections are \(1, 1\); expected \(1,\)"),
        (
            [FOUND | {"masks": torch.ones(1, 1, 9, 20)}],
            r"masks of 1 detections are \(1, 1, 9, 20\); expected \(1, 1, 10",
        ),
        ([FOUND | {"labels": torch.ones(1)}], r"labels are torch.float32; expected integers"),
        ([FOUND | {"labels": torch.tensor([0])}], r"labels are from 0 to 0; expected 1 to 3, since 0 is background"),
        ([FOUND | {"labels": torch.tensor([4])}], r"labels are from 4 to 4"),
        ([FOUND | {"scores": torch.tensor([1.5])}], r"scores reach from 1.5 to 1.5; expected 0 to 1"),
        ([FOUND | {"scores": torch.tensor([torch.nan])}], r"scores reach from nan to nan"),
        ([FOUND | {"boxes": torch.tensor([[9.0, 2, 2, 9]])}], r"a box is \[9.0, 2.0, 2.0, 9.0\]; expected left, top"),
        ([FOUND | {"boxes": torch.tensor([[2.0, 2, 9, 11]])}], r"boxes reach from 2.0 to 11.0 in an image of 20x10"),
        ([FOUND | {"boxes": torch.tensor([[-1.0, 2, 9, 9]])}], r"boxes reach from -1.0 to 9.0 in an image of 20x10"),
    ],
)
def test_detections_that_no_detector_may_give_are_named(found: Any, message: str) -> None:
    checks.check_detections([FOUND], [(10, 20)], 3, "mine")
    checks.check_detections([{key: value[:0] for key, value in FOUND.items()}], [(10, 20)], 3, "mine")
    with pytest.raises(UserError, match=f"^mine: {message}"):
        checks.check_detections(found, [(10, 20)], 3, "mine")


class Edited(Rectangles):
    """Rectangles with something changed in the first image or what is said of it."""

    def __init__(self, edit: Callable[[Any], Any]) -> None:
        super().__init__(32)
        self.edit = edit

    def __getitem__(self, index: int) -> Any:
        return self.edit(super().__getitem__(index))


def with_target(**changes: Any) -> Callable[[Any], Any]:
    return lambda sample: (sample[0], sample[1] | changes)


OUTSIDE = torch.tensor([[0.0, 0, 33, 5], [0, 0, 5, 5]])
FLAT = torch.tensor([[4.0, 4, 4, 5], [0, 0, 5, 5]])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda sample: (sample[0].float(), sample[1]),
            r"is a tensor \(3, 32, 32\) of float32; expected a tensor \(3, H",
        ),
        (lambda sample: (sample[0][:1], sample[1]), r"is a tensor \(1, 32, 32\) of uint8"),
        (lambda sample: (sample[0].numpy(), sample[1]), r"is ndarray"),
        (lambda sample: (sample[0][:, :20], sample[1]), r": the image is 32x20 pixels; its annotations say 32x32"),
        (lambda sample: (sample[0], {"boxes": sample[1]["boxes"]}), r"has no 'area'; expected what"),
        (
            with_target(crowd=torch.tensor([True, False])),
            r": objects\(0\) is 2, which is not the number of its objects",
        ),
        (with_target(boxes=OUTSIDE), r"has a box outside of it, or without area"),
        (with_target(boxes=FLAT), r"has a box outside of it, or without area"),
        (with_target(labels=torch.tensor([1, 4])), r"has a label outside of 1 to 3"),
        (with_target(labels=torch.tensor([0, 1])), r"has a label outside of 1 to 3"),
    ],
)
def test_samples_that_are_not_what_their_data_set_says_are_named(edit: Callable[[Any], Any], message: str) -> None:
    assert check_sample(Rectangles(32), 0, "mine") == 2
    with pytest.raises(UserError, match=rf"^mine: image 0\s?{message}"):
        check_sample(Edited(edit), 0, "mine")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_named(label: int) -> None:
    class Labelled(Colors):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], label

    assert check_sample(Colors(8), 0, "mine") == 0
    with pytest.raises(UserError, match=f"^mine: image 0 has the label {label}; expected 0 to 2"):
        check_sample(Labelled(8), 0, "mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, r"has 4 images of 0 classes"),
        ({"size": lambda index: (8, 8)}, r"has only one of 'size' and 'objects'"),
        ({"objects": lambda index: 1}, r"has only one of 'size' and 'objects'"),
    ],
)
def test_data_sets_that_know_too_little_are_named(changes: dict[str, Any], message: str) -> None:
    data: Any = Colors(8)
    check_dataset(data, "mine")
    for name, value in changes.items():
        setattr(data, name, value)
    with pytest.raises(UserError, match=f"^mine: {message}"):
        check_dataset(data, "mine")


def test_what_is_no_data_set_is_named() -> None:
    with pytest.raises(UserError, match=r"^mine: gave a list of 2 without 'classes'; see eigendet.data.datasets"):
        check_dataset([1, 2], "mine")
