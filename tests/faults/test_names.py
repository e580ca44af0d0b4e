"""Names of the user's files and folders that a shell, a pattern or a page would obey."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigendet import config
from eigendet.config.sections import BackboneChoice
from eigendet.networks.backbones import build_backbone
from eigendet.runs import definitions
from tests.conftest import minimal_experiment
from tests.workflow.running import said, snakemake

OBEYED = "a {seed} $(touch ran) `touch ran` ; touch ran & 'b\" [c] * ? ! #%s ä"
RULE = '''
"""A rule that counts half of the channels."""
import numpy as np
from eigendet.plugins import rule


@rule
def half(eigenvalues: np.ndarray) -> float:
    """Count half of the channels."""
    return len(eigenvalues) / 2
'''


@pytest.mark.fault(kind="names", stage="all")
def test_names_of_the_users_files_are_only_names(tmp_path: Path) -> None:
    own = tmp_path / OBEYED
    write_images(own)
    (own / "plugins").mkdir()
    (own / "plugins" / "rules.py").write_text(RULE)
    experiment = minimal_experiment() | {"plugins": [f"{OBEYED}/plugins"]}
    choice = {"plugin": "resnet", "depth": 18, "width": 0.125, "norm_groups": 4}
    torch.save(build_backbone(BackboneChoice(**choice)).state_dict(), own / "weights.pt")
    experiment["backbones"] = {"tiny": choice | {"pretrained": f"{OBEYED}/weights.pt"}}
    del experiment["data"]["classification"], experiment["pretraining"]
    annotated = {"plugin": "coco", "annotations": f"{OBEYED}/boxes.json", "images": f"{OBEYED}/images"}
    experiment["data"]["detection"] = {"train": annotated, "val": annotated}
    experiment["arms"] = {"finetune": {}, "scratch": {}, "mine": {"widths": f"{OBEYED}/mine.json"}}
    experiment["widths"] |= {"rule": "half"}
    definition = definitions.definition_for_widths(config.parse(minimal_experiment()), "tiny", "rcnn", heads=False)
    (own / "mine.json").write_text(json.dumps({"widths": definition.reference()[1]}))
    result = snakemake(tmp_path, experiment)
    assert result.returncode == 0, said(result)
    assert not list(tmp_path.rglob("ran"))
    assert (tmp_path / "results/minimal/report.html").is_file()
    again = snakemake(tmp_path, experiment, "--dry-run")
    assert "Nothing to be done" in said(again), said(again)


def write_images(folder: Path) -> None:
    """Write two images and a COCO file in whose names and classes there is more to obey."""
    (folder / "images" / OBEYED).mkdir(parents=True)
    random = np.random.default_rng(0)
    images = []
    for number in range(3):
        name = f"{OBEYED}/{number}.png"
        Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
    boxes = [
        {
            "id": number,
            "image_id": number,
            "category_id": 1 + number % 2,
            "bbox": [5, 5, 30, 40],
            "area": 1200,
            "iscrowd": 0,
        }
        for number in range(3)
    ]
    classes = [{"id": 1, "name": "<!--<script>"}, {"id": 2, "name": "</script><b>{{x}}{% raw %}"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": classes}))
