"""What others deploy the workflow with: the files that they read, and conda, in whose place stands a script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import eigendet
from tests.conftest import ROOT, minimal_experiment
from tests.workflow.running import command, said

# Makes an environment that has the packages of this one, but not the library: it is a file of its own folder.
CONDA = """#!/usr/bin/env bash
case "$1 $2" in
  "info --json") echo '{{"conda_prefix": "{folder}", "platform": "linux-64", "conda_version": "24.9.0"}}' ;;
  "config --get") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create")
    environment=$(sed -n 's/.*--prefix \\([^ ]*\\).*/\\1/p' <<< "$*")
    "{python}" -m venv "$environment"
    echo "{packages}" > "$(echo "$environment"/lib/python*/site-packages)/packages.pth" ;;
  *) echo "conda 24.9.0" ;;
esac
"""


@pytest.fixture
def conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `conda` and an `activate` that come first."""
    folder = tmp_path / "conda"
    (folder / "bin").mkdir(parents=True)
    text = CONDA.format(folder=folder, python=sys.executable, packages=sysconfig.get_path("purelib"))
    (folder / "bin/conda").write_text(text)
    (folder / "bin/conda").chmod(0o755)
    (folder / "bin/activate").write_text("export CONDA_PREFIX=$1 PATH=$1/bin:$PATH\nunset PYTHONPATH\n")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_the_environment_that_conda_makes_has_the_library_of_the_workflow(conda: Path, tmp_path: Path) -> None:
    line = command(tmp_path, minimal_experiment(), "--sdm", "conda", "--conda-create-envs-only")
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, said(result)
    (installed,) = (tmp_path / ".snakemake/conda").glob("*/bin/eigendet")
    python = installed.with_name("python")
    code = "import eigendet; print(eigendet.__version__, eigendet.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert printed.stdout.split() == [eigendet.__version__, str(ROOT / "workflow/eigendet/__init__.py")], printed.stderr


def test_what_is_deployed_into_an_empty_folder_is_the_default_experiment(tmp_path: Path) -> None:
    """As snakedeploy does: it copies config/, and writes a Snakefile that imports the workflow."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    assert (tmp_path / "config/README.md").is_file()
    assert (tmp_path / "config/config.yaml").read_text() == (ROOT / "config.yaml").read_text()
    (tmp_path / "workflow").mkdir()
    module = {"snakefile": json.dumps(str(ROOT / "workflow/Snakefile")), "config": "config"}
    lines = [f"    {key}:\n        {value}" for key, value in module.items()]
    text = "\n".join(['configfile: "config/config.yaml"', "module eigendet:", *lines, "use rule * from eigendet"])
    (tmp_path / "workflow/Snakefile").write_text(text + "\n")
    plan = subprocess.run(["snakemake", "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plan.returncode == 0 and "results/digits/report.html" in said(plan), said(plan)


def test_the_catalog_finds_what_it_asks_for() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"].keys() == {"conda", "apptainer", "apptainer+conda", "report"}
    assert (ROOT / "workflow/Snakefile").is_file()
