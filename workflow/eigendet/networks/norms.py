"""Replace every batch norm of a network by another normalization."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from eigendet.errors import UserError

Norm = Literal["own", "group", "batch", "sync_batch", "frozen_batch"]
Network = TypeVar("Network", bound=nn.Module)


def with_norm(network: Network, norm: Norm, norm_groups: int = 32) -> Network:
    """Put another normalization in the place of every batch norm, under its name, and return the network itself.

    Eps stays as it was, and momentum where there is one. Scale and shift are trained and begin as the batch norm's;
    those of frozen batch norms are constants, one and zero until weights are loaded. "own" changes nothing, nor does
    "batch" where there are batch norms.

    >>> network = with_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "group", norm_groups=4)
    >>> type(network[1]).__name__, network[1].num_groups
    ('GroupNorm', 4)

    Raises:
        UserError: there is no batch norm, or `norm_groups` does not divide the width of one. (While a network is
            rebuilt, the width before the change.)
    """
    if norm == "own":
        return network
    batch_norms = {path: module for path, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not batch_norms:
        raise UserError(f"norm is '{norm}', but this network has no batch norm to replace; expected 'own'.")
    common = math.gcd(*(module.num_features for module in batch_norms.values()))
    if norm == "group" and common % norm_groups:
        raise UserError(
            f"norm_groups is {norm_groups}; it must divide {common}, which divides every width before scaling."
        )
    if norm == "batch":
        return network
    for path, module in batch_norms.items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, _instead_of(module, norm, norm_groups))
    return network


def _instead_of(old: nn.BatchNorm2d, norm: Norm, groups: int) -> nn.Module:
    new: nn.Module
    if norm == "group":
        new = nn.GroupNorm(groups, old.num_features, old.eps, old.affine)
    elif norm == "sync_batch":
        new = nn.SyncBatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
    else:
        new = FrozenBatchNorm2d(old.num_features, old.eps)
    with torch.no_grad():
        # All channels begin alike, and in a network that is being resized the new ones are not as many as the old.
        for ours, theirs in zip(new.parameters(), old.parameters(recurse=False), strict=False):
            ours.copy_(theirs[:1])
    for name, child in old.named_children():
        new.add_module(name, child)
    if next(old.children(), None) is not None:
        new.register_forward_hook(_apply_children)
    new._forward_hooks.update(old._forward_hooks)  # by which timm collects feature maps
    return new


def _apply_children(norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Do with the result what a batch norm of timm's does: drop blocks of it, activate it."""
    for child in norm.children():
        output = child(output)
    return output
