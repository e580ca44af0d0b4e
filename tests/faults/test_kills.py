"""Every stage killed at moments at which it changes files: nothing is there in part, and run again it ends the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faults.stages import STAGES, command_of, environment, of_every_stage, prepare
from tests.workflow.conftest import Finished

KILLS = 8


@pytest.mark.parametrize("stage", of_every_stage("kills"))
def test_a_killed_stage_leaves_nothing_in_part_and_ends_the_same(stage: str, copied: Finished) -> None:
    prepare(stage, copied)
    trial: dict[str, Any] = {
        "command": command_of(stage),
        "folder": str(copied.folder),
        "outputs": STAGES[stage][1],
        "kills": KILLS,
        "by_time": "devices" in stage,
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults.killing"], input=json.dumps(trial), text=True, capture_output=True,
        cwd=ROOT, env=environment() | {"TMPDIR": str(copied.folder.parent)},  # where what is killed leaves files
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["killed"] == KILLS and said["moments"] >= 3, said
