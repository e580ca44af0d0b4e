"""Say what each stage of an experiment reads, and with which settings: what the workflow's rules are made of.

A stage runs again when a file or a setting changes that is named here, and only then. Paths are relative to the working
directory, as Snakemake takes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eigendet.config import WITH_REFERENCE_WIDTHS, Experiment, layout
from eigendet.config.sections import IMMATERIAL, Optimization, PluginChoice
from eigendet.plugins.discovery import discover
from eigendet.plugins.loading import files, package_versions

Settings = list[Any]  # plain values


def checked_data(experiment: Experiment, task: str, split: str) -> str:
    """Return the summary of a data set that was found usable."""
    return _below(experiment, layout.data_check(experiment, task, split))


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


def pretrain_inputs(experiment: Experiment, backbone: str) -> list[str]:
    """Return the checked data, or the file that a backbone's weights come from."""
    source = experiment.backbones[backbone].pretrained
    if source == "workflow":
        return [checked_data(experiment, "classification", split) for split in ("train", "val")]
    return [source] if Path(source).is_file() else []


def pretrain_settings(experiment: Experiment, backbone: str) -> Settings:
    """Return what changes the result of pre-training."""
    choice = experiment.backbones[backbone]
    here = [experiment.pretraining] if choice.pretrained == "workflow" and experiment.pretraining else []
    return [choice.model_dump(mode="json"), *map(_material, here), package_versions(backbone=choice)]


def train_inputs(experiment: Experiment, arm: str, backbone: str, detector: str) -> dict[str, list[str]]:
    """Return the checks that come before a run, the files of its plugins, and what it starts from."""
    return {
        "network": [_below(experiment, layout.NETWORK_CHECK.format(backbone=backbone, detector=detector))],
        "data": [checked_data(experiment, "detection", "train")],
        "plugins": network_files(experiment, backbone, detector),
        "start": list(_start(experiment, arm, backbone, detector).values()),
    }


def train_options(experiment: Experiment, arm: str, backbone: str, detector: str) -> str:
    """Return the arguments that say how a run starts."""
    start = _start(experiment, arm, backbone, detector)
    return " ".join([f"--arm {arm}", *(f"{option} {file}" for option, file in start.items())])


def train_settings(experiment: Experiment, arm: str, backbone: str, detector: str) -> Settings:
    """Return what changes the result of a run."""
    return [_material(experiment.training_of(arm)), *network_settings(experiment, backbone, detector)]


def covariance_settings(experiment: Experiment) -> dict[str, Any]:
    """Return what changes the covariances of a run."""
    return experiment.covariance.model_dump(mode="json", exclude={"arms", "memory", "shards"})


def covariance_shards(experiment: Experiment, arm: str, backbone: str, detector: str, seed: str) -> list[str]:
    """Return the files that are merged to the covariances of a run."""
    run = {"arm": arm, "backbone": backbone, "detector": detector, "seed": seed}
    shards = experiment.covariance.shards
    return [
        _below(experiment, layout.COVARIANCE_SHARD.format(shard=shard, shards=shards, **run))
        for shard in range(1, shards + 1)
    ]


