"""Which positions are padding, against counting the positions whose corner lies in the image."""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import RoIAlign

from eigendet.observe.padding import Canvas, canvas_in, region_paths

SIZES = [(16, 9), (7, 24), (1, 1), (10, 23)]


@pytest.mark.parametrize("canvas", [(16, 24), (33, 47)])
@pytest.mark.parametrize(("rows", "columns"), [(16, 24), (8, 12), (5, 7), (1, 1)])
def test_a_position_belongs_to_an_image_if_the_pixel_at_its_corner_does(
    canvas: tuple[int, int], rows: int, columns: int
) -> None:
    expected = [
        (
            sum(Fraction(row * canvas[0], rows) < height for row in range(rows)),
            sum(Fraction(column * canvas[1], columns) < width for column in range(columns)),
        )
        for height, width in SIZES
    ]
    for shape, channel_dim in [((4, 3, rows, columns), 1), ((4, rows, columns, 3), -1), ((4, rows, columns, 3), 3)]:
        assert Canvas.of(SIZES, canvas).real(torch.zeros(shape), channel_dim) == expected


def test_an_image_larger_than_the_canvas_has_no_more_positions_than_the_map() -> None:
    assert Canvas.of([(40, 90)], (32, 64)).real(torch.zeros(1, 3, 4, 8), 1) == [(4, 8)]


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 4), (2, 5, 4, 4, 4), (3, 5, 4, 4)])
def test_a_map_that_is_not_one_of_the_whole_batch_has_no_canvas(shape: tuple[int, ...]) -> None:
    assert Canvas.of([(8, 8), (4, 8)], (8, 8)).real(torch.zeros(shape), 1) is None


def test_a_canvas_is_read_from_what_torchvision_and_detectron2_return() -> None:
    images, sizes = torch.zeros(2, 3, 16, 24), [(16, 9), (7, 24)]
    expected = Canvas(((16, 9), (7, 24)), (16, 24))
    assert canvas_in(SimpleNamespace(tensors=images, image_sizes=sizes)) == expected
    assert canvas_in((SimpleNamespace(tensor=images, image_sizes=torch.tensor(sizes)), None)) == expected
    assert canvas_in(("boxes", SimpleNamespace(tensors=images, image_sizes=sizes))) == expected


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(2, 3, 16, 24),
        SimpleNamespace(tensors=torch.zeros(2, 3, 16, 24)),
        SimpleNamespace(tensors=torch.zeros(2, 3, 16, 24), image_sizes=None),
        SimpleNamespace(tensors=torch.zeros(3, 16, 24), image_sizes=[(16, 24)]),
        SimpleNamespace(tensors=[torch.zeros(3, 16, 24)], image_sizes=[(16, 24)]),
        SimpleNamespace(image_sizes=[(16, 24)]),
        (),
    ],
)
def test_other_outputs_describe_no_canvas(output: object) -> None:
    assert canvas_in(output) is None


def test_regions_are_what_comes_beside_and_below_a_pooling_of_boxes() -> None:
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    assert region_paths(detector) == ("roi_heads.",)
    nested = nn.Sequential(OrderedDict(head=nn.Sequential(OrderedDict(box=nn.Sequential(RoIAlign(2, 1.0, 0))))))
    assert region_paths(nested) == ("head.box.",)
    assert region_paths(nn.Sequential(nn.ReLU())) == ()
    assert region_paths(RoIAlign(2, 1.0, 0)) == ()
