from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eigendet import config, plugins
from eigendet.cli.options import read_experiment
from eigendet.config.sections import PluginChoice
from eigendet.data import coco, datasets
from eigendet.errors import UserError
from eigendet.networks import norms, parts

DATASET = '''
from eigendet.plugins import dataset
{extra}

@dataset
def {name}(*, path: str, images: int = 4):
    """{summary}

    More words.
    """
    return path, images
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a plugin folder of its own."""
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "plugins"


def test_a_file_dropped_into_the_folder_is_found_and_called(folder: Path) -> None:
    (folder / "mine.py").write_text(DATASET.format(name="mine", summary="My data.", extra=""))
    found = plugins.find("dataset", "mine")
    assert (found.summary, found.file) == ("My data.", folder / "mine.py")
    assert plugins.bind("dataset", PluginChoice(plugin="mine", path="here"))() == ("here", 4)


def test_discovery_does_not_run_the_file(folder: Path) -> None:
    (folder / "mine.py").write_text(DATASET.format(name="mine", summary="", extra="import surely_not_installed"))
    assert "mine" in plugins.discover("dataset")
    lacking = r"dataset plugin 'mine' \(plugins/mine.py:6\) is not available: surely_not_installed is not installed"
    with pytest.raises(UserError, match=lacking):
        plugins.bind("dataset", PluginChoice(plugin="mine"))


def test_an_option_without_a_type_is_named(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from eigendet.plugins import dataset\n\n@dataset\ndef mine(*, a: 'Nothing' = 3): ...\n"
    )
    with pytest.raises(UserError, match=r"dataset plugin 'mine' .*: an option has no usable type: name 'Nothing'"):
        plugins.bind("dataset", PluginChoice(plugin="mine"))


def test_the_shipped_plugins_are_found_from_anywhere(folder: Path) -> None:
    assert {"coco", "image_folder", "digit_scenes", "digit_crops"} <= plugins.discover("dataset").keys()
    assert {"faster_rcnn", "mask_rcnn", "retinanet"} <= plugins.discover("detector").keys()
    assert "resnet" in plugins.discover("backbone")


def test_a_rule_may_be_added_in_a_file(folder: Path) -> None:
    (folder / "half.py").write_text(
        "from eigendet.plugins import rule\n\n"
        "@rule\ndef half(values, *, part: float = 0.5):\n    return part * len(values)\n"
    )
    choice = PluginChoice(plugin="half", part=0.25)
    assert plugins.bind("rule", choice)([4.0, 1.0, 1.0, 0.0]) == 1
    assert plugins.described("rule", choice) == "half at part 0.25"
    assert plugins.variants("rule", choice) == [choice]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("dofs", "widths.rule: unknown rule plugin 'dofs'. Did you mean 'dof'?"),
        ({"plugin": "ratio", "threshold": 1}, "widths.rule.threshold: got 1; input should be less than 1"),
        ({"plugin": "energy", "share": 1.1}, "widths.rule.share: got 1.1; input should be less than or equal to 1"),
        ({"plugin": "participation", "share": 1}, "widths.rule.share: unknown key; accepted here: none"),
    ],
)
def test_a_wrong_rule_is_named(rule: Any, message: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        plugins.validate(config.parse(values | {"widths": {"rule": rule}}))
    assert message in str(error.value)


@pytest.mark.parametrize("source", ["workflo", "", "weights.pt"])
def test_weights_that_are_nowhere_are_named_before_anything_runs(source: str, values: dict[str, Any]) -> None:
    values["backbones"]["tiny"]["pretrained"] = source
    message = f"backbones.tiny.pretrained: got '{source}', which is not a file; expected 'workflow', a state-dict file"
    with pytest.raises(UserError, match=message):
        plugins.validate(config.parse(values))
    plugins.validate(config.parse(values), paths=False)  # as for a plan
    plugins.validate(config.parse(values | {"arms": {"scratch": {}}}))  # which starts from none


def test_a_wrong_option_is_named_with_its_file_by_commands_too(values: dict[str, Any], tmp_path: Path) -> None:
    values["detectors"]["rcnn"]["fpn_chanels"] = 3
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(
        UserError, match=r"own\.yaml: detectors\.rcnn\.fpn_chanels: unknown key; did you mean 'fpn_channels'"
    ):
        read_experiment((tmp_path / "own.yaml",))


def test_a_rule_is_varied_over_the_examples_of_its_option_and_its_own_value() -> None:
    varied = plugins.variants("rule", PluginChoice(plugin="dof", scale=0.2))
    values = [choice.options["scale"] for choice in varied]
    assert values == sorted(values) and {0.1, 0.2, 1.0} <= set(values)
    text = plugins.variants("rule", PluginChoice(plugin="ratio", threshold="2e-3"))  # as YAML reads it
    assert 2e-3 in [choice.options["threshold"] for choice in text]
    assert plugins.variants("rule", PluginChoice(plugin="participation")) == [PluginChoice(plugin="participation")]


def test_examples_that_an_option_does_not_accept_are_left_out(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from typing import Annotated\nfrom pydantic import Field\nfrom eigendet.plugins import rule\n\n"
        "@rule\ndef mine(values, *, k: Annotated[int | None, Field(gt=0, examples=[-1, 2])] = None): return 1.0\n\n"
        "@rule\ndef wrong(values, *, k: int = 'x'): return 1.0\n"
    )
    assert [v.options["k"] for v in plugins.variants("rule", PluginChoice(plugin="mine"))] == [2, None]
    with pytest.raises(UserError, match=r"rule wrong.k: got 'x'; input should be a valid integer"):
        plugins.bind("rule", PluginChoice(plugin="wrong"))


def test_an_unknown_name_lists_the_near_and_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown detector plugin 'fastr_rcnn'\. Did you mean 'faster_rcnn'\? Known: "):
        plugins.find("detector", "fastr_rcnn")


def test_two_plugins_of_one_name_are_refused_naming_both(folder: Path) -> None:
    for file in ("one.py", "two.py"):
        (folder / file).write_text(DATASET.format(name="same", summary="", extra=""))
    with pytest.raises(UserError, match=r"two dataset plugins are named 'same': plugins/one.py:6 and plugins/two.py:6"):
        plugins.discover("dataset")


def test_a_file_that_is_not_python_is_named(folder: Path) -> None:
    (folder / "broken.py").write_text("def (:\n")
    assert "coco" in plugins.discover("dataset")  # it hinders no other
    with pytest.raises(UserError, match=r"unknown dataset plugin 'mine'.*broken.py, line 1: not Python"):
        plugins.find("dataset", "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.x.path: missing"),
        ({"path": "p", "imagez": 3}, "data.x.imagez: unknown key; did you mean 'images'? accepted here: path, images"),
        ({"path": "p", "images": "lots"}, "data.x.images: got 'lots'; input should be a valid integer"),
    ],
)
def test_options_are_checked_under_the_key_they_stand_at(folder: Path, options: dict[str, str], message: str) -> None:
    (folder / "mine.py").write_text(DATASET.format(name="mine", summary="", extra=""))
    with pytest.raises(UserError) as error:
        plugins.bind("dataset", PluginChoice(plugin="mine", **options), "data.x")
    assert message in str(error.value)


def test_a_missing_path_is_a_fault_unless_only_a_plan_is_made() -> None:
    choice = PluginChoice(plugin="image_folder", path="no/such/folder")
    with pytest.raises(UserError, match="got 'no/such/folder'; path does not point to a directory"):
        plugins.bind("dataset", choice)
    plugins.bind("dataset", choice, paths=False)


def test_checking_the_default_experiment_does_not_import_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from eigendet import config, plugins;"
        "plugins.validate(config.load([Path('config.yaml')])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plugin_that_was_written_for_an_earlier_version_loads_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/early.py").write_text(
        "from eigendet.coco import CocoDetection\n"
        "from eigendet.datasets import decode\n"
        "from eigendet.plugins import detector\n\n"
        "@detector\ndef early(backbone, classes, size):\n"
        "    from eigendet.norms import with_norm\n"
        "    from eigendet.parts import PyramidBackbone\n"
        "    return CocoDetection, decode, with_norm, PyramidBackbone\n"
    )
    monkeypatch.chdir(tmp_path)
    found = plugins.bind("detector", PluginChoice(plugin="early"))(None, 1, (64, 64))
    assert found == (coco.CocoDetection, datasets.decode, norms.with_norm, parts.PyramidBackbone)
