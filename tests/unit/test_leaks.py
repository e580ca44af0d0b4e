from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests import leaks
from tests.leaks import Traces

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], list[str]]:
    """What this test has left so far, in a folder of its own instead of the checkout."""
    monkeypatch.setattr(leaks, "SECONDS", 0.2)
    before = Traces.now(tmp_path)
    return lambda: Traces.now(tmp_path).left_since(before, request.node.nodeid)


def test_a_process_that_runs_on_is_named_until_it_ends(left: Callable[[], list[str]]) -> None:
    process = subprocess.Popen(SLEEP)
    assert left() == [f"process {process.pid} ({' '.join(SLEEP)})"]
    process.kill()
    process.wait()
    assert left() == []


def test_so_is_one_whose_parent_has_let_it_go(left: Callable[[], list[str]]) -> None:
    starting = f"import subprocess; print(subprocess.Popen({SLEEP}, start_new_session=True, stdout=-3, stderr=-3).pid)"
    pid = int(subprocess.run([sys.executable, "-c", starting], capture_output=True, text=True, check=True).stdout)
    process = psutil.Process(pid)
    while process.cmdline() != SLEEP:  # the kernel tells neither command nor environment of what is only just there
        time.sleep(0.01)
    assert left() == [f"process {pid} ({' '.join(SLEEP)})"]
    process.kill()
    process.wait(10)
    assert left() == []


def test_files_and_folders_are_named_but_no_caches(left: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/module.pyc").touch()
    assert left() == []
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    assert left() == [f"file {tmp_path / 'folder'}", f"file {tmp_path / 'folder/file'}"]


def test_a_mount_is_named(left: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = [*psutil.disk_partitions(all=True), SimpleNamespace(mountpoint="/left")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounted)
    assert left() == ["mount /left"]


def test_temporary_files_are_made_in_a_folder_of_this_process_alone_and_named(left: Callable[[], list[str]]) -> None:
    assert Path(tempfile.gettempdir()).name.startswith("eigendet-")
    with tempfile.NamedTemporaryFile() as file:
        assert left() == [f"file {file.name}"]