def observed_spectra(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the folders of all spectra of a network."""
    return [
        _below(experiment, layout.SPECTRA.format(**run._asdict()))
        for run in layout.runs(experiment, experiment.observed)
        if (run.backbone, run.detector) == (backbone, detector)
    ]


def comparison_inputs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the tables that are compared, and the files of all width rules, each of which is a metric too."""
    tables = [
        f"{folder}/{table}"
        for folder in observed_spectra(experiment, backbone, detector)
        for table in ("eigenvalues.parquet", "similarity.h5")
    ]
    return [*tables, *files("rule", [PluginChoice(plugin=name) for name in discover("rule")])]


def width_spectra(experiment: Experiment, backbone: str, detector: str, arm: str = "derived") -> list[str]:
    """Return the folders of the spectra that an arm's widths, or the front, are read from."""
    return [_below(experiment, folder) for folder in layout.spectra_for(experiment, arm, backbone, detector)]


def width_inputs(experiment: Experiment, backbone: str, detector: str, arm: str) -> list[str]:
    """Return what an arm's widths are made from: spectra, derived widths, a file of the user's, the rule's plugin."""
    tables = [
        f"{folder}/{table}.parquet"
        for folder in width_spectra(experiment, backbone, detector, arm)
        for table in ("eigenvalues", "jackknife")
    ]
    own = experiment.arms[arm].widths if arm in experiment.arms else None
    return [*tables, *_derived(experiment, arm, backbone, detector), *([own] if own else []), *rule_files(experiment)]


def front_inputs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the tables and the plugin that the front is made from."""
    folders = width_spectra(experiment, backbone, detector)
    return [*(f"{folder}/eigenvalues.parquet" for folder in folders), *rule_files(experiment)]


def rule_files(experiment: Experiment) -> list[str]:
    """Return the file of the width rule's plugin."""
    return files("rule", [experiment.widths.rule])


def width_sources(experiment: Experiment, backbone: str, detector: str, arm: str) -> str:
    """Return spectra and derived widths as arguments."""
    derived = (f"--derived {file}" for file in _derived(experiment, arm, backbone, detector))
    return " ".join([*width_spectra(experiment, backbone, detector, arm), *derived])


def width_settings(experiment: Experiment) -> Settings:
    """Return what changes the widths that are derived."""
    settings = experiment.widths
    return [settings.model_dump(mode="json"), experiment.training.min_size, package_versions(rule=settings.rule)]


def latency_runs(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the folders of every arm's first run."""
    run = {"backbone": backbone, "detector": detector, "seed": experiment.seeds[0]}
    return [_below(experiment, layout.RUNS.format(arm=arm, **run)) for arm in experiment.all_arms]


def latency_records(experiment: Experiment, backbone: str, detector: str) -> list[str]:
    """Return the records of every arm's first run, which are there when it is complete."""
    return [f"{folder}/run.json" for folder in latency_runs(experiment, backbone, detector)]


def report_inputs(experiment: Experiment) -> list[str]:
    """Return everything that the page shows."""
    wanted = [
        *layout.run_paths(experiment, layout.EVALUATION, experiment.all_arms),
        *(layout.data_check(experiment, "detection", split) for split in ("train", "val")),
        *layout.network_paths(experiment, layout.COMPARISON_NOTES),
        *layout.network_paths(experiment, layout.LATENCY),
        *(layout.network_paths(experiment, layout.FRONT) if experiment.derived else []),
    ]
    return [_below(experiment, path) for path in wanted]


def plugin_options(experiment: Experiment) -> str:
    """Return the configuration's folders of plugins as arguments, for commands that read no configuration."""
    return " ".join(f"--plugins {folder}" for folder in experiment.plugins)


def _start(experiment: Experiment, arm: str, backbone: str, detector: str) -> dict[str, str]:
    """Return the file that a run starts from, by the option that names it."""
    if arm == "finetune":
        return {"--init": _below(experiment, layout.PRETRAINED_WEIGHTS.format(backbone=backbone))}
    if arm in WITH_REFERENCE_WIDTHS:
        return {}
    return {"--widths": _below(experiment, layout.WIDTHS.format(arm=arm, backbone=backbone, detector=detector))}


def _derived(experiment: Experiment, arm: str, backbone: str, detector: str) -> list[str]:
    return [_below(experiment, file) for file in layout.derived_for(experiment, arm, backbone, detector)]


def _material(section: Optimization) -> dict[str, Any]:
    """Return the settings of a section that change what comes of a run."""
    return section.model_dump(mode="json", exclude=IMMATERIAL)


def _below(experiment: Experiment, path: str) -> str:
    return f"{layout.results_folder(experiment)}/{path}"
