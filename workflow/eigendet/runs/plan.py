"""What an experiment takes, before anything of it is run: jobs, steps, images, disk, and hours of its devices.

All is counted as if nothing had been done yet. An arm whose widths are not derived yet counts as if it had the
reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from eigendet.config import Experiment, layout
from eigendet.config.sections import Optimization
from eigendet.data.datasets import open_split
from eigendet.networks.definition import Definition
from eigendet.networks.widths_file import read_widths
from eigendet.runs import definitions, network_check
from eigendet.runs.footprint import BLOCK, Footprint
from eigendet.runs.throughput import Throughput
from eigendet.runs.training import snapshot_steps

Rates = Callable[[Definition, Definition | None], Throughput]  # of a detector, and of the classifier it starts as

RECORDS = 7 * BLOCK  # that every job leaves: its log, how long it took, a summary, and folders for these
PAGE, FIGURES, TABLES = 1_100_000, 450_000, 100_000  # of the page alone; and of every network
SCORES = 30_000  # of a run's evaluation: averages, curves, a few small pictures


@dataclass
class Stage:
    """All jobs of one rule, or those that wait for the widths.

    Attributes:
        rule: its name in the workflow.
        jobs: how many there are.
        steps: optimizer updates.
        images: that pass a network.
        disk: bytes that stay.
        meanwhile: the most bytes that one job has while it runs, of what stays and of what does not.
        seconds: of devices; None: not known.
    """

    rule: str
    jobs: int
    steps: int = 0
    images: int = 0
    disk: int = 0
    meanwhile: int = 0
    seconds: float | None = 0.0
    after_widths: bool = False

    def add(self, other: Stage) -> None:
        """Count the jobs of another stage too."""
        self.jobs += other.jobs
        self.steps += other.steps
        self.images += other.images
        self.disk += other.disk
        self.meanwhile = max(self.meanwhile, other.meanwhile)
        self.seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds


class PlannedNetwork(NamedTuple):
    """A detector over a backbone, with what its runs leave and how fast they are."""

    definition: Definition
    footprints: dict[str, Footprint]  # by arm
    rate: Throughput | None


def planned_stages(experiment: Experiment, folder: Path, rates: Rates | None = None) -> list[Stage]:
    """Return everything that there is to do, in the order of the workflow: training before the widths and after them.

    Args:
        experiment: what is planned.
        folder: results of the experiment, whose widths count where they are known.
        rates: says how fast networks are.
    """
    stages: dict[tuple[str, bool], Stage] = {}
    for stage in _stages(experiment, folder, rates):
        stage.disk += stage.jobs * RECORDS
        key = stage.rule, stage.after_widths
        stages.setdefault(key, Stage(stage.rule, jobs=0, after_widths=stage.after_widths)).add(stage)
    return [stage for stage in stages.values() if stage.jobs]


def by_rule(stages: Sequence[Stage]) -> dict[str, Stage]:
    """Return one stage for each rule, by its name, in the order in which rules first run."""
    rules: dict[str, Stage] = {}
    for stage in stages:
        rules.setdefault(stage.rule, Stage(stage.rule, jobs=0)).add(stage)
    return rules


def peak(stages: Sequence[Stage], jobs: int) -> int:
    """Return the most bytes at any time, if so many jobs run at once, and those of a stage before those of the next.

    >>> peak([Stage("train", jobs=4, disk=100, meanwhile=50), Stage("report", jobs=1, disk=10)], jobs=2)
    150
    """
    most = kept = 0
    for stage in stages:
        running = min(jobs, stage.jobs)
        done = stage.disk * (stage.jobs - running) // stage.jobs
        most = max(most, kept + done + running * stage.meanwhile, kept + stage.disk)
        kept += stage.disk
    return most


def _stages(experiment: Experiment, folder: Path, rates: Rates | None) -> Iterator[Stage]:
    """Yield the stages in the order of the workflow, those of some rules in parts."""
    classes = open_split(experiment, "detection", "train").classes
    evaluated = len(open_split(experiment, "detection", "val"))
    classifiers = _classifiers(experiment)
    networks = [
        _network(experiment, folder, backbone, detector, classes, classifiers, rates)
        for backbone, detector in experiment.networks
    ]
    resized = [arm for arm in experiment.all_arms if arm not in experiment.with_reference_widths]
    files_of_widths = {experiment.widths_of(arm) for arm in resized}
    tasks = 2 if classifiers else 1
    yield Stage("check_data", jobs=2 * tasks)
    yield Stage("check_network", jobs=len(networks))
    yield from _starts(experiment, classifiers, networks)
    for network in networks:
        for arm in experiment.all_arms:
            if arm not in resized:
                yield _training(experiment, network, arm)
    for network in networks:
        for arm in experiment.observed:
            yield from _observation(experiment, network, arm)
    yield Stage("comparison", jobs=len(networks), disk=len(networks) * TABLES)
    scored = any(arm in experiment.with_reference_widths for arm in experiment.observed)
    yield Stage("forecast", jobs=len(networks) if scored else 0)
    yield Stage("widths", jobs=len(networks) * len(files_of_widths))
    yield Stage("front", jobs=len(networks) if experiment.derived else 0)
    for network in networks:
        if experiment.derived:
            yield _readings(experiment, network)
    for network in networks:
        for arm in resized:
            yield replace(_training(experiment, network, arm), after_widths=True)
    for network in networks:
        runs = len(experiment.seeds) * len(experiment.all_arms)
        images = len(experiment.seeds) * evaluated * sum(_scored(experiment, arm) for arm in experiment.all_arms)
        seconds = network.rate and images / network.rate.looking
        yield Stage("evaluate", jobs=runs, images=images, disk=runs * SCORES, seconds=seconds)
    yield Stage("latency", jobs=len(networks))
    yield Stage("report", jobs=1, disk=PAGE + len(networks) * FIGURES)


def _scored(experiment: Experiment, arm: str) -> int:
    """Return how many snapshots of a run of this arm are evaluated."""
    steps = snapshot_steps(experiment.training_of(arm))
    return len(experiment.evaluation.chosen(steps)) if arm in experiment.observed else 1


def _classifiers(experiment: Experiment) -> dict[str, Definition]:
    """Return what each backbone that is pre-trained here is pre-trained as."""
    here = [
        name
        for name in experiment.backbones
        if any(experiment.init_of(arm, name) == "workflow" for arm in experiment.all_arms)
    ]
    if not here:
        return {}
    classes = open_split(experiment, "classification", "train").classes
    return {name: definitions.classifier_of(experiment, name, classes) for name in here}


def _network(
    experiment: Experiment,
    folder: Path,
    backbone: str,
    detector: str,
    classes: list[str],
    classifiers: dict[str, Definition],
    rates: Rates | None,
) -> PlannedNetwork:
    """Return what the runs of a network leave; only small images pass it here."""
    size = experiment.training.min_size, experiment.training.max_size
    definition = definitions.definition_of(experiment, backbone, detector, classes, size)
    small = replace(definition, size=network_check.small(experiment.training))
    network_check.check_observed(experiment, small, small.build(), f"{detector} over {backbone}")
    footprints = dict.fromkeys(experiment.all_arms, Footprint.of(small, experiment.covariance))
    for arm in experiment.all_arms:
        own = experiment.arms[arm].widths if arm in experiment.arms else None
        file = layout.path(folder, layout.WIDTHS, arm=arm, backbone=backbone, detector=detector)
        widths = Path(own) if own else file
        if widths.is_file():
            resized = replace(small, widths=read_widths(widths, small))
            footprints[arm] = Footprint.of(resized, experiment.covariance)
    return PlannedNetwork(definition, footprints, rates and rates(definition, classifiers.get(backbone)))


def _starts(
    experiment: Experiment, classifiers: dict[str, Definition], networks: Sequence[PlannedNetwork]
) -> Iterator[Stage]:
    """Yield every backbone that runs start from: pre-trained, also with other widths, or fetched."""
    first: dict[str, layout.Run] = {}
    for run in layout.runs(experiment, experiment.all_arms):
        folder = layout.start(experiment, run)
        if folder is not None:
            first.setdefault(folder, run)
    for run in first.values():
        if experiment.init_of(run.arm, run.backbone) != "workflow":
            yield Stage("fetch", jobs=1)
        elif experiment.widths_of(run.arm) is None:
            yield _pretraining(experiment, classifiers[run.backbone], networks)
        else:
            whole = _pretraining(experiment, classifiers[run.backbone], networks)
            yield replace(whole, rule="pretrain_resized", after_widths=True)


def _pretraining(experiment: Experiment, classifier: Definition, networks: Sequence[PlannedNetwork]) -> Stage:
    """Return the pre-training of one backbone with one seed."""
    settings = experiment.pretraining
    assert settings is not None  # or there would be no classifier
    files = Footprint.of(classifier, experiment.covariance)
    rate = next(network.rate for network in networks if network.definition.backbone == classifier.backbone)
    images = settings.steps * settings.batch_size
    return Stage(
        "pretrain",
        jobs=1,
        steps=settings.steps,
        images=images,
        disk=(1 + len(snapshot_steps(settings))) * files.snapshot,
        meanwhile=_training_disk(settings, files),
        seconds=images / rate.pretraining if rate and rate.pretraining else None,
    )


def _training(experiment: Experiment, network: PlannedNetwork, arm: str) -> Stage:
    """Return the runs of an arm, of all seeds."""
    settings, files, seeds = experiment.training_of(arm), network.footprints[arm], len(experiment.seeds)
    images = seeds * settings.steps * settings.batch_size
    return Stage(
        "train",
        jobs=seeds,
        steps=seeds * settings.steps,
        images=images,
        disk=seeds * len(snapshot_steps(settings)) * files.snapshot,
        meanwhile=_training_disk(settings, files),
        seconds=network.rate and images / network.rate.training,
    )


def _training_disk(settings: Optimization, files: Footprint) -> int:
    """Return the most bytes of a run: before its last snapshot, two checkpoints, of which one is about to go."""
    return (len(snapshot_steps(settings)) - 1) * files.snapshot + 2 * files.checkpoint(settings)


def _observation(experiment: Experiment, network: PlannedNetwork, arm: str) -> Iterator[Stage]:
    """Yield the covariances of an arm, of all seeds, and their spectra."""
    settings, files, seeds = experiment.covariance, network.footprints[arm], len(experiment.seeds)
    snapshots = len(snapshot_steps(experiment.training_of(arm)))
    images, shards = seeds * snapshots * settings.images, settings.shards
    whole = files.covariance(snapshots, settings.images)
    shard = files.covariance(snapshots, settings.images // shards)  # the whole, if there is but one
    observing = Stage(
        "covariance",
        jobs=seeds * shards,
        images=images,
        disk=seeds * whole,
        meanwhile=shard + files.unfinished_covariance(shard),
        seconds=network.rate and images / network.rate.observing,
    )
    if shards == 1:
        yield observing
    else:
        yield replace(observing, rule="covariance_shard", disk=0)
        yield Stage("merge", jobs=seeds, disk=seeds * whole, meanwhile=whole + shards * shard)
    yield Stage("spectra", jobs=seeds, disk=seeds * files.spectra(snapshots))


def _readings(experiment: Experiment, network: PlannedNetwork) -> Stage:
    """Return what observes the last snapshot of each run of `widths.arm` with the other weighting, for one table."""
    settings = experiment.covariance.model_copy(update={"jackknife": None, "gradients": False})
    files = replace(network.footprints[experiment.widths.arm], settings=settings)
    images, whole = len(experiment.seeds) * settings.images, files.covariance(1, settings.images)
    return Stage(
        "readings",
        jobs=1,
        images=images,
        meanwhile=len(experiment.seeds) * whole + files.unfinished_covariance(whole),
        seconds=network.rate and images / network.rate.observing,
    )


def lines(stages: Sequence[Stage], jobs: int, unit: str) -> Iterator[str]:
    """Yield the plan as text.

    Args:
        stages: in the order of the workflow.
        jobs: how many run at once.
        unit: what is paid for by the hour.

    >>> for line in lines([Stage("train", jobs=2, steps=600, images=4800, disk=80_000_000, seconds=90)], 1, "GPU"):
    ...     print(line)  # doctest: +NORMALIZE_WHITESPACE
                       jobs        steps         images       disk  GPU-hours
    train                 2          600          4,800      80 MB  0.025
    in all                2          600          4,800      80 MB  0.025
    <BLANKLINE>
    disk: 80 MB in the end; with one job at a time, 80 MB at most meanwhile
    """
    total = Stage("in all", jobs=0)
    for stage in stages:
        total.add(stage)
    yield f"{'':<16}{'jobs':>7}{'steps':>13}{'images':>15}{'disk':>11}  {unit}-hours"
    for stage in [*by_rule(stages).values(), total]:
        hours = "?" if stage.seconds is None else f"{stage.seconds / 3600:.3g}" if stage.seconds else ""
        steps = f"{stage.steps:,}" if stage.steps else ""
        images = f"{stage.images:,}" if stage.images else ""
        yield f"{stage.rule:<16}{stage.jobs:>7,}{steps:>13}{images:>15}{size_text(stage.disk):>11}  {hours}".rstrip()
    yield ""
    at_once = "one job at a time" if jobs == 1 else f"{jobs} jobs at once"
    yield f"disk: {size_text(total.disk)} in the end; with {at_once}, {size_text(peak(stages, jobs))} at most meanwhile"


def size_text(count: float) -> str:
    """Return bytes in words, by powers of ten.

    >>> [size_text(999), size_text(1.5e6), size_text(2.345e12)]
    ['999 B', '1.5 MB', '2.35 TB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"
