"""One check in this process: `python -m tests.gpu.check` with what run.py gives. Figures go to a file, one a line."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tests.gpu.plan import MEMORY
from tests.gpu.record import one_line

if TYPE_CHECKING:
    import torch

    from tests.gpu.figures import Figure

GIB = 2**30


def run(module: str, device: torch.device, small: bool, lines: TextIO, folder: Path) -> None:
    """Write every figure of a check as soon as it is there."""
    figures = importlib.import_module(module).figures
    for figure in figures(device, small, folder):
        lines.write(json.dumps(plain(figure)) + "\n")
        lines.flush()


def plain(figure: Figure) -> dict[str, object]:
    """Return a figure as JSON takes it, which has no NaN and no infinity."""
    value = float(figure.value)
    return asdict(figure) | {"ok": figure.ok, "value": value if math.isfinite(value) else str(value)}


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
            file.write(json.dumps({"raised": _reason(error)}) + "\n")
            return 1
    return 0


def _reason(error: Exception) -> str:
    """Say in one line why a check ended; of a device without memory also what is left for others, and for this."""
    import torch

    full = isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)
    with contextlib.suppress(RuntimeError):  # the device may answer nothing any more
        if full:
            free, total = torch.cuda.mem_get_info()
            taken = torch.cuda.memory_reserved()
            others = (total - free - taken) / GIB
            return f"out of memory: {taken / GIB:.1f} of {total / GIB:.1f} GiB are this process's, {others:.1f} others'"
    return one_line(error)


if __name__ == "__main__":
    sys.exit(main())
