"""The lists of exact versions beside the ranges in pyproject.toml that they are made from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import eigendet

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / "envs"
CONDA_NAMES = {"lazy_loader": "lazy-loader", "pytorch": "torch"}


def declared(*groups: str) -> dict[str, SpecifierSet]:
    """Name -> range of the library's dependencies, of all its extras, and of the groups named."""
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = list(content["project"]["dependencies"])
    for extra in content["project"]["optional-dependencies"].values():
        lines += extra
    for group in groups:
        lines += [line for line in content["dependency-groups"][group] if isinstance(line, str)]
    requirements = [Requirement(line) for line in lines]
    return {entry.name: entry.specifier for entry in requirements if entry.name != "eigendet"}  # an extra in another


def pinned(name: str) -> list[tuple[str, Version]]:
    """The packages of a list, each with its version; one that differs by platform or Python is there several times."""
    lines = re.findall(r"^([a-z0-9-]+)==(\S+)", (ENVS / name).read_text(), flags=re.MULTILINE)
    return [(package, Version(version)) for package, version in lines]


def bound(specifiers: SpecifierSet) -> Version:
    """The lowest version in a range that is `>=` or `==` one version."""
    (specifier,) = specifiers
    assert specifier.operator in {">=", "=="}
    return Version(specifier.version)


def test_what_test_lowest_installs_is_each_lower_bound_itself() -> None:
    installed: dict[str, set[Version]] = {}
    for package, version in pinned("lowest.txt"):
        installed.setdefault(package, set()).add(version)
    assert {name: installed[name] for name in declared("test")} == {
        name: {bound(specifiers)} for name, specifiers in declared("test").items()
    }


def test_what_the_ordinary_environment_holds_is_within_the_ranges() -> None:
    ranges = declared("test", "dev")
    versions = pinned("requirements.txt")
    assert ranges.keys() <= {package for package, _ in versions}
    outside = [(name, version) for name, version in versions if version not in ranges.get(name, SpecifierSet())]
    assert outside == []


def test_conda_has_the_same_lower_bounds_for_all_that_a_job_needs() -> None:
    lines = yaml.safe_load((ENVS / "eigendet.yaml").read_text())["dependencies"]
    conda = {CONDA_NAMES.get(name, name): SpecifierSet(limits) for name, limits in (line.split(" ") for line in lines)}
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    content, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    assert conda.pop("pip")
    assert f"hatchling{conda.pop('hatchling')}" in pyproject["build-system"]["requires"]
    library = [Requirement(line) for line in [*content["dependencies"], *extras["report"], *extras["demo"]]]
    needed = {line.name: line.specifier for line in library if line.name != "eigendet"}
    assert conda == needed | {"python": SpecifierSet(content["requires-python"])}


@pytest.mark.parametrize("name", ["lowest.txt", "requirements.txt"])
def test_a_list_has_a_hash_for_every_package_and_no_address(name: str) -> None:
    text = (ENVS / name).read_text()
    entries = re.findall(r"^[a-z0-9-]+==.*(?:\n .*)*", text, flags=re.MULTILINE)
    assert len(entries) == len(pinned(name)) > 100
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_the_workflow_asks_for_the_snakemake_that_the_package_does() -> None:
    (version,) = re.findall(r'^min_version\("(.*)"\)$', (ROOT / "workflow/Snakefile").read_text(), re.MULTILINE)
    assert Version(version) == bound(declared()["snakemake"])


def test_the_citation_names_the_version_that_the_package_has() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == eigendet.__version__


def test_conda_makes_another_environment_for_another_version() -> None:
    assert f"\nversion={eigendet.__version__} #" in (ENVS / "eigendet.post-deploy.sh").read_text()
