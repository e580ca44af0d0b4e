"""What the spectra show of each channel group: its intrinsic dimension, and its pooled spectrum.

A group's dimension is the largest intrinsic dimension over its taps, averaged over seeds: channels that a residual sum
ties must serve the most demanding of their maps. How sure it is, `intervals` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from eigendet import plugins
from eigendet.channels.groups import Channels
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError, some
from eigendet.networks.definition import Definition
from eigendet.observe.keys import Point
from eigendet.spectra.metrics import intrinsic_dimension
from eigendet.spectra.tables import joined, read_run

# Where a group is read that has no map of its own at the chosen point: the nearest to what the next layer reads first.
OTHER_POINTS: tuple[Point, ...] = ("act", "block", "norm", "conv", "linear")


def nearest_point(points: Collection[str], chosen: Collection[str]) -> Point | None:
    """Return where a group with maps at `points` is read if none of these is at a chosen one, else None.

    >>> nearest_point({"conv", "norm"}, ["act"]), nearest_point({"conv", "act"}, ["act"])
    ('norm', None)
    """
    there = [point for point in OTHER_POINTS if point in points]
    return None if set(there).intersection(chosen) else next(iter(there), None)


@dataclass(frozen=True)
class GroupSpectra:
    """Eigenvalues of every channel group: by seed, a spectrum for each tap, negative ones zero."""

    groups: dict[str, dict[int, list[np.ndarray]]]
    elsewhere: dict[str, str]  # groups that have no map of their own at the chosen point -> where they were read

    def dimensions(self, settings: WidthSettings) -> dict[str, float]:
        """Return the intrinsic dimension of every group, in channels."""
        return {group: float(np.mean(seeds)) for group, seeds in self.dimensions_of_seeds(settings).items()}

    def dimensions_of_seeds(self, settings: WidthSettings) -> dict[str, list[float]]:
        """Return the intrinsic dimension of every group in each seed."""
        rule = plugins.bind("rule", settings.rule, "widths.rule")
        return {
            group: [max(intrinsic_dimension(values, rule) for values in taps) for taps in seeds.values()]
            for group, seeds in self.groups.items()
        }


def read_spectra_of_arm(
    experiment: str,
    network: Definition,
    arm: str,
    folders: Sequence[Path],
    table: Literal["eigenvalues", "jackknife"] = "eigenvalues",
) -> pd.DataFrame:
    """Return a table that `eigendet spectra` wrote, of every run of one arm.

    Args:
        experiment: its name.
        network: whose widths are chosen.
        arm: whose spectra are read; those of others are left out.
        folders: what `eigendet spectra` wrote, of each run.
        table: which table.

    Raises:
        UserError: a table is missing, or of another experiment, backbone or detector; there is none of the arm, or two
            of one run.
    """
    if not folders:
        raise UserError(f"SPECTRA: none given; expected folders of the arm {arm}, one for each seed.")
    spectra = joined([_read_checked(experiment, network, folder, table) for folder in folders])
    arms = sorted(set(spectra["arm"]))
    chosen = spectra[spectra["arm"] == arm]
    if chosen.empty and (table == "eigenvalues" or arms):
        raise UserError(f"{folders[0]}: tables of {some(arms) or 'no arm'}; expected some of the arm {arm}.")
    if chosen.duplicated([column for column in chosen if column != "value"]).any():
        raise UserError(f"{folders[0]}: two of the tables are of the same run; expected a table for each seed.")
    return chosen


def _read_checked(
    experiment: str, network: Definition, folder: Path, name: Literal["eigenvalues", "jackknife"]
) -> pd.DataFrame:
    table, provenance = read_run(folder, name)
    file = folder / f"{name}.parquet"
    if provenance.experiment != experiment:
        raise UserError(f"{file}: of the experiment '{provenance.experiment}'; this one is '{experiment}'.")
    try:
        definition = Definition.of(provenance.definition or {})
    except ValueError as error:
        raise UserError(
            f"{file}: does not say of which network it is ({error}); run 'eigendet spectra' again."
        ) from None
    require_network(file, definition, network)
    return table


def require_network(path: Path, definition: Definition, network: Definition) -> None:
    """Raise UserError unless what a path holds is of the backbone and the detector whose widths are chosen."""
    expected = replace(network, heads=True).identity()
    for kind, own in replace(definition, heads=True).identity().items():
        if own != expected[kind]:
            raise UserError(f"{path}: of the {kind} {own}; this one is {expected[kind]}.")


def group_spectra(
    spectra: pd.DataFrame, channels: Channels, settings: WidthSettings, first: bool = False
) -> GroupSpectra:
    """Return the spectra of every channel group at the chosen point, and at the last step or the first.

    A group that is seen there only among others, in a concatenation, is read at another point that was observed.

    Raises:
        UserError: the spectra are of the other moment; a group has no tap at any point.
    """
    _check_moment(spectra, settings)
    read = spectra_by_group(spectra, channels, settings, first)
    bare = [group for group in channels.widths if group not in read.groups]
    if bare:
        others = [point for point in OTHER_POINTS if point not in set(spectra["point"])]
        raise UserError(
            f"widths.point is '{settings.point}', and the channel groups {some(bare)} have no feature map of "
            f"their own there; add some of {', '.join(others) or 'other points'} to covariance.points."
        )
    return read


def spectra_by_group(
    spectra: pd.DataFrame, channels: Channels, settings: WidthSettings, first: bool = False
) -> GroupSpectra:
    """Return the spectra of every channel group that was observed, as `group_spectra` does."""
    by_seed = spectra.groupby("seed")["step"]
    step = by_seed.transform("min") if first else by_seed.transform("max")
    chosen = spectra[spectra["step"] == step]
    groups: dict[str, dict[int, list[np.ndarray]]] = {}
    elsewhere: dict[str, str] = {}
    for point in dict.fromkeys([settings.point, *OTHER_POINTS]):
        before = set(groups)
        for (seed, module, call), tap in chosen[chosen["point"] == point].groupby(["seed", "module", "call"]):
            group = channels.outputs.get((str(module), int(call)))
            if group is not None and group not in before:
                values = np.clip(tap["value"].to_numpy(), 0.0, None)
                groups.setdefault(group, {}).setdefault(int(seed), []).append(values)
                if point != settings.point:
                    elsewhere[group] = point
    return GroupSpectra({group: groups[group] for group in channels.widths if group in groups}, elsewhere)


def _check_moment(spectra: pd.DataFrame, settings: WidthSettings) -> None:
    if (spectra["centered"] == settings.centered).any():
        return
    asked, read, option = "the covariance", "the raw second moments", ""
    if not settings.centered:
        asked, read, option = read, asked, " with --raw"
    raise UserError(
        f"widths.centered is {str(settings.centered).lower()}, which means spectra of {asked}; these are of {read}: "
        f"run 'eigendet spectra' again{option}."
    )
