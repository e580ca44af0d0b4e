"""The columns that all tables of spectra share, and how tables are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from eigendet.errors import UserError

RUN_COLUMNS = ["arm", "backbone", "detector", "seed"]
TAP_COLUMNS = ["step", "module", "call", "point", "channels", "samples", "effective_samples", "centered"]


def read_table(file: Path) -> pd.DataFrame:
    """A table of this library.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be read as a table ({reason}); delete it, and run the stage again.") from None


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    plain = [table.copy(deep=False) for table in tables]
    for table in plain:
        table.attrs = {}  # of single runs
    return pd.concat(plain, ignore_index=True) if plain else pd.DataFrame()
