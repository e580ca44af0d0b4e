"""How often intervals hold what they claim to hold: `make benchmark NAME=intervals` writes intervals.md beside it.

Simulated images whose spectra are known: three maps, of 16, 32 and 48 channels whose eigenvalues fall as 1/k, at 25
positions that are alike near one another. An interval claims to hold, with 95 % confidence, the value that infinitely
many images like these would give. *Gaussian* features; the same after a *ReLU*, of which 60,000 images stand for
infinitely many; and *heavy tails*, where every image is stronger or weaker than others by a random factor: features
have a multivariate Student's t, of 5 degrees of freedom or, much worse, of 3, where second moments have no variance.
*Weak* signals fall as 1/√k with positions that are nearly equal, so that few images are worth fewer samples than there
are channels.

Columns are shares of the intervals that hold the value: of dimensions by three rules, and of widths before rounding by
the default rule, at nine tenths of the operations. The last two are what intervals of the default rule's dimensions
would hold if the estimate were their center: the value of infinitely many images, and that of as many other images.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from torch import nn

from eigendet import channels, plugins
from eigendet.channels.groups import Channels
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.moments.covariance import Covariance, merged
from eigendet.networks.widths_file import Interval
from eigendet.observe.keys import TapKey
from eigendet.observe.records import TapRecord
from eigendet.spectra import metrics
from eigendet.spectra.metrics import Rule, intrinsic_dimension
from eigendet.spectra.spectrum import eigenvalues
from eigendet.widths.allocation import Budget, targets
from eigendet.widths.intervals import dimension_intervals, width_intervals
from tests.watching import watched

WIDTHS, SIDE, MANY = {"0": 16, "2": 32, "4": 48}, 5, 60_000
RULES = ("dof", "effective_rank", "participation")
Spectra = dict[str, tuple[np.ndarray, list[np.ndarray], float]]  # by group: whole, without each part, samples


class Case(NamedTuple):
    """What is simulated."""

    kind: str
    images: int
    parts: int
    decay: float = 1.0  # of the eigenvalues, k^-decay
    reach: float = 2.0  # of the likeness of positions, in positions


KINDS = ("Gaussian", "ReLU", "heavy tails, t5", "heavy tails, t3")
CASES = [
    *(Case(kind, number, 8) for kind in KINDS for number in (200, 50)),
    *(Case("Gaussian", 200, parts) for parts in (2, 4, 16)),
    *(Case("Gaussian", number, 8, decay=0.5, reach=100.0) for number in (400, 100, 24)),
]  # fmt: skip


def network() -> Channels:
    """Return the channel groups of three convolutions, one after another."""
    sizes = [3, *WIDTHS.values()]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return channels.trace(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 2)), (16, 16)
    )


def images(case: Case, width: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Return the features of images, (count, positions, width)."""
    basis = np.linalg.qr(np.random.default_rng(width).normal(size=(width, width)))[0]
    along = np.exp(-np.abs(np.subtract.outer(np.arange(SIDE), np.arange(SIDE))) / case.reach)
    likeness = np.linalg.cholesky(np.kron(along, along))
    scales = np.arange(1, width + 1) ** (-case.decay / 2)
    features = likeness @ random.normal(size=(count, SIDE**2, width)) @ (scales[:, None] * basis.T)
    if case.kind == "ReLU":
        return np.maximum(features, 0)
    if case.kind.startswith("heavy"):
        freedom = int(case.kind[-1])
        features *= (random.chisquare(freedom, size=(count, 1, 1)) / freedom) ** -0.5
    return features


def covariance(features: np.ndarray) -> Covariance:
    """Return the moments of images."""
    samples = features.reshape(-1, features.shape[-1])
    mean = samples.mean(0)
    apart = samples - mean
    return Covariance.from_moments(len(samples), torch.from_numpy(mean), torch.from_numpy(apart.T @ apart))


def observed(case: Case, random: np.random.Generator) -> Spectra:
    """Return what the spectra of one set of images are."""
    found = {}
    for group, width in WIDTHS.items():
        features = images(case, width, case.images, random)
        parts = {part: covariance(features[part :: case.parts]) for part in range(case.parts)}
        whole = merged(parts.values())
        record = TapRecord(
            0,
            TapKey(group, 0, "act"),
            "none",
            whole.count,
            whole.mean.numpy(),
            whole.scatter.numpy(),
            parts=parts,
        )
        rest = [left.moment(centered=True) for left in record.leaving_one_out()]
        samples = metrics.effective_samples(record.moment(centered=True), rest)
        values = eigenvalues(record.moment(centered=True))
        found[group] = (values, [eigenvalues(moment) for moment in rest], samples)
    return found


