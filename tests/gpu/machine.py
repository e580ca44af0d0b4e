"""What a run is made on: `python -m tests.gpu.machine DEVICE` prints it as JSON, or why the device cannot be used.

In a process of its own, since run.py imports no torch and holds no memory of the device.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tests.gpu.record import one_line

GIB = 2**30
SCARCE = 0.8  # with less than this share of its memory free, a device is said to be shared


def facts(device: str) -> dict[str, str]:
    """Return names and values, in words.

    Raises:
        RuntimeError: torch cannot use the device.
        ImportError, OSError: torch cannot be imported.
    """
    import torch

    values = _cuda() if device == "cuda" else {"device": _processor()}
    values["torch"] = str(torch.__version__)
    for package in ("torchvision", "triton", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            values[package] = metadata.version(package)
    return {**values, "Python": platform.python_version()}


def reason(error: Exception) -> str:
    """Say in one line why the device cannot be used, or no longer; where its memory is full, also by whom."""
    full = type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in str(error)
    with contextlib.suppress(Exception):  # a device in such a state may answer nothing
        if full:
            import torch

            free, total = torch.cuda.mem_get_info()
            own = torch.cuda.memory_reserved()
            others = (total - free - own) / GIB
            return f"out of memory: {own / GIB:.1f} of {total / GIB:.1f} GiB are this process's, {others:.1f} others'"
    return one_line(error)


def _cuda() -> dict[str, str]:
    import torch

    if torch.version.cuda is None:
        raise RuntimeError(f"this torch, {torch.__version__}, is built without CUDA")
    torch.cuda.init()  # says why, where `is_available` only says that
    ones = torch.ones(64, 64, device="cuda")
    if float((ones @ ones).sum()) != 64**3:
        raise RuntimeError("a product of ones is wrong on it")
    free, total = torch.cuda.mem_get_info()
    cudnn = torch.backends.cudnn.version()
    values = {
        "device": torch.cuda.get_device_name(),
        "compute capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "memory": f"{total / GIB:.1f} GiB",
        "driver": _driver(),
        "CUDA": torch.version.cuda,
        "cuDNN": "none" if cudnn is None else f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",
    }
    if free < SCARCE * total:
        values["memory"] += f", of which other processes leave {free / GIB:.1f}"
    return values


def _driver() -> str:
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(line, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    return "unknown"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Print the facts, or the reason why there are none."""
    try:
        answer: dict[str, object] = {"facts": facts(sys.argv[1])}
    except Exception as error:  # whatever torch raises, the reason is what counts
        answer = {"reason": reason(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
