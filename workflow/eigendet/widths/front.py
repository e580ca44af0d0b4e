"""What a rule's option does to parameters and operations: the Pareto front over it, at several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config import UNIFORM, Experiment
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.widths.allocation import Budget
from eigendet.widths.derivation import NO_SOURCES, Sources, rule_text
from eigendet.widths.dimensions import group_spectra, read_spectra_of_arm
from eigendet.widths.rounding import proportional, rounded
from eigendet.widths.targets import targets_of
from eigendet.widths.views import GroupView, group_views

CAPS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # on multiply-accumulates, as shares of the reference's


def front(
    experiment: Experiment, network: Definition, folders: Sequence[Path], sources: Sources = NO_SOURCES
) -> pd.DataFrame:
    """Return a row for every value of an option and every cap on MACs that can be met.

    The option is the rule's where widths are proportional to dimensions, else the allocator's.

    Columns: `widths` (how they are found, in words), `cap`; `parameters`, `macs`, `parameter_share`,
    `mac_share` (of the reference's); `on_front`: no other row of this cap has as few of both and fewer of one. (Among
    all caps, the narrowest network of the smallest would stand alone.) Uniform scaling is there for comparison, and
    takes no part in the front. What accuracy each row has, only training can tell.
    """
    settings = experiment.widths
    channels, reference = network.reference(network.size[0])
    spectra = group_spectra(read_spectra_of_arm(experiment.name, network, settings.arm, folders), channels, settings)
    seen = sources.read(network, spectra, settings)
    kind: Literal["rule", "allocator"] = "rule" if settings.allocation.plugin == "proportional" else "allocator"
    key = {"rule": "rule", "allocator": "allocation"}[kind]
    choices = plugins.variants(kind, getattr(settings, key))
    rows: list[FrontRow] = []
    views: dict[str, list[GroupView]] = {}
    for cap in sorted({*CAPS, settings.macs or 1.0}):
        capped = settings.model_copy(update={"macs": cap})
        try:
            budget = Budget.of(channels, reference, capped)
        except UserError:
            continue  # not even the narrowest network is so small
        for choice in choices:
            varied: WidthSettings = capped.model_copy(update={key: choice})
            rule = str(varied.rule)  # what groups show depends on it alone, and to decompose their matrices takes long
            if rule not in views:
                views[rule] = group_views(budget, channels, reference, spectra, varied, seen)
            target = targets_of(views[rule], budget, varied)
            rows.append(_row(channels, reference, rule_text(varied), cap, rounded(budget, target)))
        rows.append(_row(channels, reference, UNIFORM, cap, proportional(budget, reference)))
    table = pd.DataFrame(rows, columns=FrontRow._fields)
    table["on_front"] = False
    for _, rows_of_cap in table[table["widths"] != UNIFORM].groupby("cap"):
        costs = rows_of_cap[["parameters", "macs"]].to_numpy()
        best = [not ((costs <= own).all(1) & (costs < own).any(1)).any() for own in costs]
        table.loc[rows_of_cap.index, "on_front"] = best
    return table


class FrontRow(NamedTuple):
    """A row of the front's table, but for whether it is on the front."""

    widths: str
    cap: float
    parameters: int
    macs: int
    parameter_share: float
    mac_share: float


def _row(channels: Channels, reference: Widths, how: str, cap: float, widths: Widths) -> FrontRow:
    parameters, macs = channels.parameters(widths), channels.macs(widths)
    shares = parameters / channels.parameters(reference), macs / channels.macs(reference)
    return FrontRow(how, cap, parameters, macs, *shares)
