"""The table of readings, which `eigendet readings` writes, and what it says in sentences."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, TypeAdapter, ValidationError, model_validator

from eigendet.config import Experiment, layout
from eigendet.errors import UserError, first_line
from eigendet.moments.weighting import Weighting
from eigendet.report import wording
from eigendet.report.results import Network


class Reading(BaseModel):
    """A row: what widths by one rule, of one moment and weighting, cost; or why there are none."""

    model_config = ConfigDict(frozen=True)

    rule: str
    centered: bool
    weighting: Weighting
    own: bool
    preset: str | None
    parameters: PositiveInt | None
    macs: PositiveInt | None
    parameter_share: FiniteFloat | None
    mac_share: FiniteFloat | None
    reason: str | None

    @model_validator(mode="after")
    def _costs_or_a_reason(self) -> Self:
        costs = (self.parameters, self.macs, self.parameter_share, self.mac_share)
        if [cost is None for cost in costs] != [self.reason is not None] * len(costs):
            raise ValueError("expected all costs, or a reason why there are none")
        return self


def read_readings(folder: Path, experiment: Experiment) -> dict[Network, list[Reading]]:
    """Read the tables of the networks that have one.

    Raises:
        UserError: a file holds something else.
    """
    files = {network: layout.path(folder, layout.READINGS, **network._asdict())
             for network in map(Network._make, experiment.networks)}  # fmt: skip
    return {network: _read(file) for network, file in files.items() if file.is_file()}


def _read(file: Path) -> list[Reading]:
    remedy = "expected the table that 'eigendet readings' writes: delete the file, and run that again"
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(lines)]
        read = TypeAdapter(list[Reading]).validate_python(rows)
    except ValidationError as error:
        fault = error.errors()[0]
        row, *column = fault["loc"]
        where = f"row {int(row) + 1}{''.join(f', {name}' for name in column)}"
        raise UserError(f"{file}: {where}: {fault['msg'].lower()}; {remedy}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: is not a table ({first_line(error)}); {remedy}.") from None
    if not read:
        raise UserError(f"{file}: holds no row; {remedy}.")
    return read


def on_readings(rows: Sequence[Reading]) -> str:
    """Say how far apart readings are, and whether it matters what counts alike; nothing if there are no widths.

    >>> costs = {"macs": 90, "mac_share": 0.9, "own": False, "preset": None, "reason": None}
    >>> rows = [Reading(rule="dof", centered=True, weighting=weighting, parameters=parameters,
    ...                 parameter_share=parameters / 100, **costs)
    ...         for weighting, parameters in (("positions", 50), ("images", 80))]
    >>> on_readings(rows)
    'Of the parameters, these readings leave from 0.50 to 0.80.'
    """
    shares = [row.parameter_share for row in rows if row.parameter_share is not None]
    if not shares:
        return ""
    low, high = (wording.share(share, 2) for share in (min(shares), max(shares)))
    said = f"Of the parameters, these readings leave {low}." if low == high else (
        f"Of the parameters, these readings leave from {low} to {high}."
    )  # fmt: skip
    by_weighting: dict[str, list[tuple[object, ...]]] = {}
    for row in rows:
        by_weighting.setdefault(row.weighting, []).append((row.rule, row.centered, row.parameters, row.macs))
    first, *others = by_weighting.values()
    if others and all(other == first for other in others):
        said += " Whether positions or images count alike changes no cost."
    return said
