"""Covariances in which every image has the same weight, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance, NonFiniteError, merged
from eigendet.observe import store
from eigendet.observe.merging import merge
from eigendet.observe.passes import covariances
from eigendet.observe.taps import tap

SIZES = [(9, 13), (4, 5), (1, 1), (7, 30)]


def images(seed: int = 0, channels: int = 6, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Tensor]:
    """Return maps (1, C, H, W) after an activation, whose means differ from image to image."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(1, channels, *size, generator=generator)
            + 5 * torch.rand(1, channels, 1, 1, generator=generator)
        ).relu()
        for size in sizes
    ]


def by_formula(maps: Sequence[Tensor], centered: bool) -> np.ndarray:
    """Mean over images of the mean over positions of F Fᵀ; centered, less the mean of means times itself."""
    flat = [own[0].flatten(1).double().numpy() for own in maps]
    raw = np.mean([own @ own.T / own.shape[1] for own in flat], axis=0)
    mean = np.mean([own.mean(1) for own in flat], axis=0)
    return raw - np.outer(mean, mean) if centered else raw


def close(found: Tensor, expected: np.ndarray) -> bool:
    return float(np.linalg.norm(found.numpy() - expected)) <= 1e-6 * float(np.linalg.norm(expected))


@pytest.mark.parametrize("centered", [True, False], ids=["centered", "raw"])
@pytest.mark.parametrize("channels", [1, 6, 70])
def test_it_is_the_formula(centered: bool, channels: int) -> None:
    maps, covariance = images(channels=channels), Covariance(channels)
    for own in maps:
        covariance.update(own, weighting="images")
    assert close(covariance.covariance(centered), by_formula(maps, centered))
    assert covariance.weight == pytest.approx(4) and covariance.count == sum(h * w for h, w in SIZES)


def test_a_padded_batch_is_its_images() -> None:
    maps = images()
    batch = torch.full((4, 6, 9, 30), 100.0)
    for entry, (own, (height, width)) in enumerate(zip(maps, SIZES, strict=True)):
        batch[entry, :, :height, :width] = own[0]
    for tensor, dim in ((batch, 1), (batch.movedim(1, -1), -1)):
        covariance = Covariance(6)
        covariance.update(tensor, dim, SIZES, weighting="images")
        assert close(covariance.covariance(False), by_formula(maps, False))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 8), (5, 6, 4, 3), (200, 6, 7, 7)])
def test_entries_of_one_size_are_as_positions(shape: tuple[int, ...]) -> None:
    tensor, alike, by_image = torch.rand(shape), Covariance(6), Covariance(6)
    alike.update(tensor)
    by_image.update(tensor, weighting="images")
    assert close(by_image.covariance(), alike.covariance().numpy()) and by_image.weight == pytest.approx(shape[0])


def test_parts_merge_resume_and_map_to_the_whole() -> None:
    maps = images(sizes=SIZES * 12)  # more chunks than are left pending
    parts = [Covariance(6) for _ in range(3)]
    for number, own in enumerate(maps):
        if number % 7 == 3:
            parts[number % 3] = Covariance.from_state_dict(parts[number % 3].state_dict())
        parts[number % 3].update(own, weighting="images")
    whole = merged(parts)
    assert close(whole.covariance(), by_formula(maps, True)) and whole.weight == pytest.approx(48)
    again = Covariance.from_moments(whole.count, whole.mean, whole.scatter, whole.weight)
    assert close(again.covariance(False), by_formula(maps, False))
    weight, bias = torch.rand(3, 6), torch.rand(3)
    mapped = [torch.einsum("oc,nchw->nohw", weight, own) + bias[:, None, None] for own in maps]
    assert close(whole.affine(weight, bias).covariance(), by_formula(mapped, True))


def test_sums_since_the_last_are_those_of_means() -> None:
    covariance = Covariance(6)
    for call, own in enumerate(images()):
        covariance.update(own, weighting="images")
        weight, total = covariance.take_sum()
        assert weight == pytest.approx(1), call
        assert torch.allclose(total, own.double().mean((0, 2, 3)), rtol=1e-6)


