"""Run the kernels of `eigendet.moments.fused` in Triton's interpreter, without a GPU, and print their worst errors."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is defined

import torch
from torch import Tensor

from eigendet.moments import fused
from eigendet.moments.covariance import Covariance, NonFiniteError
from tests.tapping import error, exact

SHAPES = [(1, 1, 1, 1), (3, 1, 5, 9), (16, 2, 7, 8), (17, 1, 11, 12), (33, 3, 5, 6), (65, 1, 1, 130), (130, 2, 4, 20)]


def drawn(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    mixed = torch.randn(shape[0], shape[0], generator=generator) / shape[0] ** 0.5
    samples = mixed @ torch.randn(shape[0], torch.Size(shape[1:]).numel(), generator=generator) + 3
    return samples.relu().view(shape)


def layouts(part: Tensor) -> list[Tensor]:
    """The same map, and parts of it, in memory of all kinds."""
    channels_last = part.movedim(0, -1).contiguous().movedim(-1, 0)
    images_first = part.transpose(0, 1).contiguous().transpose(0, 1)
    return [part, channels_last, images_first, images_first[..., ::2], images_first[:, :, :-2, 1:], part.mT]


def of_kernels() -> float:
    parts = [part for shape in SHAPES for part in layouts(drawn(shape)) if part.numel()]
    parts += [parts[9].half(), parts[9].bfloat16(), torch.full((5, 300), 1 / 3), drawn((4, 1500))]
    parts += [torch.where(drawn((1, 1500)) > 2, 0.7, drawn((4, 1500)))]  # one value in most positions
    return float(torch.tensor([fused._error(part) for part in parts]).max())  # NaN if there is one


def of_accumulators() -> float:
    """As on a GPU: nobody waits, and padding is left out."""
    fused.is_right = lambda device: True  # type: ignore[assignment]
    maps, sizes = drawn((20, 4, 9, 10)).transpose(0, 1), [(9, 10), (4, 7), (9, 1), (0, 3)]
    covariance, padded = Covariance(20), Covariance(20)
    covariance.update(maps)
    covariance.update(maps.contiguous(memory_format=torch.channels_last) * 2)
    padded.update(maps, sizes=sizes)
    rows = maps.movedim(1, -1).flatten(0, 2)
    real = [entry[:, :height, :width].flatten(1) for entry, (height, width) in zip(maps, sizes, strict=True)]
    assert covariance.count == 2 * len(rows) and padded.count == 90 + 28 + 9
    worst = error(covariance.covariance(), exact(torch.cat([rows, 2 * rows])))
    return max(worst, error(padded.covariance(), exact(torch.cat(real, 1).T)))


def refused() -> list[bool]:
    """Whether what is not finite, or has squares that overflow, leaves NaN, wherever it stands."""
    found = []
    for value in (torch.nan, torch.inf, -torch.inf, 1e30):
        samples = drawn((5, 1, 10, 30)).transpose(0, 1).clone()
        samples[0, 3, 7, 11] = value
        try:
            Covariance(5).update(samples)
            found.append(False)
        except NonFiniteError:
            found.append(True)
    return found


if __name__ == "__main__":
    kernels = of_kernels()
    print(json.dumps({"kernels": kernels, "accumulators": of_accumulators(), "refused": refused()}))
