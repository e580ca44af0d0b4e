from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eigendet import config
from eigendet.cli import main
from eigendet.config import installation
from eigendet.data.survey import survey
from eigendet.errors import UserError
from eigendet.runs import proposal
from tests.conftest import ROOT, SHARED, real_data
from tests.own_data import coco_content, write_classes, write_coco, write_detection, write_images

MANUAL = ROOT / "docs/your-data.md"


def init(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


def without_marks(text: str, opening: str) -> str:
    """Return the commented lines that follow the paragraph that begins with `opening`."""
    _, _, rest = text.partition(f"# {opening}")
    _, _, rest = rest.partition("\n#\n")
    block, _, _ = rest.partition("\n\n")
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines())


@pytest.mark.parametrize("classes", [False, True], ids=["published weights", "class folders"])
def test_what_it_writes_is_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: bool) -> None:
    folder = write_detection(tmp_path / "größere Daten #2")
    if classes:
        write_classes(folder / "natural")
    monkeypatch.chdir(tmp_path)
    result = init(folder.name)
    assert result.exit_code == 0, result.output
    assert "train.json: 3 images, 6 boxes" in result.output
    assert "config.yaml: written; read it" in result.output
    experiment = config.load([Path("config.yaml")])
    assert experiment.name == "gr_ere_Daten_2"
    assert experiment.data.detection.train.options["images"] == f"{folder.name}/train"
    assert (experiment.data.classification is not None) == classes
    assert experiment.training.steps == proposal.CPU.training.least
    text = Path("config.yaml").read_text()
    Path("gpu.yaml").write_text(without_marks(text, "For a GPU"))
    larger = config.load([Path("config.yaml"), Path("gpu.yaml")])
    assert (larger.name, larger.training.steps) == ("gr_ere_Daten_2_gpu", proposal.GPU.training.least)
    planned = CliRunner().invoke(main, ["plan"]).output.splitlines()
    assert without_marks(text, "What this file takes").splitlines() == planned[:-1]  # which says how to get hours
    again = init(folder.name)
    assert again.output == "Error: config.yaml: is there already, and stays; name another file with --output.\n"
    assert Path("config.yaml").read_text() == text


def test_names_of_classes_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_detection(tmp_path / "data")
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = "red\x1b[31m"
        file.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init", "data"], color=True)
    assert result.exit_code == 0 and "\x1b" not in result.output and r"red\x1b[31m" in result.output
    assert config.load([Path("config.yaml")]).name == "data"


def test_what_it_says_to_run_finds_the_snakefile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_detection(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    workflow = shlex.quote(str(ROOT / "workflow/Snakefile"))
    run = f"run: snakemake --snakefile {workflow} --cores all --configfile away.yaml\n"
    assert init("data", "-o", "away.yaml").output.endswith(run)
    monkeypatch.setattr(installation, "checkout", lambda: None)
    assert "run: snakemake --snakefile CLONE/workflow/Snakefile" in (said := init("data", "-o", "alone.yaml").output)
    assert "CLONE is a clone of eigendet's repository; its docs/snakemake.md has other ways)" in said
    Path("workflow").mkdir()
    Path("workflow/Snakefile").touch()
    assert init("data", "-o", "beside.yaml").output.endswith("run: snakemake --cores all --configfile beside.yaml\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such folder; expected one with data."),
        (["data/train"], "data/train: no COCO file in it"),
        (["data", "-o", "data"], "data: is there already"),
        (
            ["data", "-o", "data/train/1.png/config.yaml"],
            "data/train/1.png is not a folder that can be written; name another file",
        ),
        (["data", "--annotations", "no.json"], "Path 'no.json' does not exist"),
        (["data", "--annotations", "data/annotations/val.json"], "--annotations: given once; expected twice"),
        ([], "Missing argument 'FOLDER'"),
    ],
)
def test_a_mistake_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    write_detection(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    result = init(*arguments)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert message in result.output
    assert not Path("config.yaml").exists()


def test_data_that_cannot_be_trained_on_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_detection(tmp_path, train=[f"{number:03}.png" for number in range(150)])
    (tmp_path / "train/002.png").unlink()  # which is not in the sample
    monkeypatch.chdir(tmp_path)
    result = init(".")
    assert "train.json: 1 of 150 images are not in train; the first is '002.png' (image id 2)" in result.output
    assert not Path("config.yaml").exists()


def test_a_path_that_snakemake_would_take_for_a_pattern_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_detection(tmp_path / "{a}")
    monkeypatch.chdir(tmp_path)
    assert "{a}/annotations/train.json: braces are wildcards to Snakemake; rename" in init("{a}").output
    assert not Path("config.yaml").exists()


@real_data("bccd")
def test_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = init(SHARED / "bccd", "-o", "new/bccd.yaml")
    assert result.exit_code == 0, result.output
    experiment = config.load([Path("new/bccd.yaml")])
    assert (experiment.name, experiment.training.min_size, experiment.training.max_size) == ("bccd", 192, 256)
    assert experiment.detectors["faster_rcnn"].options["anchor_sizes"] == [16, 24, 32, 48, 64]
    assert "RBC 2,381, WBC 214, Platelets 209" in Path("new/bccd.yaml").read_text()


def test_the_split_of_the_manual_makes_a_pair_that_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.png" for number in range(10)]
    file = write_coco(tmp_path / "annotations.json", coco_content(names))
    write_images(tmp_path / "images", names)
    with pytest.raises(UserError, match="the only COCO file"):
        survey(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(example, scope)
    scope["split"](file)
    train, val = survey(tmp_path).detection
    assert (train.annotations.name, train.images, val.annotations.name, val.images) == ("train.json", 8, "val.json", 2)
    assert train.folder == val.folder == tmp_path / "images"
    files = [json.loads(split.annotations.read_text()) for split in (train, val)]
    seen = [image["file_name"] for content in files for image in content["images"]]
    assert sorted(seen) == names and sum(len(content["annotations"]) for content in files) == 20
