"""What the comparison of arms can find: `make benchmark NAME=power` writes power.md beside this file.

Simulated runs whose spectra fall as k^-a in 50 layers of 64 channels; a has a standard deviation of 0.1 between seeds,
half of whose variance all layers of a run share, and differs between the arms by so many standard deviations in a share
of the layers. Spectra are compared by the Jensen-Shannon distance, as in a report. Each row is of 1,000 simulations at
a level of 5 %. Without a difference, the columns are rates of false findings: of a layer by itself, of any layer when
corrected, and of all layers together. With one, they are the power: of an affected layer by itself, of any when
corrected, and of all together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from eigendet.spectra import significance, similarity
from tests.watching import watched

LAYERS, CHANNELS, SIMULATIONS, LEVEL = 50, 64, 1000, 0.05


def rates(random: np.random.Generator, seeds: int, effect: float, share: float) -> list[float]:
    """Of findings in one layer, in any when corrected, in all together."""
    labels = np.repeat(["a", "b"], seeds)
    affected = np.arange(LAYERS) < round(share * LAYERS)
    looked_at = affected if effect else ~affected
    found = np.zeros(3)
    for _ in range(SIMULATIONS):
        shared, own = random.normal(size=(1, 2 * seeds)), random.normal(size=(LAYERS, 2 * seeds))
        deviations = (shared + own) / np.sqrt(2) + effect * affected[:, None] * (labels == "b")
        spectra = np.arange(1, CHANNELS + 1.0) ** -(1 + 0.1 * deviations[:, :, None])
        test = significance.permutation_test(
            np.array([similarity.jensen_shannon_matrix(layer) for layer in spectra]), labels
        )
        corrected = bool((test.corrected[looked_at] <= LEVEL).any())
        found += np.array([np.mean(test.p[looked_at] <= LEVEL), corrected, test.overall <= LEVEL])
    return list(found / SIMULATIONS)


def main() -> int:
    lines = [
        "# What the comparison of arms can find", "", *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        "| seeds an arm | smallest p | effect, sd | layers | one layer | any, corrected | all together |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    random = np.random.default_rng(0)
    cases = [(0.0, 0.0), *((effect, share) for effect in (0.5, 1.0, 2.0) for share in (0.2, 1.0))]
    for seeds in watched((3, 4, 5, 8), "power"):
        smallest = round(1 / significance.smallest_p(["a"] * seeds + ["b"] * seeds))
        for effect, share in cases:
            found = " | ".join(f"{rate:.3f}" for rate in rates(random, seeds, effect, share))
            lines.append(f"| {seeds} | 1/{smallest} | {effect:g} | {share:.0%} | {found} |")
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
