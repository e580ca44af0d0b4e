"""What an experiment takes, before anything of it is run: jobs, steps, images, disk, and hours of its devices.

All is counted as if nothing had been done yet. An arm whose widths are not derived yet counts as if it had the
reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from eigendet.config import WITH_REFERENCE_WIDTHS, Experiment, layout
from eigendet.config.sections import Optimization
from eigendet.data.datasets import open_splits
from eigendet.networks import models
from eigendet.networks.models import Definition
from eigendet.runs import definitions, network_check
from eigendet.runs.footprint import BLOCK, Footprint
from eigendet.runs.throughput import Throughput
from eigendet.runs.training import snapshot_steps

Rates = Callable[[Definition, Definition | None], Throughput]  # of a detector, and of the classifier it starts as

RECORDS = 7 * BLOCK  # that every job leaves: its log, how long it took, a summary, and folders for these
PAGE, FIGURES, TABLES = 1_000_000, 250_000, 100_000  # of the page alone; and of every network


@dataclass
class Stage:
    """All jobs of one rule.

    Attributes:
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


class Network(NamedTuple):
    """A detector over a backbone, with what its runs leave and how fast they are."""

    definition: Definition
    arms: dict[str, Footprint]
    rate: Throughput | None


def stages(experiment: Experiment, folder: Path, rates: Rates | None = None) -> list[Stage]:
    """Everything that there is to do, in the order of the workflow.

    Args:
        folder: results of the experiment, whose widths count where they are known.
        rates: says how fast networks are.
    """
    found: dict[str, Stage] = {}
    for stage in _stages(experiment, folder, rates):
        known = found.setdefault(stage.rule, Stage(stage.rule, 0))
        known.jobs += stage.jobs
        known.steps += stage.steps
        known.images += stage.images
        known.disk += stage.disk + stage.jobs * RECORDS
        known.meanwhile = max(known.meanwhile, stage.meanwhile)
        known.seconds = None if known.seconds is None or stage.seconds is None else known.seconds + stage.seconds
    return [stage for stage in found.values() if stage.jobs]


def peak(found: Sequence[Stage], jobs: int) -> int:
    """The most bytes at any time, if so many jobs run at once, and those of a stage before those of the next."""
    most = kept = 0
    for stage in found:
        running = min(jobs, stage.jobs)
        done = stage.disk * (stage.jobs - running) // stage.jobs
        most = max(most, kept + done + running * stage.meanwhile, kept + stage.disk)
        kept += stage.disk
    return most


def _stages(experiment: Experiment, folder: Path, rates: Rates | None) -> Iterator[Stage]:
    detection = open_splits(experiment, "detection")
    classifiers = _classifiers(experiment)
    planned = [
        _network(experiment, folder, *network, detection["train"].classes, classifiers, rates)
        for network in experiment.networks
    ]
    resized = [arm for arm in experiment.all_arms if arm not in WITH_REFERENCE_WIDTHS]
    every, networks_ = len(experiment.seeds), len(planned)
    yield Stage("check_data", 2 + 2 * bool(classifiers))
    yield Stage("check_network", networks_)
    if "finetune" in experiment.all_arms:
        for name in experiment.backbones:
            yield _pretraining(experiment, classifiers.get(name), planned)
    yield from (_training(experiment, network, arm) for network in planned for arm in experiment.all_arms)
    for network in planned:
        yield from (stage for arm in experiment.observed for stage in _observation(experiment, network, arm))
    yield Stage("comparison", networks_, disk=networks_ * TABLES)
    yield Stage("widths", networks_ * len(resized))
    yield Stage("front", networks_ * bool(experiment.derived))
    for network in planned:
        images = every * len(experiment.all_arms) * len(detection["val"])
        seconds = network.rate and images / network.rate.looking
        yield Stage("evaluate", every * len(experiment.all_arms), images=images, seconds=seconds)
    yield Stage("latency", networks_)
    yield Stage("report", 1, disk=PAGE + networks_ * FIGURES)


def _classifiers(experiment: Experiment) -> dict[str, Definition]:
    """What each backbone that is pre-trained here is pre-trained as."""
    here = [name for name, choice in experiment.backbones.items() if choice.pretrained == "workflow"]
    if "finetune" not in experiment.arms or not here:
        return {}
    classes = open_splits(experiment, "classification")["train"].classes
    return {name: definitions.classifier_of(experiment, name, classes) for name in here}


