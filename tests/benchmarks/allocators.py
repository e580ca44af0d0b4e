"""Whether widths by any allocator are better than a profile of their own cost: writes allocators.md beside this file.

Mosaics of Tiny-ImageNet in `../shared/data`, which are real images but not COCO; Faster R-CNN over a ResNet-18 at a
quarter of its widths with GroupNorm, in float32, from random weights, AdamW, batches of 8. One experiment `scratch` is
trained and observed, gradients included, with every seed. From it each allocator derives widths for the MACs of the
reference and a share of its parameters, the same for all. Beside each stands a *profile* at the MACs and the parameters
that came of it: a factor and a ratio from stage to stage, which know nothing of spectra. Every arm is trained anew,
alike.

AP is that of the last step on the validation images: the mean over seeds with its 95 % interval (Student's t). p is of
the test of arms that the report uses, between an allocator and its own profile, corrected for all allocators by Holm's
method. Options say how much was run, and stand in the page.
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
from eigendet.channels.groups import Channels, Widths
from eigendet.config import Experiment, layout
from eigendet.config.layout import Run
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.networks.definition import Definition
from eigendet.runs import definitions
from eigendet.runs.folder import RunFolder
from eigendet.spectra import significance
from eigendet.widths.allocation import Budget
from eigendet.widths.derivation import Sources, derive_widths
from eigendet.widths.matching import matched
from eigendet.widths.rounding import rounded
from eigendet.widths.stages import stage_numbers
from tests.conftest import ROOT

BACKBONE, DETECTOR = "resnet18", "faster_rcnn"
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "proportional": {"plugin": "proportional"},
    "marginal": {"plugin": "marginal"},
    "cost_aware": {"plugin": "cost_aware"},
    "output_aware": {"plugin": "output_aware"},
    "loss_weighted": {"plugin": "loss_weighted", "power": 1.0},
    "loss_weighted_root": {"plugin": "loss_weighted", "power": 0.5},
    "weight_rank": {"plugin": "weight_rank"},
    "entropy": {"plugin": "entropy"},
    "linear_in_depth": {"plugin": "linear_in_depth"},
}


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
    """An arm's widths, and what they cost as shares of the reference's."""

    widths: Widths
    parameters: float
    macs: float


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=120, help="that are observed")
    parser.add_argument("--parameters", type=float, default=0.4, help="cap, as a share of the reference's")
    parser.add_argument("--folder", type=Path, default=ROOT / "results/allocators", help="where everything is run")
    parser.add_argument("--cores", type=int, default=2)
    options = Options(**vars(parser.parse_args(arguments)))
    options.folder.mkdir(parents=True, exist_ok=True)
    experiment = workflow(options, {"scratch": {}}, [layout.COVARIANCE, layout.EIGENVALUES])
    arms = dict(widths_of_arms(options, experiment))
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


def widths_of_arms(options: Options, experiment: Experiment) -> Iterator[tuple[str, Arm]]:
    """Yield the widths of every allocator, and after each those of a profile of its own cost."""
    network = definitions.definition_for_widths(experiment, BACKBONE, DETECTOR, heads=False)
    channels, reference = network.reference(network.size[0])
    for name, allocation in ALLOCATIONS.items():
        settings = experiment.widths.model_dump() | {"allocation": allocation, "parameters": options.parameters}
        varied = experiment.model_copy(update={"widths": WidthSettings(**settings)})
        widths = derived(options, varied, network)
        yield name, costing(channels, reference, widths)
        budget = Budget.like(channels, reference, widths, ["macs", "parameters"], varied.widths)
        full = np.array([reference[group] for group in budget.costs.groups], float)
        profile = rounded(budget, matched(budget, full, stage_numbers(channels)).target)
        yield f"{name}_profile", costing(channels, reference, profile)


def derived(options: Options, experiment: Experiment, network: Definition) -> Widths:
    """Return the widths that the experiment's allocator derives from the runs of scratch."""
    results = options.folder / layout.results_folder(experiment)
    runs = [Run("scratch", BACKBONE, DETECTOR, seed)._asdict() for seed in experiment.seeds]
    folders = [RunFolder(layout.path(results, layout.RUNS, **run)) for run in runs]
    last = {seed: own.snapshot(own.read().last_step) for seed, own in zip(experiment.seeds, folders, strict=True)}
    sources = Sources([layout.path(results, layout.COVARIANCE, **run) for run in runs], last=last)
    spectra = [layout.path(results, layout.SPECTRA, **run) for run in runs]
    return derive_widths(experiment, network, spectra, "scratch", sources).widths


def costing(channels: Channels, reference: Widths, widths: Widths) -> Arm:
    parameters = channels.parameters(widths) / channels.parameters(reference)
    return Arm(widths, parameters, channels.macs(widths) / channels.macs(reference))


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
    pairs = [np.concatenate([scores[name], scores[f"{name}_profile"]]) for name in ALLOCATIONS]
    labels = [label for label in ("widths", "profile") for _ in seeds]
    alone = [significance.differences(pair[None], labels, seeds * 2) for pair in pairs]
    corrected = dict(zip(ALLOCATIONS, significance.over_pairs(alone), strict=True))
    yield from ("# Allocators beside profiles of their own cost", "")
    yield from (__doc__ or "").strip().split("\n\n", 1)[1].split("\n")
    yield from (
        "",
        f"{options.seeds} seeds, {options.steps} steps, {options.images} observed images, at most "
        f"{options.parameters:g} of the parameters: `python -m tests.benchmarks.allocators --seeds {options.seeds} "
        f"--steps {options.steps} --images {options.images} --parameters {options.parameters:g}`.",
        "",
        "| widths | parameters | MACs | AP | of its profile: parameters | MACs | AP | p, corrected |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| reference (scratch) | 1 | 1 | {mean(scores['scratch'])} | | | | |",
    )
    for name, choice in ALLOCATIONS.items():
        said = plugins.described("allocator", PluginChoice(**choice))
        own, profile = arms[name], arms[f"{name}_profile"]
        yield (
            f"| {said} | {own.parameters:.3f} | {own.macs:.3f} | {mean(scores[name])} | {profile.parameters:.3f} "
            f"| {profile.macs:.3f} | {mean(scores[f'{name}_profile'])} | {corrected[name].overall:.3g} |"
        )


def mean(scores: np.ndarray) -> str:
    """Say a mean with its 95 % interval, in percent."""
    if len(scores) < 2:
        return f"{100 * scores.mean():.1f}"
    half = scipy.stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / math.sqrt(len(scores))
    return f"{100 * scores.mean():.1f} ± {100 * half:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
