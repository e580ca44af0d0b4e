"""What tapping costs, beside what others do: `make benchmark NAME=covariance`.

All contenders run in one process on the same tensors, in turns, so that a noisy machine is noisy to all; read the
ratios, not the seconds. The table is written to `cpu.md` beside this file; on a GPU `tests/gpu` measures.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from eigendet.moments.covariance import Covariance
from eigendet.moments.products import CHUNK_BYTES
from eigendet.observe import store
from eigendet.observe.keys import Point
from eigendet.observe.points import point_of
from eigendet.observe.taps import Taps, tap
from eigendet.spectra.spectrum import eigenvalues
from tests.gpu.by_hand import Delve, Float64, Naive, Welford, hooked

POINTS: tuple[Point, ...] = ("conv", "act", "block")
ROUNDS = 7
Contender = Callable[[Tensor], None]


CPU = torch.device("cpu")
OTHERS: dict[str, Callable[[int, torch.device], Any]] = {
    "float64, XᵀX": Float64,
    "delve's accumulator": Delve,
    "centered per batch, float32": Welford,
}


def main() -> None:
    torch.manual_seed(0)
    sections = [f"# Benchmark of the covariance engine\n\n{machine()}"]
    for section in (accuracy, classifier, detector, memory, growth, solver, sizes):
        sections.append(section())
        print(sections[-1], flush=True)
    Path(__file__).with_name("cpu.md").write_text("\n\n".join(sections) + "\n")


def machine() -> str:
    described = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in described if "model name" in line), platform.processor())
    where = f"{cpu}, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    return f"{where}; {versions}; {datetime.date.today()}. `make benchmark NAME=covariance` writes this page anew."


def table(title: str, header: list[str], rows: list[list[str]], note: str = "") -> str:
    lines = [
        f"## {title}",
        "",
        *([note, ""] if note else []),
        f"| {' | '.join(header)} |",
        "| --- " * len(header) + "|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def accuracy() -> str:
    """Against float64, 20 batches of 5000 samples with 256 channels; the spectrum falls over six decades."""
    basis = torch.linalg.qr(torch.randn(256, 256, dtype=torch.float64))[0]
    drawn = torch.randn(100_000, 256, dtype=torch.float64) * torch.logspace(0, -3, 256, dtype=torch.float64)
    samples = {f"mean {mean} sd": (drawn @ basis.T + mean * basis[:, 0]).float() for mean in (0, 1, 10, 100)}
    samples["after a ReLU"] = (torch.randn(100_000, 256) @ torch.randn(256, 256) / 16).relu()
    rows = []
    for name, make in {"plain sums, float32": Naive, **OTHERS, "**eigendet**": Covariance}.items():
        cells = []
        for batch in samples.values():
            accumulator = make(256, CPU)
            for part in batch.split(5000):
                accumulator.update(part)
            exact = torch.cov(batch.double().T, correction=0)
            error = float((accumulator.covariance().cpu() - exact).norm() / exact.norm())
            found, wanted = torch.linalg.eigvalsh(accumulator.covariance().double().cpu()), torch.linalg.eigvalsh(exact)
            kept = wanted > 1e-6 * wanted[-1]
            worst = float(((found - wanted).abs() / wanted)[kept].max())
            cells.append(f"{error:.0e}, {worst:.0e}")
        rows.append([name, *cells])
    note = "Relative Frobenius error, and the worst relative error of an eigenvalue above 1e-6 of the largest."
    return table("Accuracy", ["", *samples], rows, note)


def classifier() -> str:
    return forward("ResNet-50, 4 images of 224x224", resnet50(), torch.randn(4, 3, 224, 224))


def forward(title: str, model: nn.Module, images: Any, others: bool = True, points: tuple[Point, ...] = POINTS) -> str:
    """Time that taps add to a forward pass: medians over rounds in which every contender has its turn."""
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {"bare": nullcontext}
    contexts["**eigendet**"] = lambda: tap(model, points)
    contexts["eigendet, shortcuts=False"] = lambda: tap(model, points, shortcuts=False)
    if others:
        chosen = partial(_is_at, points)
        contexts |= {name: partial(hooked, model, make, chosen) for name, make in OTHERS.items()}
    times: dict[str, list[float]] = {name: [] for name in contexts}
    finish: dict[str, float] = {}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, context in contexts.items():
                with context() as taps:
                    model(images)  # makes accumulators
                    times[name].append(_seconds(model, images))
                if isinstance(taps, Taps):
                    finish[name] = _seconds(_read, taps)
    bare = statistics.median(times["bare"])
    added = {name: statistics.median(values) - bare for name, values in times.items() if name != "bare"}
    rows = [["bare forward pass", f"{bare:.3f}", "", "", ""]]
    for name, value in added.items():
        ratio = f"{value / added['**eigendet**']:.2f}"
        rows.append(
            [name, f"+{value:.3f}", f"{value / bare:+.0%}", ratio, f"{finish[name]:.2f}" if name in finish else ""]
        )
    header = ["", "seconds", "over the bare pass", "relative to eigendet", "seconds once, to read all taps"]
    return table(f"Time added to a forward pass: {title}", header, rows, f"Taps: {', '.join(points)}.")


def _read(taps: Taps) -> None:
    for key in taps:
        taps[key].scatter  # noqa: B018


def _is_at(points: tuple[Point, ...], module: nn.Module) -> bool:
    return point_of(module) in points


def memory() -> str:
    """Peak above the bare forward pass, each in a process of its own."""
    peaks = [_peak(tapped) for tapped in (False, True)]
    model = resnet50()
    with torch.no_grad(), tap(model, POINTS, measure=True) as taps:
        model(torch.randn(1, 3, 64, 64))
    accumulators = sum(8 * channels**2 for channels, _ in taps.roots().values()) / 2**20
    largest = 4 * max(channels**2 for channels, _ in taps.roots().values()) / 2**20
    chunk = CHUNK_BYTES["cpu"] / 2**20
    pointwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    weights = sum(4 * m.weight.numel() for m in pointwise) / 2**20
    rows = [["peak of the bare pass", f"{peaks[0]:.0f}"], ["added by taps", f"{peaks[1] - peaks[0]:.0f}"]]
    rows += [["of that: accumulators", f"{accumulators:.0f}"], ["a chunk of samples, at most", f"{chunk:.0f}"]]
    rows += [["a float32 product of the widest map", f"{largest:.0f}"], ["weights of shortcuts", f"{weights:.0f}"]]
    note = f"ResNet-50, 4 images of 224x224, taps {', '.join(POINTS)}, 5 passes, MiB."
    return table("Memory", ["", "MiB"], rows, note)


def _peak(tapped: bool) -> float:
    code = f"from tests.benchmarks.covariance import passes; passes({tapped})"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return float(result.stdout)


def passes(tapped: bool) -> None:
    """Print the peak memory of this process, MiB, after some forward passes."""
    model, images = resnet50(), torch.randn(4, 3, 224, 224)
    with torch.no_grad(), tap(model, POINTS) if tapped else nullcontext():
        for _ in range(5):
            model(images)
    # getrusage would give the peak of the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 2**10)


def growth() -> str:
    """Cost of an image as images go on."""
    model = torchvision.models.resnet18(weights=None).eval()
    images = torch.randn(20, 3, 64, 64)
    rows, seen = [], 0
    with torch.no_grad(), tap(model, POINTS):
        for limit in (100, 1000, 10_000):
            while seen < limit - 100:
                model(images)
                seen += 20
            best = min(_seconds(lambda: [model(images) for _ in range(5)]) for _ in range(3)) / 100
            seen += 300
            rows.append([f"{limit:,}", f"{1000 * best:.2f}"])
    return table("Cost of an image", ["after images", "ms an image, forward pass and taps"], rows, "ResNet-18, 64x64.")


def detector() -> str:
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    model = model.eval()
    images = [torch.rand(3, 800, 1216)]
    return forward("Faster R-CNN ResNet-50-FPN, 800x1216", model, images, False, (*POINTS, "fpn"))


def solver() -> str:
    rows = []
    for channels in (512, 1024, 2048, 4096):
        samples = torch.randn(2 * channels, channels, dtype=torch.float64) * torch.logspace(0, -4, channels).double()
        matrix = (samples.T @ samples / len(samples)).numpy()
        solvers = (np.linalg.eigvalsh, eigenvalues)
        times = [min(_seconds(solve, matrix) for _ in range(2)) for solve in solvers]
        rows.append([str(channels), *(f"{seconds:.2f}" for seconds in times)])
    return table("Eigenvalues", ["channels", "numpy, s", "eigendet, s"], rows)


def sizes() -> str:
    """Files of one snapshot of a ResNet-50-FPN detector."""
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    model = model.eval()
    rows = []
    choices: list[tuple[Point, ...]] = [("act",), ("act", "fpn"), ("conv", "norm", "act", "block", "fpn")]
    for points in choices:
        with torch.no_grad(), tap(model, points, modules="backbone*") as taps:
            model([torch.rand(3, 320, 480)])
        cells = []
        for single in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "c.h5"
                seconds = _seconds(partial(taps.save, path, single=single))
                assert len(list(h5py.File(path)["step_0000000"])) == len(taps)
                assert next(store.read(path)).count
                cells.append(f"{path.stat().st_size / 1e6:.0f} MB, {seconds:.1f} s")
        rows.append([", ".join(points), str(len(taps)), *cells])
    header = ["taps", "how many", "float64", "float32"]
    return table("Files: a snapshot of ResNet-50-FPN", header, rows, "Size, and time to write.")


def resnet50() -> nn.Module:
    return torchvision.models.resnet50(weights=None).eval()


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