def test_an_image_that_is_all_padding_has_no_weight_and_one_with_nan_adds_nothing() -> None:
    covariance = Covariance(6)
    covariance.update(torch.rand(2, 6, 4, 4), sizes=[(0, 4), (4, 4)], weighting="images")
    assert covariance.weight == 1 and covariance.count == 16
    broken = torch.rand(2, 6, 4, 4)
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        covariance.update(broken, sizes=[(4, 4), (2, 3)], weighting="images")
    assert covariance.weight == 1 and covariance.count == 16


def network() -> nn.Sequential:
    """Return layers with maps that follow from others: by a convolution of one position, a norm and a stride."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 1, stride=2),
    ).eval()  # fmt: skip


PICTURES = [torch.rand(1, 3, *size) for size in ((16, 16), (8, 20), (30, 6), (12, 12))]


def outputs(model: nn.Sequential) -> dict[str, list[Tensor]]:
    """Return the output of every layer for each picture."""
    with torch.no_grad():
        return {str(layer): [model[: layer + 1](picture) for picture in PICTURES] for layer in range(len(model))}


@pytest.mark.parametrize("shortcuts", [True, False], ids=["shortcuts", "none"])
def test_taps_are_the_formula_whatever_follows_from_what(shortcuts: bool) -> None:
    model = network()
    expected = outputs(model)
    with torch.no_grad(), tap(model, ("conv", "norm", "act"), shortcuts=shortcuts, weighting="images") as taps:
        for picture in PICTURES:
            model(picture)
            taps.end_image()
    assert len(taps) == 6
    for one in taps.taps():
        own = expected[one.key.module]
        assert close(one.covariance.covariance(), by_formula(own, True)), one.key
        assert one.weighting == "images" and one.image_means is not None
        assert torch.allclose(one.image_means, torch.cat([m.double().mean((2, 3)) for m in own]), rtol=1e-5, atol=1e-6)


def test_a_file_says_it_and_shards_and_parts_are_the_whole(tmp_path: Path) -> None:
    model, files = network(), [tmp_path / f"{number}.h5" for number in range(4)]
    expected = outputs(model)
    for number, (file, picture) in enumerate(zip(files, PICTURES, strict=True)):
        found = covariances(model, [picture], ("conv", "act"), calibration=PICTURES[0], weighting="images")
        store.write_covariances(file, [(0, found)], {}, [number])
    merge(tmp_path / "all.h5", files[::-1], [0, 1, 0, 1])
    for record in store.read(tmp_path / "all.h5"):
        own = expected[record.key.module]
        assert record.weighting == "images" and record.weight == pytest.approx(4)
        assert close(torch.from_numpy(record.moment(centered=False)), by_formula(own, False))
        for without, left in zip(record.leaving_one_out(), ([0, 2], [1, 3]), strict=True):
            assert close(torch.from_numpy(without.moment(True)), by_formula([own[image] for image in left], True))
            assert without.weight == pytest.approx(2)
    unweighted = tmp_path / "positions.h5"
    store.write_covariances(unweighted, [(0, covariances(model, PICTURES[:1], ("conv", "act")))], {}, ["another"])
    with pytest.raises(UserError, match="weighting is 'positions', not 'images'"):
        merge(tmp_path / "both.h5", [files[0], unweighted])


def test_what_is_no_map_of_images_counts_by_its_first_dimension() -> None:
    torch.manual_seed(0)
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3).eval()
    shapes: dict[str, list[Tensor]] = {}
    layer = detector.roi_heads.box_head
    layer.register_forward_hook(lambda module, inputs, output: shapes.setdefault("regions", []).append(output))
    with torch.no_grad(), tap(detector, ("act", "linear", "output"), weighting="images") as taps:
        for size in ((64, 64), (64, 96)):
            detector([torch.rand(3, *size)])
    labels = {one.key.module: one.weighting for one in taps.taps()}
    assert labels["roi_heads.box_head"] == "entries" and labels["backbone.body.0.2"] == "images"
    own = torch.cat(shapes["regions"])
    found = taps["roi_heads.box_head"]
    assert found.weight == pytest.approx(len(own))
    assert close(found.covariance(False), (own.double().T @ own.double() / len(own)).numpy())
    assert taps["backbone.body.0.2"].weight == pytest.approx(2)


def test_other_words_are_refused() -> None:
    with (
        pytest.raises(UserError, match="weighting: got 'pixels'; expected one of positions, images"),
        tap(
            network(),
            weighting="pixels",  # type: ignore[arg-type]
        ),
    ):
        pass
