# What the rules share: the validated experiment, paths, and the inputs and parameters that depend on it.
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from eigendet import config as configuration
from eigendet import files, plugins
from eigendet.config import sections
from eigendet.plugins import discovery
from eigendet.errors import UserError


def validated():
    """The experiment of this configuration; plugins and their options are checked once, not again in every job."""
    try:
        found = configuration.parse(
            config, ", ".join(map(str, workflow.configfiles)) or "--config"
        )
        discovery.search(found.plugins)
        if workflow.is_main_process:
            plugins.validate(
                found, paths=not workflow.output_settings.dryrun
            )  # a plan needs no data
    except UserError as error:
        sys.tracebacklimit = (
            0  # the message says where the mistake is; this file is not the place
        )
        raise WorkflowError(str(error)) from None
    return found


EXPERIMENT = validated()
RESULTS = f"results/{EXPERIMENT.experiment}"
CONFIG = f"{RESULTS}/config.yaml"
RUN = "{arm}/{backbone}/{detector}/seed_{seed}"


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/benchmarks",


wildcard_constraints:
    task="classification|detection",
    split="train|val",
    digest="[0-9a-f]{8}",
    arm="|".join(EXPERIMENT.all_arms),
    backbone="[^/]+",
    detector="[^/]+",
    seed=r"\d+",
    shard=r"\d+",
    shards=r"\d+",


def write_configuration():
    """Jobs read this copy, so that an edit of the original does not reach a workflow that is under way."""
    files.write_text(Path(CONFIG), configuration.dump_yaml(EXPERIMENT))


def gpus():
    """GPUs of a job that runs a network; with `device: auto`, those of the machine that Snakemake runs on."""
    present = shutil.which("nvidia-smi") is not None
    return int(EXPERIMENT.device == "cuda" or (EXPERIMENT.device == "auto" and present))


def all_cores(wildcards):
    """Threads of a job that nothing may run beside; without --cores, as when unlocking, their number is not known."""
    try:
        return workflow.cores or 1
    except WorkflowError:
        return 1


def runs(arms):
    """Run paths of these arms, every backbone, detector and seed."""
    return expand(
        RUN,
        arm=arms,
        backbone=EXPERIMENT.backbones,
        detector=EXPERIMENT.detectors,
        seed=EXPERIMENT.seeds,
    )


def networks(pattern):
    """A file for every backbone and detector."""
    return expand(pattern, backbone=EXPERIMENT.backbones, detector=EXPERIMENT.detectors)


def first_seed_runs(wildcards):
    """Folders of every arm's first run."""
    network = f"{wildcards.backbone}/{wildcards.detector}/seed_{EXPERIMENT.seeds[0]}"
    return [f"{RESULTS}/runs/{arm}/{network}" for arm in EXPERIMENT.all_arms]


def first_seed_records(wildcards):
    return [f"{folder}/run.json" for folder in first_seed_runs(wildcards)]


def dataset_choice(task, split):
    return getattr(getattr(EXPERIMENT.data, task), split)


def dataset_files(task, split):
    """The plugin's file, and every file (not folder) among its options."""
    choice = dataset_choice(task, split)
    named = [value for value in choice.options.values() if isinstance(value, str)]
    return [
        *plugins.files("dataset", [choice]),
        *(path for path in named if Path(path).is_file()),
    ]


def check(task, split):
    """The summary of a data set that was found usable. Its name changes with the data set's settings."""
    digest = dataset_choice(task, split).digest
    return f"<results>/data/{task}_{split}_{digest}.json"


def checked_files(wildcards):
    return dataset_files(wildcards.task, wildcards.split)


def backbone_plugin(wildcards):
    return plugins.files("backbone", [EXPERIMENT.backbones[wildcards.backbone]])


def detector_plugins(wildcards):
    return [
        *backbone_plugin(wildcards),
        *plugins.files("detector", [EXPERIMENT.detectors[wildcards.detector]]),
    ]


def spectra(wildcards):
    """Folders of the spectra that an arm's widths, or the front, are read from, one a seed."""
    source = EXPERIMENT.spectra_for(getattr(wildcards, "arm", "derived"))
    folder = f"{RESULTS}/spectra/{source}/{wildcards.backbone}/{wildcards.detector}"
    return [f"{folder}/seed_{seed}" for seed in EXPERIMENT.seeds if source]


