"""Every shipped plugin keeps the contract: data sets and width rules here, networks in the files beside."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eigendet.config.sections import PluginChoice
from eigendet.plugins import discovery
from eigendet.testing import promises
from tests.conftest import ROOT

SHIPPED = {
    (kind, name): plugin
    for kind in discovery.KINDS
    for name, plugin in discovery.discover(kind).items()
    if plugin.file is not None and plugin.file.is_relative_to(ROOT / "plugins")
}


@pytest.fixture
def files(tmp_path: Path, coco: Callable[..., tuple[Path, Path]]) -> dict[str, dict[str, Any]]:
    """Options under which the files of a data set are there."""
    annotations, images = coco()
    for number, name in enumerate(["cat", "dog"]):
        (tmp_path / "folders" / name).mkdir(parents=True)
        Image.new("RGB", (30, 20), (100 * number, 50, 50)).save(tmp_path / f"folders/{name}/one.png")
    return {
        "coco": {"annotations": annotations, "images": images},
        "image_folder": {"path": tmp_path / "folders"},
        "digit_scenes": {"split": "train", "images": 8},
        "digit_crops": {"split": "train", "images": 8},
    }


@pytest.mark.parametrize("name", [name for kind, name in SHIPPED if kind == "rule"])
def test_width_rules(name: str) -> None:
    kept = [promise() for _, promise in promises("rule", PluginChoice(plugin=name))]
    assert len(kept) == 3


@pytest.mark.parametrize("name", [name for kind, name in SHIPPED if kind == "dataset"])
def test_data_sets(name: str, files: dict[str, dict[str, Any]]) -> None:
    kept = [promise() for _, promise in promises("dataset", PluginChoice(plugin=name, **files[name]))]
    assert len(kept) == 3


def test_networks_are_all_under_a_contract_class() -> None:
    under = set()
    for file in (ROOT / "tests/contract").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                names = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                kind = "detector" if "DetectorContract" in bases else "backbone"
                under.add((kind, next(name for name in names if isinstance(name, str))))
    networks = {(kind, name) for kind, name in SHIPPED if kind in ("backbone", "detector")}
    assert under == networks
