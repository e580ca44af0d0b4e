"""Everything that reads a file of a user's or of another stage: whole files, and the call that reads all of one."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image
from torch import nn

from eigendet import config
from eigendet.config.sections import BackboneChoice
from eigendet.data.checks import check_sample
from eigendet.data.coco import CocoDetection
from eigendet.data.images import decode
from eigendet.networks import weights
from eigendet.networks.backbones import build_backbone
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import read_snapshot, write_snapshot
from eigendet.networks.widths_file import ChosenWidths, Cost, read_by_hand, read_chosen, write_chosen
from eigendet.observe.keys import TapKey
from eigendet.report import records
from eigendet.runs.folder import RunFolder
from eigendet.runs.resuming import Progress, resume, write_checkpoint
from eigendet.spectra import tables
from tests.conftest import ROOT, coco_content, minimal_experiment
from tests.faults.covariances import read_all, write_whole
from tests.faults.mutations import changed
from tests.faults.refusal import one_line_or_nothing
from tests.simulated import compare, simulate

Read = Callable[[Path], object]
BACKBONE = BackboneChoice(plugin="resnet", depth=18, width=0.0625, norm="batch")  # small files
STEPS = 4


class Reader(NamedTuple):
    """A file's name, the contents of some that are whole, and what reads one."""

    name: str
    contents: list[bytes]
    read: Read

    def changed(self, content: bytes, source: random.Random) -> bytes | None:
        """Return JSON or YAML with some plain values changed, as text that can be parsed; None if it is neither."""
        kind = Path(self.name).suffix
        if kind not in (".json", ".yaml"):
            return None
        try:
            plain = changed(json.loads(content) if kind == ".json" else yaml.safe_load(content), source)
            text = json.dumps(plain) if kind == ".json" else yaml.safe_dump(plain)
            return text.encode(errors="surrogatepass")
        except (ValueError, RecursionError, yaml.YAMLError):
            return None


def configuration(folder: Path) -> Reader:
    texts = [yaml.safe_dump(minimal_experiment()).encode(), (ROOT / "config.yaml").read_bytes()]
    return Reader("config.yaml", texts, lambda path: config.load([path]))


def coco(folder: Path) -> Reader:
    images = folder / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40)).save(images / name)
    outline, runs = [[5.0, 5, 20, 5, 20, 15]], {"size": [40, 60], "counts": [100, 20, 2280]}
    content = coco_content()
    with_masks = coco_content()
    for annotation, segmentation in zip(with_masks["annotations"], (outline, runs, outline), strict=True):
        annotation["segmentation"] = segmentation

    def read(path: Path) -> None:
        data = CocoDetection(path, images)
        for index in range(min(len(data), 4)):
            check_sample(data, index, "val")

    return Reader("annotations.json", [json.dumps(own).encode() for own in (content, with_masks)], read)


