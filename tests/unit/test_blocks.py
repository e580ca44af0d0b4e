"""Today's building blocks: resized in every layer, in part with the true reason, and never with wrong costs."""

from __future__ import annotations

import pytest

from eigendet import channels
from tests import odd_blocks, odd_layers  # noqa: F401, they note themselves
from tests.blocks import BLOCKS
from tests.judging import judge

# What keeps its width, of those that are not resized in every layer, and why.
PART = {
    "heads_by_the_library": (
        {"1.attention.in_proj_weight", "1.attention.out_proj", "1.norm", "1.mlp.2", "0.0", "0.1"},
        "1.attention.in_proj_weight has values of its own",
    ),
    "upsampling_by_content": ({"1.kernels"}, "1 keeps its sizes (Attempting to broadcast a dimension of length"),
    "values_at_points": ({"1.points"}, "coordinates of 'grid_sampler_2d' in 1"),
    "deformed": ({"1.offsets", "0.0", "0.1"}, "'deform_conv2d' in 1.deform"),
    "parameters_of_pairs": ({"1.read"}, "1.read has parameters that are not one for each channel"),
    "positions": ({"1.embedding", "0.0", "0.1"}, "1.embedding has values of its own"),
    "mixture_of_kernels": (
        {"1.mix@5", "1.mix.kernels", "1.mix.scores", "0.0", "0.1"},
        "weights of a convolution that are not a layer's",
    ),
    "encoder": (
        {"0.0", "0.1"}
        | {f"1.encoder.layers.{n}.{own}" for n in (0, 1) for own in ("norm1", "norm2", "linear2")}
        | {f"1.encoder.layers.{n}.self_attn.{own}" for n in (0, 1) for own in ("in_proj_weight", "out_proj")},
        "1.encoder.layers.0.self_attn.in_proj_weight has values of its own",
    ),
    "scores_of_neighbors": ({"1.span"}, "1 keeps its sizes (shape "),
    "mixed_positions": ({"1.down"}, "a product of more than two widths in 1.down"),
    "recurrent": ({"1.rows.weight_ih_l0", "0.0", "0.1"}, "1.rows.weight_ih_l0 has values of its own"),
    "kernels_of_two_maps": (
        {"1.scale", "1.kernels.kernels", "1.kernels@4", "0.0", "0.1"},
        "weights of a convolution that are not a layer's",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_resized_with_the_costs_predicted_or_keeps_its_width_and_says_why(name: str) -> None:
    verdict = judge(BLOCKS[name])
    layers, reason = PART.get(name, (set(), ""))
    assert (verdict.word, verdict.detail) == ("part" if layers else "whole", verdict.detail)
    assert set(verdict.kept) == layers
    assert reason in verdict.detail


def test_classes_of_pixels_and_numbers_of_boxes_are_outputs() -> None:
    pixels, boxes = (channels.trace(BLOCKS[name], (64, 64)) for name in ("scores_of_pixels", "boxes"))
    assert pixels.fixed == {"classes": "an output of the network, a number for each class, at every pixel"}
    assert boxes.fixed == {"1.out": "an output of the network, a number for each class"}


def test_reasons_are_printed_once_and_not_for_each_layer() -> None:
    traced = channels.trace(BLOCKS["heads_by_the_library"], (64, 64))
    kept = [line for line in channels.table(traced, traced.widths).splitlines() if line.startswith("kept: ")]
    assert len(kept) == 1 and kept[0].startswith("kept: 0.0, 0.1, 1.norm, ") and "in_proj_weight has values" in kept[0]


def test_no_block_is_noted_twice_and_those_of_a_part_exist() -> None:
    assert PART.keys() < BLOCKS.keys() and len(BLOCKS) >= 45
