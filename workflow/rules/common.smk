# What the rules share: the validated experiment, paths, and the inputs and parameters that depend on it.
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from eigendet import config as configuration
from eigendet import files, plugins
from eigendet.errors import UserError


def validated():
    """The experiment of this configuration; plugins and their options are checked once, not again in every job."""
    try:
        found = configuration.parse(
            config, ", ".join(map(str, workflow.configfiles)) or "--config"
        )
        if workflow.is_main_process:
            plugins.validate(found, paths=not workflow.dryrun)  # a plan needs no data
    except UserError as error:
        sys.tracebacklimit = 0
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
    arm="finetune|scratch|derived|uniform",
    backbone="[^/]+",
    detector="[^/]+",
    seed=r"\d+",


def write_configuration():
    """Jobs read this copy, so that an edit of the original does not reach a workflow that is under way."""
    files.write_text(Path(CONFIG), configuration.dump_yaml(EXPERIMENT))


def gpus():
    """GPUs of a job that runs a network; with `device: auto`, those of the machine that Snakemake runs on."""
    present = shutil.which("nvidia-smi") is not None
    return int(EXPERIMENT.device == "cuda" or (EXPERIMENT.device == "auto" and present))


def runs(arms):
    """Run paths of these arms, every backbone, detector and seed."""
    return expand(
        RUN,
        arm=[arm for arm in arms if arm in EXPERIMENT.arms],
        backbone=EXPERIMENT.backbones,
        detector=EXPERIMENT.detectors,
        seed=EXPERIMENT.seeds,
    )


def dataset_choice(wildcards):
    return getattr(getattr(EXPERIMENT.data, wildcards.task), wildcards.split)


def dataset_settings(wildcards):
    return dataset_choice(wildcards).model_dump(mode="json")


def dataset_inputs(wildcards):
    """The plugin's file, and every file (not folder) among its options."""
    choice = dataset_choice(wildcards)
    named = [value for value in choice.options.values() if isinstance(value, str)]
    return [
        *plugins.files("dataset", [choice]),
        *(path for path in named if Path(path).is_file()),
    ]


def backbone_plugin(wildcards):
    return plugins.files("backbone", [EXPERIMENT.backbones[wildcards.backbone]])


def detector_plugins(wildcards):
    return [
        *backbone_plugin(wildcards),
        *plugins.files("detector", [EXPERIMENT.detectors[wildcards.detector]]),
    ]


def pretrain_data(wildcards):
    """Nothing to check where the backbone's weights come from elsewhere."""
    own = EXPERIMENT.backbones[wildcards.backbone].pretrained == "workflow"
    return ["<results>/data/classification_train.json"] if own else []


def pretrain_settings(wildcards):
    choice = EXPERIMENT.backbones[wildcards.backbone]
    own = choice.pretrained == "workflow"
    return [
        choice.model_dump(mode="json"),
        EXPERIMENT.pretraining.model_dump(mode="json") if own else None,
    ]


def training_settings(arm):
    """Parameters of an arm's runs: they run again when these change, and only then."""

    def settings(wildcards):
        return [
            EXPERIMENT.training_of(arm or wildcards.arm).model_dump(mode="json"),
            EXPERIMENT.backbones[wildcards.backbone].model_dump(
                mode="json", exclude={"pretrained"}
            ),
            EXPERIMENT.detectors[wildcards.detector].model_dump(mode="json"),
        ]

    return settings
