"""Files that another process holds, and runs that another job works on."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest

from eigendet.files import alone
from eigendet.observe import store
from tests.faults.covariances import read_all
from tests.faults.refusal import refused


@contextmanager
def open_elsewhere(path: Path) -> Iterator[None]:
    """Let another process have a file open for writing."""
    code = f"import h5py\nwith h5py.File({str(path)!r}, 'r+'):\n    print('open', flush=True)\n    input()"
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None and writer.stdout is not None
    try:
        assert writer.stdout.readline() == "open\n"
        yield
    finally:
        writer.communicate("\n")


@pytest.mark.fault(kind="locks", stage="covariance")
def test_a_file_that_is_being_written_is_said_to_be_locked(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "open.h5"
    shutil.copy(whole, path)
    with open_elsewhere(path), refused(path, "locked by a program that has it open for writing", "copy"):
        read_all(path)
    read_all(path)


@pytest.mark.fault(kind="locks", stage="covariance")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_where_a_file_system_has_no_locks_files_are_read_without(
    whole: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    truly = h5py.File

    def without_locks(path: Path, mode: str, locking: bool | None = None) -> h5py.File:
        if locking is not False:
            raise OSError(number, "Unable to synchronously open file (unable to lock file)")
        return truly(path, mode, locking=False)

    monkeypatch.setattr("eigendet.observe.hdf5.h5py.File", without_locks)
    assert store.provenance(whole)["run"] == {"arm": "scratch", "seed": 0}


@pytest.mark.fault(kind="locks", stage="covariance")
def test_a_second_job_of_one_run_is_refused_and_may_come_when_the_first_has_ended(tmp_path: Path) -> None:
    lock = tmp_path / "covariance.h5.parts" / ".lock"
    what = "computes covariance.h5"
    with alone(lock, what), refused(lock, f"another process {what}"), alone(lock, what):
        raise AssertionError("two at once")
    with alone(lock, "computes covariance.h5"):
        assert lock.exists()
    assert not lock.exists()
