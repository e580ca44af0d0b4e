"""What the definition of a dimension does to the widths: the same spectra under each reading.

A reading is a width rule, of centered or raw moments, in which positions or images count alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import pandas as pd

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment
from eigendet.config.presets import PRESETS
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError, first_line
from eigendet.moments.weighting import Weighting
from eigendet.networks.definition import Definition
from eigendet.observe import store
from eigendet.observe.records import read_key, read_tap
from eigendet.plugins.discovery import discover
from eigendet.spectra.spectrum import eigenvalues
from eigendet.widths.derivation import spend
from eigendet.widths.dimensions import GroupSpectra, group_spectra

ALLOCATION = PluginChoice(plugin="proportional")


class Reading(NamedTuple):
    """A row of the table: what a network derived by this reading costs, or why there is none.

    Attributes:
        rule: with its options, in words.
        centered: whether of the covariance, or of raw second moments.
        weighting: what counts alike.
        own: whether it is the experiment's.
        preset: the experiment's preset, if that allows the reading.
        parameters: of the network; None with a reason.
        macs: likewise.
        parameter_share: of the reference's.
        mac_share: likewise.
        reason: why no widths can be derived; empty where they can.
    """

    rule: str
    centered: bool
    weighting: Weighting
    own: bool
    preset: str
    parameters: int | None = None
    macs: int | None = None
    parameter_share: float | None = None
    mac_share: float | None = None
    reason: str = ""


def readings(
    experiment: Experiment, network: Definition, files: Mapping[Weighting, Mapping[int, Path]]
) -> pd.DataFrame:
    """Return a row for every reading, see `Reading`, at the experiment's budget.

    Widths are in proportion to dimensions, whatever the experiment's allocator: some others take no dimensions, and
    some need matrices. A rule that fails, or finds nothing, has its reason in its rows.

    Args:
        experiment: says budget and point, which readings are its own, and which its preset's.
        network: without widths.
        files: of covariances by weighting and seed; their last steps are read.

    Raises:
        UserError: a file cannot be read, or lacks a channel group.
    """
    channels, reference = network.reference(network.size[0])
    spectra = {
        (centered, weighting): own
        for weighting, of_seeds in files.items()
        for centered, own in _both_moments(of_seeds, channels, experiment.widths).items()
    }
    rows = [
        _row(experiment, choice, centered, weighting, channels, reference, own)
        for choice in _rules(experiment)
        for (centered, weighting), own in sorted(spectra.items(), reverse=True)
    ]
    return pd.DataFrame(rows, columns=Reading._fields).astype({"parameters": "Int64", "macs": "Int64"})


def _row(
    experiment: Experiment,
    choice: PluginChoice,
    centered: bool,
    weighting: Weighting,
    channels: Channels,
    reference: Widths,
    spectra: GroupSpectra,
) -> Reading:
    own = experiment.widths
    is_own = (choice, centered, weighting) == (own.rule, own.centered, experiment.covariance.weighting)
    preset = experiment.preset if _is_of_preset(experiment, choice, centered, weighting) else None
    row = Reading(_text(choice), centered, weighting, is_own, preset or "")
    try:
        settings = own.model_copy(update={"rule": choice, "centered": centered, "allocation": ALLOCATION})
        widths = spend(channels, reference, spectra, settings).widths
    except UserError as error:
        return row._replace(reason=first_line(error))
    parameters, macs = channels.parameters(widths), channels.macs(widths)
    return row._replace(
        parameters=parameters,
        macs=macs,
        parameter_share=parameters / channels.parameters(reference),
        mac_share=macs / channels.macs(reference),
    )


def _rules(experiment: Experiment) -> list[PluginChoice]:
    """Return every rule with its default options, but the preset's and the experiment's own with theirs."""
    choices = {name: PluginChoice(plugin=name) for name in discover("rule")}
    choices |= {choice.plugin: choice for choice in _rules_of_preset(experiment)}
    choices[experiment.widths.rule.plugin] = experiment.widths.rule
    return [choices[name] for name in sorted(choices)]


def _rules_of_preset(experiment: Experiment) -> list[PluginChoice]:
    named = PRESETS[experiment.preset]["widths"]["rule"] if experiment.preset else []
    return [PluginChoice(**rule) for rule in named]


def _is_of_preset(experiment: Experiment, choice: PluginChoice, centered: bool, weighting: Weighting) -> bool:
    """Tell whether the experiment's preset allows a reading."""
    if experiment.preset is None:
        return False
    allowed = PRESETS[experiment.preset]
    moments = centered in allowed["widths"]["centered"] and weighting in allowed["covariance"]["weighting"]
    return moments and _text(choice) in map(_text, _rules_of_preset(experiment))


def _text(choice: PluginChoice) -> str:
    """Describe a rule with its options; by its name alone if it cannot be loaded, which the row says."""
    try:
        return plugins.described("rule", choice)
    except UserError:
        return choice.plugin


def _both_moments(files: Mapping[int, Path], channels: Channels, settings: WidthSettings) -> dict[bool, GroupSpectra]:
    """Return the spectra of every group by whether they are of the covariance or of raw second moments."""
    rows = []
    for seed, file in files.items():
        with store.open_checked(file) as content:
            steps = store.steps(content)
            if not steps:
                raise UserError(f"{file}: holds no step; run 'eigendet covariance' again.")
            step = store.step_number(steps[-1])
            for node in _nodes(store.taps(steps[-1]), channels, settings):
                record = read_tap(node, step)
                key = record.key
                tap = {"seed": seed, "step": step, "module": key.module, "call": key.call, "point": key.point}
                for centered in (True, False):
                    values = eigenvalues(record.moment(centered))
                    rows.append(pd.DataFrame({**tap, "centered": centered, "value": values}))
    if not rows:
        raise UserError(f"{next(iter(files.values()))}: holds no feature map of the network whose widths are chosen.")
    table = pd.concat(rows)
    return {
        centered: group_spectra(
            table[table["centered"] == centered], channels, settings.model_copy(update={"centered": centered})
        )
        for centered in (True, False)
    }


def _nodes(taps: Sequence[h5py.Group], channels: Channels, settings: WidthSettings) -> Iterator[h5py.Group]:
    """Yield the taps that groups are read at: those at the chosen point, and of a group that has none there all."""
    keys = [read_key(node) for node in taps]
    groups = [channels.outputs.get((key.module, key.call)) for key in keys]
    there = {group for group, key in zip(groups, keys, strict=True) if key.point == settings.point}
    for node, key, group in zip(taps, keys, groups, strict=True):
        if group is not None and (key.point == settings.point or group not in there):
            yield node
