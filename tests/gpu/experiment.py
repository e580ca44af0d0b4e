"""A whole experiment by the library's functions, in the order of its commands, with the time of each stage.

The data is that of the default experiment: handwritten digits on photographs, which scikit-learn ships. Without that
package the library's own four images of rectangles take their place. Without pyarrow, which writes tables of spectra,
the experiment ends with the covariances.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from eigendet import config
from eigendet.config import Experiment
from eigendet.data.datasets import open_split
from eigendet.files import read_json
from eigendet.networks.backbones import backbone_of, parameter_count
from eigendet.networks.snapshots import read_snapshot
from eigendet.networks.widths_file import ChosenWidths, write_chosen
from eigendet.observe import store
from eigendet.plugins import discovery
from eigendet.runs import covariances, definitions, stages
from eigendet.runs.folder import RunFolder
from eigendet.spectra import spectrum
from eigendet.widths import derivation
from tests.gpu.figures import Figure

BACKBONE, DETECTOR, SEED = "resnet18", "faster_rcnn", 0
ACTIVATIONS = 17  # of a ResNet-18: one in the stem, and two in each of eight blocks
LEAST = 0.05  # average precision after all steps: a quarter of what a CPU reaches (0.19 to 0.30)
PLUGINS = """
from eigendet.data.samples import Colors, Rectangles
from eigendet.plugins import dataset


@dataset
def rectangles(*, size: int = 64):
    \"\"\"Draw four images of rectangles.\"\"\"
    return Rectangles(size)


@dataset
def colors(*, size: int = 64):
    \"\"\"Draw four images of one color each.\"\"\"
    return Colors(size)
"""


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield the time of each stage, and whether what it left is in order."""
    if small:
        torch.set_num_threads(1)  # to networks this small several bring nothing but waiting
    with TemporaryDirectory() as name:
        folder = Path(name)
        digits = find_spec("sklearn") is not None
        if not digits:
            (folder / "plugins").mkdir()
            (folder / "plugins/samples.py").write_text(PLUGINS)
            discovery.search([folder / "plugins"])
        experiment = config.parse(_settings(device, small, digits))
        note = "" if digits else "four images of rectangles, since scikit-learn, which ships the digits, is missing"
        yield Figure("images that detectors learn from", _images(experiment), note=note)
        yield from _pretrained(experiment, folder, small)
        yield from _trained(experiment, folder, "scratch", small)
        yield from _observed(experiment, folder)
        if find_spec("pyarrow") is None:
            yield Figure("stages left out", 3, note="spectra, widths and the derived network need pyarrow")
            return
        yield from _derived(experiment, folder, device)
        yield from _trained(experiment, folder, "derived", small, folder / "widths.json")
        yield _rebuilt(folder)


