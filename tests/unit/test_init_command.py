from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eigendet import config
from eigendet.cli import main
from eigendet.runs import proposal
from tests.conftest import SHARED, real_data
from tests.own_data import write_classes, write_detection


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such folder; expected one with data."),
        (["data/train"], "data/train: no COCO file in it"),
        (["data", "-o", "data"], "data: is there already"),
        (["data", "-o", "data/train/1.png/config.yaml"], "data/train/1.png: File exists"),
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


@real_data("bccd")
def test_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = init(SHARED / "bccd", "-o", "new/bccd.yaml")
    assert result.exit_code == 0, result.output
    experiment = config.load([Path("new/bccd.yaml")])
    assert (experiment.name, experiment.training.min_size, experiment.training.max_size) == ("bccd", 192, 256)
    assert experiment.detectors["faster_rcnn"].options["anchor_sizes"] == [16, 24, 32, 48, 64]
    assert "RBC 2,381, WBC 214, Platelets 209" in Path("new/bccd.yaml").read_text()
