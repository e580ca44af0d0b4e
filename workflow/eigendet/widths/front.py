"""What a rule's option does to parameters and operations: the Pareto front over it, at several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eigendet import plugins
from eigendet.channels.groups import Widths
from eigendet.config import UNIFORM, Experiment
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError
from eigendet.networks.models import Definition
from eigendet.widths import dimensions
from eigendet.widths.allocation import Budget, proportional
from eigendet.widths.derivation import allocate, rule_text

CAPS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # on multiply-accumulates, as shares of the reference's


def front(experiment: Experiment, network: Definition, folders: Sequence[Path]) -> pd.DataFrame:
    """A row for every value of the rule's option and every cap on MACs that can be met.

    Columns: `widths` (how they are found, in words), `cap`; `parameters`, `macs`, `parameter_share`,
    `mac_share` (of the reference's); `on_front`: no other row of this cap has as few of both and fewer of one. (Among
    all caps, the narrowest network of the smallest would stand alone.) Uniform scaling is there for comparison, and
    takes no part in the front. What accuracy each row has, only training can tell.
    """
    settings = experiment.widths
    spectra = dimensions.read(experiment.name, network, experiment.widths.arm, folders, "eigenvalues")
    channels, reference = network.reference(network.size[0])
    shown = dimensions.of_groups(spectra, channels, settings)
    rules = plugins.variants("rule", settings.rule) if settings.allocation == "proportional" else [settings.rule]
    rows: list[dict[str, Any]] = []

    def add(how: str, cap: float, widths: Widths) -> None:
        spent = {"parameters": channels.parameters(widths), "macs": channels.macs(widths)}
        shares = {
            "parameter_share": spent["parameters"] / channels.parameters(reference),
            "mac_share": spent["macs"] / channels.macs(reference),
        }
        rows.append({"widths": how, "cap": cap} | spent | shares)

    for cap in sorted({*CAPS, settings.macs or 1.0}):
        capped = settings.model_copy(update={"macs": cap})
        try:
            budget = Budget.of(channels, reference, capped)
        except UserError:
            continue  # not even the narrowest network is so small
        for rule in rules:
            varied: WidthSettings = capped.model_copy(update={"rule": rule})
            add(rule_text(varied), cap, allocate(budget, shown, varied)[0])
        add(UNIFORM, cap, proportional(budget, reference))
    table = pd.DataFrame(rows, columns=["widths", "cap", "parameters", "macs", "parameter_share", "mac_share"])
    table["on_front"] = False
    for _, rows_of_cap in table[table["widths"] != UNIFORM].groupby("cap"):
        costs = rows_of_cap[["parameters", "macs"]].to_numpy()
        best = [not ((costs <= own).all(1) & (costs < own).any(1)).any() for own in costs]
        table.loc[rows_of_cap.index, "on_front"] = best
    return table
