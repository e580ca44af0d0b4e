"""Exported detectors in a process that has torch and torchvision, but not this package."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from eigendet.networks.definition import Definition
from eigendet.runs import export
from tests.exporting import FAMILIES, SIZE, assert_same, definition_of, trained

# What an environment without this package, or anything but torch and torchvision, does with the files.
OUTSIDE = """
import importlib, json, sys
from pathlib import Path
for name in ("eigendet", "pydantic", "timm", "transformers"):
    sys.modules[name] = None
import torch
from safetensors.torch import load_file
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
images = torch.load(folder / "images.pt")
results = {}
for file in sorted(folder.glob("*.py")):
    module = importlib.import_module(file.stem)
    detector = module.load(str(file.with_suffix(".pt")))
    other = module.build()
    other.load_state_dict(load_file(file.with_suffix(".safetensors")))
    with torch.no_grad():
        results[file.stem] = [detector(images), other(images)]
        if file.with_suffix(".pt2").exists():
            program = torch.export.load(file.with_suffix(".pt2")).module()
            results[file.stem].append([program(images[0])])
torch.save(results, folder / "results.pt")
"""


CASES = [f"{family}_{kind}" for family in FAMILIES for kind in ("narrower", "wider")]


class Outside(NamedTuple):
    """What detectors give here, and what files of theirs give in an environment of their own."""

    here: dict[str, Any]
    there: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    folder = tmp_path_factory.mktemp("exported")
    images = [torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1)), torch.zeros(3, *SIZE)]
    torch.save(images, folder / "images.pt")
    here = {}
    for case in CASES:
        family, _, kind = case.rpartition("_")
        own = trained(definition_of(family, 0.5 if kind == "narrower" else 1.5), folder / f"run_{case}")
        formats = ("python", "state-dict", "torch.export")[: 3 if kind == "narrower" else 2]
        for to in formats:
            export.export(own.folder, to, folder / f"{case}{export.SUFFIXES[to]}")  # type: ignore[index, arg-type]
        with torch.no_grad():
            here[case] = own.model(images)
            here[f"{case} alone"] = own.model(images[:1])  # a batch of two is summed in another order
    subprocess.run([sys.executable, "-c", OUTSIDE, str(folder)], check=True, cwd=folder)
    return Outside(here, torch.load(folder / "results.pt"), folder)


@pytest.mark.parametrize("case", CASES)
def test_code_and_weights_give_the_same_without_this_package(outside: Outside, case: str) -> None:
    assert any(len(image["boxes"]) for image in outside.here[case])
    for theirs in outside.there[case][:2]:
        assert_same(outside.here[case], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_of_torch_export_gives_the_same_without_this_package(outside: Outside, family: str) -> None:
    *_, theirs = outside.there[f"{family}_narrower"]
    assert_same(outside.here[f"{family}_narrower alone"], theirs)


def test_files_say_what_they_are_of(outside: Outside) -> None:
    from safetensors import safe_open

    with safe_open(outside.folder / "ssd_wider.safetensors", "pt") as file:
        note = json.loads(file.metadata()["eigendet"])
    assert (note["classes"], note["size"], note["step"], note["run"]["arm"]) == (["cat", "dog"], [*SIZE], 4, "derived")
    assert Definition.of(note["definition"]) == definition_of("ssd", 1.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_onnx_model_gives_the_same(family: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    own = trained(definition_of(family, 0.5), tmp_path / "run")
    export.export(own.folder, "onnx", tmp_path / "detector.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx"))
    image = torch.rand(3, *SIZE)
    with torch.no_grad():
        (ours,) = own.model([image])
    (Path(tempfile.gettempdir()) / ".ses").unlink(missing_ok=True)  # which onnxruntime leaves
    names = [output.name for output in session.get_outputs()]
    theirs = dict(zip(names, map(torch.from_numpy, session.run(None, {"image": image.numpy()})), strict=True))
    assert len(ours["boxes"])
    for found in (ours, theirs):  # coordinates are of the order of the image's side
        found["boxes"] = found["boxes"] / max(SIZE)
    assert_same([ours], [theirs])
