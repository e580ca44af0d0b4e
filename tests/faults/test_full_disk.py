"""A disk that is full at any moment of a stage: one message, no crash, and what was there stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eigendet.files import check_digest, digest_file, replacing, write_text
from tests.faults.refusal import check_refusal

SIZE = 2_000_000  # bytes of the disk

# Fills the disk but for some bytes, writes, and says what came of it, for less room after less.
TRIAL = """
import sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from eigendet.errors import UserError
from eigendet.files import write_json
from eigendet.moments.covariance import Covariance
from eigendet.networks import checkpoints
from eigendet.observe import merging, store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Tap
from eigendet.spectra import spectrum, tables

elsewhere, disk = Path(sys.argv[1]), Path(sys.argv[2])

def taps(seed):
    for place in range(6):
        moments = Covariance(64)
        moments.update(torch.randn(3, 64, 8, 8, generator=torch.Generator().manual_seed(seed)))
        yield Tap(TapKey(f"layer{place}", 0, "act"), place, "excluded", moments, torch.zeros(3, 64))

RUN = {"run": {"arm": "scratch", "backbone": "b", "detector": "d", "seed": 0}}

def covariance(path, seed=0):
    images = range(3 * seed, 3 * seed + 3)
    store.write_covariances(path, [(step, taps(seed + step)) for step in (0, 4)], RUN, images)

parts = [elsewhere / f"part_{number}.h5" for number in range(2)]
for number, part in enumerate(parts):
    covariance(part, number)

stages = {
    "covariance": (lambda: covariance(disk / "out"), 3.0e5),
    "merge": (lambda: merging.merge(disk / "out", parts, [0, 1]), 5e5),
    "join": (lambda: merging.join_steps(disk / "out", parts[:1]), 3e5),
    "spectra": (lambda: spectrum.write_spectra(parts[0], disk), 4e4),
    "snapshot": (lambda: checkpoints.save(disk / "out", {"model": torch.zeros(70_000)}), 2.8e5),
    "record": (lambda: write_json(disk / "out", {"steps": list(range(20_000))}), 1.9e5),
}
write, most = stages[sys.argv[3]]
for share in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
    filler = disk / "filler"
    filler.write_bytes(b"")
    room = int(share * most) // 4096 * 4096
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() - room))
    try:
        write()
        print("written", flush=True)
    except UserError as error:
        print("refused:", error, flush=True)
    for file in disk.iterdir():
        if file.name not in ("filler", "earlier"):
            print("left:" if file.name.startswith(".") else "there:", file.name, flush=True)
            file.unlink()
filler.unlink()
write()
print("done", flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True)
    if mounting.returncode:
        pytest.skip("only root may make a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(name, marks=pytest.mark.fault(kind="full disk", stage=of))
        for name, of in {
            "covariance": "covariance", "merge": "merge", "join": "covariance", "spectra": "spectra",
            "snapshot": "train", "record": "any",
        }.items()
    ],
)  # fmt: skip
def test_a_full_disk_is_one_message_and_no_crash(stage: str, disk: Path, tmp_path: Path) -> None:
    (disk / "earlier").write_text("what was there")
    command = [sys.executable, "-W", "error", "-c", TRIAL, str(tmp_path), str(disk), stage]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr[-2000:]
    lines = result.stdout.splitlines()
    refusals = [line.removeprefix("refused: ") for line in lines if line.startswith("refused: ")]
    assert len(refusals) >= 6 and lines[-1] == "done", result.stdout
    for refusal in refusals:
        check_refusal(refusal, disk, r"cannot be written \(No space left on device\); what was there stands")
    assert not [line for line in lines if line.startswith("left:")], "a temporary file keeps the disk full"
    assert (disk / "earlier").read_text() == "what was there"


@pytest.mark.fault(kind="killed writers", stage="any")
def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    code = f"""
import os, signal
from pathlib import Path
from eigendet.files import replacing
with replacing(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()  # the second has removed that of the first
    assert re.fullmatch(r"\.numbers\.txt\.[0-9a-f]{8}\.tmp", left.name)
    with replacing(path) as own:
        own.write_text("first")
        write_text(path, "second")
        assert own.exists() and not left.exists()
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.fault(kind="killed writers", stage="train")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_and_its_digest_agree_whenever_the_writer_is_killed(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "weights.pt"
    with replacing(path, digest=True) as temporary:
        temporary.write_text("earlier")
    code = f"""
import os, signal
from pathlib import Path
from eigendet import files
replace = Path.replace
def killed(self, target):
    if target.name == "weights.pt" and {moment!r} == "after":
        replace(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = killed
with files.replacing(Path({str(path)!r}), digest=True) as temporary:
    temporary.write_text("later")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_text() == ("earlier" if moment == "before" else "later")
    check_digest(path, "write it again")
    with replacing(path, digest=True) as temporary:
        temporary.write_text("last")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["weights.pt", "weights.pt.sha256"]
    check_digest(path, "write it again")


@pytest.mark.fault(kind="power cuts", stage="any")
def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "numbers.txt", []
    truly, replace = os.fsync, Path.replace

    def sync(file: int) -> None:
        order.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().read_text()}")
        truly(file)

    def rename(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_text(path, "1 2 3")
    assert order == ["sync 1 2 3", "rename"] and not digest_file(path).exists()
