"""What the spectra show of each channel group: its intrinsic dimension, its pooled spectrum, and how sure both are.

A group's dimension is the largest (or mean) intrinsic dimension over its taps, averaged over seeds. Its interval is the
jackknife's over parts of the probe images (Tukey 1958): what other images might have shown, not what other seeds would.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.special

from eigendet import plugins
from eigendet.channels.groups import Channels
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError, some
from eigendet.networks.models import Definition
from eigendet.spectra.metric_tables import intrinsic_dimension
from eigendet.spectra.tables import RUN_COLUMNS, TAP_COLUMNS

TIES: dict[str, Callable[..., Any]] = {"max": np.max, "mean": np.mean}
COLUMNS = [*RUN_COLUMNS, *TAP_COLUMNS, "index", "value"]
# Where a group is read that has no map of its own at the chosen point: the nearest to what the next layer reads first.
OTHER_POINTS = ("act", "block", "norm", "conv", "linear")
CONFIDENCE = 0.95

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupSpectra:
    """Eigenvalues of every channel group: by seed, a spectrum for each tap, negative ones zero."""

    groups: dict[str, dict[int, list[np.ndarray]]]
    elsewhere: dict[str, str]  # groups that have no map of their own at the chosen point -> where they were read

    def dimensions(self, settings: WidthSettings) -> dict[str, float]:
        """Intrinsic dimension of every group, in channels."""
        tie, rule = TIES[settings.tie], plugins.bind("rule", settings.rule, "widths.rule")
        return {
            group: float(np.mean([tie([intrinsic_dimension(v, rule) for v in taps]) for taps in seeds.values()]))
            for group, seeds in self.groups.items()
        }

    def pooled(self, settings: WidthSettings) -> dict[str, np.ndarray]:
        """One descending spectrum for every group: shares of the trace, tied over its taps, averaged over seeds."""
        tie = TIES[settings.tie]
        found = {}
        for group, seeds in self.groups.items():
            shares = [[np.sort(values)[::-1] / (values.sum() or 1.0) for values in taps] for taps in seeds.values()]
            found[group] = np.mean([tie(taps, axis=0) for taps in shares], axis=0)
        return found


def read(experiment: str, network: Definition, arm: str, folders: Sequence[Path], table: str) -> pd.DataFrame:
    """A table of `eigendet spectra`, `eigenvalues` or `jackknife`, of every run of one arm, by folders.

    Raises:
        UserError: a table is missing, or of another experiment, backbone or detector; there is none of the arm, or two
            of one run.
    """
    if not folders:
        raise UserError(f"SPECTRA: none given; expected folders of the arm {arm}, one for each seed.")
    parts = []
    wanted = replace(network, heads=True).identity()
    for folder in folders:
        file = folder / f"{table}.parquet"
        columns = [*COLUMNS, "left_out"] if table == "jackknife" else COLUMNS
        try:
            part = pd.read_parquet(file)
            part[columns]
            definition = Definition.of(part.attrs["definition"])
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; 'eigendet spectra' writes it.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file}: no table of this 'eigendet spectra' ({reason}); run it again.") from None
        found = part.attrs.get("experiment")
        if found != experiment:
            raise UserError(f"{file}: of the experiment '{found}'; this one is '{experiment}'.")
        for kind, own in replace(definition, heads=True).identity().items():
            if own != wanted[kind]:
                raise UserError(f"{file}: of the {kind} {own}; this one is {wanted[kind]}.")
        parts.append(part)
    spectra = pd.concat(parts, ignore_index=True)
    arms = sorted(set(spectra["arm"]))
    chosen = spectra[spectra["arm"] == arm]
    if chosen.empty and (table == "eigenvalues" or arms):
        raise UserError(f"{folders[0]}: tables of {some(arms) or 'no arm'}; expected some of the arm {arm}.")
    if chosen.duplicated([column for column in chosen if column != "value"]).any():
        raise UserError(f"{folders[0]}: two of the tables are of the same run; expected a table for each seed.")
    return chosen


def of_groups(spectra: pd.DataFrame, channels: Channels, settings: WidthSettings, first: bool = False) -> GroupSpectra:
    """The spectra of every channel group at the chosen point, and at the last step or the first.

    A group that is seen there only among others, in a concatenation, is read at another point that was dumped.

    Raises:
        UserError: the spectra are of the other moment; a group has no tap at any point.
    """
    if not (spectra["centered"] == settings.centered).any():
        moments = "the covariance", "the raw second moments"
        asked, read = moments if settings.centered else reversed(moments)
        raise UserError(
            f"widths.centered is {str(settings.centered).lower()}, which means spectra of {asked}; these are of "
            f"{read}: run 'eigendet spectra' again{'' if settings.centered else ' with --raw'}."
        )
    by_seed = spectra.groupby("seed")["step"]
    step = by_seed.transform("min") if first else by_seed.transform("max")
    chosen = spectra[spectra["step"] == step]
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    elsewhere: dict[str, str] = {}
    for point in dict.fromkeys([settings.point, *OTHER_POINTS]):
        before = set(found)
        for (seed, module, call), tap in chosen[chosen["point"] == point].groupby(["seed", "module", "call"]):
            group = channels.outputs.get((str(module), int(call)))
            if group is not None and group not in before:
                values = np.clip(tap["value"].to_numpy(), 0.0, None)
                found.setdefault(group, {}).setdefault(int(seed), []).append(values)
                if point != settings.point:
                    elsewhere[group] = point
    bare = [group for group in channels.widths if group not in found]
    if bare:
        others = [point for point in OTHER_POINTS if point not in set(spectra["point"])]
        raise UserError(
            f"widths.point is '{settings.point}', and the channel groups {some(bare)} have no feature map of "
            f"their own there; add some of {', '.join(others) or 'other points'} to covariance.points."
        )
    return GroupSpectra({group: found[group] for group in channels.widths}, elsewhere)


def complete(left_out: pd.DataFrame, spectra: pd.DataFrame) -> bool:
    """Whether a jackknife table leaves out each of several parts in every seed."""
    seeds = left_out.groupby("left_out")["seed"].nunique()
    if len(seeds) > 1 and (seeds == spectra["seed"].nunique()).all():
        return True
    if not left_out.empty:
        logger.warning("no intervals: the seeds have different parts of the images left out, or one alone")
    return False


def interval(estimate: float, without: Sequence[float]) -> tuple[float, float]:
    """Where the estimate would lie with other images, with 95 % confidence, from its values without each part of them.

    The jackknife's standard error, √((K - 1) / K · Σ (θ₍ₖ₎ - mean)²), and Student's t of K - 1 degrees of freedom.
    """
    parts = len(without)
    error = np.sqrt((parts - 1) * np.var(without))
    half = float(scipy.special.stdtrit(parts - 1, (1 + CONFIDENCE) / 2) * error)  # of Student's t
    return max(estimate - half, 0.0), estimate + half
