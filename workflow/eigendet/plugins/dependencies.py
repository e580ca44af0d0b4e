"""Say what each stage of an experiment reads and which settings change its result; the workflow's rules ask it.

A stage runs again when one of these files or settings changes, and only then. What stages leave is named below
`<results>`, which the workflow replaces by the experiment's folder; every other path is the user's, relative to the
working directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from eigendet.config import AFTER_DERIVED, Experiment, layout
from eigendet.config.layout import Run
from eigendet.config.sections import IMMATERIAL, Optimization, PluginChoice
from eigendet.files import Plain
from eigendet.plugins.discovery import discover
from eigendet.plugins.loading import files, needs, package_versions

Settings = list[Any]  # plain values
RESULTS = "<results>"


def checked_data(experiment: Experiment, task: str, split: str) -> str:
    """Return the summary of a data set that was found usable."""
    return _path(layout.data_check(experiment, task, split))


def observed_data(experiment: Experiment) -> list[str]:
    """Return the summary of the data set whose images are observed."""
    return [checked_data(experiment, "detection", experiment.covariance.split)]


def scored_data(experiment: Experiment) -> list[str]:
    """Return the summary of the data set on which detectors are evaluated."""
    return [checked_data(experiment, "detection", "val")]


def data_files(experiment: Experiment, task: str, split: str) -> list[str]:
    """Return the file of a data set's plugin, and every file (not folder) among its options."""
    choice: PluginChoice = getattr(getattr(experiment.data, task), split)
    named = [value for value in choice.options.values() if isinstance(value, str)]
    return [*files("dataset", [choice]), *(path for path in named if Path(path).is_file())]


def backbone_files(experiment: Experiment, backbone: str) -> list[str]:
    """Return the file of a backbone's plugin."""
    return files("backbone", [experiment.backbones[backbone]])


