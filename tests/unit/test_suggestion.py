from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from eigendet import channels, suggest_widths
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError
from eigendet.observe import store
from eigendet.observe.taps import tap
from eigendet.spectra import tables
from eigendet.spectra.spectrum import write_spectra
from eigendet.widths import derivation
from eigendet.widths.allocation import Budget
from eigendet.widths.dimensions import group_spectra

BUILD = partial(models.resnet18, num_classes=10)
MODEL = BUILD()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, 48, 64, generator=generator) for _ in range(count)]


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = BUILD()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for images in batches():
        model(images).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("macs", [0.4, 1.0])
def test_widths_are_those_of_the_workflow_stages_with_default_settings(macs: float, tmp_path: Path) -> None:
    model = trained()
    suggested = suggest_widths(model, batches(), macs, build=BUILD)
    model.eval()
    with torch.no_grad(), tap(model, WidthSettings().point) as taps:
        for images in batches():
            model(images)
    run = {"arm": "scratch", "backbone": "b", "detector": "d", "seed": 0}
    provenance = {"run": run, "experiment": "e", "definition": None, "settings": "s", "probe": {"data": "d"}}
    store.write_covariances(tmp_path / "c.h5", [(5, taps.taps())], provenance)
    write_spectra(tmp_path / "c.h5", tmp_path / "spectra")
    table, _ = tables.read_run(tmp_path / "spectra", "eigenvalues")
    traced, settings = channels.trace(BUILD, (48, 64)), WidthSettings(macs=macs)
    spectra, budget = group_spectra(table, traced, settings), Budget.of(traced, traced.widths, settings)
    widths, target = derivation.allocate(budget, spectra, settings)
    assert suggested.widths == widths
    assert suggested.dimensions == pytest.approx(spectra.dimensions(settings), rel=1e-6)
    assert suggested.bound == budget.binding(widths, target)
    assert macs - 0.02 < suggested.macs.share <= macs


def test_the_result_is_built_with_exactly_the_parameters_it_says() -> None:
    suggested = suggest_widths(trained(), batches(), 0.5, build=BUILD)
    assert suggested.reference == suggested.channels.widths and suggested.widths != suggested.reference
    narrow = channels.rebuild(BUILD, suggested.channels, suggested.widths)
    assert sum(parameter.numel() for parameter in narrow.parameters()) == suggested.parameters.result
    assert narrow(batches()[0]).shape == (8, 10)
    frame = suggested.frame()
    assert dict(zip(frame["name"], frame["width"], strict=True)) == suggested.widths
    assert str(suggested).splitlines()[-1] == (
        f"in all {suggested.parameters.result:,} parameters ({suggested.parameters.share:.3f} of the reference's), "
        f"{suggested.macs.result:,} MACs ({suggested.macs.share:.3f} of the reference's)"
    )


def test_batches_may_come_from_a_loader_or_a_generator_and_the_model_stays_as_it_is() -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = suggest_widths(model, batches())
    images = torch.cat(batches())
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=8)
    assert suggest_widths(model, loader).widths == expected.widths
    assert suggest_widths(model, (batch for batch in batches())).widths == expected.widths
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_network_of_gray_images_and_a_function_that_builds_one() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))

    suggested = suggest_widths(Net, [torch.rand(64, 1, 8, 8)], 0.5)
    assert suggested.reference == {"0": 16} and suggested.widths == {"0": 8}
    assert channels.rebuild(Net, suggested.channels, suggested.widths)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


class Branching(nn.Module):
    """Cannot be followed without values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor) -> Any:
        return self.conv(images).mean((2, 3)) if images.sum() > 0 else images.mean((2, 3))


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (MODEL, [], {}, "batches: there are none"),
        (MODEL, DataLoader(TensorDataset(torch.zeros(0, 3, 8, 8))), {}, "batches: there are none"),
        (MODEL, [{"pixel_values": batches()[0]}], {}, "batches: batch 0 is a dict with pixel_values"),
        (MODEL, [(1, 2)], {}, "batches: batch 0 is a tuple with int"),
        (MODEL, batches()[0], {}, "batches: batch 0 is a tensor (3, 48, 64)"),
        (MODEL, [batches()[0].byte()], {}, "batch 0 is a tensor (8, 3, 48, 64) of uint8; expected images"),
        (MODEL, [*batches(), batches()[0][:, :1]], {}, "ResNet: fails on a tensor (8, 1, 48, 64)"),
        (MODEL, 5, {}, "batches: got int"),
        (MODEL, [batches()[0] * np.nan], {}, "NaN, infinity"),
        (MODEL, batches(), {"macs": 0}, "macs: got 0; expected a share"),
        (MODEL, batches(), {"macs": -0.5}, "macs: got -0.5; expected a share"),
        (MODEL, batches(), {"macs": np.inf}, "macs: got inf; expected a share"),
        (MODEL, batches(), {"macs": "1"}, "macs: got '1'; expected a share"),
        (MODEL, batches(), {"macs": 1e-6}, "so give at least that"),
        (Branching(), batches(), {}, "Branching: cannot be run on an image of (48, 64)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 64, 2)), batches(), {}, "no layer has a width that can change"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), batches(), {}, "gives a tensor (8, 8, 48, 64)"),
        (3, batches(), {}, "model: got int; expected a network"),
        (lambda: 3, batches(), {}, "model: the function gives int"),
        (MODEL, batches(), {"build": MODEL}, "build: got a network; expected the function"),
        (models.resnet34(), batches(), {"build": models.resnet50}, "channels, and the model has"),
        (MODEL, batches(), {"build": models.resnet34}, "if `build` was given, it may build another one"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(model: Any, data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        suggest_widths(model, data, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
