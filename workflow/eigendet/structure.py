"""Whether what a plugin gives is what its contract says; if not, a message with the plugin's file and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from eigendet.discovery import Plugin
from eigendet.errors import UserError, some


def check_network(network: Any, plugin: Plugin) -> None:
    """Raise UserError unless it is a module all of whose parameters are trained."""
    if not isinstance(network, nn.Module):
        raise UserError(f"{plugin}: gave {_kind(network)}; expected a torch.nn.Module.")
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise UserError(
            f"{plugin}: {some(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen (requires_grad is false). "
            "Every parameter of a network is trained; make constants buffers."
        )


def check_features(features: Any, plugin: Plugin) -> None:
    """Raise UserError unless these are feature maps by name, (N, C, H, W), finest first."""
    if not isinstance(features, dict) or not features:
        raise UserError(f"{plugin}: gave {_kind(features)}; expected a dict of feature maps by name, finest first.")
    for name, value in features.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.dim() != 4:
            raise UserError(f"{plugin}: its map {name!r} is {_kind(value)}; expected a tensor (N, C, H, W).")
    sizes = [tuple(value.shape[2:]) for value in features.values()]
    if sizes != sorted(sizes, reverse=True):
        raise UserError(f"{plugin}: its maps have the sizes {sizes}; expected the finest first.")


def check_losses(losses: Any, name: str) -> None:
    """Raise UserError unless these are losses by name, a number each. `name` says of what."""
    if not isinstance(losses, dict) or not losses:
        raise UserError(f"{name}: gave {_kind(losses)} in training; expected a dict of losses.")
    for key, value in losses.items():
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise UserError(
                f"{name}: its loss {key!r} is {_kind(value)}; expected a tensor of one number with a gradient."
            )


def check_detections(found: Any, sizes: Sequence[tuple[int, int]], classes: int, name: str) -> None:
    """Raise UserError unless these are detections for each image: boxes, labels from 1 to `classes`, scores.

    Args:
        sizes: (height, width) of every image.
    """
    if not isinstance(found, list) or len(found) != len(sizes):
        raise UserError(f"{name}: gave {_kind(found)} for {len(sizes)} images; expected a list with a dict for each.")
    for entry, (height, width) in zip(found, sizes, strict=True):
        if not isinstance(entry, dict) or not {"boxes", "labels", "scores"} <= entry.keys():
            raise UserError(f"{name}: gave {_kind(entry)} for an image; expected a dict of boxes, labels and scores.")
        count = len(entry["boxes"])
        shapes = {"boxes": (count, 4), "labels": (count,), "scores": (count,), "masks": (count, 1, height, width)}
        for key, shape in shapes.items():
            if key in entry and tuple(entry[key].shape) != shape:
                raise UserError(f"{name}: {key} of {count} detections are {tuple(entry[key].shape)}; expected {shape}.")
        if not count:
            continue
        labels, boxes = entry["labels"], entry["boxes"]
        if not 1 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise UserError(
                f"{name}: labels are from {int(labels.min())} to {int(labels.max())}; expected 1 to {classes}, "
                "since 0 is background."
            )
        if boxes.min() < 0 or boxes[:, 2].max() > width + 1e-3 or boxes[:, 3].max() > height + 1e-3:
            raise UserError(
                f"{name}: boxes reach from {float(boxes.min()):.1f} to {float(boxes.max()):.1f} in an image of "
                f"{width}x{height}; expected them inside, in the image's own pixels."
            )


def _kind(value: Any) -> str:
    """What a value is, in few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with {some([str(key) for key in value]) if value else 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
