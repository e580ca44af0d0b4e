"""What pip is told to install again: a checkout, an address, or a version."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

import eigendet
from eigendet.config import installation
from tests.conftest import ROOT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Metadata of an installed library that stands in no checkout."""
    folder = tmp_path / "eigendet-0.dist-info"
    folder.mkdir()
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "eigendet/config/installation.py"))
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(folder))
    return folder


def test_a_checkout_is_installed_from_itself() -> None:
    assert installation.requirement() == str(installation.checkout()) == str(ROOT)


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (
            '{"url": "https://forge.org/lab/eigendet", "vcs_info": {"vcs": "git", "commit_id": "5e1f"}}',
            "eigendet @ git+https://forge.org/lab/eigendet@5e1f",
        ),
        ('{"url": "file:///srv/eigendet", "dir_info": {}}', "eigendet @ file:///srv/eigendet"),
        ("", f"eigendet=={eigendet.__version__}"),
    ],
    ids=["a repository", "a folder", "an index"],
)
def test_another_is_installed_from_where_it_came(installed: Path, origin: str, requirement: str) -> None:
    if origin:
        (installed / "direct_url.json").write_text(origin)
    assert installation.requirement() == requirement
    assert installation.checkout() is None
