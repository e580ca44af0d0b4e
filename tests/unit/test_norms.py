"""Batch norms give way to other norms: names, places, activations and widths stay right."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from eigendet.config.sections import BackboneChoice
from eigendet.errors import UserError
from eigendet.networks.backbones import build_backbone, parameter_count, plain_backbone, reference_groups
from eigendet.networks.norms import Norm, with_norm

KINDS: dict[Norm, type[nn.Module]] = {
    "group": nn.GroupNorm,
    "batch": nn.BatchNorm2d,
    "sync_batch": nn.SyncBatchNorm,
    "frozen_batch": FrozenBatchNorm2d,
}


def network() -> Any:
    inner: Any = nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24, eps=1e-3, momentum=0.01))
    nn.init.zeros_(inner[1].weight)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), inner)


@pytest.mark.parametrize("norm", KINDS)
def test_every_batch_norm_is_replaced_under_its_name(norm: Norm) -> None:
    old = network()
    new = with_norm(network(), norm, 4)
    assert [type(new[1]), type(new[2][1])] == [KINDS[norm]] * 2
    assert new[2][1].eps == 1e-3
    lost: set[str] = set() if norm in ("batch", "sync_batch") else {"num_batches_tracked"}
    lost |= {"running_mean", "running_var"} if norm == "group" else set()
    assert {name for name in old.state_dict() if name.rpartition(".")[2] not in lost} == new.state_dict().keys()


@pytest.mark.parametrize("norm", ["group", "sync_batch"])
def test_scale_and_shift_are_trained_and_begin_as_they_were(norm: Norm) -> None:
    new = with_norm(network(), norm, 4)
    assert (new[2][1].weight == 0).all() and (new[1].weight == 1).all()
    assert new[2][1].weight.requires_grad and new[2][1].bias.requires_grad
    assert norm == "group" or new[2][1].momentum == 0.01


def test_a_frozen_scale_is_not_frozen_at_zero() -> None:
    new = with_norm(network(), "frozen_batch")
    assert (new[2][1].weight == 1).all() and not list(new[2][1].parameters())


@pytest.mark.parametrize("norm", ["sync_batch", "frozen_batch"])
@pytest.mark.parametrize("name", ["regnetz_005", "xception41", "dpn48b"])
def test_norms_of_timm_that_activate_still_do_and_maps_are_still_collected(name: str, norm: Norm) -> None:
    """regnetz_005 and dpn48b activate in their norms; maps of xception41 are the results of such ones."""
    torch.manual_seed(0)
    old = timm.create_model(name, features_only=True, pretrained=False).eval()
    for parameter in old.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -1, 1)
    new = with_norm(timm.create_model(name, features_only=True, pretrained=False), norm).eval()
    new.load_state_dict(old.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, wanted = new(images), old(images)
    assert len(found) == len(wanted) == 5
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("plugin", "name"), [("torchvision", "mobilenet_v3_small"), ("timm", "regnetz_005"), ("timm", "resnet18d")]
)
def test_group_norms_follow_widths_in_whole_groups(plugin: str, name: str) -> None:
    choice = BackboneChoice(plugin=plugin, name=name, norm="group", norm_groups=4)
    traced, usual = reference_groups(choice)
    assert {multiple % 4 for multiple in traced.multiples.values()} <= {0, 1}  # 1 where no norm is: squeeze-excitation
    for factor in (0.5, 1.5):
        multiples = traced.multiples
        widths = {group: multiples[group] * max(1, round(usual[group] * factor / multiples[group])) for group in usual}
        built = build_backbone(choice, widths)
        assert parameter_count(built) == traced.parameters(widths)
        norms = [module for module in built.modules() if isinstance(module, nn.GroupNorm)]
        assert norms and all(norm.num_groups == 4 and len(norm.weight) == norm.num_channels for norm in norms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "group", "norm_groups": 32}, "norm_groups is 32; it must divide 8, which divides every width"),
        ({"norm": "group", "name": "convnext_tiny"}, "norm is 'group', but this network has no batch norm to replace"),
        ({"norm": "batch", "name": "vgg11"}, "norm is 'batch', but this network has no batch norm to replace"),
    ],
)
def test_what_cannot_be_replaced_is_said(options: dict[str, Any], message: str) -> None:
    choice = BackboneChoice(**{"plugin": "torchvision", "name": "mobilenet_v3_small"} | options)
    with torch.device("meta"), pytest.raises(UserError, match=message):
        plain_backbone(choice)
