"""A detector as a program of torch.export or ONNX, for images of one size.

torch.export follows a network once, for whatever image of that size will come. torchvision's detectors branch on how
many boxes are left, and go through masks one by one; while one is followed, four of their functions are replaced by
others that do not, with the same results.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils, roi_heads, transform
from torchvision.ops import boxes as box_operations
from torchvision.ops import nms, poolers, roi_align

from eigendet.errors import UserError, first_line

OUTPUTS = ("boxes", "labels", "scores", "masks")


class Program(nn.Module):
    """A detector of one image (3, H, W) in [0, 1], which gives a dict of boxes, labels, scores, and masks if any."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the detections in an image."""
        (detections,) = self.detector([image])
        return {name: detections[name] for name in OUTPUTS if name in detections}


def program_of(model: nn.Module, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """Follow a detector into a program for images of one size, and try it.

    Args:
        model: is called as torchvision's detectors are.
        size: height and width of the images, which the detector resizes as ever.

    Raises:
        UserError: an operation of it cannot be followed, or the program does something else.
    """
    eager, name = Program(model).eval(), type(model).__name__
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), traceable(), _quiet():
            expected = eager(image)
            program = torch.export.export(eager, (image,), strict=False)
            outputs = program.module()(image)
    except Exception as error:  # whatever torch.export, and operations under it, raise
        raise UserError(f"{name}: torch.export cannot follow it{_place(error)}: {first_line(error)}") from error
    for key, value in expected.items():
        if value.shape != outputs[key].shape or not torch.allclose(value, outputs[key], 1e-5, 1e-5):
            raise UserError(f"{name}: as a program of torch.export it gives other {key}; something in it is random.")
    return program


def onnx_of(program: torch.export.ExportedProgram, masks: bool = False) -> Any:
    """Translate a program into an ONNX model, a `torch.onnx.ONNXProgram`; it needs the package onnxscript.

    Args:
        program: of `program_of`.
        masks: whether it gives masks.

    Raises:
        UserError: ONNX lacks an operation.
    """
    try:
        with _quiet():
            return torch.onnx.export(program, (), dynamo=True, verbose=False, output_names=OUTPUTS[: 4 if masks else 3])
    except Exception as error:  # whatever the exporter raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(f"as ONNX it cannot be written: {first_line(cause)}") from error


def _place(error: BaseException) -> str:
    """Return the last line outside torch that was running, in words."""
    own = (str(Path(torch.__file__).parent), __file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints of a program that it cannot follow, and what it warns of in torchvision."""
    level, nowhere = logging.root.manager.disable, io.StringIO()
    with contextlib.ExitStack() as closing:
        closing.enter_context(warnings.catch_warnings())
        closing.enter_context(contextlib.redirect_stdout(nowhere))
        closing.enter_context(contextlib.redirect_stderr(nowhere))
        closing.callback(logging.disable, level)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Replace what branches on values in torchvision's detectors, in evaluation, while open; not thread-safe."""
    with (
        mock.patch.object(box_operations, "batched_nms", batched_nms),
        mock.patch.object(poolers, "_multiscale_roi_align", multiscale_roi_align),
        mock.patch.object(_utils.BoxCoder, "decode", _decode),
        mock.patch.object(transform, "paste_masks_in_image", paste_masks),
    ):
        yield


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that stay, by falling score, where those of one class alone compete.

    Classes are moved apart, as torchvision does with up to 1000 boxes. Two boxes outside of any image stay last and are
    left out: torchvision tells torch.export that at least two stay.

    Args:
        boxes: (n, 4), none of it negative.
        scores: (n,), none negative.
        idxs: (n,), classes.
        iou_threshold: from which overlap on the lower score goes.
    """
    outside = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    apart = idxs.to(boxes) * (torch.cat([boxes, outside]).max().clamp(min=0) + 1)
    moved = torch.cat([boxes + apart[:, None], outside])
    kept = nms(moved, torch.cat([scores, scores.new_full((2,), -1)]), iou_threshold)
    return kept[: kept.shape[0] - 2]


def multiscale_roi_align(
    x_filtered: Sequence[Tensor],
    boxes: list[Tensor],
    output_size: Sequence[int],
    sampling_ratio: int,
    scales: Sequence[float],
    mapper: Any,
) -> Tensor:
    """Pool every box from every level, and take the level that is its own; the arguments are torchvision's."""
    rois = poolers._convert_to_roi_format(boxes)
    pooled = [
        roi_align(features, rois, output_size, scale, sampling_ratio)
        for features, scale in zip(x_filtered, scales, strict=True)
    ]
    result = pooled[0]
    if len(pooled) > 1:
        levels = mapper(boxes)[:, None, None, None]
        for level, own in enumerate(pooled[1:], start=1):
            result = torch.where(levels == level, own, result)
    return result


def _decode(coder: Any, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Return boxes (n, k, 4) from those that they are relative to, and codes (n, 4 k)."""
    decoded: Tensor = coder.decode_single(rel_codes, torch.cat(boxes))
    return decoded.reshape(-1, rel_codes.shape[1] // 4, 4)


def paste_masks(masks: Tensor, boxes: Tensor, img_shape: tuple[int, int], padding: int = 1) -> Tensor:
    """Put masks (n, 1, M, M) where their boxes (n, 4) are in an image, (n, 1, H, W).

    Bilinear interpolation is a product with a matrix for rows and one for columns; outside its box these are zero.
    """
    padded, scale = roi_heads.expand_masks(masks, padding)
    left, top, right, bottom = roi_heads.expand_boxes(boxes, scale).to(torch.int64).to(boxes).unbind(1)
    cells = torch.arange(padded.shape[-1], dtype=boxes.dtype, device=boxes.device)

    def weights(first: Tensor, last: Tensor, length: int) -> Tensor:
        pixels = torch.arange(length, dtype=boxes.dtype, device=boxes.device) - first[:, None]
        extent = (last - first + 1).clamp(min=1)[:, None]
        place = ((pixels + 0.5) * (len(cells) / extent) - 0.5).clamp(0, len(cells) - 1)
        shares = (1 - (place[:, :, None] - cells).abs()).clamp(min=0)
        return shares * ((pixels >= 0) & (pixels < extent))[:, :, None]

    rows, columns = weights(top, bottom, img_shape[0]), weights(left, right, img_shape[1])
    return (rows @ padded[:, 0] @ columns.transpose(1, 2))[:, None]
