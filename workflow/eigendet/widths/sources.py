"""Read what some allocators need beside eigenvalues: covariances, gradients, kernels, and these over training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from torch import nn

from eigendet.channels.groups import Channels, Layer, Size
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError, some
from eigendet.networks.backbones import backbone_of
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import store
from eigendet.observe.records import TapRecord, read_tap
from eigendet.plugins.markers import Need
from eigendet.widths.dimensions import GroupSpectra
from eigendet.widths.views import Kernel, Moments, Seen, Unfolding

logger = logging.getLogger(__name__)


def read_seen(
    needs: Sequence[Need],
    covariances: Sequence[Path],
    snapshots: Mapping[int, Sequence[Path]],
    network: Definition,
    spectra: GroupSpectra,
    settings: WidthSettings,
    first: bool = False,
) -> Seen:
    """Read what an allocator needs, for the runs whose spectra are given.

    Args:
        needs: of the allocator.
        covariances: files of every run.
        snapshots: by seed, all that were kept, the first step's first.
        network: whose widths are chosen.
        spectra: of every group, from the same runs.
        settings: say at which point groups are read.
        first: whether what the first step shows is read, and nothing after it, instead of what the last does.

    Raises:
        UserError: a file is missing, of another run, or lacks what is needed.
    """
    seeds = sorted({seed for own in spectra.groups.values() for seed in own})
    moments: dict[int, dict[str, list[Moments]]] = {}
    kernels: dict[int, dict[str, tuple[Kernel, ...]]] = {}
    history: dict[int, dict[str, tuple[Unfolding, ...]]] = {}
    if {"covariance", "gradients"} & set(needs):
        channels, _ = network.reference(network.size[0])
        files = {int(store.provenance(file).get("run", {}).get("seed", -1)): file for file in covariances}
        _require(seeds, files, "--covariance", "the covariance files")
        for seed in seeds:
            records = _records(files[seed], first, "gradients" in needs)
            moments[seed] = _by_group(records, channels, spectra, settings)
            _check_same_maps(files[seed], seed, moments[seed], spectra)
    if {"kernels", "history"} & set(needs):
        _require(seeds, snapshots, "--run", "the run folders")
    if "kernels" in needs:
        kernels = {seed: read_kernels(snapshots[seed][0 if first else -1], network) for seed in seeds}
    if "history" in needs:
        history = {seed: read_history(snapshots[seed][: 1 if first else None], network) for seed in seeds}
    return Seen(moments, kernels, history)


def _require(seeds: Sequence[int], files: Mapping[int, object], option: str, what: str) -> None:
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
        steps = store.steps(content)
        if not steps:
            raise UserError(f"{file}: holds no step; run 'eigendet covariance' again.")
        step = steps[0 if first else -1]
        number = store.step_number(step)
        records = [] if gradients else [read_tap(node, number) for node in store.taps(step)]
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
    """Raise UserError unless maps have the channels and the traces that the spectra have, whatever the file says."""
    for group, seeds in spectra.groups.items():
        there = [(len(own.covariance), float(np.trace(own.covariance))) for own in moments.get(group, ())]
        expected = [(len(values), float(values.sum())) for values in seeds[seed]]
        if len(there) != len(expected) or not np.allclose(there, expected, rtol=1e-3, atol=0):
            raise UserError(f"{file}: the maps of {group} are not those of the spectra; expected what these are of.")


def read_kernels(snapshot: Path, network: Definition) -> dict[str, tuple[Kernel, ...]]:
    """Return the kernels of the layers that read each group and nothing else, from a snapshot of the network.

    Layers of the whole detector count, its pyramid among them, where it can be followed, else those of the backbone,
    with a warning. Left out are layers that read a concatenation of groups or a part of one, whose channels are not
    told apart. After a channel shuffle, channels are not in the order of the group's maps.

    Raises:
        UserError: the snapshot is missing, or of another network.
    """
    kernels: dict[str, list[Kernel]] = {}
    for layer, weight in _weights(snapshot, network)[1]:
        alone = _alone(layer.source)
        if alone is not None:
            kernels.setdefault(alone[0], []).append(_kernel(layer, weight, alone[1]))
    return {group: tuple(own) for group, own in kernels.items()}


def read_history(snapshots: Sequence[Path], network: Definition) -> dict[str, tuple[Unfolding, ...]]:
    """Return the unfoldings, at each snapshot, of the layers that read or write each group and nothing else.

    Layers are those of `read_kernels`, and those that write a group. Left out are convolutions of one channel a block,
    on that side of theirs: there is no rank in one row.

    Raises:
        UserError: a snapshot is missing, or of another network.
    """
    history: dict[str, list[Unfolding]] = {}
    for snapshot in snapshots:
        step, weights = _weights(snapshot, network)
        for layer, weight in weights:
            for group, rows in _unfolded(layer, weight):
                if rows.shape[1] > 1:
                    unfolding = Unfolding(layer.module, step, (rows.shape[1], rows.shape[2]), _singular_values(rows))
                    history.setdefault(group, []).append(unfolding)
    return {group: tuple(own) for group, own in history.items()}


def _unfolded(layer: Layer, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the groups that a layer reads and writes, and its weights as (blocks, channels / blocks, of a channel)."""
    source, out = _alone(layer.source), _alone(layer.out)
    if source is not None:
        read = _kernel(layer, weight, source[1]).weight.transpose(0, 2, 1, 3)
        yield source[0], read.reshape(*read.shape[:2], -1)
    if out is not None and out[1] == 1:
        yield out[0], weight.reshape(*weight.shape[:2], -1)


