"""Plugins in the workflow: what an edit redoes, and that a bad one is named before any run is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eigendet.cli import plugin_commands
from tests.conftest import minimal_experiment
from tests.workflow.running import planned, said, snakemake


@pytest.fixture
def touched(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with two backbones and two detectors of its own, in which Snakemake believes that all is done."""
    for kind in ("backbone", "detector"):
        for name in ("first", "second"):
            plugin_commands.write_example(kind, f"{name}_{kind}", tmp_path / "plugins")
    configuration = minimal_experiment()
    configuration["backbones"] = {name: {"plugin": f"{name}_backbone"} for name in ("first", "second")}
    configuration["detectors"] = {name: {"plugin": f"{name}_detector"} for name in ("first", "second")}
    plan = snakemake(tmp_path, configuration, "--summary").stdout.splitlines()[1:]
    for path in (tmp_path / line.split("\t")[0] for line in plan):
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True)
    result = snakemake(tmp_path, configuration, "--touch")
    assert result.returncode == 0, said(result)
    assert not planned(tmp_path, configuration)
    return tmp_path, configuration


def test_editing_a_plugin_redoes_its_runs_and_no_others(touched: tuple[Path, dict[str, Any]]) -> None:
    folder, configuration = touched
    for kind, pretrained in (("detector", 0), ("backbone", 1)):
        file = folder / f"plugins/second_{kind}.py"
        text, times = file.read_text(), file.stat()
        file.write_text(text + "# edited\n")
        found = planned(folder, configuration)
        assert found["train"] == 10  # five arms of the two networks that have it
        assert found["check_network"] == 2 and found.get("pretrain", 0) == pretrained
        assert "check_data" not in found
        file.write_text(text)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not planned(folder, configuration)


def test_another_detector_redoes_no_runs(touched: tuple[Path, dict[str, Any]]) -> None:
    folder, configuration = touched
    configuration["detectors"]["third"] = {"plugin": "retinanet"}
    found = planned(folder, configuration)
    assert found["train"] == 10
    assert "pretrain" not in found
