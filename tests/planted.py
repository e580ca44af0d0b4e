"""Tables of spectra of a known rank, as `eigendet spectra` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eigendet.channels.groups import Channels
from eigendet.networks.definition import Definition
from eigendet.spectra import tables


def planted(traced: Channels, rank: dict[str, int], seed: int, **more: Any) -> pd.DataFrame:
    """Eigenvalues of every activation, of which as many are not zero as the rank of its group."""
    rows = []
    for (module, call), group in traced.outputs.items():
        if "relu" in module:
            values = (np.arange(traced.widths[group]) < rank[group]).astype(float)
            tap: dict[str, Any] = dict.fromkeys(tables.COLUMNS["eigenvalues"], 0) | {
                "arm": "scratch",
                "backbone": "tiny",
                "detector": "rcnn",
            }
            tap |= {"seed": seed, "step": 5, "module": module, "call": call, "point": "act", "centered": True}
            tap |= {"channels": values.size, "samples": 4096, "effective_samples": 1024.0} | more
            rows.append(pd.DataFrame(tap | {"index": np.arange(values.size), "value": values}))
    return pd.concat(rows, ignore_index=True)


def written(
    folder: Path, network: Definition, eigenvalues: pd.DataFrame, jackknife: pd.DataFrame | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    if jackknife is None:
        jackknife = eigenvalues.assign(left_out=0)[:0]
    tables.write_run(folder, tables.Provenance("minimal", network.plain()), eigenvalues, jackknife)
    return folder
