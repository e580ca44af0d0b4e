"""How long the analysis of a large experiment takes: `make benchmark NAME=analysis` writes analysis.md beside it.

Simulated observations of a ResNet-50 with a pyramid: every activation, block and pyramid level, 70 maps of up to 2048
channels, at 20 snapshots of 2 arms with 3 seeds each, over 200 images, with 8 parts of them for the jackknife at the
last snapshot. Two processes of one thread run at a time, as Snakemake has it on two cores. Spectra of a map are those
of one random matrix whose channels are scaled otherwise in every run: what they say does not matter here, and their
sizes and precision are those of a real covariance file. Files are written before each pair of runs and deleted after
it, which is not counted.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy
import torch

from eigendet.moments.covariance import Covariance
from eigendet.observe import merging, store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Tap
from tests.watching import watched

STEPS = [0, *(2**power for power in range(18)), 180_000]
IMAGES, PARTS, POSITIONS = 200, 8, 500_000
RUNS = [(arm, seed) for arm in ("finetune", "scratch") for seed in range(3)]


def widths() -> list[tuple[str, int, str, int]]:
    """Module, call, point and channels of every map, in order of execution."""
    found = [("relu", 0, "act", 64)]
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            found += [(f"{name}.relu", call, "act", width * (4 if call == 2 else 1)) for call in range(3)]
            found.append((name, 0, "block", width * 4))
    return found + [(f"fpn.{level}", 0, "fpn", 256) for level in range(5)]


def taps(run: int, step: int, share: float) -> Iterator[Tap]:
    """Of one snapshot, over a share of the images."""
    random = np.random.default_rng([run, step])
    for position, (module, call, point, channels) in enumerate(widths()):
        if point != "block":  # whose output is the tensor of its last activation
            scale = torch.from_numpy(np.exp(-np.arange(channels) / channels * random.uniform(2, 6)))
            mean = torch.from_numpy(random.normal(size=channels)) * scale
            count = int(share * POSITIONS)
            covariance = Covariance.from_moments(count, mean, count * base(channels) * scale * scale[:, None])
            means = torch.from_numpy(random.normal(size=(int(share * IMAGES), channels))) * scale
        yield Tap(TapKey(module, call, point), position, "excluded", covariance, means)


_bases: dict[int, torch.Tensor] = {}


def base(channels: int) -> torch.Tensor:
    """A random covariance."""
    if channels not in _bases:
        samples = torch.randn(
            2 * channels, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(channels)
        )
        _bases[channels] = samples.mT @ samples / (2 * channels)
    return _bases[channels]


def write_covariance(path: Path, number: int) -> None:
    """Write the covariance file of a run."""
    arm, seed = RUNS[number]
    provenance = {
        "run": {"arm": arm, "backbone": "resnet50", "detector": "faster_rcnn", "seed": seed},
        "probe": "simulated",
    }
    names = [f"{image}" for image in range(IMAGES)]
    parts = []
    for part in range(PARTS):
        parts.append(path.with_suffix(f".part{part}.h5"))
        seen = names[part::PARTS]
        store.write_covariances(parts[-1], [(STEPS[-1], taps(number, STEPS[-1], 1 / PARTS))], provenance, seen)
    first, last = path.with_suffix(".first.h5"), path.with_suffix(".last.h5")
    merging.merge(last, parts, range(len(parts)))
    store.write_covariances(first, ((step, taps(number, step, 1.0)) for step in STEPS[:-1]), provenance, names)
    merging.join_steps(path, [first, last])
    for temporary in (first, last, *parts):
        temporary.unlink()


def timed(commands: Sequence[Sequence[str]], threads: int) -> float:
    """Seconds that commands take side by side."""
    environment = os.environ | {
        name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    start = time.perf_counter()
    jobs = [
        subprocess.Popen([Path(sys.executable).with_name("eigendet"), *command], env=environment)
        for command in commands
    ]
    if sum(job.wait() for job in jobs):
        raise SystemExit("a command failed")
    return time.perf_counter() - start


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="analysis", dir=sys.argv[1] if len(sys.argv) > 1 else None))
    times, size = [], 0
    try:
        for pair in watched([(0, 1), (2, 3), (4, 5)], "analysis"):
            for number in pair:
                write_covariance(folder / f"{number}.h5", number)
                size = max(size, (folder / f"{number}.h5").stat().st_size)
            times.append(
                timed([("spectra", f"{folder}/{n}.h5", "--output", f"{folder}/spectra/{n}") for n in pair], threads=1)
            )
            for number in pair:
                (folder / f"{number}.h5").unlink()
        spectra = [f"{folder}/spectra/{number}" for number in range(len(RUNS))]
        compared = timed([("comparison", *spectra, "--output", f"{folder}/comparison")], threads=2)
        kept = sum(file.stat().st_size for file in (folder / "spectra").rglob("*") if file.is_file())
    finally:
        shutil.rmtree(folder)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lines = [
        "# How long the analysis of a large experiment takes", "",
        *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"torch {torch.__version__}, scipy {scipy.__version__}, {platform.machine()}, {os.cpu_count()} cores.", "",
        "| what | seconds |", "| --- | --- |",
        f"| spectra of 6 runs, two at a time | {sum(times):.0f} |",
        f"| metrics and comparison of all | {compared:.0f} |",
        f"| together | {sum(times) + compared:.0f} |", "",
        f"The largest process took {memory:.1f} GiB. A covariance file has {size / 1e9:.1f} GB, all "
        f"spectra {kept / 1e9:.2f} GB.",
    ]  # fmt: skip
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
