"""Runs of tests/gpu/run.py over checks that end in every way there is, on a GPU that is only pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

# A module called torch that starts at once, and has a GPU most of whose memory others hold.
TORCH = """
__version__ = "2.11.0+cu130"

class Tensor: pass

class OutOfMemoryError(RuntimeError): pass

class device:
    def __init__(self, kind): self.type = kind

class version: cuda = "13.0"

class ones:
    def __init__(self, rows, columns, device): assert device == "cuda"
    def __matmul__(self, other): return self
    def sum(self): return 64.0**3

class cuda:
    def init(): pass
    def mem_get_info(): return 3 * 2**30, 80 * 2**30
    def memory_reserved(): return 2**29
    def get_device_name(): return "NVIDIA H100 80GB HBM3"
    def get_device_capability(): return (9, 0)
    class get_device_properties:
        def __init__(self, device): self.total_memory = 80 * 2**30
    def set_per_process_memory_fraction(fraction, device): print("fraction", fraction)

class backends:
    class cudnn:
        def version(): return 91900
"""
# A module of a check, with what its `figures` does.
MODULE = """
import os, signal, subprocess, sys, time
import torch
from tests.gpu.figures import Figure

def figures(device, small, out):
    assert isinstance(device, torch.device) and out.is_dir()
    {body}
"""
RIGHT = "yield Figure('right', 1e-9, limit=1e-6, note='of 3')"
BODIES = {
    "right": f"{RIGHT}; (out / 'profile.txt').write_text('x')",
    "wrong": f"{RIGHT}; yield Figure('too far', 2e-3, limit=1e-6); yield Figure('nowhere', float('nan'), limit=1.0)",
    "slower": "yield Figure('throughput', 0.5, limit=0.98, at_least=True); yield Figure('told', 12345.6, 'ms')",
    "raising": f"{RIGHT}; print('said'); raise ValueError('cannot be, /a/folder/of/this.h5: why. And more.')",
    "dying": f"{RIGHT}; os.kill(os.getpid(), signal.SIGSEGV)",
    "leaving": "sys.exit(3); yield",
    "silent": "yield from ()",
    "full": f"{RIGHT}; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')",
    "endless": f"{RIGHT}; subprocess.Popen(['sleep', '600']); (out / 'begun').touch(); time.sleep(600)",
    "unwilling": f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {RIGHT}; time.sleep(600)",
}
# The same checks, run as run.py runs its own.
START = """
import sys
from tests.gpu import child, run
from tests.gpu.plan import Check

child.GRACE = 0.5
CHECKS = {checks}
sys.exit(run.main(sys.argv[1:], [Check(name, f"{{name}}_check", "It.", *more) for name, *more in CHECKS]))
"""
HIDING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
NVIDIA_SMI = "#!/bin/sh\necho 580.65.06\n"
Checks = Sequence[tuple[Any, ...]]


def started(
    folder: Path, checks: Checks, *arguments: object, hidden: Sequence[str] = (), device: str = "cpu"
) -> subprocess.Popen[str]:
    """Start a run of checks, each a name, seconds, and further fields of `plan.Check`; `hidden` cannot be imported."""
    files = {f"{name}_check.py": MODULE.format(body=body) for name, body in BODIES.items()}
    files |= {"torch.py": TORCH, "start.py": START.format(checks=list(checks)), "nvidia-smi": NVIDIA_SMI}
    files["sitecustomize.py"] = HIDING.format(names=list(hidden))
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "nvidia-smi").chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [folder, ROOT, ROOT / "workflow"])),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
    line = [sys.executable, "start.py", "--out", "out", "--device", device, *map(str, arguments)]
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(
    folder: Path, checks: Checks, *arguments: object, hidden: Sequence[str] = (), device: str = "cpu"
) -> tuple[int, list[str]]:
    """Run checks; return the exit status and the lines on the screen."""
    process = started(folder, checks, *arguments, hidden=hidden, device=device)
    said, _ = process.communicate()
    return process.returncode, said.splitlines()


def results(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "out/gpu.json").read_text())
    assert (content["format"], content["version"]) == ("eigendet-gpu", 1)
    return {check["name"]: check for check in content["checks"]}


def names(check: dict[str, Any]) -> list[str]:
    return [figure["name"] for figure in check["figures"]]
