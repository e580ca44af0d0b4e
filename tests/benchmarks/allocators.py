"""Whether widths by any allocator are better than a profile of their own cost: writes allocators.md beside this file.

Mosaics of Tiny-ImageNet in `../shared/data`, which are real images but not COCO; Faster R-CNN over a ResNet-18 at a
quarter of its widths with GroupNorm, in float32, from random weights, AdamW, batches of 8. One experiment `scratch` is
trained and observed, gradients included, with every seed. From it each allocator derives widths for the MACs of the
reference and a share of its parameters, the same for all: the largest within both. So do importances of Torch-Pruning,
if that is installed (`rivals.py` says how they are read); `untrained` and `permuted` are `proportional` on the spectra
of the first step, and on those of other groups, at the costs of its widths. Each stands beside a *profile* at the MACs
and the parameters that came of it: a factor and a ratio from stage to stage, which know nothing of spectra. Those whose
costs differ by less than two percent share one. Every arm is trained anew, alike. (All widths scaled alike to the MACs
of the reference are the reference's.)

AP is that of the last step on the validation images: the mean over seeds with its 95 % interval (Student's t). p is of
the test of arms that the report uses, between widths and their own profile, corrected for all rows by Holm's method.
Options say how much was run, and stand in the page.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import yaml

from eigendet import config, plugins
from eigendet.channels.groups import Widths
from eigendet.config import Experiment, layout
from eigendet.config.layout import Run
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.networks.definition import Definition
from eigendet.runs import definitions
from eigendet.runs.folder import RunFolder
from eigendet.spectra import significance
from eigendet.widths.allocation import Budget
from eigendet.widths.controls import control_widths
from eigendet.widths.derivation import Sources, derive_widths
from eigendet.widths.matching import matched
from eigendet.widths.rounding import rounded
from eigendet.widths.stages import stage_numbers
from tests.benchmarks import rivals
from tests.conftest import ROOT

BACKBONE, DETECTOR = "resnet18", "faster_rcnn"
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "proportional": {"plugin": "proportional"},
    "marginal": {"plugin": "marginal"},
    "cost_aware": {"plugin": "cost_aware"},
    "output_aware": {"plugin": "output_aware"},
    "loss_weighted": {"plugin": "loss_weighted", "power": 1.0},
    "loss_weighted_root": {"plugin": "loss_weighted", "power": 0.5},
    "entropy": {"plugin": "entropy"},
    "linear_in_depth": {"plugin": "linear_in_depth"},
    "conet": {"plugin": "conet"},
}
CONTROLS = "untrained", "permuted"  # of proportional


class Options(NamedTuple):
    """How much is run."""

    seeds: int
    steps: int
    images: int
    parameters: float
    folder: Path
    cores: int

    def settings(self, arms: Mapping[str, Any]) -> dict[str, Any]:
        """Return the experiment with these arms, as plain values."""
        values: dict[str, Any] = yaml.safe_load((ROOT / "workflow/experiments/tiny_imagenet.yaml").read_text())
        data = (ROOT / "../shared/data/tiny-imagenet-mosaic").resolve()
        for split, choice in values["data"]["detection"].items():
            choice |= {"annotations": str(data / f"annotations/{split}.json"), "images": str(data / split)}
        del values["data"]["classification"], values["pretraining"]
        values["training"] |= {"steps": self.steps, "warmup_steps": self.steps // 10, "snapshots": 2}
        return values | {
            "name": "allocators",
            "seeds": list(range(self.seeds)),
            "arms": dict(arms),
            "covariance": {"images": self.images, "gradients": True, "arms": ["scratch"], "jackknife": None},
        }


class Arm(NamedTuple):
    """An arm's widths, what they cost as shares of the reference's, and the arm that is the profile of that cost."""

    said: str
    widths: Widths
    parameters: float
    macs: float
    profile: str = ""

    def costs_like(self, other: Arm) -> bool:
        """Tell whether both cost the same to within two percent."""
        ratios = self.parameters / other.parameters, self.macs / other.macs
        return max(abs(math.log(ratio)) for ratio in ratios) < 0.02


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=120, help="that are observed")
    parser.add_argument("--parameters", type=float, default=0.4, help="cap, as a share of the reference's")
    parser.add_argument("--folder", type=Path, default=ROOT / "results/allocators", help="where everything is run")
    parser.add_argument("--cores", type=int, default=2)
    options = Options(**vars(parser.parse_args(arguments)))
    if not rivals.is_installed():
        print(f"left out: {', '.join(rivals.IMPORTANCES)}; install torch-pruning for these", file=sys.stderr)
    options.folder.mkdir(parents=True, exist_ok=True)
    experiment = workflow(options, {"scratch": {}}, [layout.COVARIANCE, layout.EIGENVALUES])
    arms = arms_of(options, experiment)
    choices: dict[str, Any] = {}
    for name, arm in arms.items():
        file = options.folder / f"{name}.json"
        file.write_text(json.dumps({"widths": arm.widths}))
        choices[name] = {"widths": str(file)}
    whole = workflow(options, {"scratch": {}} | choices, [layout.EVALUATION])
    Path(__file__).with_suffix(".md").write_text("\n".join([*page(options, arms, precisions(options, whole)), ""]))
    return 0


def workflow(options: Options, arms: Mapping[str, Any], patterns: list[str]) -> Experiment:
    """Run the workflow up to these files of every run; return the experiment."""
    file = options.folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(options.settings(arms), sort_keys=False))
    experiment = config.load([file])
    runs = list(layout.runs(experiment, experiment.all_arms))
    results = layout.results_folder(experiment)
    targets = [str(layout.path(results, pattern, **run._asdict())) for pattern in patterns for run in runs]
    place = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(options.folder)]
    command = ["snakemake", *place, "--configfile", str(file), "--cores", str(options.cores), *targets]
    subprocess.run(command, check=True, cwd=options.folder)
    return experiment


def arms_of(options: Options, experiment: Experiment) -> dict[str, Arm]:
    """Return the arm of every allocator, control and rival, and the profiles of their costs."""
    network = definitions.definition_for_widths(experiment, BACKBONE, DETECTOR, heads=False)
    channels, reference = network.reference(network.size[0])

    def arm(said: str, widths: Widths) -> Arm:
        parameters = channels.parameters(widths) / channels.parameters(reference)
        return Arm(said, widths, parameters, channels.macs(widths) / channels.macs(reference))

    arms: dict[str, Arm] = {}
    profiles: dict[str, Arm] = {}
    for name, said, widths in chosen_widths(options, experiment, network):
        own = arm(said, widths)
        beside = next((other for other, profile in profiles.items() if own.costs_like(profile)), None)
        if beside is None:
            budget = Budget.like(channels, reference, widths, ["macs", "parameters"], experiment.widths)
            full = np.array([reference[group] for group in budget.costs.groups], float)
            target, factor, ratio = matched(budget, full, stage_numbers(channels))
            beside = f"profile_{len(profiles) + 1}"
            profiles[beside] = arm(f"{factor:.3f}, times {ratio:.3f} a stage", rounded(budget, target))
        arms[name] = own._replace(profile=beside)
    return arms | profiles


def chosen_widths(options: Options, experiment: Experiment, network: Definition) -> Iterator[tuple[str, str, Widths]]:
    """Yield name, description and widths of every allocator, control and rival."""
    spectra, sources = observed(options, experiment)
    for name, allocation in ALLOCATIONS.items():
        varied = with_widths(experiment, allocation=allocation, parameters=options.parameters)
        widths = derive_widths(varied, network, spectra, "scratch", sources).widths
        yield name, plugins.described("allocator", PluginChoice(**allocation)), widths
        if name == "proportional":
            file = options.folder / "derived.json"
            file.write_text(json.dumps({"widths": widths}))
            arms = dict.fromkeys(["scratch", "derived", *CONTROLS], config.sections.Arm())
            controlled = varied.model_copy(update={"arms": arms})
            for control in CONTROLS:
                yield (
                    f"{control}_spectra",
                    control,
                    control_widths(controlled, network, control, spectra, file, sources).widths,
                )
    settings = with_widths(experiment, parameters=options.parameters).widths
    budget = Budget.of(*network.reference(network.size[0]), settings)
    last = [snapshots[-1] for snapshots in sources.snapshots.values()]
    for name, kind in rivals.IMPORTANCES.items() if rivals.is_installed() else ():
        target = rivals.targets(name, experiment, network, last, budget)
        yield name, f"Torch-Pruning's {kind}", rounded(budget, target)


def with_widths(experiment: Experiment, **settings: Any) -> Experiment:
    """Return the experiment with other settings of widths."""
    return experiment.model_copy(update={"widths": WidthSettings(**experiment.widths.model_dump() | settings)})


def observed(options: Options, experiment: Experiment) -> tuple[list[Path], Sources]:
    """Return the spectra of the runs of scratch, and what allocators read beside them."""
    results = options.folder / layout.results_folder(experiment)
    runs = [Run("scratch", BACKBONE, DETECTOR, seed)._asdict() for seed in experiment.seeds]
    folders = [RunFolder(layout.path(results, layout.RUNS, **run)) for run in runs]
    kept = [[own.snapshot(step) for step in own.read().snapshots] for own in folders]
    covariances = [layout.path(results, layout.COVARIANCE, **run) for run in runs]
    spectra = [layout.path(results, layout.SPECTRA, **run) for run in runs]
    return spectra, Sources(covariances, dict(zip(experiment.seeds, kept, strict=True)))


def precisions(options: Options, experiment: Experiment) -> dict[str, np.ndarray]:
    """Return the AP of every arm with each seed."""
    results = options.folder / layout.results_folder(experiment)
    scores: dict[str, list[float]] = {}
    for run in layout.runs(experiment, experiment.all_arms):
        content = json.loads(layout.path(results, layout.EVALUATION, **run._asdict()).read_text())
        scores.setdefault(run.arm, []).append(content["boxes"]["AP"])
    return {arm: np.array(own) for arm, own in scores.items()}


def page(options: Options, arms: Mapping[str, Arm], scores: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield the lines of the page."""
    seeds = list(range(options.seeds))
    pairs = [np.concatenate([scores[name], scores[arm.profile]]) for name, arm in arms.items() if arm.profile]
    labels = [label for label in ("widths", "profile") for _ in seeds]
    alone = [significance.differences(pair[None], labels, seeds * 2) for pair in pairs]
    corrected = iter(significance.over_pairs(alone))
    yield from ("# Allocators beside profiles of their own cost", "")
    yield from (__doc__ or "").strip().split("\n\n", 1)[1].split("\n")
    yield from (
        "",
        f"{options.seeds} seeds, {options.steps} steps, {options.images} observed images, at most "
        f"{options.parameters:g} of the parameters: `python -m tests.benchmarks.allocators --seeds {options.seeds} "
        f"--steps {options.steps} --images {options.images} --parameters {options.parameters:g}`.",
        "",
        "| widths | parameters | MACs | AP | profile: parameters | MACs | AP | more than its profile | p, corrected |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| the reference's | 1 | 1 | {mean(scores['scratch'])} | | | | | |",
    )
    for name, arm in arms.items():
        if not arm.profile:
            continue
        profile, own, other = arms[arm.profile], scores[name], scores[arm.profile]
        yield (
            f"| {arm.said} | {arm.parameters:.3f} | {arm.macs:.3f} | {mean(own)} | {profile.parameters:.3f} "
            f"| {profile.macs:.3f} | {mean(other)} | {mean(own - other)} | {next(corrected).overall:.3g} |"
        )
    left_out = [name for name in rivals.IMPORTANCES if name not in arms]
    if left_out:
        yield from ("", f"Left out, since torch-pruning was not installed: {', '.join(left_out)}.")


def mean(scores: np.ndarray) -> str:
    """Say a mean with its 95 % interval, in percent."""
    if len(scores) < 2:
        return f"{100 * scores.mean():.1f}"
    half = scipy.stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / math.sqrt(len(scores))
    return f"{100 * scores.mean():.1f} ± {100 * half:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
