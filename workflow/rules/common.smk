# What the rules share: the validated experiment, and what each stage reads and depends on (`dependencies`), of it.
import inspect
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from eigendet import config as configuration
from eigendet import files, plugins
from eigendet.config import layout
from eigendet.errors import UserError
from eigendet.plugins import dependencies


def validated():
    """The experiment of this configuration; plugins and their options are checked once, not again in every job."""
    source = ", ".join(map(str, workflow.configfiles)) or "--config"
    try:
        experiment = configuration.parse(config, source)
        plugins.search(experiment.plugins)
        if workflow.is_main_process:  # and a plan needs no data
            plugins.validate(experiment, paths=not workflow.output_settings.dryrun)
    except UserError as error:
        sys.tracebacklimit = 0  # the message says where the mistake is
        raise WorkflowError(str(error)) from None
    return experiment


EXPERIMENT = validated()
RESULTS = layout.results_folder(EXPERIMENT)
CONFIG = f"{RESULTS}/{layout.CONFIGURATION}"


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/{layout.LOGS}",
    benchmarks=f"{RESULTS}/{layout.BENCHMARKS}",


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


def of(function):
    """An input or parameter of the experiment and of those wildcards that `function` takes."""
    names = list(inspect.signature(function).parameters)[1:]
    return lambda wildcards: function(
        EXPERIMENT,
        **{name: wildcards[name] for name in names if name in wildcards.keys()},
    )


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
