"""An experiment's folder with planted spectra: nothing was trained, everything else is written by the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eigendet import config, files, plugins
from eigendet.moments.covariance import Covariance
from eigendet.observe import store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Tap
from eigendet.report import results
from eigendet.spectra import comparison, spectrum
from tests.conftest import minimal_experiment

IMAGES = 12


def simulate(
    folder: Path,
    arms: Sequence[str] = ("finetune", "scratch"),
    seeds: Sequence[int] = (0, 1, 2),
    steps: Sequence[int] = (0, 1, 4),
    layers: int = 4,
    channels: int = 16,
    effect: float = 0.0,
    heads: int = 0,
    progress: Mapping[str, Sequence[float]] | None = None,
) -> config.Experiment:
    """Write results of runs whose spectra fall as k^-a; returns the experiment.

    The last `heads` layers are the detector's own, not of its backbone.
    a is 1 in every arm at the start, plus `effect` in the first arm at the end; seeds differ by 0.1 (sd). With
    `progress`, AP of each arm at each step, it rises by four times that too, in every arm alike.
    """
    values = minimal_experiment()
    values |= {
        "seeds": list(seeds),
        "arms": {arm: {} for arm in arms},
        "covariance": {"images": IMAGES, "arms": list(arms)},
    }
    for arm in set(arms) - set(config.ARMS):
        (folder / "mine.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / "mine.json").write_text("{}")
        values["arms"][arm] = {"widths": str(folder / "mine.json")}
    experiment = config.parse(values)
    files.write_text(folder / "config.yaml", config.dump_yaml(experiment))
    shares = np.linspace(0, 1, len(steps))
    for number, arm in enumerate(arms):
        rise = effect * shares * (number == 0) + (4 * np.array(progress[arm]) if progress else 0)
        for seed in seeds:
            run = {"arm": arm, "backbone": "tiny", "detector": "rcnn", "seed": seed}
            path = Path(arm) / "tiny" / "rcnn" / f"seed_{seed}"
            write_run(folder, path, run, steps, progress[arm] if progress else None)
            random = np.random.default_rng([number, seed])
            taps = [(step, _taps(random, 1 + more, layers, channels)) for step, more in zip(steps, rise, strict=True)]
            provenance = {"run": run, "experiment": experiment.name, "probe": {"split": "train"},
                          "backbone": [f"layer{layer}.relu" for layer in range(layers - heads)]}  # fmt: skip
            store.write_covariances(folder / "covariance" / f"{path}.h5", taps, provenance, range(IMAGES))
            spectrum.write_spectra(folder / "covariance" / f"{path}.h5", folder / "spectra" / path)
    return experiment


def compare(folder: Path) -> list[str]:
    """Write the comparison of all runs."""
    spectra = sorted(path.parent for path in (folder / "spectra").rglob("eigenvalues.parquet"))
    curves = [
        results.read_curve(folder / "evaluation" / f"{path.relative_to(folder / 'spectra')}.json") for path in spectra
    ]
    return comparison.write_comparison(spectra, folder / "comparison/tiny/rcnn", plugins.rules(), curves)


def rewrite(file: Path, table: pd.DataFrame) -> None:
    """Put a table in another's place, as who changes it on purpose: without the digest of what was there."""
    table.to_parquet(file, index=False)
    files.digest_file(file).unlink(missing_ok=True)


def write_run(
    folder: Path, path: Path, run: dict[str, Any], steps: Sequence[int], progress: Sequence[float] | None = None
) -> None:
    """Write the records of a run and of its evaluation, and its log; its AP rises evenly unless `progress` says how."""
    random = np.random.default_rng(run["seed"])
    costs = {"parameters": 300_000, "backbone_parameters": 200_000, "backbone_macs": 9_000_000}
    record = {
        "run": run, "costs": costs, "snapshots": list(steps), "seconds": 60.0, "images_per_second": 9.0,
        "device": "cpu", "torch": torch.__version__, "eigendet": "0.1.0", "revision": "0" * 40,
        "identity": {"data": "d" * 64},
    }  # fmt: skip
    files.write_json(folder / "runs" / path / "run.json", {"version": 1} | record)
    files.write_text(folder / "runs" / path / "log.csv", "step,loss\n0,2.5\n4,1.5\n")
    scores = {name: float(random.uniform(0.3, 0.4)) for name in ("AP", "AP50", "AP75")}
    course = progress or np.linspace(0, scores["AP"], len(steps)).tolist()
    scored = [{"step": step, "boxes": {"AP": score}} for step, score in zip(steps, course, strict=True)]
    evaluation = {"version": 1, "run": run, "boxes": scores, "snapshots": scored}
    files.write_json(folder / "evaluation" / f"{path}.json", evaluation)


def _taps(random: np.random.Generator, mean: float, layers: int, channels: int) -> list[Tap]:
    found = []
    for position in range(layers):
        exponent = mean + 0.1 * random.normal()
        basis = np.linalg.qr(random.normal(size=(channels, channels)))[0]
        values = np.arange(1, channels + 1.0) ** -exponent
        scatter, means = (basis * values) @ basis.T, random.normal(size=(IMAGES, channels)) * 0.1
        covariance = Covariance.from_moments(1000, torch.zeros(channels), torch.from_numpy(1000 * scatter))
        key = TapKey(f"layer{position}.relu", 0, "act")
        found.append(Tap(key, position, "excluded", covariance, torch.from_numpy(means)))
    return found
