from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from eigendet.cli import main
from tests.own_data import write_classes, write_detection
from tests.workflow.running import planned


def test_what_init_writes_is_planned_by_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(write_detection(tmp_path / "my data") / "natural")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init", "my data"])
    assert result.exit_code == 0, result.output
    text = Path("config.yaml").read_text()
    table = text.partition("device-hours\n")[2].partition("# in all")[0].splitlines()
    jobs = {line.split()[1]: int(line.split()[2]) for line in table}
    assert planned(tmp_path, yaml.safe_load(text)) == jobs | {"all": 1}
