# What the rules share: the validated experiment, and what each stage reads and depends on (`dependencies`), of it.
import inspect
import os
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

try:
    from eigendet import config as configuration
    from eigendet import files, plugins
    from eigendet.config import installation, layout, plain_yaml
    from eigendet.errors import UserError
    from eigendet.plugins import dependencies
except ModuleNotFoundError as error:
    raise WorkflowError(
        f"{error}. The workflow needs its library beside Snakemake: in a clone of it,"
        " pip install '.[workflow]'"
    ) from None


def source():
    """What holds the configuration, as errors name it; what an importing workflow must give is refused without it."""
    modifier = workflow.modifier
    if modifier.is_main_snakefile():
        return ", ".join(map(str, workflow.configfiles)) or "--config"
    if not (isinstance(config, Mapping) and config):
        raise UserError(
            f"module {modifier.namespace}: `config` is {config!r}; expected the keys of an"
            f" experiment, for example `config: config['{modifier.namespace}']`."
        )
    if modifier.path_modifier.modifies_prefixes:
        raise UserError(
            f"module {modifier.namespace}: `replace_prefix` would reach some paths and not"
            " others; give `prefix`, or `pathvars` with `results`."
        )
    return f"module {modifier.namespace}"


def validated():
    """The experiment of this configuration; plugins and their options are checked once, not again for every job."""
    try:
        if workflow.modifier.is_main_snakefile():
            for file in workflow.configfiles:
                plain_yaml.read_yaml(
                    Path(file)
                )  # Snakemake takes keys that stand twice
        experiment = configuration.parse(config, source())
        plugins.search(experiment.plugins)
        if workflow.is_main_process:  # and a plan needs no data
            plugins.validate(
                experiment, source(), paths=not workflow.output_settings.dryrun
            )
    except UserError as error:
        sys.tracebacklimit = 0  # the message says where the mistake is
        raise WorkflowError(str(error)) from None
    return experiment


EXPERIMENT = validated()
os.environ.setdefault("EIGENDET_SOURCE", installation.requirement())  # for --sdm conda


pathvars:
    results=layout.results_folder(EXPERIMENT),
    logs=f"<results>/{layout.LOGS}",
    benchmarks=f"<results>/{layout.BENCHMARKS}",


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
    """A parameter of the experiment and of those wildcards that `function` takes."""
    return lambda wildcards: placed(evaluated(function, wildcards))


def inputs(function):
    """Inputs of the experiment and of those wildcards that `function` takes."""

    def files_of(wildcards):
        write_copy()
        return in_place(evaluated(function, wildcards))

    return files_of


def evaluated(function, wildcards):
    names = list(inspect.signature(function).parameters)[1:]
    known = {name: wildcards[name] for name in names if name in wildcards.keys()}
    return function(EXPERIMENT, **known)


def placed(value):
    """A parameter with the folder of results in place of its name."""
    if isinstance(value, list):
        return [placed(item) for item in value]
    return value.replace("<results>", results()) if isinstance(value, str) else value


def in_place(paths):
    """Inputs that stay where they are if they are the user's, whatever prefix an importing workflow gives to results."""
    if isinstance(paths, dict):
        return {name: in_place(several) for name, several in paths.items()}
    watched = [path for path in paths if path.startswith("<results>") or watches(path)]
    return [path if path.startswith("<results>") else local(path) for path in watched]


@cache
def watches(path):
    """Whether Snakemake can take a path as it is: it knows no way to write a brace that begins no wildcard."""
    if "{" in path:
        logger.warning(
            f"{path}: has a brace in its name, so Snakemake does not see when it changes; all else goes on."
        )
    return "{" not in path


def results():
    """The folder of results, with the prefix and the path variables that an importing workflow gives."""
    return RESULTS  # in report.smk


def configuration_copy(wildcards):
    """Jobs read this copy, so that an edit of the original does not reach a workflow that is under way."""
    return f"{results()}/{layout.CONFIGURATION}"


@cache
def write_copy():
    """Write the copy if jobs will be run, and keep others from changing it until this process ends.

    Neither `onstart:` does it, which Snakemake leaves out of an imported workflow, nor a rule: all that comes after a
    rule runs again with it, or, where its output is `ancient`, is not looked at in that run.
    """
    runs_jobs = workflow.execution_settings is not None and not workflow.dryrun
    if not (runs_jobs and workflow.is_main_process):
        return
    copy, text = Path(configuration_copy(None)), configuration.dump_yaml(EXPERIMENT)
    try:
        files.write_shared(copy, text)
    except UserError as error:
        # Any other exception in a function of inputs would make Snakemake plan without this job.
        logger.error(str(error))
        sys.exit(1)


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
