"""The package as others install it: a wheel from the source archive, in an environment with its core packages alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import eigendet
from eigendet.errors import EXTRAS
from tests.conftest import ROOT, minimal_experiment

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def closure(requirements: list[str]) -> set[str]:
    """Names of the packages that these need, and of those that these need in turn."""
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        extras = frozenset(requirement.extras) or frozenset({""})
        if (requirement.name, extras) in seen:
            continue
        seen.add((requirement.name, extras))
        for further in map(Requirement, importlib.metadata.requires(requirement.name) or []):
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return {name for name, _ in seen}


def top_level(package: str) -> set[str]:
    """What a package has put at the top of site-packages."""
    parts = {file.parts[0] for file in importlib.metadata.files(package) or []}
    return parts - {"..", "__pycache__"}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is made from it, not from the checkout."""
    folder = tmp_path_factory.mktemp("archives")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=ROOT, check=True)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=unpacked, check=True)
    (wheel,) = folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, archives: tuple[Path, Path]) -> Iterator[Run]:
    """Run a program of an environment that holds the wheel, what its core needs, and no more."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    package = shutil.copytree(ROOT / "tests/package", tmp_path_factory.mktemp("package") / "source")
    (site,) = folder.glob("lib/*/site-packages")
    pip, install = [sys.executable, "-m", "pip"], ["install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--python", python, *install, archives[1]], check=True)
    subprocess.run([*pip, *install, "--no-build-isolation", "--target", site, package], check=True)
    for needed in closure(PROJECT["dependencies"]):
        for name in top_level(needed):
            origin = Path(str(importlib.metadata.distribution(needed).locate_file(name)))
            if not (site / name).exists() and origin.exists():
                (site / name).symlink_to(origin)

    def program(name: str, *arguments: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        line = [str(folder / "bin" / name), *map(str, arguments)]
        result = subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True)
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    yield program


def test_the_core_is_twelve_packages_and_none_of_them_is_for_a_workflow_or_a_page() -> None:
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert len(core) <= 12
    assert not closure(PROJECT["dependencies"]) & {"snakemake", "altair", "vl-convert-python", "scikit-learn", "timm"}
    assert set(PROJECT["optional-dependencies"]) >= {
        "workflow", "slurm", "report", "timm", "transformers", "tensorboard", "all",
    }  # fmt: skip


def test_messages_name_the_extra_that_brings_a_module() -> None:
    packages = importlib.metadata.packages_distributions()
    for module, extra in EXTRAS.items():
        names = {Requirement(line).name for line in PROJECT["optional-dependencies"][extra]}
        assert names & set(map(canonicalize_name, packages[module])), module


def test_archives_hold_the_version_the_licence_and_the_shipped_plugins(archives: tuple[Path, Path]) -> None:
    source, wheel = archives
    assert source.name == f"eigendet-{eigendet.__version__}.tar.gz"
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"workflow/Snakefile", "plugins/resnet.py", "tests/conftest.py", "config.yaml", "LICENSE"} <= inside
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {f"eigendet/plugins/shipped/{file.name}" for file in (ROOT / "plugins").glob("*.py")}
    assert shipped <= set(names)
    assert {"eigendet/py.typed", "eigendet/__init__.pyi", "eigendet/report/template/page.js"} <= set(names)
    assert all(name.startswith(("eigendet/", f"eigendet-{eigendet.__version__}.dist-info/")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_shipped_plugins_are_listed_from_any_folder(tmp_path: Path, run: Run) -> None:
    lines = run("eigendet", "plugins", cwd=tmp_path).stdout.splitlines()
    listed = {tuple(line.split()[:2]): line for line in lines}
    for plugin in (("backbone", "resnet"), ("detector", "faster_rcnn"), ("dataset", "coco"), ("rule", "dof")):
        assert "site-packages/eigendet/plugins/shipped/" in listed[plugin]
    assert sum("is not installed" in line for line in lines) >= 3
    assert any(line.endswith("timm is not installed: pip install 'eigendet[timm]'") for line in lines)


def test_a_checkout_beside_the_installed_package_does_not_count_its_plugins_twice(run: Run) -> None:
    lines = run("eigendet", "plugins", cwd=ROOT).stdout.splitlines()
    assert sum(line.split()[:2] == ["backbone", "resnet"] for line in lines) == 1
    assert not any("Rename one" in line for line in lines)


def test_a_detector_is_trained_and_observed_with_the_core_alone(
    tmp_path: Path, run: Run, coco: Callable[..., tuple[Path, Path]]
) -> None:
    annotations, images = coco()
    values = minimal_experiment()
    data = {"plugin": "coco", "annotations": str(annotations), "images": str(images)}
    values["data"] = {"detection": {"train": data, "val": data}}
    values["arms"] = {"scratch": {}, "derived": {}}
    values["covariance"]["images"] = 2
    del values["pretraining"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run("eigendet", "check-data", "detection", "train", "-o", "data.json", cwd=tmp_path)
    run("eigendet", "train", "--output", "scratch", cwd=tmp_path)
    run("eigendet", "covariance", "scratch", "--output", "scratch.h5", cwd=tmp_path)
    run("eigendet", "spectra", "scratch.h5", "--output", "spectra", cwd=tmp_path)
    run("eigendet", "widths", "derived", "spectra", "--output", "derived.json", cwd=tmp_path)
    run("eigendet", "evaluate", "scratch", "--output", "scores.json", cwd=tmp_path)
    cost = json.loads((tmp_path / "derived.json").read_text())["macs"]
    assert 0 < cost["result"] <= cost["reference"]
    assert 0 <= json.loads((tmp_path / "scores.json").read_text())["boxes"]["AP50"] <= 1


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (("report", "results"), "vl_convert", "report"),
        (("figures", "results", "-o", "figures"), "vl_convert", "report"),
        (("tensorboard", "results", "-o", "events"), "tensorboard", "tensorboard"),
    ],
)
def test_a_command_whose_extra_is_absent_says_which_in_a_line(
    tmp_path: Path, run: Run, command: tuple[str, ...], module: str, extra: str
) -> None:
    run_folder = tmp_path / "results/runs/scratch/tiny/rcnn/seed_0"
    run_folder.mkdir(parents=True)
    (run_folder / "log.csv").write_text("step,loss\n2,1.5\n")
    (tmp_path / "results/config.yaml").write_text(yaml.safe_dump(minimal_experiment()))
    result = run("eigendet", *command, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr == f"Error: {module} is not installed: pip install 'eigendet[{extra}]'\n"


def test_data_and_networks_whose_extra_is_absent_say_which_in_a_line(tmp_path: Path, run: Run) -> None:
    values = minimal_experiment()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    result = run("eigendet", "check-data", "detection", "train", "-o", "data.json", cwd=tmp_path, check=False)
    assert re.search(r"^Error: .*pip install 'eigendet\[demo\]'$", result.stderr)
    values["backbones"] = {"tiny": {"plugin": "timm", "name": "resnet18"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    result = run("eigendet", "channels", "tiny", cwd=tmp_path, check=False)
    assert re.search(r"^Error: .*timm is not installed: pip install 'eigendet\[timm\]'$", result.stderr)


def test_the_contract_is_tried_on_a_plugin_of_another_package(tmp_path: Path, run: Run) -> None:
    said = run("eigendet", "plugins", "check", "lab_detector", cwd=tmp_path).stdout
    assert "it builds" in said


def test_the_readme_s_lines_run_in_an_empty_folder_with_the_core_alone(tmp_path: Path, run: Run) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    printed = run("python", "-c", "\n".join([*blocks, "print(narrow(images).shape)"]), cwd=tmp_path).stdout
    assert printed.startswith("torch.Size([64, 64])\n") and printed.endswith("torch.Size([8, 1000])\n")
    assert "layer1.0.relu" in run("eigendet", "inspect", "covariance.h5", cwd=tmp_path).stdout


def test_the_demo_is_planned_in_an_unpacked_source_archive(archives: tuple[Path, Path]) -> None:
    """And its first line, `make demo`, is what it takes."""
    folder = archives[0].with_name(archives[0].name.removesuffix(".tar.gz"))
    assert "\nmake demo " in (folder / "README.md").read_text()
    steps = ["make", "--no-print-directory", "--dry-run", "demo"]
    made = subprocess.run(steps, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert made.rstrip().endswith("snakemake --cores all")
    line = ["snakemake", "--cores", "all", "--dry-run"]
    plan = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    assert "results/digits/report.html" in plan.stdout + plan.stderr
