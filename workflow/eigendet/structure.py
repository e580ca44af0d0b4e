"""Whether what a plugin gives is what its contract says; if not, a message with the plugin's file and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
    """Raise UserError unless these are feature maps by name, (N, C, H, W), finest first, and finite."""
    if not isinstance(features, dict) or not features:
        raise UserError(f"{plugin}: gave {_kind(features)}; expected a dict of feature maps by name, finest first.")
    for name, value in features.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.dim() != 4:
            raise UserError(f"{plugin}: its map {name!r} is {_kind(value)}; expected a tensor (N, C, H, W).")
        if not value.isfinite().all():
            raise UserError(f"{plugin}: its map {name!r} holds NaN or infinity.")
    sizes = [tuple(value.shape[2:]) for value in features.values()]
    if sizes != sorted(sizes, reverse=True):
        raise UserError(f"{plugin}: its maps have the sizes {sizes}; expected the finest first.")


def check_gradients(features: dict[str, Tensor], network: nn.Module, plugin: Plugin) -> None:
    """Raise UserError unless the maps depend on every parameter of the network that made them."""
    parts = [value.sum() for value in features.values() if value.requires_grad]
    if parts:
        total = torch.stack(parts).sum()
        check_leaves(total, network, str(plugin))
        total.backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None]
    network.zero_grad()
    if idle:
        raise UserError(f"{plugin}: its maps have no gradient for {some(idle)}, which would never be trained.")


def check_leaves(result: Tensor, network: nn.Module, name: str) -> None:
    """Raise UserError if a result depends on tensors with a gradient that are no parameters of the network.

    A module does not know what stands in a plain list of its attributes: no optimizer would train it, no snapshot hold
    it. `name` says of what.
    """
    known, seen, steps = {id(value) for value in network.parameters()}, set(), [result.grad_fn]
    while steps:
        step = steps.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        leaf = getattr(step, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise UserError(
                f"{name}: depends on {_kind(leaf)} with a gradient that is none of its parameters, so it would never "
                "be trained; register it, for example in a torch.nn.ModuleList."
            )
        steps += [further for further, _ in step.next_functions]


def check_losses(losses: Any, name: str) -> None:
    """Raise UserError unless these are losses by name, a finite number each. `name` says of what."""
    if not isinstance(losses, dict) or not losses:
        raise UserError(f"{name}: gave {_kind(losses)} in training; expected a dict of losses.")
    for key, value in losses.items():
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError(
                f"{name}: its loss {key!r} is {_kind(value)}; expected a tensor () of one number with a gradient."
            )
        if not value.isfinite():
            raise UserError(f"{name}: its loss {key!r} is {float(value)} in the first step.")


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
        for key in ("boxes", "labels", "scores"):
            if not isinstance(entry[key], Tensor):
                raise UserError(f"{name}: {key} of an image are {_kind(entry[key])}; expected a tensor.")
        count = len(entry["boxes"])
        shapes = {"boxes": (count, 4), "labels": (count,), "scores": (count,), "masks": (count, 1, height, width)}
        for key, shape in shapes.items():
            if key in entry and tuple(entry[key].shape) != shape:
                raise UserError(f"{name}: {key} of {count} detections are {tuple(entry[key].shape)}; expected {shape}.")
        if not count:
            continue
        labels, boxes, scores = entry["labels"], entry["boxes"], entry["scores"]
        if labels.is_floating_point():
            raise UserError(f"{name}: labels are {labels.dtype}; expected integers.")
        if not 1 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise UserError(
                f"{name}: labels are from {int(labels.min())} to {int(labels.max())}; expected 1 to {classes}, "
                "since 0 is background."
            )
        if not (scores.min() >= 0 and scores.max() <= 1 + 1e-6):  # NaN neither
            raise UserError(
                f"{name}: scores reach from {float(scores.min()):.3g} to {float(scores.max()):.3g}; expected 0 to 1."
            )
        if not (boxes[:, 2:] >= boxes[:, :2]).all():
            wrong = boxes[~(boxes[:, 2:] >= boxes[:, :2]).all(1)][0].tolist()
            raise UserError(f"{name}: a box is {[round(v, 1) for v in wrong]}; expected left, top, right, bottom.")
        if boxes.min() < 0 or boxes[:, 2].max() > width + 1e-3 or boxes[:, 3].max() > height + 1e-3:
            raise UserError(
                f"{name}: boxes reach from {float(boxes.min()):.1f} to {float(boxes.max()):.1f} in an image of "
                f"{width}x{height}; expected them inside, in the image's own pixels."
            )


def check_dataset(data: Any, name: str) -> None:
    """Raise UserError unless it knows what a data set must know before any image is decoded. `name` says of what."""
    for attribute in ("__len__", "__getitem__", "classes", "digest", "notes"):
        if not hasattr(data, attribute):
            raise UserError(f"{name}: gave {_kind(data)} without '{attribute}'; see eigendet.datasets.")
    if not len(data) or not data.classes:
        raise UserError(f"{name}: has {len(data)} images of {len(data.classes)} classes.")
    if hasattr(data, "size") != hasattr(data, "objects"):
        raise UserError(f"{name}: has only one of 'size' and 'objects'; a data set of boxes has both.")


def check_sample(data: Any, index: int, name: str) -> int:
    """Decode an image, and raise UserError unless it and its label or objects are what its data set says.

    Returns:
        The number of its objects, crowds left out.
    """
    image, target = data[index]
    which = data.name(index) if hasattr(data, "name") else f"{name}: image {index}"
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3:
        raise UserError(f"{which} is {_kind(image)}; expected a tensor (3, H, W) of uint8.")
    if not isinstance(target, dict):
        if not 0 <= int(target) < len(data.classes):
            raise UserError(f"{which} has the label {target}; expected 0 to {len(data.classes) - 1}.")
        return 0
    (height, width), said = image.shape[1:], tuple(data.size(index))
    if said != (height, width):
        raise UserError(f"{which}: the image is {width}x{height} pixels; its annotations say {said[1]}x{said[0]}.")
    missing = {"boxes", "labels", "crowd", "area", "masks"} - target.keys()
    if missing:
        raise UserError(f"{which} has no '{min(missing)}'; expected what eigendet.datasets.Target lists.")
    boxes, labels, objects = target["boxes"], target["labels"], data.objects(index)
    if objects != int((~target["crowd"]).sum()):
        raise UserError(f"{which}: objects({index}) is {objects}, which is not the number of its objects.")
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    if not (inside and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise UserError(f"{which} has a box outside of it, or without area; expected left, top, right, bottom.")
    if not ((labels >= 1) & (labels <= len(data.classes))).all():
        raise UserError(f"{which} has a label outside of 1 to {len(data.classes)}.")
    return int(objects)


def _kind(value: Any) -> str:
    """What a value is, in few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return f"a dict with {some([str(key) for key in value]) if value else 'nothing in it'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
