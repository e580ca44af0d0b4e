"""Another workflow imports this one as a module: it runs to the report, below a prefix or not, with its own rules."""

from __future__ import annotations

import fcntl
import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from eigendet import config
from eigendet.cli import plugin_commands
from tests.conftest import ROOT, minimal_experiment
from tests.workflow.running import contents, jobs, said, snakemake

IMPORTING = """
configfile: "laboratory.yaml"


rule laboratory:
    input:
        "{folder}results/minimal/summary.csv",
    output:
        "laboratory.csv",
    shell:
        "cp {{input}} {{output}}"


module eigendet:
    snakefile:
        "{snakefile}"
    config:
        config["detection"]
{more}

use rule * from eigendet as eigendet_*


use rule train from eigendet as eigendet_train with:
    threads: 2
    resources:
        gpu=0,
        nodes=1,
        mem_mb=700,


onstart:
    shell("touch started")
"""
PREFIX = '    prefix:\n        "below"'


def experiment() -> dict[str, Any]:
    """Two arms, which start from weights and from widths, and a width rule of one's own."""
    values = minimal_experiment() | {"arms": {"finetune": {}, "derived": {}}}
    values["covariance"] = {"images": 2, "arms": ["finetune"]}
    values["widths"] |= {"arm": "finetune", "rule": "my_rule"}
    for stage in ("pretraining", "training"):
        values[stage] |= {"steps": 2, "snapshots": 2}
    return values


def write(folder: Path, values: Any, more: str = "", below: str = "") -> None:
    """Write an importing workflow, its configuration and its width rule."""
    if not (folder / "plugins").exists():
        plugin_commands.write_example("rule", "my_rule", folder / "plugins")
    (folder / "laboratory.yaml").write_text(yaml.safe_dump({"detection": values}, sort_keys=False))
    text = IMPORTING.format(folder=below, snakefile=ROOT / "workflow/Snakefile", more=more)
    (folder / "Snakefile").write_text(text)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the importing workflow as its authors do."""
    line = ["snakemake", "--cores", "2", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def commands(plan: str) -> set[str]:
    """The commands that a plan prints."""
    return set(re.findall(r"eigendet [a-z-]+ .*", plan))


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an importing workflow that has run, with results below a prefix."""
    folder = tmp_path_factory.mktemp("module")
    write(folder, experiment(), PREFIX, "below/")
    result = run(folder)
    assert result.returncode == 0, said(result)
    return folder


def test_below_a_prefix_it_runs_to_the_report(below: Path) -> None:
    summary = pd.read_csv(below / "laboratory.csv")
    assert set(summary["arm"]) == {"finetune", "derived"} and summary["AP"].between(0, 1).all()
    results = below / "below/results/minimal"
    assert "Accuracy and cost" in (results / "report.html").read_text()
    assert config.load([results / "config.yaml"]) == config.parse(experiment())
    assert (below / "started").exists()  # the importing workflow's own hook
    assert not (below / "results").exists()


def test_below_a_prefix_a_change_redoes_what_depends_on_it(below: Path) -> None:
    write(below, experiment(), PREFIX, "below/")
    before = contents(below / "below")
    assert "Nothing to be done" in said(run(below))
    values = experiment()
    values["widths"]["round_to"] = 8
    write(below, values, PREFIX, "below/")
    plan = jobs(said(run(below, "--dry-run")))
    stages = {"widths", "front", "readings", "train", "evaluate", "latency", "report"}
    assert plan.keys() == {f"eigendet_{stage}" for stage in stages} | {"laboratory"} and plan["eigendet_train"] == 1
    assert contents(below / "below") == before


def test_jobs_are_those_of_the_workflow_by_itself(tmp_path: Path) -> None:
    write(tmp_path, experiment())
    itself = commands(said(snakemake(tmp_path, experiment(), "--dry-run", "--printshellcmds")))
    assert len(itself) == 19
    elsewhere = '    pathvars:\n        results="there/results/minimal"'
    for below, more in [("", ""), ("below/", PREFIX), ("there/", elsewhere)]:
        write(tmp_path, experiment(), more, below)
        result = run(tmp_path, "--dry-run", "--printshellcmds")
        assert result.returncode == 0, said(result)
        assert {line.replace(below, "") if below else line for line in commands(said(result))} == itself
        assert " plugins/my_rule.py" in said(result)  # a file of the user's, where it is
        assert "localrules" not in said(result)  # Snakemake's warning of names that it does not find
    assert not any((tmp_path / folder).exists() for folder in ("results", "below", "there"))


def test_jobs_read_the_configuration_that_the_workflow_was_started_with(tmp_path: Path) -> None:
    """Of a module without a prefix, whose copy an earlier experiment has left."""
    write(tmp_path, experiment())
    copy = tmp_path / "results/minimal/config.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text("name: earlier\n")
    checked = next(file for file in re.findall(r"results/\S+/detection_val_\w+.json", said(run(tmp_path, "--dry-run"))))
    assert copy.read_text() == "name: earlier\n"
    with (copy.parent / ".config.yaml.lock").open("w") as lock:  # as another workflow does that is under way
        fcntl.flock(lock, fcntl.LOCK_SH)
        refused = run(tmp_path, checked)
    assert refused.returncode == 1 and copy.read_text() == "name: earlier\n"
    assert "results/minimal/config.yaml: what runs at present relies on other settings in it" in said(refused)
    assert "Traceback" not in said(refused)
    result = run(tmp_path, "--no-hooks", "--", checked)
    assert result.returncode == 0, said(result)
    assert (tmp_path / checked).exists() and config.load([copy]) == config.parse(experiment())
    copy.unlink()
    assert "Nothing to be done" in said(run(tmp_path, checked))
    assert config.load([copy]) == config.parse(experiment())


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        ({"name": "minimal"}, "", "module eigendet: training: missing; a value is required"),
        (None, "", "module eigendet: `config` is {}; expected the keys of an experiment, for example `config: config["),
        ("minimal.yaml", "", "module eigendet: `config` is 'minimal.yaml'; expected the keys of an experiment"),
        (experiment() | {"seed": 1}, "", "module eigendet: seed: unknown key; did you mean 'seeds'?"),
        (
            experiment(),
            "    replace_prefix:\n        {'results/': 'other/'}",
            "module eigendet: `replace_prefix` would",
        ),
    ],
    ids=["a key is missing", "no configuration", "a file's name", "a wrong key", "replace_prefix"],
)
def test_a_mistake_is_one_message(tmp_path: Path, values: Any, more: str, message: str) -> None:
    write(tmp_path, values, more)
    (tmp_path / "config.yaml").write_text("another: configuration\n")  # of the importing workflow, and not read
    result = run(tmp_path, "--dry-run")
    assert result.returncode != 0
    assert message in said(result) and "Traceback" not in said(result)
