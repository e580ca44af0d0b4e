"""Every tap of detectors over a padded batch, against the plain definition in float64 on the very same pass.

The reference shares nothing with the library but the names: hooks of its own, padding cut by the definition (the pixel
at a position's corner belongs to the image), two passes over all samples in float64.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from eigendet.observe.keys import Point
from eigendet.observe.taps import Taps, tap
from tests.gpu.figures import Figure, error, guarded
from tests.gpu.networks import DETECTORS, canvas, convolving, detector, freeze_norms

POINTS: tuple[Point, ...] = ("conv", "linear", "norm", "act", "block", "fpn")
OBSERVED = (
    nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, FrozenBatchNorm2d, nn.ReLU, BasicBlock, Bottleneck,
    FeaturePyramidNetwork,
)  # fmt: skip
CONVOLUTIONS = {"ieee": "cuDNN set to float32", "tf32": "cuDNN set to TF32, its default"}
LIMIT = 1e-6


class Moments(NamedTuple):
    """Of all samples of a tap: their number and population covariance, (C, C) float64, None without samples."""

    samples: int
    covariance: Tensor | None


References = dict[tuple[str, int], Moments]  # by module path and call


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield for every detector and precision of its convolutions how far the worst tap is off."""
    for precision, how in CONVOLUTIONS.items():
        for name in DETECTORS:
            yield from guarded(f"{name}, {how}", compared(f"{name}, {how}", name, precision, device, small))


def compared(title: str, name: str, precision: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Yield the figures of one pass of one detector."""
    model = detector(name, device, small)
    if name == "Mask R-CNN":
        freeze_norms(model)
        _confide(model)
    with convolving(precision), torch.no_grad(), tap(model, POINTS) as taps, referring(model) as references:
        model(images(device, small))
    errors, wrong = apart(taps, references)
    worst = max(errors, key=errors.__getitem__)
    note = f"{worst}, of {len(errors)} with samples"
    yield Figure(f"{title}: worst error of a tap", errors[worst], limit=LIMIT, note=note)
    mistakes = f"{title}: taps that are missing, too many or miscounted"
    yield Figure(mistakes, len(wrong), limit=0, note="; ".join(wrong[:5]))
    yield Figure(f"{title}: taps", len(taps))


def images(device: torch.device, small: bool) -> list[Tensor]:
    """Return two images, one as high as the canvas and one as wide, so that both are padded."""
    height, width = canvas(small)
    sizes = [(height, width * 5 // 6 - 3), (height * 4 // 5 - 3, width)]
    return [torch.rand(3, *size, device=device) for size in sizes]


def _confide(model: Any) -> None:
    """Let the box head be sure of something in every region, or the mask head would see none."""
    scores = model.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        scores.weight *= 100
        scores.bias[0] = -1000  # of the background


@contextlib.contextmanager
def referring(model: nn.Module) -> Iterator[References]:
    """Take the moments of every observed module's outputs in a pass.

    The hooks are the process's: a module with hooks of its own has no shortcuts, which are to be tried as well.
    """
    paths = {module: path for path, module in model.named_modules()}
    calls: Counter[nn.Module] = Counter()
    references: References = {}
    batch: list[ImageList] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if module not in paths:
            return
        path, call = paths[module], calls[module]
        calls[module] += 1
        if path == "transform":
            batch.append(output[0])
        if isinstance(module, OBSERVED):
            padded = None if path.startswith("roi_heads.") else batch[-1]  # those see boxes
            for name, part in output.items() if isinstance(output, dict) else [(None, output)]:
                key = path if name is None else f"{path}[{name}]"
                references[key, call] = moments(rows(part, padded))

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield references
    finally:
        handle.remove()


def rows(feature_map: Tensor, batch: ImageList | None) -> Tensor:
    """Return all samples (P, C) of a map (N, C, ...) in float64, without padding if it is one of a batch of images."""
    if batch is None:
        return feature_map.movedim(1, -1).flatten(0, -2).double()
    height, width = feature_map.shape[-2:]
    canvas_height, canvas_width = batch.tensors.shape[-2:]
    real = []
    for entry, (image_height, image_width) in zip(feature_map, batch.image_sizes, strict=True):
        bottom = sum(row * canvas_height < image_height * height for row in range(height))
        right = sum(column * canvas_width < image_width * width for column in range(width))
        real.append(entry[:, :bottom, :right].flatten(1).T)
    return torch.cat(real).double()


def moments(samples: Tensor) -> Moments:
    """Return the moments of samples (P, C) by two passes."""
    if not len(samples):
        return Moments(0, None)
    centered = samples - samples.mean(0)
    return Moments(len(samples), centered.T @ centered / len(samples))


def apart(taps: Taps, references: References) -> tuple[dict[str, float], list[str]]:
    """Return the relative error of every tap that has samples, and what is wrong with names and counts in words."""
    errors: dict[str, float] = {}
    wrong: list[str] = []
    for observed in taps.taps():
        name = str(observed.key)
        reference = references.pop((observed.key.module, observed.key.call), None)
        if reference is None:
            wrong.append(f"{name} is not in the reference")
        elif (count := observed.covariance.count) != reference.samples:
            wrong.append(f"{name} has {count} samples instead of {reference.samples}")
        elif reference.covariance is not None:
            errors[name] = error(observed.covariance.covariance(), reference.covariance)
    wrong += [f"{path}#{call} has no tap" for path, call in references]
    return errors, wrong
