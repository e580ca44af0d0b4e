"""Every stage on a disk that is full when it writes: one message, nothing in part, and with room it ends the same."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killing import Trial
from tests.faults.refusal import check_refusal
from tests.faults.stages import STAGES, command_of, environment, of_every_stage, prepare
from tests.workflow.conftest import Finished

ROOM = 30_000_000  # bytes beside what is there


@pytest.fixture
def disk(finished: Finished, tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that holds a copy of the finished experiment, and little more."""
    folder, taken = tmp_path / "disk", sum(file.stat().st_size + 8192 for file in finished.folder.rglob("*"))
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={taken + ROOM}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may make a small disk")
    shutil.copytree(finished.folder, folder / "own", symlinks=True)
    yield folder / "own"
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", of_every_stage("full disk"))
def test_a_stage_on_a_full_disk_says_so_and_leaves_nothing_in_part(stage: str, disk: Path, finished: Finished) -> None:
    prepare(stage, Finished(disk, finished.configuration))
    trial = Trial(command_of(stage), disk, STAGES[stage][1], kills=0)
    trial.remove()
    filler = disk.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        while _fills(file):
            pass
    result = subprocess.run(["eigendet", *trial.command], cwd=disk, capture_output=True, text=True, env=environment())
    said = result.stderr + "".join(log.read_text() for log in disk.glob("*.log"))
    assert result.returncode == 1 and "Traceback" not in said, said
    messages = {line.partition("Error: ")[2] for line in said.splitlines() if "No space left on device" in line}
    assert len(messages) == 1 or ("devices" in stage and len(messages) == 2), said
    for message in messages:
        check_refusal(message, "results/minimal")
    assert not trial.contents()
    filler.unlink()
    subprocess.run(["eigendet", *trial.command], cwd=disk, check=True, capture_output=True, env=environment())
    assert trial.contents() and not list(disk.rglob(".*.tmp"))


def _fills(file: object) -> bool:
    try:
        return file.write(bytes(4096)) == 4096  # type: ignore[attr-defined]
    except OSError:
        return False
