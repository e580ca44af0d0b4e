from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import models as torchvision_models

from eigendet.config.sections import BackboneChoice
from eigendet.errors import UserError
from eigendet.networks import parts, weights
from eigendet.networks.backbones import build_backbone, reference_groups


def backbone(**options: object) -> torch.nn.Module:
    return build_backbone(BackboneChoice(**({"plugin": "resnet", "depth": 18} | options)))


def outputs(module: torch.nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(module.eval()(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))).values())


@pytest.mark.parametrize("norm", ["batch", "sync_batch", "frozen_batch"])
def test_a_state_dict_of_torchvision_fits_and_gives_its_features(tmp_path: Path, norm: str) -> None:
    published = torchvision_models.resnet18()
    for module in published.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.get_buffer("running_mean"), -1, 1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    torch.save({"state_dict": {f"module.{k}": v for k, v in published.state_dict().items()}}, tmp_path / "w.pth")
    loaded = backbone(norm=norm)
    weights.load_backbone(loaded, weights.read_weights(str(tmp_path / "w.pth")), "w.pth")
    published.fc, published.avgpool = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        exact = published.eval()(images).reshape(1, 512, 2, 2)
    torch.testing.assert_close(outputs(loaded)[-1], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "group"}, "w.pth: has 'bn1.running_mean', so its backbone was trained with batch norm"),
        (
            {"norm": "batch", "width": 0.5},
            r"w.pth: 'conv1.weight' is \(64, 3, 7, 7\); the backbone has \(32, 3, 7, 7\)",
        ),
        ({"norm": "batch", "depth": 34}, r"w.pth: no 'layer1.2.conv1.weight', which the backbone needs"),
    ],
)
def test_weights_of_another_network_are_refused(options: dict[str, object], message: str) -> None:
    published = torchvision_models.resnet18().state_dict()
    with pytest.raises(UserError, match=message):
        weights.load_backbone(backbone(**options), published, "w.pth")


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickle.pt")
    for name, message in [
        ("none.pt", "no such file"),
        ("text.pt", "cannot be loaded"),
        ("list.pt", "holds no tensors by name; expected a state dict"),
        ("pickle.pt", "holds no tensors by name, but objects of torch.nn.modules.linear.Linear"),
    ]:
        with pytest.raises(UserError, match=message):
            weights.read_weights(str(tmp_path / name))
    with pytest.raises(UserError, match="unknown weights of torchvision 'ResNet5_Weights"):
        weights.read_weights("torchvision:ResNet5_Weights.DEFAULT")


def test_the_width_factor_scales_every_group() -> None:
    reference, widths = reference_groups(BackboneChoice(plugin="resnet", width=0.25, norm_groups=16))
    assert widths == {group: width // 4 for group, width in reference.widths.items()}
    assert list(parts.feature_channels(backbone(width=2)).values()) == [128, 256, 512, 1024]


def test_norms_are_what_the_configuration_says() -> None:
    kinds = {
        "group": "GroupNorm",
        "batch": "BatchNorm2d",
        "sync_batch": "SyncBatchNorm",
        "frozen_batch": "FrozenBatchNorm2d",
    }
    for norm, kind in kinds.items():
        found = {type(module).__name__ for module in backbone(norm=norm).modules()}
        assert found & set(kinds.values()) == {kind}
        assert all(parameter.requires_grad for parameter in backbone(norm=norm).parameters())
