"""Which layers of a transformer write its inner widths: those of feed-forward parts, and of attention's heads."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

FEED_FORWARD = re.compile("mlp|ffn|feed_?forward|^(linear|layer_)1$", re.IGNORECASE)
ATTENTION = re.compile("attn|attention|mhsa|xca|litemla|token_mixer", re.IGNORECASE)
OTHER = re.compile("head|cpb|pos", re.IGNORECASE)  # classes, and what writes one number a head or a position


class Inner(NamedTuple):
    """Paths of layers."""

    hidden: list[str]  # the first of each feed-forward part
    heads: list[str]  # all but the last of each attention


def inner_layers(model: nn.Module) -> Inner:
    """Return the layers that write a network's inner widths, by the names that its modules and classes have."""
    hidden: list[str] = []
    heads: list[str] = []
    matching = {path: module for path, module in model.named_modules() if path and not OTHER.search(path)}
    forward = [path for path, module in matching.items() if _is(module, path, FEED_FORWARD)]
    for path in forward:
        layers = _layers(matching[path], path)
        if len(layers) > 1 and not any(path.startswith(f"{other}.") for other in forward):
            hidden.append(layers[0])
    attention = [path for path, module in matching.items() if _is(module, path, ATTENTION)]
    for path in attention:
        inside = [other for other in (*attention, *forward) if other.startswith(f"{path}.")]
        layers = _layers(matching[path], path)
        if len(layers) > 1 and not any(len(_layers(matching[other], other)) > 1 for other in inside):
            heads += layers[:-1]
    return Inner(hidden, heads)


def _is(module: nn.Module, path: str, name: re.Pattern[str]) -> bool:
    return bool(name.search(type(module).__name__) or name.search(path.rpartition(".")[2]))


def _layers(module: nn.Module, path: str) -> list[str]:
    layers = [name for name, own in module.named_modules() if isinstance(own, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return [f"{path}.{name}" for name in layers if name and not OTHER.search(name)]