def _network(
    experiment: Experiment,
    folder: Path,
    backbone: str,
    detector: str,
    classes: list[str],
    classifiers: dict[str, Definition],
    rates: Rates | None,
) -> Network:
    size = experiment.training.min_size, experiment.training.max_size
    definition = definitions.definition_of(experiment, backbone, detector, classes, size)
    usual = replace(definition, size=network_check.small(experiment.training))
    files = dict.fromkeys(experiment.all_arms, Footprint.of(usual, experiment.covariance))
    for arm in experiment.all_arms:
        own = experiment.arms[arm].widths if arm in experiment.arms else None
        network = {"backbone": backbone, "detector": detector}
        widths = Path(own) if own else layout.path(folder, layout.WIDTHS, arm=arm, **network)
        if widths.is_file():
            changed = replace(usual, widths=models.read_widths(widths, usual))
            files[arm] = Footprint.of(changed, experiment.covariance)
    return Network(definition, files, rates and rates(definition, classifiers.get(backbone)))


def _pretraining(experiment: Experiment, classifier: Definition | None, planned: Sequence[Network]) -> Stage:
    """Of one backbone, or only its weights from elsewhere."""
    settings = experiment.pretraining
    if classifier is None or settings is None:
        return Stage("pretrain", 1)
    files = Footprint.of(classifier, experiment.covariance)
    rate = next(network.rate for network in planned if network.definition.backbone == classifier.backbone)
    images = settings.steps * settings.batch_size
    return Stage(
        "pretrain",
        1,
        settings.steps,
        images,
        (1 + len(snapshot_steps(settings))) * files.snapshot,
        _training_disk(settings, files),
        images / rate.pretraining if rate and rate.pretraining else None,
    )


def _training(experiment: Experiment, network: Network, arm: str) -> Stage:
    """Return the runs of an arm, of all seeds."""
    settings, files, seeds = experiment.training_of(arm), network.arms[arm], len(experiment.seeds)
    images = seeds * settings.steps * settings.batch_size
    return Stage(
        "train",
        seeds,
        seeds * settings.steps,
        images,
        seeds * len(snapshot_steps(settings)) * files.snapshot,
        _training_disk(settings, files),
        network.rate and images / network.rate.training,
    )


def _training_disk(settings: Optimization, files: Footprint) -> int:
    """The most that a run has: before its last snapshot, two checkpoints, of which one is about to go."""
    return (len(snapshot_steps(settings)) - 1) * files.snapshot + 2 * files.checkpoint(settings)


def _observation(experiment: Experiment, network: Network, arm: str) -> Iterator[Stage]:
    """Dumps of an arm, of all seeds, and their spectra."""
    settings, files, seeds = experiment.covariance, network.arms[arm], len(experiment.seeds)
    snapshots = len(snapshot_steps(experiment.training_of(arm)))
    images, shards = snapshots * settings.images, settings.shards
    whole, part = (files.covariance(snapshots, settings.images // count) for count in (1, shards))
    seconds = network.rate and seeds * images / network.rate.observing
    if shards == 1:
        meanwhile = whole + files.unfinished_covariance(whole)
        yield Stage("covariance", seeds, 0, seeds * images, seeds * whole, meanwhile, seconds)
    else:
        meanwhile = part + files.unfinished_covariance(part)
        yield Stage("covariance_shard", seeds * shards, 0, seeds * images, 0, meanwhile, seconds)
        yield Stage("merge", seeds, disk=seeds * whole, meanwhile=whole + shards * part)
    yield Stage("spectra", seeds, disk=seeds * files.spectra(snapshots))


def lines(found: Sequence[Stage], jobs: int, unit: str) -> Iterator[str]:
    """The plan as text. `unit`: what is paid for by the hour."""
    total = Stage("in all", sum(stage.jobs for stage in found), disk=sum(stage.disk for stage in found))
    total.steps, total.images = sum(stage.steps for stage in found), sum(stage.images for stage in found)
    known = [stage.seconds for stage in found if stage.seconds is not None]
    total.seconds = sum(known) if len(known) == len(found) else None
    yield f"{'':<16}{'jobs':>7}{'steps':>13}{'images':>15}{'disk':>11}  {unit}-hours"
    for stage in [*found, total]:
        hours = "?" if stage.seconds is None else f"{stage.seconds / 3600:.3g}" if stage.seconds else ""
        counts = (f"{count:,}" if count else "" for count in (stage.steps, stage.images))
        steps, images = counts
        yield f"{stage.rule:<16}{stage.jobs:>7,}{steps:>13}{images:>15}{size_text(stage.disk):>11}  {hours}".rstrip()
    yield ""
    at_once = "one job at a time" if jobs == 1 else f"{jobs} jobs at once"
    yield f"disk: {size_text(total.disk)} in the end; with {at_once}, {size_text(peak(found, jobs))} at most meanwhile"


def size_text(count: float) -> str:
    """Bytes in words, by powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"