def all_rule_plugins(wildcards):
    """Files of every width rule: each is a metric too."""
    names = plugins.discover("rule")
    return plugins.files("rule", [sections.PluginChoice(plugin=name) for name in names])


def dump_settings(wildcards):
    return EXPERIMENT.covariance.model_dump(
        mode="json", exclude={"arms", "memory", "dump_shards"}
    )


def covariance_shards(wildcards):
    number = EXPERIMENT.covariance.dump_shards
    return [
        f"{RESULTS}/covariance/{RUN}.{shard}_of_{number}.h5".format(**wildcards)
        for shard in range(1, number + 1)
    ]


def observed(wildcards):
    """Folders of all spectra of a network."""
    return expand(
        f"{RESULTS}/spectra/{{arm}}/{wildcards.backbone}/{wildcards.detector}/seed_{{seed}}",
        arm=EXPERIMENT.dumped,
        seed=EXPERIMENT.seeds,
    )


def observed_spectra(wildcards):
    tables = ("eigenvalues.parquet", "similarity.h5")
    return [f"{folder}/{table}" for folder in observed(wildcards) for table in tables]


def last_derived(wildcards):
    """The file of widths that a control is compared with, if it is with any."""
    folder = f"{RESULTS}/widths/{wildcards.backbone}/{wildcards.detector}"
    compared = wildcards.arm in configuration.AFTER_DERIVED
    return f"{folder}/{EXPERIMENT.derived[-1]}.json" if compared else []


def width_inputs(wildcards):
    tables = ("eigenvalues", "jackknife")
    return {
        "spectra": [
            f"{folder}/{t}.parquet" for folder in spectra(wildcards) for t in tables
        ],
        "derived": last_derived(wildcards),
        "file": EXPERIMENT.arms.get(wildcards.arm, {}).get("widths", []),
        "rules": plugins.files("rule", [EXPERIMENT.widths.rule]),
    }


def width_sources(wildcards):
    """The same as arguments."""
    derived = last_derived(wildcards)
    return " ".join([*spectra(wildcards), *(["--derived", derived] if derived else [])])


def width_settings(wildcards):
    return [
        EXPERIMENT.widths.model_dump(mode="json"),
        EXPERIMENT.training.min_size,
        plugins.package_versions(rule=EXPERIMENT.widths.rule),
    ]


def material(section):
    """The settings of a section that change what comes of a run."""
    return section.model_dump(mode="json", exclude=sections.IMMATERIAL)


def pretrains(wildcards):
    """Whether a backbone's weights come from pre-training here."""
    return EXPERIMENT.backbones[wildcards.backbone].pretrained == "workflow"


def pretrain_data(wildcards):
    """The checked data, or the file that the weights come from."""
    if pretrains(wildcards):
        return [check("classification", split) for split in ("train", "val")]
    weights = Path(EXPERIMENT.backbones[wildcards.backbone].pretrained)
    return [str(weights)] if weights.is_file() else []


def pretrain_settings(wildcards):
    choice = EXPERIMENT.backbones[wildcards.backbone]
    settings = [choice, EXPERIMENT.pretraining] if pretrains(wildcards) else [choice]
    versions = plugins.package_versions(backbone=choice)
    return [*(material(section) for section in settings), versions]


def training_settings(arm):
    """Parameters of an arm's runs: they run again when these change, and only then."""

    def settings(wildcards):
        training = EXPERIMENT.training_of(arm or wildcards.arm)
        return [material(training), *network_settings(wildcards)]

    return settings


def network_settings(wildcards):
    """A network's definition, with the versions of packages that its plugins come from."""
    choices = {
        "backbone": EXPERIMENT.backbones[wildcards.backbone],
        "detector": EXPERIMENT.detectors[wildcards.detector],
    }
    return [
        choices["backbone"].model_dump(mode="json", exclude={"pretrained"}),
        choices["detector"].model_dump(mode="json"),
        plugins.package_versions(**choices),
    ]


def plugin_folders():
    """The configuration's folders of plugins as arguments, for commands that read no configuration."""
    return " ".join(f"--plugins {folder}" for folder in EXPERIMENT.plugins)
