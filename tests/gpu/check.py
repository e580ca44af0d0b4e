"""One check in this process: `python -m tests.gpu.check` with what run.py gives. Figures go to a file, one a line."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tests.gpu.machine import GIB, reason
from tests.gpu.plan import MEMORY

if TYPE_CHECKING:
    import torch

    from tests.gpu.figures import Figure


def run(module: str, device: torch.device, small: bool, lines: TextIO, folder: Path) -> None:
    """Write every figure of a check as soon as it is there."""
    figures = importlib.import_module(module).figures
    for figure in figures(device, small, folder):
        lines.write(json.dumps(plain(figure)) + "\n")
        lines.flush()


def plain(figure: Figure) -> dict[str, object]:
    """Return a figure as JSON takes it, which knows neither NaN and infinity nor numpy's numbers."""
    value = float(figure.value)
    return asdict(figure) | {
        "value": value if math.isfinite(value) else str(value),
        "limit": None if figure.limit is None else float(figure.limit),
        "ok": None if figure.ok is None else bool(figure.ok),
    }


def limit_memory(device: torch.device) -> None:
    """Leave this process as many GiB of the device as its environment says."""
    import torch

    if device.type == "cuda" and (gib := os.environ.get(MEMORY)):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, float(gib) * GIB / total), device)


def main() -> int:
    """Run one check; return its exit status, 1 if it raised."""
    module, kind, small, lines, folder = sys.argv[1:]
    with Path(lines).open("a") as file:
        try:
            import torch

            device = torch.device(kind)
            limit_memory(device)
            run(module, device, small == "small", file, Path(folder))
        except Exception as error:  # of whatever kind: the next check is tried all the same
            traceback.print_exc()
            file.write(json.dumps({"raised": reason(error)}) + "\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