def _singular_values(rows: np.ndarray) -> np.ndarray:
    """Return the singular values of every block, descending, as roots of eigenvalues: half of the digits do for a rank.

    >>> _singular_values(np.array([[[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])).tolist()
    [[4.0, 3.0]]
    """
    narrow = rows if rows.shape[1] <= rows.shape[2] else rows.transpose(0, 2, 1)
    squares = np.linalg.eigvalsh(narrow @ narrow.transpose(0, 2, 1))
    values: np.ndarray = np.sqrt(squares[:, ::-1].clip(0))
    return values


def _alone(size: Size | None) -> tuple[str, int] | None:
    """Return the group that a number of channels is whole copies of, and how many, if it is of one alone."""
    if size is None or len(size.terms) != 1 or size.constant or size.terms[0][1].denominator != 1:
        return None
    group, factor = size.terms[0]
    return group, int(factor)


def _weights(snapshot: Path, network: Definition) -> tuple[int, list[tuple[Layer, np.ndarray]]]:
    """Return the step of a snapshot of the network, and its layers with weights of their own.

    Raises:
        UserError: the snapshot is missing, or of another network.
    """
    step, model, definition = read_snapshot(snapshot)
    expected = replace(network, heads=False).identity()
    if replace(definition, heads=False).identity() != expected:
        raise UserError(f"{snapshot}: of another backbone than {expected['backbone']}.")
    channels, alone = reading(definition)
    if alone:
        _say_once(alone)
    root = model if alone is None else backbone_of(model)
    weights = [(layer, _weight(root, layer)) for layer in channels.layers]
    return step, [(layer, weight) for layer, weight in weights if weight is not None]


def reading(network: Definition) -> tuple[Channels, str | None]:
    """Return the groups of the layers whose kernels count, and, where those are the backbone's alone, why.

    Layers are named as in the detector, or as in its backbone.
    """
    alone = ""
    if network.detector is not None:
        try:
            return replace(network, widths=None, heads=True).reference()[0], None
        except UserError as error:
            alone = f"kernels of the backbone alone are read, since the whole detector cannot be followed: {error}"
    return replace(network, widths=None, heads=False).reference()[0], alone


@cache
def _say_once(warning: str) -> None:
    """Warn, of many snapshots once."""
    logger.warning("%s", warning)


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
