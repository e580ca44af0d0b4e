"""The checks in order of worth, and the packages that they need. Imports the standard library alone, as run.py does."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "EIGENDET_GPU_MEMORY_GIB"  # a check's process takes no more of the device's memory than this

# What is imported -> the package that brings it.
PACKAGES = {
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "h5py": "h5py", "pandas": "pandas",
    "scipy": "scipy", "pydantic": "pydantic", "click": "click", "faster_coco_eval": "faster-coco-eval", "PIL": "pillow",
    "yaml": "pyyaml", "pyarrow": "pyarrow", "lazy_loader": "lazy-loader", "sklearn": "scikit-learn",
    "triton": "triton", "delve": "delve",
}  # fmt: skip
WITHOUT = {
    "lazy_loader": "a stand-in takes its place",
    "pyarrow": "experiment ends with the covariances",
    "sklearn": "experiment has rectangles instead of digits",
    "triton": "taps take the plain path, and torch.compile may not work",
    "delve": "its accumulator is not compared",
}
EVERYWHERE = ("torch", "torchvision", "numpy", "pandas", "PIL")
SPECTRA = ("h5py", "scipy")
EXPERIMENT = (*SPECTRA, "pydantic", "faster_coco_eval")


@dataclass(frozen=True)
class Check:
    """One module of this folder, run in a process of its own.

    Attributes:
        name: what `--only` takes.
        module: whose `figures` it runs; it may be run under several conditions.
        what: it shows, as gpu.md says it.
        seconds: after which it is stopped, the start of its process included.
        needs: what it imports besides `EVERYWHERE`.
        environment: variables of its process.
        cuda: whether it shows anything on a CUDA device alone.
    """

    name: str
    module: str
    what: str
    seconds: float
    needs: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cuda: bool = False


CHECKS = (
    Check("accuracy", "tests.gpu.accuracy", "The accumulator against float64 on the CPU.", 60),
    Check(
        "accuracy-uncached", "tests.gpu.accuracy", "The same, with memory that goes back to the device at once.", 35,
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, cuda=True,
    ),
    Check(
        "accuracy-tight", "tests.gpu.accuracy", "The same in 4 GiB of the device, whose memory is soon used again.", 25,
        environment={MEMORY: "4"}, cuda=True,
    ),
    Check("detectors", "tests.gpu.detectors", "Every tap of whole detectors against a plain float64 hook.", 60),
    Check("speed", "tests.gpu.speed", "What taps cost, and where the time goes.", 120),
    Check("training", "tests.gpu.training", "Repeated, interrupted, shared, in half precision; speed.", 60, EXPERIMENT),
    Check("experiment", "tests.gpu.experiment", "From pre-training to evaluation, by stages.", 60, EXPERIMENT),
    Check("memory", "tests.gpu.memory", "The peak above that of the bare forward pass.", 30),
    Check("eigenvalues", "tests.gpu.eigenvalues", "Decompositions on the device and on the CPU.", 30, SPECTRA),
)  # fmt: skip


def is_there(name: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def absent() -> list[str]:
    """Return which of `PACKAGES` cannot be imported, by the names under which they are."""
    return [name for name in PACKAGES if not is_there(name)]


def lacking(check: Check, absent: Sequence[str]) -> str:
    """Return which absent packages a check needs, by the names under which they are installed; empty if none."""
    return ", ".join(PACKAGES[name] for name in (*EVERYWHERE, *check.needs) if name in absent)


def missing(absent: Sequence[str], checks: Sequence[Check]) -> list[str]:
    """Return a line for each absent package: how it is installed, and what goes without it."""
    lines = []
    for name in absent:
        without = [check.name for check in checks if name in (*EVERYWHERE, *check.needs)]
        consequence = f"left out: {', '.join(without)}" if without else WITHOUT.get(name, "no check needs it")
        lines.append(f"{PACKAGES[name]} is not installed (pip install {PACKAGES[name]}); {consequence}")
    return lines


def outdated() -> list[str]:
    """Return a line for each package that is older than the library requires, which pyproject.toml says."""
    lines = []
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        package, _, oldest = requirement.partition(">=")
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(version) < _numbers(oldest):
            lines.append(f"{package} {version} is older than {oldest} (pip install --upgrade {package})")
    return lines


def _numbers(version: str) -> list[int]:
    """Return a release's numbers: 2, 11, 0 of 2.11.0+cu130, for which a plain comparison is enough."""
    release = version.partition("+")[0].split(".")
    return [int(part) for part in release if part.isdigit()]