def network_files(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the files of a network's plugins."""
    return [*backbone_files(experiment, backbone), *files("detector", [experiment.detectors[detector]])]


def network_settings(experiment: Experiment, backbone: str, detector: str) -> Settings:
    """Return a network's definition, with the versions of packages that its plugins come from."""
    own, over = experiment.backbones[backbone], experiment.detectors[detector]
    plain = own.model_dump(mode="json", exclude={"pretrained"}), over.model_dump(mode="json")
    return [*plain, package_versions(backbone=own, detector=over)]


def pretrain_inputs(experiment: Experiment) -> list[str]:
    """Return the checked data that backbones are pre-trained on."""
    return [checked_data(experiment, "classification", split) for split in ("train", "val")]


def pretrain_settings(experiment: Experiment, backbone: str) -> Settings:
    """Return what changes the result of pre-training."""
    choice, settings = experiment.backbones[backbone], experiment.pretraining
    plain = choice.model_dump(mode="json", exclude={"pretrained"})
    return [plain, settings and _material(settings), package_versions(backbone=choice)]


def pretrain_widths(experiment: Experiment, backbone: str, detector: str, arm: str) -> list[str]:
    """Return the file of the widths with which a backbone is pre-trained for an arm."""
    return [_path(layout.WIDTHS, arm=experiment.widths_of(arm), backbone=backbone, detector=detector)]


def pretrain_options(experiment: Experiment, backbone: str, detector: str, arm: str) -> list[str]:
    """Return the arguments of `eigendet pretrain` that name widths."""
    return ["--widths", *pretrain_widths(experiment, backbone, detector, arm), "--detector", detector]


def fetch_inputs(experiment: Experiment, arm: str, backbone: str) -> list[str]:
    """Return the files that an arm's weights, and its widths, come from."""
    named = [experiment.init_of(arm, backbone), experiment.arms[arm].widths]
    return [path for path in named if path and Path(path).is_file()]


def fetch_settings(experiment: Experiment, arm: str, backbone: str) -> Settings:
    """Return what changes the weights that are fetched."""
    choice = experiment.backbones[backbone]
    plain = choice.model_dump(mode="json", exclude={"pretrained"})
    return [plain, experiment.init_of(arm, backbone), package_versions(backbone=choice)]


def train_inputs(experiment: Experiment, arm: str, backbone: str, detector: str, seed: str) -> dict[str, list[str]]:
    """Return the checks that come before a run, the files of its plugins, and what it starts from."""
    return {
        "network": [_path(layout.NETWORK_CHECK, backbone=backbone, detector=detector)],
        "data": [checked_data(experiment, "detection", "train")],
        "plugins": network_files(experiment, backbone, detector),
        "start": list(_start(experiment, Run(arm, backbone, detector, int(seed))).values()),
    }


def train_options(experiment: Experiment, arm: str, backbone: str, detector: str, seed: str) -> list[str]:
    """Return the arguments of `eigendet train` that say how a run starts."""
    return ["--arm", arm, *chain(*_start(experiment, Run(arm, backbone, detector, int(seed))).items())]


def train_settings(experiment: Experiment, arm: str, backbone: str, detector: str) -> Settings:
    """Return what changes the result of a run."""
    return [_material(experiment.training_of(arm)), *network_settings(experiment, backbone, detector)]


def covariance_settings(experiment: Experiment) -> Plain:
    """Return what changes the covariances of a run."""
    settings = experiment.covariance.model_dump(mode="json", exclude={"arms", "memory", "shards"})
    return settings | {"groups_of_heads": experiment.widths.heads}  # each group is observed somewhere


def evaluation_settings(experiment: Experiment, arm: str) -> Settings:
    """Return what changes the scores of a run."""
    return [arm in experiment.observed and experiment.evaluation.model_dump(mode="json")]


def covariance_shards(experiment: Experiment, arm: str, backbone: str, detector: str, seed: str) -> list[str]:
    """Return the files that are merged to the covariances of a run."""
    shards = experiment.covariance.shards
    run = {"arm": arm, "backbone": backbone, "detector": detector, "seed": seed}
    return [_path(layout.COVARIANCE_SHARD, shard=shard, shards=shards, **run) for shard in range(1, shards + 1)]


def observed_spectra(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the folders of all spectra of a network."""
    return _of_runs(experiment, experiment.observed, backbone, detector, layout.SPECTRA)


def comparison_inputs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the tables and scores that are compared, and the files of all rules, each of which is a metric too."""
    patterns = layout.EIGENVALUES, layout.SIMILARITY
    tables = _of_runs(experiment, experiment.observed, backbone, detector, *patterns)
    scores = _of_runs(experiment, experiment.observed, backbone, detector, layout.EVALUATION)
    return [*tables, *scores, *rule_files()]


def observed_evaluations(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the arguments of `eigendet comparison` that name the scores of all runs whose spectra are compared."""
    scores = _of_runs(experiment, experiment.observed, backbone, detector, layout.EVALUATION)
    return [*chain(*(("--evaluation", file) for file in scores))]


def forecast_inputs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the covariances of the initializations that are scored, and the data set of their images."""
    return [*forecast_covariances(experiment, backbone, detector), *observed_data(experiment)]


def forecast_covariances(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the covariances of a network's observed runs that have the reference's widths."""
    return _of_runs(experiment, _with_reference_widths(experiment), backbone, detector, layout.COVARIANCE)


def width_spectra(experiment: Experiment, backbone: str, detector: str, arm: str = "derived") -> list[str]:
    """Return the folders of the spectra that an arm's widths, or the front, are read from."""
    return _of_runs(experiment, _sources(experiment, arm), backbone, detector, layout.SPECTRA)


def width_inputs(experiment: Experiment, backbone: str, detector: str, arm: str) -> list[str]:
    """Return what an arm's widths are made from: spectra, derived widths, a file of the user's, the rule's plugin."""
    patterns = layout.EIGENVALUES, layout.JACKKNIFE
    inputs = _of_runs(experiment, _sources(experiment, arm), backbone, detector, *patterns)
    inputs += _derived(experiment, backbone, detector, arm)
    own = experiment.arms[arm].widths if arm in experiment.arms else None
    if own:
        inputs.append(own)
    return [*inputs, *_seen(experiment, backbone, detector, arm).values(), *width_plugins(experiment)]


def front_inputs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the tables and the plugin that the front is made from."""
    tables = _of_runs(experiment, _sources(experiment, "derived"), backbone, detector, layout.EIGENVALUES)
    return [*tables, *_seen(experiment, backbone, detector, "derived").values(), *width_plugins(experiment)]


def readings_inputs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the runs and covariances that every rule is applied to, what they saw, and the files of all rules."""
    patterns = layout.RUN_RECORD, layout.COVARIANCE
    runs = _of_runs(experiment, _sources(experiment, "derived"), backbone, detector, *patterns)
    return [*runs, *observed_data(experiment), *rule_files()]


def readings_sources(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the arguments of `eigendet readings` that name runs and their covariances."""
    sources = _sources(experiment, "derived")
    files_of_runs = _of_runs(experiment, sources, backbone, detector, layout.COVARIANCE)
    named = chain(*(("--covariance", file) for file in files_of_runs))
    return [*_of_runs(experiment, sources, backbone, detector, layout.RUNS), *named]


def readings_settings(experiment: Experiment) -> Settings:
    """Return what changes the table of readings, besides what changes covariances."""
    versions = [package_versions(rule=PluginChoice(plugin=name)) for name in discover("rule")]
    return [*width_settings(experiment), experiment.preset, versions]


def rule_files() -> list[str]:
    """Return the files of all width rules."""
    return files("rule", [PluginChoice(plugin=name) for name in discover("rule")])


def width_plugins(experiment: Experiment) -> list[str]:
    """Return the files of the plugins that choose widths: the rule's, and the allocator's."""
    settings = experiment.widths
    return [*files("rule", [settings.rule]), *files("allocator", [settings.allocation])]


def width_sources(experiment: Experiment, backbone: str, detector: str, arm: str) -> list[str]:
    """Return the arguments of `eigendet widths` that name spectra, derived widths, and what the allocator needs."""
    derived = [("--derived", file) for file in _derived(experiment, backbone, detector, arm)]
    return [*front_sources(experiment, backbone, detector, arm), *chain(*derived)]


def front_sources(experiment: Experiment, backbone: str, detector: str, arm: str = "derived") -> list[str]:
    """Return the arguments of `eigendet front` that name spectra and what the allocator needs beside them."""
    named = []
    for path in _seen(experiment, backbone, detector, arm):
        named += ["--run", path] if path.startswith(_path("runs")) else ["--covariance", path]
    return [*width_spectra(experiment, backbone, detector, arm), *named]


def _seen(experiment: Experiment, backbone: str, detector: str, arm: str) -> dict[str, str]:
    """Return what the allocator reads beside spectra, and the file of each that Snakemake watches."""
    needed, sources = needs(experiment.widths.allocation), _sources(experiment, arm)
    covariances = _of_runs(experiment, sources, backbone, detector, layout.COVARIANCE)
    folders = _of_runs(experiment, sources, backbone, detector, layout.RUNS)
    records = _of_runs(experiment, sources, backbone, detector, layout.RUN_RECORD)
    seen = dict(zip(covariances, covariances, strict=True)) if {"covariance", "gradients"} & set(needed) else {}
    return seen | (dict(zip(folders, records, strict=True)) if {"kernels", "history"} & set(needed) else {})


def width_settings(experiment: Experiment) -> Settings:
    """Return what changes the widths that are derived."""
    settings = experiment.widths
    versions = package_versions(rule=settings.rule, allocator=settings.allocation)
    return [settings.model_dump(mode="json"), experiment.training.min_size, versions]


def latency_runs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the folders of every arm's first run."""
    return _first_runs(experiment, backbone, detector, layout.RUNS)


def latency_records(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the records of every arm's first run, which are there once it is complete."""
    return _first_runs(experiment, backbone, detector, layout.RUN_RECORD)


def report_inputs(experiment: Experiment) -> list[str]:
    """Return everything that the page shows."""
    of_networks = [layout.COMPARISON_NOTES, layout.LATENCY]
    if _with_reference_widths(experiment):
        of_networks.append(layout.FORECAST)
    if experiment.derived:
        of_networks += [layout.FRONT, layout.READINGS]
    return [
        *(_path(layout.EVALUATION, **run._asdict()) for run in layout.runs(experiment, experiment.all_arms)),
        *(checked_data(experiment, "detection", split) for split in ("train", "val")),
        *(
            _path(pattern, backbone=backbone, detector=detector)
            for pattern in of_networks
            for backbone, detector in experiment.networks
        ),
    ]


def plugin_options(experiment: Experiment) -> list[str]:
    """Return the configuration's folders of plugins as arguments, for commands that read no configuration."""
    return [*chain(*(("--plugins", str(folder)) for folder in experiment.plugins))]


def _start(experiment: Experiment, run: Run) -> dict[str, str]:
    """Return the files that a run starts from, by the options that name them."""
    folder, arm = layout.start(experiment, run), experiment.widths_of(run.arm)
    init = {"--init": _path(f"{folder}/{layout.START_WEIGHTS}")} if folder else {}
    return init | ({"--widths": _path(layout.WIDTHS, **run._replace(arm=arm)._asdict())} if arm else {})


def _sources(experiment: Experiment, arm: str) -> list[str]:
    """Return the arm whose spectra an arm's widths are read from, if any."""
    source = experiment.spectra_for(arm)
    return [source] if source else []


def _with_reference_widths(experiment: Experiment) -> list[str]:
    """Return the observed arms with the reference's widths."""
    return [arm for arm in experiment.observed if arm in experiment.with_reference_widths]


def _derived(experiment: Experiment, backbone: str, detector: str, arm: str) -> list[str]:
    """Return the file of the derived widths that a control is compared with, if any."""
    if not experiment.derived or arm not in (*AFTER_DERIVED, "untrained"):
        return []
    return [_path(layout.WIDTHS, arm=experiment.derived[-1], backbone=backbone, detector=detector)]


def _material(section: Optimization) -> Plain:
    """Return the settings of a section that change the result of a run."""
    return section.model_dump(mode="json", exclude=IMMATERIAL)


def _of_runs(experiment: Experiment, arms: Sequence[str], backbone: str, detector: str, *patterns: str) -> list[str]:
    """Return the paths of these patterns for every run of a network in these arms."""
    runs = [run for run in layout.runs(experiment, arms) if (run.backbone, run.detector) == (backbone, detector)]
    return [_path(pattern, **run._asdict()) for run in runs for pattern in patterns]


def _first_runs(experiment: Experiment, backbone: str, detector: str, pattern: str) -> list[str]:
    """Return a pattern's path for every arm's run with the first seed: its others have the same network."""
    run = {"backbone": backbone, "detector": detector, "seed": experiment.seeds[0]}
    return [_path(pattern, arm=arm, **run) for arm in experiment.all_arms]


def _path(pattern: str, **wildcards: object) -> str:
    """Return the path of a pattern of `layout` below the experiment's folder."""
    return str(layout.path(RESULTS, pattern, **wildcards))
