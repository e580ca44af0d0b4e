"""Own every path below results/EXPERIMENT: what each stage leaves, and where.

Patterns are relative to the experiment's folder, with Snakemake's wildcards in braces, which `path` fills in. A run is
named by a `Run`: its arm, backbone, detector and seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from eigendet.config.experiment import Experiment

NETWORK = "{backbone}/{detector}"
RUN = "{arm}/{backbone}/{detector}/seed_{seed}"

CONFIGURATION = "config.yaml"
LOGS, BENCHMARKS = "logs", "benchmarks"
DATA = "data/{task}_{split}_{digest}.json"
NETWORK_CHECK = f"networks/{NETWORK}.json"
# Backbones to start from: trained here with the reference's widths or with those of an arm, or trained by others.
PRETRAINED = "pretrained/{backbone}/seed_{seed}"
PRETRAINED_RESIZED = f"pretrained/{NETWORK}/{{arm}}/seed_{{seed}}"
FETCHED = "fetched/{arm}/{backbone}"
START_RECORD, START_WEIGHTS = "run.json", "backbone.pt"  # in each of these folders
RUNS = f"runs/{RUN}"
RUN_RECORD, RUN_LOG = f"{RUNS}/run.json", f"{RUNS}/log.csv"
COVARIANCE = f"covariance/{RUN}.h5"
COVARIANCE_SHARD = f"covariance/{RUN}.{{shard}}_of_{{shards}}.h5"
SPECTRA = f"spectra/{RUN}"
EIGENVALUES, JACKKNIFE = f"{SPECTRA}/eigenvalues.parquet", f"{SPECTRA}/jackknife.parquet"
SIMILARITY = f"{SPECTRA}/similarity.h5"
COMPARISON = f"comparison/{NETWORK}"
METRICS, DISTANCES = f"{COMPARISON}/metrics.parquet", f"{COMPARISON}/distances.parquet"
TESTS, COMPARISON_NOTES = f"{COMPARISON}/tests.parquet", f"{COMPARISON}/notes.json"
MATCHED, PLACES = f"{COMPARISON}/matched.parquet", f"{COMPARISON}/places.parquet"
COMPARISON_FILES = (METRICS, DISTANCES, TESTS, MATCHED, PLACES, COMPARISON_NOTES)
WIDTHS = f"widths/{NETWORK}/{{arm}}.json"
FRONT = f"widths/{NETWORK}/front.csv"
READINGS = f"widths/{NETWORK}/readings.csv"
EVALUATION = f"evaluation/{RUN}.json"
LATENCY = f"latency/{NETWORK}.json"
FORECAST = f"forecast/{NETWORK}.json"
# Versions of the formats of JSON files; an older file is refused, and the message says what makes it anew.
DATA_VERSION = NETWORK_CHECK_VERSION = RUN_VERSION = EVALUATION_VERSION = LATENCY_VERSION = FORECAST_VERSION = 1

SUMMARY, PAGE, FIGURES = "summary.csv", "report.html", "figures"


class Run(NamedTuple):
    """A run's name. As text it is its path below `runs/`, `spectra/` and `evaluation/`."""

    arm: str
    backbone: str
    detector: str
    seed: int

    def __str__(self) -> str:
        return RUN.format(**self._asdict())


def path(folder: Path | str, pattern: str, **wildcards: object) -> Path:
    """Return the path of a pattern below an experiment's folder.

    >>> path("results/digits", EVALUATION, **Run("scratch", "resnet18", "faster_rcnn", 0)._asdict()).as_posix()
    'results/digits/evaluation/scratch/resnet18/faster_rcnn/seed_0.json'
    """
    return Path(folder, pattern.format(**wildcards))


def results_folder(experiment: Experiment) -> str:
    """Return the folder of an experiment's results, relative to the working directory."""
    return f"results/{experiment.name}"


def runs(experiment: Experiment, arms: Iterable[str]) -> Iterator[Run]:
    """Yield the runs of these arms, network by network; whatever else a folder holds is from earlier settings."""
    for backbone, detector in experiment.networks:
        for arm, seed in itertools.product(arms, experiment.seeds):
            yield Run(arm, backbone, detector, seed)


def start(experiment: Experiment, run: Run) -> str | None:
    """Return the folder of the backbone that a run starts from, below the experiment's; None: from random weights."""
    init = experiment.init_of(run.arm, run.backbone)
    if init is None:
        return None
    if init != "workflow":
        return FETCHED.format(**run._asdict())
    pattern = PRETRAINED if experiment.widths_of(run.arm) is None else PRETRAINED_RESIZED
    return pattern.format(**run._replace(seed=experiment.pretraining_seed(run.seed))._asdict())


def starts(experiment: Experiment) -> list[str]:
    """Return the folders of all backbones that runs start from, each once."""
    folders = [start(experiment, run) for run in runs(experiment, experiment.all_arms)]
    return [folder for folder in dict.fromkeys(folders) if folder is not None]


def data_check(experiment: Experiment, task: str, split: str) -> str:
    """Return a data set's summary, below the experiment's folder; its name changes with the data set's settings."""
    choice = getattr(getattr(experiment.data, task), split)
    return DATA.format(task=task, split=split, digest=choice.digest)
