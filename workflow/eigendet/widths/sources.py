"""Read what some allocators need beside eigenvalues: covariances, gradients, and the kernels that read a group."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from eigendet.channels.groups import Channels, Layer
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError, some
from eigendet.networks.backbones import backbone_of
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import store
from eigendet.observe.records import TapRecord, read_tap
from eigendet.plugins.markers import Need
from eigendet.widths.dimensions import GroupSpectra
from eigendet.widths.views import Kernel, Moments, Seen


def read_seen(
    needs: Sequence[Need],
    covariances: Sequence[Path],
    snapshots: Mapping[int, Path],
    network: Definition,
    spectra: GroupSpectra,
    settings: WidthSettings,
    first: bool = False,
) -> Seen:
    """Read what an allocator needs, for the runs whose spectra are given.

    Args:
        needs: of the allocator.
        covariances: files of every run.
        snapshots: by seed, of the step whose spectra are read.
        network: whose widths are chosen.
        spectra: of every group, from the same runs.
        settings: say at which point groups are read.
        first: whether the first step's moments are read, not the last's.

    Raises:
        UserError: a file is missing, of another run, or lacks what is needed.
    """
    seeds = sorted({seed for own in spectra.groups.values() for seed in own})
    moments: dict[int, dict[str, list[Moments]]] = {}
    kernels: dict[int, dict[str, tuple[Kernel, ...]]] = {}
    if {"covariance", "gradients"} & set(needs):
        channels, _ = network.reference(network.size[0])
        files = {int(store.provenance(file).get("run", {}).get("seed", -1)): file for file in covariances}
        _require(seeds, files, "--covariance", "the covariance files")
        for seed in seeds:
            records = _records(files[seed], first, "gradients" in needs)
            moments[seed] = _by_group(records, channels, spectra, settings)
            _check_same_maps(files[seed], seed, moments[seed], spectra)
    if "kernels" in needs:
        _require(seeds, snapshots, "--run", "the run folders")
        kernels = {seed: read_kernels(snapshots[seed], network) for seed in seeds}
    return Seen(moments, kernels)


def _require(seeds: Sequence[int], files: Mapping[int, Path], option: str, what: str) -> None:
    missing = [str(seed) for seed in seeds if seed not in files]
    if missing:
        raise UserError(
            f"{option}: the allocator needs {what} of the runs whose spectra are given; of seed {some(missing)} there "
            "is none."
        )


def _records(file: Path, first: bool, gradients: bool) -> list[TapRecord]:
    """Return the taps of the first or last step by their modules and calls, as tables have them.

    Raises:
        UserError: the file cannot be read, or holds no gradients that are asked for.
    """
    with store.open_checked(file) as content:
        step = content[store.step_groups(content)[0 if first else -1]]
        number = int(step.attrs["step"])
        records = [] if gradients else [read_tap(node, number) for node in step.values()]
    if gradients:
        records = list(store.with_gradients(file, number))
    return sorted(records, key=lambda record: (record.key.module, record.key.call))


def _by_group(
    records: Sequence[TapRecord], channels: Channels, spectra: GroupSpectra, settings: WidthSettings
) -> dict[str, list[Moments]]:
    """Return the moments of every group's maps, in the order of the spectra."""
    groups: dict[str, list[Moments]] = {}
    for record in records:
        group = channels.outputs.get((record.key.module, record.key.call))
        if group in spectra.groups and record.key.point == spectra.elsewhere.get(group, settings.point):
            moments = Moments(record.moment(settings.centered))
            if record.gradient is not None:
                gradient = record.gradient
                moments = replace(moments, gradient=gradient.second_moment, positions=gradient.positions)
            groups.setdefault(group, []).append(moments)
    return groups


def _check_same_maps(file: Path, seed: int, moments: Mapping[str, Sequence[Moments]], spectra: GroupSpectra) -> None:
    for group, seeds in spectra.groups.items():
        there = [len(own.covariance) for own in moments.get(group, ())]
        if there != [len(values) for values in seeds[seed]]:
            raise UserError(f"{file}: the maps of {group} are not those of the spectra; expected what these are of.")


def read_kernels(snapshot: Path, network: Definition) -> dict[str, tuple[Kernel, ...]]:
    """Return the kernels of the layers that read each group and nothing else, from a snapshot of the network.

    Layers of the whole detector count, its pyramid among them, where it can be followed, else those of the backbone.
    Left out are layers that read a concatenation of groups or a part of one, whose channels are not told apart. After a
    channel shuffle, channels are not in the order of the group's maps.

    Raises:
        UserError: the snapshot is missing, or of another network.
    """
    _, model, definition = read_snapshot(snapshot)
    expected = replace(network, heads=False).identity()
    if replace(definition, heads=False).identity() != expected:
        raise UserError(f"{snapshot}: of another backbone than {expected['backbone']}.")
    channels, root = _whole(definition, model)
    kernels: dict[str, list[Kernel]] = {}
    for layer in channels.layers:
        if layer.source is None or len(layer.source.terms) != 1 or layer.source.constant:
            continue
        group, factor = layer.source.terms[0]
        weight = _weight(root, layer)
        if weight is not None and factor.denominator == 1:
            kernels.setdefault(group, []).append(_kernel(layer, weight, int(factor)))
    return {group: tuple(own) for group, own in kernels.items()}


def _whole(definition: Definition, model: nn.Module) -> tuple[Channels, nn.Module]:
    """Return the groups of the whole detector, where it can be followed, and the module whose layers these name."""
    network = replace(definition, widths=None)
    if network.detector is not None:
        with contextlib.suppress(UserError):
            return replace(network, heads=True).reference()[0], model
    return replace(network, heads=False).reference()[0], backbone_of(model)


def _weight(root: nn.Module, layer: Layer) -> np.ndarray | None:
    """Return a layer's weight as (blocks, written / blocks, read / blocks, elements), if it has one of its own."""
    if layer.kind not in ("conv", "linear"):
        return None
    module = root.get_submodule(layer.module)
    weight = getattr(module, "weight", None)
    if weight is None:
        return None
    values = weight.detach().double().cpu().numpy()
    values = values.reshape(*values.shape[:2], -1)
    blocks = getattr(module, "groups", 1)
    if getattr(module, "transposed", False):  # (read, written / blocks, …)
        return values.reshape(blocks, -1, *values.shape[1:]).transpose(0, 2, 1, 3)
    return values.reshape(blocks, -1, *values.shape[1:])


def _kernel(layer: Layer, weight: np.ndarray, factor: int) -> Kernel:
    """Return the kernel of a layer that reads each channel `factor` times.

    A linear layer reads the positions of a flattened channel beside one another; a convolution whole copies.
    """
    blocks, written, read, elements = weight.shape
    if factor > 1 and layer.kind == "linear":
        weight = weight.reshape(blocks, written, read // factor, factor * elements)
    elif factor > 1:
        copies = weight.reshape(blocks, written, factor, read // factor, elements)
        weight = copies.transpose(0, 1, 3, 2, 4).reshape(blocks, written, read // factor, factor * elements)
    return Kernel(layer.module, weight)
