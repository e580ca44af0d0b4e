"""A package outside of this checkout brings a detector: found by its entry point, kept to the contract, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eigendet import plugins
from eigendet.errors import UserError
from eigendet.testing import DetectorContract
from tests.conftest import ROOT, minimal_experiment
from tests.workflow.running import planned, said, snakemake


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of installed packages with this one in it, for this process and those that it starts."""
    folder, source = tmp_path_factory.mktemp("site-packages"), tmp_path_factory.mktemp("package") / "source"
    source.mkdir()
    for file in (ROOT / "tests/package").glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())  # a build leaves files beside what it builds
    line = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", *line], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        yield folder
    sys.modules.pop("lab_detectors", None)


class TestLabDetector(DetectorContract):
    plugin = "lab_detector"


def test_it_is_listed_with_its_package_and_version(installed: Path) -> None:
    plugin = plugins.find("detector", "lab_detector")
    assert (plugin.version, plugin.summary) == ("1.2", "The laboratory's detector.")
    assert plugin.origin == f"package lab-detectors, {installed}/lab_detectors.py:14"
    lines = subprocess.run(["eigendet", "plugins"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(line.split()[:3] == ["detector", "lab_detector", "1.2"] for line in lines)


def test_what_the_entry_point_names_must_be_there(installed: Path) -> None:
    file = installed / "lab_detectors.py"
    text = file.read_text()
    try:
        file.write_text(text.replace("def lab_detector", "def another"))
        assert plugins.find("detector", "lab_detector").unavailable == f"{file} has no function 'lab_detector'"
        file.write_text(f"from . import others\n{text}")  # as the module of a package may, unlike a file of plugins/
        assert not plugins.find("detector", "lab_detector").unavailable
        file.write_text(text.replace("import TYPE_CHECKING", "import TYPE_CHECKING)"))
        assert "line 3: not Python" in plugins.find("detector", "lab_detector").unavailable
        file.unlink()
        assert plugins.find("detector", "lab_detector").unavailable == "there is no module 'lab_detectors'"
    finally:
        file.write_text(text)


def test_a_name_that_is_shipped_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugins").mkdir()
    mine = "from eigendet.plugins import detector\n\n\n@detector\ndef lab_detector(backbone, classes, size): ...\n"
    (tmp_path / "plugins/mine.py").write_text(mine)
    twice = r"two detector plugins are named 'lab_detector': plugins/mine.py:5 and package lab-detectors, .*py:14"
    with pytest.raises(UserError, match=twice):
        plugins.find("detector", "lab_detector")


def test_it_is_trained_in_the_workflow_and_again_once_its_package_has_another_version(
    tmp_path: Path, installed: Path
) -> None:
    configuration = minimal_experiment()
    configuration["detectors"] = {"lab": {"plugin": "lab_detector", "channels": 32}}
    target = "results/minimal/runs/scratch/tiny/lab/seed_0/run.json"
    result = snakemake(tmp_path, configuration, target)
    assert result.returncode == 0, said(result)
    assert json.loads((tmp_path / target).read_text())["definition"]["detector"]["plugin"] == "lab_detector"
    assert not planned(tmp_path, configuration, target)
    (record,) = installed.glob("lab_detectors-*.dist-info/METADATA")
    text = record.read_text()
    try:
        record.write_text(text.replace("Version: 1.2", "Version: 1.3"))
        assert planned(tmp_path, configuration, target) == {"check_network": 1, "train": 1}
    finally:
        record.write_text(text)
