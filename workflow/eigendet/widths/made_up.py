"""Spectra, matrices and kernels made up, to try allocators before there are any, and for their contract."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction

import numpy as np

from eigendet.channels.groups import Channels, Layer, Size, Widths
from eigendet.config.sections import WidthSettings
from eigendet.plugins.markers import Need
from eigendet.widths.allocation import Budget
from eigendet.widths.dimensions import GroupSpectra
from eigendet.widths.views import GroupView, Kernel, Moments, Seen, Unfolding, group_views

WIDTHS = (16, 32, 48, 24)  # of a chain of convolutions, each on maps of a quarter of the positions
MOST = 64  # channels of a matrix that is made up


def made_up(
    channels: Channels, widths: Widths, needs: Collection[Need], seeds: Sequence[int] = (0,), scale: float = 1.0
) -> tuple[GroupSpectra, Seen]:
    """Return spectra of every group that fall as power laws, always the same, and what an allocator needs beside them.

    Args:
        channels: the network's groups.
        widths: of each; maps have no more than 64 channels.
        needs: of the allocator.
        seeds: of the runs.
        scale: times all covariances.
    """
    random = np.random.default_rng(0)
    spectra: dict[str, dict[int, list[np.ndarray]]] = {group: {} for group in channels.widths}
    moments: dict[int, dict[str, list[Moments]]] = {seed: {} for seed in seeds}
    kernels: dict[int, dict[str, tuple[Kernel, ...]]] = {seed: {} for seed in seeds}
    history: dict[int, dict[str, tuple[Unfolding, ...]]] = {seed: {} for seed in seeds}
    for seed in seeds:
        for number, group in enumerate(channels.widths):
            width = min(widths[group], MOST)
            laws = [scale * np.arange(1.0, width + 1) ** -random.uniform(1.1, 2.0) for _ in range(1 + number % 2)]
            spectra[group][seed] = laws
            if needs:
                moments[seed][group] = [_moments(random, values) for values in laws]
                kernels[seed][group] = (Kernel("layer", random.normal(size=(1, 24, width, 9))),)
            if "history" in needs:
                history[seed][group] = tuple(_unfoldings(random, width))
    matrices = {"covariance", "gradients"} & set(needs)
    seen = Seen(moments if matrices else {}, kernels if "kernels" in needs else {}, history)
    return GroupSpectra(spectra, {}), seen


def _moments(random: np.random.Generator, values: np.ndarray) -> Moments:
    """Return a covariance of these eigenvalues, and a gradient's second moment with directions of its own."""
    fall, along = (np.linalg.qr(random.normal(size=(len(values), len(values))))[0] for _ in range(2))
    return Moments(fall * values @ fall.T, along * np.arange(1.0, len(values) + 1) ** -0.5 @ along.T, positions=256.0)


def _unfoldings(random: np.random.Generator, width: int) -> Iterator[Unfolding]:
    """Yield those of a kernel of noise to which training adds more and more directions, at three snapshots."""
    noise, learned = random.normal(size=(2, width, 9 * MOST))
    for step in (0, 10, 100):
        strength = 3 * (np.arange(width) < random.uniform() * width * step / 100)
        values = np.linalg.svd(noise + strength[:, None] * learned, compute_uv=False)
        yield Unfolding("layer", step, noise.shape, values[None])


def made_up_groups(
    needs: Collection[Need], caps: Sequence[float], scale: float = 1.0
) -> Iterator[tuple[list[GroupView], Budget]]:
    """Yield the groups of a small network with a budget for each cap on MACs.

    Args:
        needs: what the views hold beside eigenvalues.
        caps: shares of the reference's MACs.
        scale: times all covariances.

    >>> groups, budget = next(made_up_groups((), [1.0]))
    >>> [group.name for group in groups], groups[0].maps[0].covariance is None
    (['layer0', 'layer1', 'layer2', 'layer3'], True)
    """
    widths = {f"layer{number}": width for number, width in enumerate(WIDTHS)}
    sizes = [Size(Fraction(3), ()), *(Size(Fraction(0), ((group, Fraction(1)),)) for group in widths)]
    layers = [
        Layer(group, "conv", sizes[number], sizes[number + 1], kernel=9, positions=4 ** (6 - number))
        for number, group in enumerate(widths)
    ]
    head = Layer("head", "linear", sizes[-1], Size(Fraction(10), ()), positions=1)
    channels = Channels(widths, dict.fromkeys(widths, 1), (*layers, head), {}, {}, 0, None)
    spectra, seen = made_up(channels, widths, needs, seeds=(0, 1), scale=scale)
    for cap in caps:
        settings = WidthSettings(macs=cap, round_to=4)
        budget = Budget.of(channels, widths, settings)
        yield group_views(budget, channels, widths, spectra, settings, seen), budget
