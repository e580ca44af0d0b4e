from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

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
    _, _, widths, target = derivation.spend(traced, traced.widths, spectra, settings)
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
        (MODEL, batches(), {"macs": 1e9}, "macs: got 1000000000.0; expected a share of the network's operations above"),
        (MODEL, batches(), {"macs": "1"}, "macs: got '1'; expected a share"),
        (MODEL, batches(), {"macs": 1e-6}, "macs: got 1e-06; the narrowest that this network can be has 0.0"),
        (MODEL, [batches()[0], batches()[0][:0]], {}, "batches: batch 1 is empty, a tensor (0, 3, 48, 64)"),
        (MODEL, batches(), {"build": lambda: MODEL}, "build: ResNet: the function gives the network again each time"),
        (lambda: MODEL, batches(), {}, "ResNet: the function gives the network again each time it is called"),
        (MODEL, batches(), {"build": lambda: None}, "build: <lambda>() gives NoneType; expected a network"),
        (MODEL, batches(), {"build": lambda width: BUILD()}, "build: <lambda>() fails: TypeError: "),
        (lambda: 1 / 0, batches(), {}, "model: <lambda>() fails: ZeroDivisionError: division by zero"),
        (models.googlenet(aux_logits=True, init_weights=False), [torch.rand(2, 3, 64, 64)], {},
         "GoogLeNet: aux1.conv.conv, aux1.fc1, aux2.conv.conv, aux2.fc1 did not run in evaluation mode"),
        (Branching(), batches(), {}, "Branching: cannot be run on an image of (48, 64)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 64, 2)), batches(), {}, "no layer has a width that can change"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), batches(), {}, "gives a tensor (8, 8, 48, 64)"),
        (3, batches(), {}, "model: got int; expected a network"),
        (lambda: 3, batches(), {}, "model: <lambda>() gives int"),
        (MODEL, batches(), {"build": MODEL}, "build: got a network; expected the function"),
        (models.resnet34(num_classes=10), batches(), {"build": BUILD},
         "build: in what it builds, the parameter 'layer1.2.conv1.weight' is missing; in the model it is of shape (64"),
        (MODEL, batches(), {"build": partial(models.resnet34, num_classes=10)},
         "the parameter 'layer1.2.conv1.weight' is of shape (64, 64, 3, 3); in the model it is missing. Expected"),
        (MODEL, batches(), {"build": models.resnet18},
         "the parameter 'fc.weight' is of shape (1000, 512); in the model it is of shape (10, 512)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(model: Any, data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        suggest_widths(model, data, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_build_that_gives_the_model_itself_leaves_it_whole() -> None:
    model = trained()
    before = dict(model.named_parameters())
    with pytest.raises(UserError, match="again each time"):
        suggest_widths(model, batches(), build=lambda: model)
    assert all(before[name] is parameter and not parameter.is_meta for name, parameter in model.named_parameters())
    assert model.training and suggest_widths(model, batches()).widths


@pytest.mark.parametrize(("width", "multiple"), [(4, 4), (5, 4), (6, 4), (12, 8)])
def test_widths_that_are_no_multiples_of_8_are_affordable_at_their_own_cost(width: int, multiple: int) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(36 * width, 10),
        )  # fmt: skip

    suggested = suggest_widths(build(), [torch.rand(16, 3, 10, 10)], cast(float, np.float32(1)), build=build)
    assert suggested.macs.share <= 1 and suggested.reference == {"0": width, "2": width}
    assert all(chosen % multiple == 0 for chosen in suggested.widths.values())
    assert multiple == 8 or any(chosen % (2 * multiple) for chosen in suggested.widths.values())
