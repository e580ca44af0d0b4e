"""How long it takes to spend a budget: `make benchmark NAME=allocation` writes allocation.md beside this file.

Every network has planted spectra that fall as k^-1.2, a cap on multiply-accumulates at the reference's, and widths in
multiples of 8 (or what the network asks for). Tracing, which comes first, is a column of its own. All times are in
seconds, each measured once.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

from eigendet import channels
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import WidthSettings
from eigendet.widths.allocation import Budget
from eigendet.widths.marginal import marginal
from eigendet.widths.matching import matched
from eigendet.widths.rounding import proportional, rounded
from eigendet.widths.stages import stage_numbers
from tests.benchmarks.channels import torchvision_network
from tests.watching import watched

NETWORKS = ("resnet18", "resnet50", "vgg19_bn", "densenet201", "regnet_y_128gf", "convnext_large", "efficientnet_v2_l")


def profile(traced: Channels, goal: Widths) -> Widths:
    budget = Budget.like(traced, traced.widths, goal, ["macs", "parameters"], WidthSettings())
    full = np.array([traced.widths[group] for group in budget.costs.groups], float)
    return rounded(budget, matched(budget, full, stage_numbers(traced)).target)


def row(name: str) -> str:
    start = time.perf_counter()
    traced = channels.trace(*torchvision_network(name))
    times = [time.perf_counter() - start]
    budget = Budget.of(traced, traced.widths, WidthSettings())
    spectra = {group: np.arange(1, width + 1) ** -1.2 for group, width in traced.widths.items()}
    dimension = {group: width**0.8 for group, width in traced.widths.items()}
    found: dict[str, Widths] = {}
    for way, allocate in {
        "proportional": lambda: proportional(budget, dimension),
        "marginal": lambda: marginal(budget, spectra),
        "profile": lambda: profile(traced, found["proportional"]),
    }.items():
        start = time.perf_counter()
        found[way] = allocate()
        times.append(time.perf_counter() - start)
    parameters = traced.parameters(traced.widths) / 1e6
    return f"| {name} | {len(traced.widths)} | {parameters:.1f} M | " + " | ".join(f"{t:.2f}" for t in times) + " |"


def main() -> int:
    lines = [
        "# How long it takes to spend a budget", "", *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads.", "",
        "| network | groups | parameters | trace | proportional | marginal | profile |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [row(name) for name in watched(NETWORKS, "allocation")]
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
