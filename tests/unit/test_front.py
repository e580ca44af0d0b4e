from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eigendet import config
from eigendet.config import UNIFORM
from eigendet.runs import definitions
from eigendet.widths.front import front
from tests.planted import written


def test_every_value_of_the_rules_option_at_every_budget(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values | {"widths": {"round_to": 1, "macs": 0.9}})
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    channels, reference = network.reference(64)
    rows = []
    for (module, call), group in channels.outputs.items():
        if "relu" in module:
            spectrum = np.arange(1, reference[group] + 1) ** -(1.0 + ("layer4" in module))
            rows += [
                {"arm": "scratch", "backbone": "tiny", "detector": "d", "seed": 0, "step": 4, "module": module,
                 "call": call, "point": "act", "channels": reference[group], "samples": 900,
                 "effective_samples": 90.0, "centered": True, "index": index, "value": value}
                for index, value in enumerate(spectrum)
            ]  # fmt: skip
    written(tmp_path, network, pd.DataFrame(rows))
    table = front(experiment, network, [tmp_path])
    assert {"dof at scale 0.1", "dof at scale 1", UNIFORM} <= set(table["widths"])
    assert {0.5, 0.9, 1.0} <= set(table["cap"])
    assert (table["mac_share"] <= table["cap"]).all()
    derived = table[table["widths"] != UNIFORM]
    best = derived[derived["on_front"]]
    assert 0 < len(best) < len(derived)
    for _, row in derived[~derived["on_front"]].iterrows():
        other = best[best["cap"] == row["cap"]]
        assert ((other["parameters"] <= row["parameters"]) & (other["macs"] <= row["macs"])).any()
    assert not table[table["widths"] == UNIFORM]["on_front"].any()
    narrow = config.parse(values | {"widths": {"macs": None, "activations": 10, "min_factor": 1.6}})
    assert front(narrow, network, [tmp_path]).empty
    whole = table[(table["widths"] == UNIFORM) & (table["cap"] == 1.0)].iloc[0]
    assert whole["parameters"] == channels.parameters(reference)
