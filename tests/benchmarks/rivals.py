"""Torch-Pruning's importances read as widths, for the comparison of allocators.

A pruner decides which channels of a trained network to keep; how many of each group these are can be read as widths of
a network that is trained anew. Importances are Torch-Pruning's own, with its defaults: the mean over the layers that
write or read a channel, of |w · gradient| (Taylor) or w² (group norm), in units of the group's mean. They are ranked
over all groups, as with `global_pruning=True`: what lies above one threshold is kept, and where a normalization divides
channels, the average over its divisions is ranked. Counts are averaged over seeds and scaled to the budget, all alike.
With a higher threshold they have other proportions: the lowest is taken at which they use the budget, or most of it,
while every group keeps a channel, since no pruner removes all.

It follows the backbone with the feature pyramid over it; through a whole detector, whose boxes come of what was
detected, it finds no way. Gradients are of the detector's own loss, summed over the probe images.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment
from eigendet.data.datasets import open_split
from eigendet.errors import UserError, some
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.networks.snapshots import read_snapshot
from eigendet.runs import gradients
from eigendet.runs.covariances import probe_indices
from eigendet.runs.images import Decoded
from eigendet.runs.precision import full_float32
from eigendet.widths.allocation import Budget

IMPORTANCES = {"torch_pruning_taylor": "GroupTaylorImportance", "torch_pruning_norm": "GroupMagnitudeImportance"}

Scores = dict[str, np.ndarray]  # by group: an importance for each channel, or for each channel of a division


def is_installed() -> bool:
    return importlib.util.find_spec("torch_pruning") is not None


def targets(
    name: str, experiment: Experiment, network: Definition, snapshots: Sequence[Path], budget: Budget
) -> np.ndarray:
    """Return the widths that an importance gives, from a trained detector of every seed, (groups,)."""
    channels, reference = network.reference(network.size[0])
    seeds = []
    for snapshot in snapshots:
        _, model, definition = read_snapshot(snapshot)
        if IMPORTANCES[name] == "GroupTaylorImportance":
            add_gradients(model, experiment)
        path, _, own = str(model.backbone_path).rpartition(".")
        part = model.get_submodule(path or own)
        image = torch.zeros(1, 3, *definition.size)
        seeds.append(importances(IMPORTANCES[name], part, image, channels, reference, f"{own}." if path else ""))
    return widths_of(seeds, reference, budget)


def add_gradients(model: nn.Module, experiment: Experiment) -> None:
    """Give a detector's parameters the gradient of its losses, summed over the probe images that have objects."""
    settings = experiment.covariance
    data, name = open_split(experiment, "detection", settings.split), f"data.detection.{settings.split}"
    indices = gradients.with_objects(data, probe_indices(len(data), settings.images, name), name)
    samples = gradients.Samples(Decoded(data), indices, learns_masks(model), torch.device("cpu"))
    with full_float32(), gradients.computing_losses(model) as losses:
        for sample in samples:
            torch.stack(list(losses(sample).values())).sum().backward()


def importances(
    kind: str, model: nn.Module, image: Tensor, channels: Channels, reference: Widths, prefix: str = ""
) -> Scores:
    """Return Torch-Pruning's importances of every channel group.

    Args:
        kind: name of one of its classes.
        model: with gradients, if the class reads them.
        image: that the model is followed with, (1, 3, H, W).
        channels: the groups; its layers are the model's without the prefix. Others keep their widths.
        reference: the groups' widths.
        prefix: of the groups' layers in the model.

    Raises:
        UserError: Torch-Pruning is not installed, or does not find the same groups.
    """
    pruning = _torch_pruning()
    graph = pruning.DependencyGraph().build_dependency(model, image)
    score = getattr(pruning.importance, kind)()
    names = {module: path for path, module in model.named_modules()}
    groups = {f"{prefix}{layer.module}": group for layer in channels.layers for group, _ in layer.out.terms}
    scores: Scores = {}
    for group in graph.get_all_groups(root_module_types=(nn.Conv2d, nn.Linear)):
        layers = [dependency.target.module for dependency, _ in group]
        writing = [
            names[dependency.target.module]
            for dependency, _ in group
            if isinstance(dependency.target.module, nn.Conv2d | nn.Linear)
            and graph.is_out_channel_pruning_fn(dependency.handler)
        ]
        ours = {groups.get(layer) for layer in writing}
        if ours <= {None}:
            continue
        own, values = next(iter(ours)), score(group).numpy()
        if len(ours) > 1 or own is None or own in scores or len(values) != reference[own]:
            raise UserError(
                f"Torch-Pruning prunes {some(writing)} together, {len(values)} channels; these are not those of one "
                "channel group, so its importances cannot be read as widths of this network."
            )
        scores[own] = values.reshape(_divisions(layers), -1).mean(0)
    missing = [group for group in reference if group not in scores]
    if missing:
        raise UserError(f"Torch-Pruning does not prune the channel groups {some(missing)}; every group needs a width.")
    return scores


def widths_of(seeds: Sequence[Mapping[str, np.ndarray]], reference: Widths, budget: Budget) -> np.ndarray:
    """Return the widths of what is kept above the lowest threshold at which most of the cap on MACs is used, (groups,).

    Args:
        seeds: importances of every seed.
        reference: the groups' widths.
        budget: that the widths are scaled to.
    """
    groups = budget.costs.groups
    full = np.array([reference[group] for group in groups], float)
    scores = [[own[group] for group in groups] for own in seeds]
    count = sum(len(own) for own in scores[0])
    shares = [np.array([kept(own, pruned) for own in scores]) for pruned in range(count)]
    widths = [budget.scaled(full * own.mean(0)) for own in shares if own.all()]
    return max(widths, key=lambda own: round(float(budget.costs(own)[0] / budget.caps[0]), 2))  # the first of these


def kept(scores: Sequence[np.ndarray], pruned: int) -> np.ndarray:
    """Return the share of each group's scores that is above the threshold at which so many of all are not, (groups,).

    >>> kept([np.array([3.0, 1.0]), np.array([2.0, 4.0, 5.0, 6.0])], 2).tolist()
    [0.5, 0.75]
    """
    threshold = np.sort(np.concatenate(scores))[pruned - 1] if pruned else -np.inf
    return np.array([np.mean(own > threshold) for own in scores])


def _divisions(layers: Sequence[nn.Module]) -> int:
    """Return into how many parts of equal size a layer divides the channels."""
    norms = [layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)]
    convolutions = [
        layer.groups for layer in layers if isinstance(layer, nn.Conv2d) and layer.groups != layer.out_channels
    ]
    return max([1, *norms, *convolutions])


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        raise UserError(
            "the package torch-pruning is not installed, whose importances are read as widths; `pip install "
            "torch-pruning`, or leave these arms out."
        ) from None
