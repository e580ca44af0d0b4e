"""Check that what a plugin gives is what its contract says; if not, say it with the plugin's file and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError, kind, some
from eigendet.plugins.discovery import Plugin


def check_trainable(network: Any, plugin: Plugin) -> None:
    """Raise UserError unless `network` is a module all of whose parameters are trained."""
    if not isinstance(network, nn.Module):
        raise UserError(f"{plugin}: gave {kind(network)}; expected a torch.nn.Module.")
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise UserError(
            f"{plugin}: {some(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen (requires_grad is false). "
            "Every parameter of a network is trained; make constants buffers."
        )


def check_features(features: Any, plugin: Plugin) -> None:
    """Raise UserError unless these are feature maps by name, (N, C, H, W), finest first, and finite."""
    if not isinstance(features, dict) or not features:
        raise UserError(f"{plugin}: gave {kind(features)}; expected a dict of feature maps by name, finest first.")
    for name, value in features.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.dim() != 4:
            raise UserError(f"{plugin}: its map {name!r} is {kind(value)}; expected a tensor (N, C, H, W).")
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
        raise UserError(
            f"{plugin}: its maps have no gradient for {some(idle)}, which would never be trained; take it "
            "out of the network, for example by setting it to None."
        )


def check_leaves(result: Tensor, network: nn.Module, name: str) -> None:
    """Raise UserError if a result depends on tensors with a gradient that are not parameters of the network.

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
                f"{name}: depends on {kind(leaf)} with a gradient that is none of its parameters, so it would never "
                "be trained; register it, for example in a torch.nn.ModuleList."
            )
        steps += [further for further, _ in step.next_functions]


def check_losses(losses: Any, name: str) -> None:
    """Raise UserError unless these are losses by name, a finite number each. `name` says of what."""
    if not isinstance(losses, dict) or not losses:
        raise UserError(f"{name}: gave {kind(losses)} in training; expected a dict of losses.")
    for key, value in losses.items():
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError(
                f"{name}: its loss {key!r} is {kind(value)}; expected a tensor () of one number with a gradient."
            )
        if not value.isfinite():
            raise UserError(f"{name}: its loss {key!r} is {float(value)} in the first step.")


def check_detections(detections: Any, sizes: Sequence[tuple[int, int]], classes: int, name: str) -> None:
    """Raise UserError unless these are detections for each image: boxes, labels from 1 to `classes`, scores.

    Args:
        detections: what a detector gave in evaluation.
        sizes: (height, width) of every image.
        classes: number of them, background left out.
        name: of the detector, for the message.
    """
    if not isinstance(detections, list) or len(detections) != len(sizes):
        raise UserError(
            f"{name}: gave {kind(detections)} for {len(sizes)} images; expected a list with a dict for each."
        )
    for entry, size in zip(detections, sizes, strict=True):
        _check_entry(entry, size, name)
        if len(entry["boxes"]):
            _check_labels(entry["labels"], classes, name)
            _check_scores(entry["scores"], name)
            _check_boxes(entry["boxes"], size, name)


def _check_entry(entry: Any, size: tuple[int, int], name: str) -> None:
    """Raise UserError unless an image's detections are a dict of tensors that belong together."""
    if not isinstance(entry, dict) or not {"boxes", "labels", "scores"} <= entry.keys():
        raise UserError(f"{name}: gave {kind(entry)} for an image; expected a dict of boxes, labels and scores.")
    for key in ("boxes", "labels", "scores"):
        if not isinstance(entry[key], Tensor):
            raise UserError(f"{name}: {key} of an image are {kind(entry[key])}; expected a tensor.")
    count = len(entry["boxes"])
    shapes = {"boxes": (count, 4), "labels": (count,), "scores": (count,), "masks": (count, 1, *size)}
    for key, shape in shapes.items():
        if key in entry and tuple(entry[key].shape) != shape:
            raise UserError(f"{name}: {key} of {count} detections are {tuple(entry[key].shape)}; expected {shape}.")


def _check_labels(labels: Tensor, classes: int, name: str) -> None:
    if labels.is_floating_point():
        raise UserError(f"{name}: labels are {labels.dtype}; expected integers.")
    lowest, highest = int(labels.min()), int(labels.max())
    if not 1 <= lowest <= highest <= classes:
        raise UserError(
            f"{name}: labels are from {lowest} to {highest}; expected 1 to {classes}, since 0 is background."
        )


def _check_scores(scores: Tensor, name: str) -> None:
    lowest, highest = float(scores.min()), float(scores.max())
    if not (lowest >= 0 and highest <= 1 + 1e-6):  # so that NaN is refused too
        raise UserError(f"{name}: scores reach from {lowest:.3g} to {highest:.3g}; expected 0 to 1.")


def _check_boxes(boxes: Tensor, size: tuple[int, int], name: str) -> None:
    height, width = size
    in_order = (boxes[:, 2:] >= boxes[:, :2]).all(1)
    if not in_order.all():
        first = [round(value, 1) for value in boxes[~in_order][0].tolist()]
        raise UserError(f"{name}: a box is {first}; expected left, top, right, bottom.")
    if boxes.min() < 0 or boxes[:, 2].max() > width + 1e-3 or boxes[:, 3].max() > height + 1e-3:
        raise UserError(
            f"{name}: boxes reach from {float(boxes.min()):.1f} to {float(boxes.max()):.1f} in an image of "
            f"{width}x{height}; expected them inside, in the image's own pixels."
        )
