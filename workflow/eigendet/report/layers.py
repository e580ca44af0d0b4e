"""What layers are called on the page, and which of them stand together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from eigendet.spectra.tables import TAP

DEEPEST, FEWEST = 3, 3  # components of a path that may tell stages apart, and stages that there are at least


def layer_name(module: str, call: int) -> str:
    """Return the path of a module; of its later calls in a pass also which, counted from 0.

    >>> layer_name("layer1.0.relu", 0), layer_name("layer1.0.relu", 1), layer_name("", 0)
    ('layer1.0.relu', 'layer1.0.relu#1', 'the model itself')
    """
    return (module or "the model itself") + (f"#{call}" if call else "")


def layer_names(table: pd.DataFrame) -> list[str]:
    """Return the name of each row's layer."""
    return [layer_name(module, call) for module, call in zip(table[TAP[0]], table[TAP[1]], strict=True)]


def stages(layers: Sequence[str]) -> list[int]:
    """Return the number of each layer's stage: of those in a row whose paths begin alike. Single ones stand together.

    >>> stages(["conv1", "relu", "layer1.0.relu", "layer1.1.relu", "layer2.0.relu"])
    [0, 0, 1, 1, 2]
    >>> stages(["features.0.0", "features.0.2", "features.1.0", "features.1.2", "features.2.0"])
    [0, 0, 1, 1, 2]
    """
    paths = [layer.partition("#")[0].split(".") for layer in layers]
    depths = range(1, DEEPEST + 1)
    depth = next((depth for depth in depths if len({tuple(path[:depth]) for path in paths}) >= FEWEST), 1)
    starts = [tuple(path[:depth]) for path in paths]
    sizes, found = Counter(starts), [0] * len(layers)
    for place in range(1, len(layers)):
        here, before = starts[place], starts[place - 1]
        found[place] = found[place - 1] + (here != before and max(sizes[here], sizes[before]) > 1)
    return found


def set_apart(layers: Sequence[str]) -> list[str]:
    """Return layers with a blank name before each further stage, no two of these alike.

    >>> set_apart(["relu", "layer1.0.relu", "layer1.1.relu", "layer2.0.relu", "layer2.1.relu"])
    ['relu', ' ', 'layer1.0.relu', 'layer1.1.relu', '  ', 'layer2.0.relu', 'layer2.1.relu']
    """
    rows: list[str] = []
    last = 0
    for layer, stage in zip(layers, stages(layers), strict=True):
        rows += [" " * stage, layer] if stage != last else [layer]
        last = stage
    return rows