def image(folder: Path) -> Reader:
    ramp = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    pictures = [Image.fromarray(np.uint8(np.dstack([ramp % 256] * 3))), Image.fromarray(ramp)]
    turned = Image.Exif()
    turned[0x0112] = 6

    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    contents = [saved(pictures[0], kind) for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    contents += [saved(pictures[0], "JPEG", exif=turned), *(saved(pictures[1], kind) for kind in ("PNG", "TIFF"))]
    return Reader("picture", contents, lambda path: decode(path, pixel_range=(0, 4095)))


def widths(folder: Path) -> Reader:
    groups, cost = {"conv1": 16, "layer1.0.conv1": 24}, Cost(1000, 500)
    by_hand = {"widths": groups, "backbone": {"plugin": "resnet"}}
    chosen = ChosenWidths(widths=groups, reference=groups, rule="dof", parameters=cost, macs=cost)
    write_chosen(folder / "chosen.json", chosen)
    contents = [json.dumps(by_hand).encode(), (folder / "chosen.json").read_bytes()]

    def read(path: Path) -> None:
        for own in (read_by_hand, read_chosen):
            one_line_or_nothing(partial(own, path))

    return Reader("widths.json", contents, read)


def record(folder: Path) -> Reader:
    simulate(folder, seeds=(0,), layers=1, channels=4)

    def read(path: Path) -> None:
        for kind in records.VERSIONS:
            one_line_or_nothing(partial(records.read, kind, path))
        one_line_or_nothing(RunFolder(path.parent).read)

    return Reader("run.json", [file.read_bytes() for file in folder.rglob("*.json")], read)


def covariances(folder: Path) -> Reader:
    return Reader("covariance.h5", [write_whole(folder).read_bytes()], read_all)


def similarity(folder: Path) -> Reader:
    simulate(folder, seeds=(0,), layers=1, channels=4, steps=(0, 4))

    def read(path: Path) -> None:
        with tables.reading_similarity(path.parent) as file:
            tables.read_images(file)
            for step in (0, 4):
                tables.read_map(file, step, TapKey("layer0.relu", 0, "act"), 4)

    return Reader("similarity.h5", [next(folder.rglob("similarity.h5")).read_bytes()], read)


def eigenvalues(folder: Path) -> Reader:
    simulate(folder, arms=("scratch",), seeds=(0,), layers=1, channels=4, steps=(0, 4))
    content = next(folder.rglob("eigenvalues.parquet")).read_bytes()
    return Reader("eigenvalues.parquet", [content], lambda path: tables.read_run(path.parent, "eigenvalues"))


def distances(folder: Path) -> Reader:
    simulate(folder, seeds=(0, 1), layers=1, channels=4, steps=(0, 4))
    compare(folder)
    own = folder / "comparison/tiny/rcnn"
    content = (own / "distances.parquet").read_bytes()

    def read(path: Path) -> None:
        for file in own.iterdir():
            if file.name not in (path.name, f"{path.name}.sha256"):
                (path.parent / file.name).write_bytes(file.read_bytes())
        tables.Comparison.read(path.parent)

    return Reader("distances.parquet", [content], read)


def snapshot(folder: Path) -> Reader:
    definition = Definition(BACKBONE, classes=["a", "b"], size=(32, 32))
    write_snapshot(folder / "step.pt", 0, definition.build(), definition)
    return Reader("step_0000000.pt", [(folder / "step.pt").read_bytes()], read_snapshot)


def checkpoint(folder: Path) -> Reader:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    progress = Progress(step=2, sums={"loss": 1.0}, since=[2, 4, 0.5], images=4, seconds=0.5)
    own = RunFolder(folder / "run")
    write_checkpoint(own, {"seed": 0}, parts, progress)
    name = own.checkpoint.name

    def read(path: Path) -> None:
        resume(RunFolder(path.parent), {"seed": 0}, parts, STEPS)

    return Reader(name, [own.checkpoint.read_bytes()], read)


def backbone_weights(folder: Path) -> Reader:
    state = build_backbone(BACKBONE).state_dict()
    contents = []
    for content in (state, {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}):
        stream = io.BytesIO()
        torch.save(content, stream)
        contents.append(stream.getvalue())
    return Reader("weights.pt", contents, load)


def safe_weights(folder: Path) -> Reader:
    return Reader("weights.safetensors", [safetensors.torch.save(build_backbone(BACKBONE).state_dict())], load)


def load(path: Path) -> str:
    return weights.load_backbone(build_backbone(BACKBONE), weights.read_weights(str(path)), str(path))


READERS: dict[str, Callable[[Path], Reader]] = {
    "configuration": configuration,
    "coco": coco,
    "image": image,
    "widths": widths,
    "record": record,
    "covariances": covariances,
    "similarity": similarity,
    "eigenvalues": eigenvalues,
    "distances": distances,
    "snapshot": snapshot,
    "checkpoint": checkpoint,
    "weights": backbone_weights,
    "safetensors": safe_weights,
}
