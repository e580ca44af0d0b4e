"""Channel groups as a table."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from eigendet.channels.groups import Channels, check_widths, whole
from eigendet.errors import some


def frame(channels: Channels, widths: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Return the channel groups as a table, one row for each group.

    >>> from torch import nn
    >>> from eigendet import channels
    >>> class Net(nn.Sequential):
    ...     def __init__(self):
    ...         super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 1))
    >>> table = channels.frame(channels.trace(Net, (16, 16)))
    >>> print(table.to_string(index=False))
    name  width  multiple  parameters   macs          layers
       0      8         1         224  55296 0 (out), 1 (in)
       1      8         1         584 147456 1 (out), 2 (in)

    Args:
        channels: the groups of a network.
        widths: the width of each group; by default those of the network as built.

    Returns:
        Columns name, width, multiple (what the width must be a multiple of), parameters and macs (of the layers that
        write the group, or first write it where they write several), and layers: all that read or write it.

    Raises:
        ChannelError: a group has no width, or none that it can have.
    """
    rows = []
    widths = channels.widths if widths is None else widths
    check_widths(channels, widths)
    for group, width in widths.items():
        sides: dict[str, list[str]] = {}
        for layer, side in channels.members(group):
            sides.setdefault(layer, []).append(side)
        written = [layer for layer in channels.layers if layer.out.terms and layer.out.terms[0][0] == group]
        rows.append(
            {
                "name": group,
                "width": width,
                "multiple": channels.multiples[group],
                "parameters": whole(sum(layer.parameters(widths) for layer in written)),
                "macs": whole(sum(layer.macs(widths) for layer in written)),
                "layers": ", ".join(f"{layer} ({'+'.join(own)})" for layer, own in sides.items()),
            }
        )
    return pd.DataFrame(rows, columns=["name", "width", "multiple", "parameters", "macs", "layers"])


def table(channels: Channels, widths: Mapping[str, int]) -> str:
    """Return the groups at these widths as text: a line for each, and for each reason why layers keep their width."""
    rows = [("group", "width", "multiple of", "parameters", "MACs", "layers")]
    for row in frame(channels, widths).itertuples(index=False):
        rows.append((row.name, str(row.width), str(row.multiple), f"{row.parameters:,}", f"{row.macs:,}", row.layers))
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for group, *numbers, layers in rows:
        aligned = [number.rjust(length) for number, length in zip(numbers, lengths[1:-1], strict=True)]
        lines.append("  ".join([group.ljust(lengths[0]), *aligned, layers]))
    lines.append(f"in all {channels.parameters(widths):,} parameters, {channels.macs(widths):,} MACs")
    kept: dict[str, list[str]] = {}
    for layer, reason in channels.fixed.items():
        kept.setdefault(reason, []).append(layer)
    lines += [f"kept: {some(layers)}: {reason}" for reason, layers in kept.items()]
    return "\n".join(lines)
