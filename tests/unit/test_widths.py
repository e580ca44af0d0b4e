from __future__ import annotations

import json
from pathlib import Path

import pytest

from eigendet import models, widths
from eigendet.errors import UserError
from eigendet.models import Definition
from eigendet.sections import WidthSettings

NETWORK = Definition({"plugin": "resnet", "depth": 18, "norm_groups": 8}, [], (64, 64))


def test_the_rule_is_named_only_where_it_counts() -> None:
    assert widths.rule_text(WidthSettings()) == "dof at scale 0.1"
    assert widths.rule_text(WidthSettings(rule="participation")) == "participation"
    assert widths.rule_text(WidthSettings(allocation="marginal")) == "marginal allocation"


def test_a_widths_file_may_be_written_by_hand(tmp_path: Path) -> None:
    _, widths = NETWORK.reference()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"widths": widths | {"conv1": 48}}))
    assert models.read_widths(file, NETWORK) == widths | {"conv1": 48}
    by_layer = {group: width for group, width in widths.items() if group != "conv1"} | {"layer1.0.conv2": 48}
    file.write_text(json.dumps({"widths": by_layer}))
    assert models.read_widths(file, NETWORK)["conv1"] == 48  # a layer tied to the stem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no object 'widths'"),
        ("{", "not JSON"),
        ('{"widths": 3}', "no object 'widths'"),
        ('{"widths": {}}', "no width for the channel groups conv1, layer1"),
        ('{"widths": {"conv9": 8}}', "unknown channel group 'conv9'"),
        ('{"widths": {"conv1": 20}}', "'conv1': width 20; expected a multiple of 8"),
        ('{"widths": {"conv1": -8}}', "'conv1': width -8; expected a positive integer"),
        ('{"widths": {"conv1": 0}}', "'conv1': width 0; expected a positive integer"),
        ('{"widths": {"conv1": 16, "layer1.1.conv2": 24}}', "'conv1' is 16 and 'layer1.1.conv2' is 24; they are tied"),
        ('{"detector": {"plugin": "retinanet"}, "widths": {}}', "widths of the detector's own layers; set"),
        ('{"backbone": {"plugin": "resnet", "depth": 50}, "widths": {}}', "made for the backbone .*'depth': 50"),
    ],
)  # fmt: skip
def test_a_wrong_widths_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(UserError, match=f"mine.json: .*{message}"):
        models.read_widths(file, NETWORK)
