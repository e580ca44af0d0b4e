"""How long it takes to spend a budget: `make benchmark NAME=allocation` writes allocation.md beside this file.

Every network has spectra that are made up and fall as power laws, a cap on multiply-accumulates at the reference's, and
widths in multiples of 8 (or what the network asks for). Tracing, which comes first, is a column of its own. All times
are in seconds, each measured once, with rounding. Matrices are of up to 64 channels: to decompose those of real maps
takes allocators that read them about as long as `eigendet spectra` took.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

from eigendet import channels, plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.widths.allocation import Budget
from eigendet.widths.made_up import made_up
from eigendet.widths.matching import matched
from eigendet.widths.rounding import rounded
from eigendet.widths.stages import stage_numbers
from eigendet.widths.targets import allocator_targets
from tests.benchmarks.channels import torchvision_network
from tests.watching import watched

NETWORKS = ("resnet18", "resnet50", "vgg19_bn", "densenet201", "regnet_y_128gf", "convnext_large", "efficientnet_v2_l")


def spent(traced: Channels, allocator: str) -> tuple[Widths, float]:
    """Return the widths that an allocator gives, and how many seconds it took."""
    settings = WidthSettings(allocation=PluginChoice(plugin=allocator))
    spectra, seen = made_up(traced, traced.widths, plugins.needs(settings.allocation))
    start = time.perf_counter()
    budget = Budget.of(traced, traced.widths, settings)
    widths = rounded(budget, allocator_targets(budget, traced, traced.widths, spectra, settings, seen))
    return widths, time.perf_counter() - start


def profile(traced: Channels, goal: Widths) -> float:
    """Return how many seconds a profile at the goal's costs takes."""
    start = time.perf_counter()
    budget = Budget.like(traced, traced.widths, goal, ["macs", "parameters"], WidthSettings())
    full = np.array([traced.widths[group] for group in budget.costs.groups], float)
    rounded(budget, matched(budget, full, stage_numbers(traced)).target)
    return time.perf_counter() - start


def row(name: str) -> str:
    start = time.perf_counter()
    traced = channels.trace(*torchvision_network(name))
    times = [time.perf_counter() - start]
    times += [spent(traced, allocator)[1] for allocator in sorted(plugins.discover("allocator"))]
    times.append(profile(traced, spent(traced, "proportional")[0]))
    parameters = traced.parameters(traced.widths) / 1e6
    return f"| {name} | {len(traced.widths)} | {parameters:.1f} M | " + " | ".join(f"{t:.2f}" for t in times) + " |"


def main() -> int:
    columns = ["network", "groups", "parameters", "trace", *sorted(plugins.discover("allocator")), "profile"]
    lines = [
        "# How long it takes to spend a budget", "", *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads.", "",
        f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}",
    ]  # fmt: skip
    lines += [row(name) for name in watched(NETWORKS, "allocation")]
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
