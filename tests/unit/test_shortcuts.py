"""Moments that follow from those of other maps are computed, and equal what accumulating them gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models import resnet50

from eigendet.errors import UserError
from eigendet.sections import Point
from eigendet.taps import tap
from tests.tapping import ALL, block_with_statistics, error, exact


@pytest.mark.parametrize("points", [ALL, ("conv",), ("norm", "act"), ("conv", "block"), ("block",)])
def test_shortcuts_change_nothing_but_the_work(points: tuple[Point, ...]) -> None:
    model = nn.Sequential(block_with_statistics(), nn.Conv2d(16, 24, 1, stride=2), nn.ReLU(), norm_and_conv(24)).eval()
    batches = [torch.randn(2, 16, 9, 9) + 1 for _ in range(3)]
    with torch.no_grad(), tap(model, points) as taps, tap(model, points, shortcuts=False) as direct:
        for batch in batches:
            model(batch)
    assert list(taps) == list(direct)
    less = sum(channels**2 for channels, _ in taps.roots().values())
    assert less < sum(channels**2 for channels, _ in direct.roots().values()) or points in [("norm", "act"), ("block",)]
    for key in taps:
        assert taps[key].count == direct[key].count
        assert error(taps[key].covariance(), direct[key].covariance()) < 1e-6, key
        torch.testing.assert_close(taps[key].mean, direct[key].mean, rtol=1e-5, atol=1e-6)


def norm_and_conv(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * channels, 1, stride=2), nn.Sigmoid())


def test_resnet50_needs_accumulators_for_less_than_half_of_its_taps() -> None:
    model = resnet50(weights=None).eval()
    with torch.no_grad(), tap(model, ("conv", "norm", "act", "block"), measure=True) as taps:
        model(torch.randn(1, 3, 64, 64))
    assert len(taps) == 53 + 53 + 49 + 16
    assert len(taps.roots()) == 70
    accumulated = sum(channels**2 for channels, _ in taps.roots().values())
    assert accumulated < 0.3 * sum(covariance.channels**2 for covariance in taps.values())


def test_a_map_that_nearly_cancels_its_input_is_accumulated_itself() -> None:
    torch.manual_seed(0)
    direction = torch.linalg.qr(torch.randn(16, 16))[0][:, :1]
    plain, cancelling = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 24, 1)
    with torch.no_grad():
        across = torch.eye(16) - (1 - 1e-3) * direction @ direction.T  # passes a thousandth of that direction
        cancelling.weight.copy_((plain.weight.flatten(1) @ across)[:, :, None, None])
    images = torch.randn(2, 16, 20, 20) + 300 * direction.view(1, 16, 1, 1) * torch.randn(2, 1, 20, 20)
    for layer, roots in ((plain, ["#0:input"]), (cancelling, ["#0:conv"])):
        with torch.no_grad(), tap(layer, "conv") as taps:
            output = layer(images)
        assert list(map(str, taps.roots())) == roots
        assert error(taps["#0:conv"].covariance(), exact(output)) < 1e-6


def test_weights_that_change_between_passes_turn_shortcuts_into_accumulators() -> None:
    block = block_with_statistics().train()
    optimizer = torch.optim.SGD(block.parameters(), 0.5)
    batches = [torch.randn(2, 16, 9, 9) for _ in range(4)]
    with tap(block, ALL) as taps, tap(block, ALL, shortcuts=False) as direct:
        for batch in batches:
            optimizer.zero_grad()
            block(batch).square().mean().backward()
            optimizer.step()
    for key in taps:
        assert error(taps[key].covariance(), direct[key].covariance()) < 1e-6, key


def test_weights_changed_behind_autograds_back_are_refused() -> None:
    layer = nn.Conv2d(4, 8, 1)
    with (
        pytest.raises(UserError, match=r"#0:conv: the weights of its layer were changed through `.data`"),
        tap(layer, "conv"),
    ):
        layer(torch.randn(1, 4, 3, 3))
        layer.weight.data.mul_(2)
        layer(torch.randn(1, 4, 3, 3))


def test_layers_that_are_not_what_they_seem_are_accumulated() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.conv2d(images, self.weight / self.weight.std(), self.bias)

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv = nn.ReLU(), nn.Conv2d(4, 8, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(self.act(images).mul_(3))

    hooked = nn.Conv2d(4, 8, 1)
    hooked.register_forward_pre_hook(lambda module, inputs: inputs[0].relu())
    for model in (Standardised(4, 8, 1), parametrizations.weight_norm(nn.Conv2d(4, 8, 1)), hooked, InPlace()):
        images = torch.randn(2, 4, 6, 6)
        with torch.no_grad(), tap(model, ("act", "conv")) as taps:
            output = model(images)
        assert error(list(taps.values())[-1].covariance(), exact(output)) < 1e-6


def test_a_model_that_takes_another_path_is_refused_with_the_way_out() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv, self.skip = nn.ReLU(), nn.Conv2d(4, 8, 1), False

        def forward(self, images: Tensor) -> Tensor:
            return self.act(images) if self.skip else self.conv(self.act(images))

    model, images = Skipping(), torch.randn(1, 4, 3, 3)
    with (
        pytest.raises(UserError, match=r"conv#0:conv: .* a layer was left out .* Give shortcuts=False"),
        tap(model, ALL),
    ):
        model(images)
        model.skip = True
        model(images)
    model.skip = False
    with tap(model, ALL, shortcuts=False) as taps:
        model(images)
        model.skip = True
        model(images)
    assert [covariance.count for covariance in taps.values()] == [18, 9]


def test_inference_mode_is_as_good_only_without_shortcuts() -> None:
    block = block_with_statistics()
    images = torch.randn(2, 16, 5, 5)
    with torch.inference_mode(), tap(block, ALL) as taps:
        output = block(images)
    assert error(taps["#0:block"].covariance(), exact(output.clone())) < 1e-6
    assert len(taps.roots()) == len(taps)
