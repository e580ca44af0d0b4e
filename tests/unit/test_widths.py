from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet import channels, config, models, plugins, widths
from eigendet.config import BackboneChoice, PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.groups import Channels


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def planted(traced: Channels, rank: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """An eigenvalue table in which every tap of a group has the group's rank, or 1 beyond the group's first tap."""
    rows = []
    seen: set[str] = set()
    for (module, call), group in traced.outputs.items():
        if "relu" in module:
            values = np.zeros(traced.widths[group])
            values[: rank[group] if group not in seen else 1] = 1.0
            seen.add(group)
            rows += [
                {"arm": "scratch", "backbone": "b", "seed": seed, "step": step, "module": module, "call": call,
                 "point": "act", "centred": True, "value": value}
                for step in (0, 5) for value in (values if step else np.ones_like(values))
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_dimensions_take_the_last_step_and_tie_over_taps_and_seeds(traced: Channels) -> None:
    rank = {group: 4 + position for position, group in enumerate(traced.widths)}
    more = {group: value + 2 for group, value in rank.items()}
    settings = WidthSettings(rule="ratio")
    table = pd.concat([planted(traced, rank, 0), planted(traced, more, 1)])
    assert widths.dimensions(table, traced, settings) == {group: value + 1 for group, value in rank.items()}
    tied = widths.dimensions(planted(traced, rank), traced, WidthSettings(rule="ratio", tie="mean"))
    residual = "layer2.0.conv3"  # four blocks, so four taps: its rank once and three times 1
    assert tied[residual] == (rank[residual] + 3) / 4


def test_spectra_of_a_group_are_shares_tied_over_taps_and_averaged_over_seeds(traced: Channels) -> None:
    rank = dict.fromkeys(traced.widths, 4)
    table = pd.concat([planted(traced, rank, 0), planted(traced, dict.fromkeys(traced.widths, 2), 1)])
    pooled = widths.pooled_spectra(table, traced, WidthSettings())
    assert pooled["conv1"][:5].tolist() == [0.375, 0.375, 0.125, 0.125, 0.0]  # of 4 and of 2 equal eigenvalues
    assert pooled["layer2.0.conv3"][:5].tolist() == [1.0, 0.375, 0.125, 0.125, 0.0]  # further taps have rank 1


def test_a_point_without_taps_is_named(traced: Channels) -> None:
    table = planted(traced, dict.fromkeys(traced.widths, 3))
    with pytest.raises(UserError, match=r"widths\.point is 'norm', and no feature map of that kind belongs to"):
        widths.dimensions(table, traced, WidthSettings(point="norm"))


def test_tables_of_another_arm_or_backbone_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    row = dict.fromkeys(widths.COLUMNS, 0) | {"arm": "finetune", "backbone": "tiny", "detector": "rcnn"}
    pd.DataFrame([row]).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(UserError, match="two of the eigenvalue tables are of the same run"):
        widths.from_spectra(experiment, "tiny", [tmp_path / "e.parquet"] * 2)
    pd.DataFrame([row | {"detector": "other"}]).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(UserError, match="of the detectors other, rcnn; expected one"):
        widths.from_spectra(experiment, "tiny", [tmp_path / "e.parquet", tmp_path / "f.parquet"])
    with pytest.raises(UserError, match="the eigenvalue tables are of arm finetune; expected scratch alone"):
        widths.from_spectra(experiment, "tiny", [tmp_path / "e.parquet"])
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(UserError, match="not an eigenvalue table"):
        widths.from_spectra(experiment, "tiny", [tmp_path / "no.parquet"])


def test_the_rule_is_named_only_where_it_counts() -> None:
    assert widths.rule_text(WidthSettings()) == "dof at scale 0.1"
    assert widths.rule_text(WidthSettings(rule="participation")) == "participation"
    assert widths.rule_text(WidthSettings(allocation="marginal")) == "marginal allocation"


def test_a_widths_file_may_be_written_by_hand(tmp_path: Path) -> None:
    choice = BackboneChoice(plugin="resnet", depth=18, norm_groups=8)
    _, widths = models.reference(choice)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"widths": widths | {"conv1": 48}}))
    assert models.read_widths(file, choice) == widths | {"conv1": 48}
    by_layer = {group: width for group, width in widths.items() if group != "conv1"} | {"layer1.0.conv2": 48}
    file.write_text(json.dumps({"widths": by_layer}))
    assert models.read_widths(file, choice)["conv1"] == 48  # a layer tied to the stem


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
        ('{"backbone": {"plugin": "resnet", "depth": 50}, "widths": {}}', "made for the backbone .*'depth': 50"),
    ],
)  # fmt: skip
def test_a_wrong_widths_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(UserError, match=f"mine.json: .*{message}"):
        models.read_widths(file, BackboneChoice(plugin="resnet", depth=18, norm_groups=8))
