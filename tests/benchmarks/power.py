"""What the comparison of arms can find, and how often it is wrong: `make benchmark NAME=power` writes power.md.

Simulated runs whose spectra fall as k^-a in 20 layers of 32 channels; a scatters between seeds, half of its variance
together in all layers of a run. In some designs the first arm's standard deviation is 3 times as large, or a third. In
some, a differs between the first arm and the others by so many standard deviations of the others, in a share of the
layers. Spectra are compared by the Jensen-Shannon distance, as in a report, at a level of 5 %. The standard deviation
of the others is 0.03: Jensen-Shannon distances bend, so that arms with one mean of a, but another spread, have another
center too where they scatter far (at 0.1 and three times 0.1, by a quarter of the standard error of five runs).

False findings of any layer or pair of arms at all are counted where no arm has another center, and, of the layers that
do not differ, where others differ by far. Columns: of a layer by itself (unaffected by the number of layers and pairs);
of any layer of any pair when corrected; of all layers together, in any pair; and of a difference in spread, in any
pair, which is a false finding only where the spread is the same. Beside the power, of an affected layer by itself, of
any, and of all together, the smallest p-value says where nothing can be found. A rate of 5 % in 2,000 simulations has
a standard error of 0.005.

The mean pseudo-F of PERMANOVA found a difference in 50 % of 3+9 runs of 50 layers with a threefold spread in the
smaller arm.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eigendet.spectra import significance, similarity
from tests.watching import watched

LAYERS, CHANNELS, LEVEL, DEVIATION = 20, 32, 0.05, 0.03
FALSE_SIMULATIONS, POWER_SIMULATIONS = 2000, 300


@dataclass(frozen=True)
class Design:
    """Runs of every arm, and how the first arm differs."""

    runs: tuple[int, ...]
    spread: float = 1.0
    paired: bool = False
    effect: float = 0.0
    share: float = 0.0

    @property
    def smallest(self) -> float:
        """p-value that can be had."""
        arms = [[str(arm)] * runs for arm, runs in enumerate(self.runs)]
        pairs = list(itertools.combinations(arms, 2))
        seeds = [*range(self.runs[0])] * 2 if self.paired else None
        return max(significance.smallest_p(first + other, seeds) for first, other in pairs) * len(pairs)


FALSE = [
    *(Design(runs, spread) for runs in ((4, 4), (5, 5), (8, 8)) for spread in (1.0, 3.0)),
    *(Design(runs, spread) for runs in ((3, 9), (5, 10)) for spread in (1.0, 3.0, 1 / 3)),
    *(Design((runs, runs), spread, paired=True) for runs in (6, 8) for spread in (1.0, 3.0)),
    *(Design((5, 5, 5), spread) for spread in (1.0, 3.0)),
    *(Design(runs, spread, effect=12.0, share=0.2) for runs in ((5, 5), (8, 8), (5, 10)) for spread in (1.0, 3.0)),
]  # fmt: skip
POWER = [
    Design(runs, paired=paired, effect=effect, share=share)
    for runs, paired in (
        *(((runs, runs), False) for runs in (3, 4, 5, 8)), ((8, 8), True), ((3, 9), False), ((5, 5, 5), False)
    )
    for effect, share in ((1.0, 1.0), (2.0, 0.2), (2.0, 1.0))
]  # fmt: skip


def rates(random: np.random.Generator, design: Design, affected: bool, simulations: int) -> list[float]:
    """Of findings in one layer, in any when corrected, in all together, and of a difference in spread."""
    arms = np.repeat(np.arange(len(design.runs)), design.runs)
    seeds = np.concatenate([np.arange(runs) for runs in design.runs])
    differing = np.arange(LAYERS) < round(design.share * LAYERS)
    looked_at = differing if affected else ~differing
    counts = np.zeros(4)
    for _ in range(simulations):
        shared, own = random.normal(size=(1, arms.size)), random.normal(size=(LAYERS, arms.size))
        deviations = (shared + own) / np.sqrt(2) * np.where(arms == 0, design.spread, 1.0)
        deviations += design.effect * differing[:, None] * (arms == 0)
        spectra = np.arange(1, CHANNELS + 1.0) ** -(1 + DEVIATION * deviations[:, :, None])
        distances = np.array([similarity.jensen_shannon_matrix(layer) for layer in spectra])
        tests = []
        for pair in itertools.combinations(range(len(design.runs)), 2):
            chosen = np.isin(arms, pair)
            paired = seeds[chosen] if design.paired else None
            tests.append(significance.permutation_test(distances[:, chosen][:, :, chosen], arms[chosen], paired))
        tests = significance.over_pairs(tests)
        counts += np.array(
            [
                np.mean([test.p[looked_at] <= LEVEL for test in tests[: len(design.runs) - 1]]),
                any((test.corrected[looked_at] <= LEVEL).any() for test in tests),
                any(test.overall <= LEVEL for test in tests),
                any(test.dispersion <= LEVEL for test in tests),
            ]
        )
    return list(counts / simulations)


def table(random: np.random.Generator, designs: list[Design], affected: bool) -> list[str]:
    """Return a table of findings, in lines of Markdown."""
    lines = [
        "| runs | first's sd | effect, sd | layers | smallest p | one layer | any, corrected | all together | spread |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    simulations = POWER_SIMULATIONS if affected else FALSE_SIMULATIONS
    for design in watched(designs, "power" if affected else "false findings"):
        runs = "+".join(map(str, design.runs)) + (", paired" if design.paired else "")
        one, any_layer, together, spread = (f"{rate:.3f}" for rate in rates(random, design, affected, simulations))
        if design.effect and not affected:
            together = "(true)"
        if design.spread != 1:
            spread = f"({spread}, true)"
        lines.append(
            f"| {runs} | {design.spread:.2g} | {design.effect:g} | {design.share:.0%} | {design.smallest:.2g} | "
            f"{one} | {any_layer} | {together} | {spread} |"
        )
    return lines


def main() -> int:
    random = np.random.default_rng(0)
    lines = [
        "# What the comparison of arms can find, and how often it is wrong", "",
        *(__doc__ or "").strip().split("\n\n", 1)[1].split("\n"), "",
        f"## False findings, of {FALSE_SIMULATIONS:,} simulations", "", *table(random, FALSE, affected=False), "",
        f"## Power, of {POWER_SIMULATIONS:,} simulations", "", *table(random, POWER, affected=True), "",
    ]  # fmt: skip
    Path(__file__).with_suffix(".md").write_text("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
