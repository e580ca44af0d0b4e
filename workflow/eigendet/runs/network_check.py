"""Every network of an experiment built once, trained for a step and made to detect, before any run is started.

So a mistake in a plugin is known at once, by the plugin's file and line, and not after a night of pre-training. Nor is
a night of training spent on a network that cannot be observed, or whose widths could not be read from what is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment, layout
from eigendet.config.arms import FROM_SPECTRA
from eigendet.config.sections import DetectorTraining, WidthSettings
from eigendet.data.batches import as_float
from eigendet.data.datasets import Detection, open_split
from eigendet.errors import UserError, some
from eigendet.networks import checks
from eigendet.networks.backbones import backbone_of
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.networks.widths_file import read_widths
from eigendet.observe.keys import Point
from eigendet.plugins.discovery import Plugin
from eigendet.runs import definitions, gradients, training
from eigendet.runs.covariances import probe_indices
from eigendet.runs.images import Decoded
from eigendet.runs.losses import Losses
from eigendet.runs.observation import observed_taps
from eigendet.widths.allocation import Budget
from eigendet.widths.dimensions import OTHER_POINTS, nearest_point
from eigendet.widths.made_up import made_up
from eigendet.widths.sources import reading
from eigendet.widths.targets import allocator_targets

logger = logging.getLogger(__name__)

LARGEST = 256  # pixels of the shorter side, so that a large experiment is tried in seconds


class NetworkSummary(TypedDict):
    """What came of trying a network, as its JSON file holds it."""

    version: int
    costs: dict[str, int]  # see `definitions.costs_of`
    plugins: dict[str, str]  # versions by kind
    losses: dict[str, float]  # of the first step


def small(settings: DetectorTraining) -> tuple[int, int]:
    """Return shorter and longest side of images that pass quickly, in the proportions of the real ones.

    >>> small(DetectorTraining(steps=1, min_size=800, max_size=1333))
    (256, 427)
    """
    shrink = min(1.0, LARGEST / settings.min_size)
    return round(shrink * settings.min_size), round(shrink * settings.max_size)


def check_network(experiment: Experiment, backbone: str, detector: str) -> NetworkSummary:
    """Try a detector over a backbone on two training images, on the CPU; return what came of it.

    Raises:
        UserError: a plugin fails, or does not keep its contract; the message names its file and line. Or nothing of
            the network can be observed with these settings, or not what its widths would be read from.
    """
    data = open_split(experiment, "detection", "train")
    size = small(experiment.training)
    definition = definitions.definition_of(experiment, backbone, detector, data.classes, size)
    choices = {"backbone": experiment.backbones[backbone], "detector": experiment.detectors[detector]}
    backbone_plugin = plugins.find("backbone", choices["backbone"].plugin)
    detector_plugin = plugins.find("detector", choices["detector"].plugin)
    few = {"batch_size": 2, "min_size": size[0], "max_size": size[1], "workers": 0}
    training.seed_everything(0)
    with plugins.failures_named(detector_plugin, backbone_plugin):
        model = definition.build()
        costs = definitions.costs_of(definition, model)
        _check_maps(backbone_of(model), size, backbone_plugin)
        losses = _check_step(model, data, experiment.training.model_copy(update=few), detector_plugin)
        checks.check_trainable(backbone_of(model), backbone_plugin)  # again: a first pass may have frozen it
        checks.check_trainable(model, detector_plugin)
        _check_detections(model, data, detector_plugin)
    name = f"{detector} over {backbone}"
    check_observed(experiment, definition, model, name)
    if experiment.covariance.gradients:
        with plugins.failures_named(detector_plugin, backbone_plugin):
            _check_gradients(experiment, definition, model, losses.keys(), name)
    return {
        "version": layout.NETWORK_CHECK_VERSION,
        "costs": costs,
        "plugins": plugins.versions(**choices),
        "losses": {name: float(value.detach()) for name, value in losses.items()},
    }


def check_observed(experiment: Experiment, definition: Definition, model: nn.Module, name: str) -> None:
    """Observe an image, and say at which points channel groups are read that have no map at the chosen one.

    Args:
        experiment: whose settings say what is observed, and which arms take their widths from it.
        definition: of the detector.
        model: the detector.
        name: what messages call it.

    Raises:
        UserError: nothing is observed; or the experiment has arms whose widths come from spectra, and no width can
            change, of a group there is no map, the allocator needs what is not observed, or even the narrowest network
            exceeds a cap; or a file of widths is of another network.
    """
    groups, _ = definition.reference()
    image = torch.rand(3, *definition.size)
    keys = [tap.key for tap in observed_taps(model.eval(), experiment.covariance, [[image]], groups=groups)]
    of_groups: dict[str, set[str]] = {group: set() for group in groups.widths}
    for key in keys:
        group = groups.outputs.get((key.module, key.call))
        if group is not None:
            of_groups[group].add(key.point)
    arms = [arm for arm in experiment.arms if arm in FROM_SPECTRA]
    if arms:
        _check_derivable(experiment, definition, of_groups, f"leave {', '.join(arms)} out of arms", name)
    for arm in experiment.arms.values():
        if arm.widths is not None:
            read_widths(Path(arm.widths), definition)
    chosen: list[Point] = [experiment.widths.point] if arms else experiment.covariance.points
    nearest = {group: nearest_point(points, chosen) for group, points in of_groups.items()}
    for point in dict.fromkeys(filter(None, nearest.values())):
        there = some([group for group in nearest if nearest[group] == point])
        verb = "read" if arms else "observed"
        logger.info("%s: without a map at %s, and %s at %s: %s", name, " or ".join(chosen), verb, point, there)


def _check_derivable(
    experiment: Experiment,
    definition: Definition,
    of_groups: Mapping[str, set[str]],
    way_out: str,
    name: str,
) -> None:
    """Raise UserError unless widths can be derived from what is observed, as far as is known before it is trained."""
    side = experiment.training.min_size  # as the width stage traces it: code may keep widths at some sizes alone
    groups, widths = replace(definition, size=(side, side)).reference(side)
    if not widths:
        reasons = some([f"{layer}: {reason}" for layer, reason in groups.fixed.items()], 1)
        raise UserError(
            f"{name}: none of its widths can change ({reasons or 'it has no layers with weights'}); {way_out}."
        )
    unread = [group for group in widths if not of_groups.get(group, set()).intersection(OTHER_POINTS)]
    if unread:
        raise UserError(
            f"{name}: the channel groups {some(unread)} have no feature map of their own, from which widths could be "
            f"read; {way_out}."
        )
    try:
        plugins.check_needs(experiment)
        check_allocation(groups, widths, experiment.widths)
    except UserError as error:
        raise error.within(name) from None
    if {"kernels", "history"} & set(plugins.needs(experiment.widths.allocation)):
        _, alone = reading(definition)
        if alone:
            logger.warning("%s: %s", name, alone)


def check_allocation(groups: Channels, reference: Widths, settings: WidthSettings) -> None:
    """Spend a budget by spectra that are made up.

    Args:
        groups: of the network.
        reference: the reference's width of each.
        settings: say how.

    Raises:
        UserError: nothing meets the budget; the allocator fails, or gives something else than a width for each group.
    """
    spectra, seen = made_up(groups, reference, plugins.needs(settings.allocation))
    budget = Budget.of(groups, reference, settings)
    allocator_targets(budget, groups, reference, spectra, settings, seen)


def _check_gradients(
    experiment: Experiment, definition: Definition, model: nn.Module, losses: Collection[str], name: str
) -> None:
    """Observe the gradient of the loss of a probe image, on the CPU.

    Args:
        experiment: whose settings say what is observed.
        definition: of the detector.
        model: the detector.
        losses: the names of those that it has in training.
        name: what messages call it.

    Raises:
        UserError: no probe image has an object; the losses are not those of training; or a map of the backbone is not
            the one that is observed in evaluation.
    """
    settings, source = experiment.covariance, f"data.detection.{experiment.covariance.split}"
    data, (groups, _) = open_split(experiment, "detection", settings.split), definition.reference()
    first, *_ = gradients.with_objects(data, probe_indices(len(data), settings.images, source), source)
    samples = gradients.Samples(Decoded(data), [first], learns_masks(model), torch.device("cpu"))
    with gradients.computing_losses(model) as losses_of:
        own = losses_of(samples[0])
    if set(own) != set(losses):
        raise UserError(
            f"{name}: has the losses {some(sorted(losses))} in training, and {some(sorted(own))} where its layers and "
            "its backbone are in evaluation mode, as for covariance.gradients; leave that false."
        )
    checks.check_losses(own, f"{name}, with its layers and its backbone in evaluation mode")
    taps = {tap.key: tap.covariance for tap in observed_taps(model, settings, [[samples[0].image]], groups=groups)}
    inside = {path for path, _ in backbone_of(model).named_modules()}
    channels = {key: moments.channels for key, moments in taps.items()}
    for key, gradient in gradients.loss_gradients(model, settings, samples, channels, groups):
        if key.module in inside and gradient.moments.count != taps[key].count:
            raise UserError(
                f"{name}: {key} has {taps[key].count} positions in evaluation, and {gradient.moments.count} where the "
                "loss of the same image is computed; expected the same, so leave covariance.gradients false."
            )


def _check_maps(backbone: nn.Module, size: tuple[int, int], plugin: Plugin) -> None:
    """Raise UserError unless the backbone gives feature maps that all of it is trained by."""
    features: dict[str, Tensor] = backbone.train()(torch.rand(2, 3, size[0], size[0]))
    checks.check_features(features, plugin)
    checks.check_gradients(features, backbone, plugin)


def _check_step(model: nn.Module, data: Detection, settings: DetectorTraining, plugin: Plugin) -> Losses:
    """Raise UserError unless a batch gives losses that reach all of the backbone; return them."""
    batch = next(iter(training.detection_task(model, data, settings, 0).batches(0)))
    losses = training.detection_losses(model.train(), batch, torch.device("cpu"))
    checks.check_losses(losses, str(plugin))
    loss = torch.stack(list(losses.values())).sum()
    checks.check_leaves(loss, model, str(plugin))
    loss.backward()
    backbone = backbone_of(model)
    idle = [name for name, value in backbone.named_parameters() if value.grad is None]
    if idle:
        raise UserError(f"{plugin}: the loss does not reach {some(idle)} of the backbone; it would never be trained.")
    return losses


def _check_detections(model: nn.Module, data: Detection, plugin: Plugin) -> None:
    """Raise UserError unless the first image gives detections."""
    image = as_float(data[0][0])
    with torch.no_grad():
        detections = model.eval()([image])
    checks.check_detections(detections, [(image.shape[1], image.shape[2])], len(data.classes), str(plugin))
