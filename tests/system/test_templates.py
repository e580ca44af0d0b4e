"""What `eigendet plugins new` writes, as its author finds it: in a folder of one's own, with pytest alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from eigendet.cli import main
from eigendet.plugins import discovery


@pytest.mark.parametrize(("kind", "promises"), [("rule", 3), pytest.param("detector", 10, marks=pytest.mark.slow)])
def test_the_test_that_new_writes_passes_from_another_folder(
    kind: str, promises: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "_further", [])
    written = CliRunner().invoke(main, ["plugins", "new", kind, "mine", "--folder", "lab"])
    assert written.exit_code == 0, written.output
    assert "To use it, name its folder in the configuration: plugins: [lab]" in written.output
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "lab/test_mine.py"]
    result = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0 and f"{promises} passed" in result.stdout, result.stdout + result.stderr