def _settings(device: torch.device, small: bool, digits: bool) -> dict[str, Any]:
    """Return the default experiment's settings, with fewer images to look at, or those of one that ends in seconds."""
    size, steps, batch, images = (64, 12, 4, 12) if small else (96, 260, 8, 600)
    looked_at = 4 if small or not digits else 40
    scenes: dict[str, Any] = {"plugin": "digit_scenes", "size": size, "images": images}
    crops: dict[str, Any] = {"plugin": "digit_crops", "images": 64 if small else 4000}
    shared = {
        "optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05, "warmup_steps": 2 if small else 30,
        "workers": 0 if device.type == "cpu" else min(4, os.cpu_count() or 1), "snapshots": 2 if small else 4,
        "flip": False,
    }  # fmt: skip
    data: dict[str, Any] = {
        "classification": {
            "train": crops | {"split": "train"},
            "val": crops | {"split": "val", "images": 16 if small else 500},
        },
        "detection": {
            "train": scenes | {"split": "train"},
            "val": scenes | {"split": "val", "images": 4 if small else 100},
        },
    }
    if not digits:
        data = {
            task: {split: {"plugin": plugin, "size": size} for split in ("train", "val")}
            for task, plugin in (("classification", "colors"), ("detection", "rectangles"))
        }
    return {
        "name": "digits",
        "device": device.type,
        "data": data,
        "backbones": {BACKBONE: {"plugin": "resnet", "depth": 18, "width": 0.25, "norm_groups": 8}},
        "detectors": {
            DETECTOR: {
                "plugin": "faster_rcnn", "fpn_channels": 48, "head_channels": 192, "proposals": 100, "box_samples": 64,
                "anchor_sizes": [size * part // 96 for part in (12, 24, 48, 64, 96)],
            }
        },
        "arms": {"scratch": {}, "derived": {}},
        "pretraining": shared | {"image_size": 32, "steps": 6 if small else 300, "batch_size": 16 if small else 64},
        "training": shared | {
            "steps": steps, "batch_size": batch, "min_size": size, "max_size": size, "clip_norm": 5.0,
        },
        "covariance": {"images": looked_at, "arms": ["scratch"], "jackknife": 4},
        "widths": {"round_to": 4},
    }  # fmt: skip


def _images(experiment: Experiment) -> int:
    return len(open_split(experiment, "detection", "train"))


def _seconds(name: str, work: Callable[[], object]) -> Figure:
    """Return how long a stage takes, which ends with files."""
    start = time.perf_counter()
    work()
    return Figure(f"{name}: time", time.perf_counter() - start, "s")


def _pretrained(experiment: Experiment, folder: Path, small: bool) -> Iterator[Figure]:
    """Pre-train a backbone; what it learns in a few steps is only told."""
    run = folder / "pretrained"
    yield _seconds("pre-training", lambda: stages.pretrain(experiment, BACKBONE, SEED, run))
    right: float = read_json(run / "run.json", "a record")["top1"]
    limit = (
        None if small else 2 / len(open_split(experiment, "classification", "val").classes)
    )  # twice as many as by chance
    yield Figure("pre-training: share of right answers", right, limit=limit, at_least=True)


def _trained(
    experiment: Experiment, folder: Path, arm: str, small: bool, widths: Path | None = None
) -> Iterator[Figure]:
    """Train a detector, and evaluate it."""
    run = folder / arm
    yield _seconds(
        f"training of {arm}",
        lambda: stages.train(experiment, arm, BACKBONE, DETECTOR, SEED, run, widths=widths),
    )
    record = RunFolder(run).read()
    yield Figure(f"training of {arm}: throughput", record.images_per_second, "images/s")
    results: list[Any] = []
    yield _seconds(f"evaluation of {arm}", lambda: results.append(stages.evaluate(experiment, run)))
    (result,) = results
    precision = result["boxes"]["AP"]
    note = f"after {record.last_step} steps, on {result['images']} images"
    limit = 0.0 if small else LEAST
    yield Figure(
        f"{arm}: average precision", math.nan if precision is None else precision, limit=limit, at_least=True, note=note
    )


def _observed(experiment: Experiment, folder: Path) -> Iterator[Figure]:
    """Compute the covariances of every snapshot, and look at each."""
    file, snapshots = folder / "covariance.h5", RunFolder(folder / "scratch").read().snapshots
    yield _seconds("covariances", lambda: covariances.compute_covariance(experiment, folder / "scratch", file))
    taps: dict[int, set[str]] = {step: set() for step in snapshots}
    wrong = 0
    for tap in store.read(file):
        taps[tap.step].add(str(tap.key))
        fine = tap.count > 0 and np.isfinite(tap.scatter).all() and (np.diagonal(tap.scatter) >= 0).all()
        wrong += not fine
    missing = sum(abs(ACTIVATIONS - len(keys)) for keys in taps.values())
    note = f"{ACTIVATIONS} at each of {len(snapshots)} snapshots"
    yield Figure("covariances: activations missing", missing, limit=0, note=note)
    yield Figure("covariances: those that cannot be", wrong, limit=0)


def _derived(experiment: Experiment, folder: Path, device: torch.device) -> Iterator[Figure]:
    """Decompose the covariances, and derive widths from their spectra."""
    yield _seconds(
        "spectra", lambda: spectrum.write_spectra(folder / "covariance.h5", folder / "spectra", device=device)
    )
    network = definitions.definition_for_widths(experiment, BACKBONE, DETECTOR, heads=False)
    chosen: list[ChosenWidths] = []
    yield _seconds(
        "widths",
        lambda: chosen.append(derivation.derive_widths(experiment, network, [folder / "spectra"], "scratch")),
    )
    write_chosen(folder / "widths.json", chosen[0])
    yield Figure("widths: operations, of the reference's", chosen[0].macs.share, limit=experiment.widths.macs)
    changed = sum(width != chosen[0].reference[group] for group, width in chosen[0].widths.items())
    yield Figure("widths: groups whose width has changed", changed, limit=1, at_least=True)


def _rebuilt(folder: Path) -> Figure:
    """Compare the derived network's parameters with those that its widths were said to take."""
    record = RunFolder(folder / "derived").read()
    _, model, _ = read_snapshot(RunFolder(folder / "derived").snapshot(record.last_step))
    predicted = read_json(folder / "widths.json", "widths")["parameters"]["result"]
    apart = abs(parameter_count(backbone_of(model)) - predicted)
    return Figure("derived: parameters beside those predicted", apart, limit=0)