@cache
def infinite(kind: str, decay: float, reach: float) -> Spectra:
    """Return the spectra of so many images that they stand for infinitely many."""
    if kind != "ReLU":  # all of these have a multiple of one covariance
        return {group: (np.arange(1, width + 1.0) ** -decay, [], math.inf) for group, width in WIDTHS.items()}
    random, case = np.random.default_rng(1), Case(kind, 1000, 1, decay, reach)
    spectra: Spectra = {}
    for group, width in WIDTHS.items():
        blocks = merged([covariance(images(case, width, 1000, random)) for _ in range(MANY // 1000)])
        spectra[group] = eigenvalues((blocks.scatter / blocks.count).numpy()), [], math.inf
    return spectra


class Result(NamedTuple):
    """Of one set of images by one rule: dimensions, widths before rounding, and both intervals, by group."""

    dimension: dict[str, float]
    target: dict[str, float]
    without: dict[str, list[float]]
    of_dimension: dict[str, Interval]
    of_width: dict[str, Interval]


def result(spectra: Spectra, rule: Rule, budget: Budget) -> Result:
    """Derive dimensions, widths and their intervals, as `eigendet.widths.intervals` does."""
    dimension = {group: intrinsic_dimension(values, rule) for group, (values, _, _) in spectra.items()}
    target = dict(zip(budget.costs.groups, targets(budget, dimension).tolist(), strict=True))
    without = {group: [intrinsic_dimension(rest, rule) for rest in parts] for group, (_, parts, _) in spectra.items()}
    if not any(without.values()):
        return Result(dimension, target, without, {}, {})
    shortage = {group: len(values) / samples for group, (values, _, samples) in spectra.items()}
    of_dimension = dimension_intervals(dimension, without, shortage, WIDTHS)
    return Result(
        dimension, target, without, of_dimension, width_intervals(dimension, without, target, shortage, budget)
    )


def holds(intervals: Mapping[str, Interval], values: Mapping[str, float]) -> list[bool]:
    """Return for every interval whether it holds the value."""
    return [low <= values[group] <= high for group, (low, high) in intervals.items()]


def centered_on_the_estimate(one: Result) -> dict[str, Interval]:
    """Return intervals of the same standard error around the dimensions of the images."""
    intervals = {}
    for group, without in one.without.items():
        error = np.sqrt((len(without) - 1) * np.var(without))
        half = float(scipy.special.stdtrit(len(without) - 1, 0.975) * error)
        intervals[group] = one.dimension[group] - half, one.dimension[group] + half
    return intervals


def share(held: Iterable[list[bool]]) -> str:
    """Return the share of intervals that hold a value."""
    return f"{np.mean(list(held)):.3f}"


def row(case: Case, sets: int) -> str:
    """Return a row of the table."""
    traced = network()
    budget = Budget.of(traced, traced.widths, WidthSettings(macs=0.9, parameters=None, activations=None))
    shown = [observed(case, np.random.default_rng([2, number])) for number in range(sets)]
    ratio = np.median([max(len(values) / samples for values, _, samples in spectra.values()) for spectra in shown])
    cells, beside = [], []
    for name in RULES:
        rule = plugins.bind("rule", PluginChoice(plugin=name))
        true = result(infinite(case.kind, case.decay, case.reach), rule, budget)
        results = [result(spectra, rule, budget) for spectra in shown]
        cells.append(share(holds(one.of_dimension, true.dimension) for one in results))
        if name == RULES[0]:
            around = [centered_on_the_estimate(one) for one in results]
            others = zip(around, [*results[1:], results[0]], strict=True)
            beside = [
                share(holds(one.of_width, true.target) for one in results),
                share(holds(intervals, true.dimension) for intervals in around),
                share(holds(intervals, other.dimension) for intervals, other in others),
            ]
    kind = f"{case.kind}, weak" if case.decay < 1 else case.kind
    return "| " + " | ".join([kind, str(case.images), str(case.parts), f"{ratio:.2f}", *cells, *beside]) + " |"


def main() -> int:
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    rows = [row(case, sets) for case in watched(CASES, "intervals")]
    text = [
        "# How often intervals hold what they claim to hold", "",
        *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"{sets} sets of images a row, with three intervals each: a share of 0.95 is known to about "
        f"±{2 * (0.95 * 0.05 / (3 * sets)) ** 0.5:.3f}.", "",
        "| images | number | parts | channels an effective sample, at most | `" + "` | `".join(RULES)
        + "` | widths | around the estimate | the same, of other images |",
        "| --- |" + " --- |" * (6 + len(RULES)),
        *rows, "",
        "Rules that count (`ratio`, `energy`) and marginal allocation have no intervals: what jumps from one number to",
        "the next has none that the jackknife gets right.",
    ]  # fmt: skip
    Path(__file__).with_suffix(".md").write_text("\n".join([*text, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
