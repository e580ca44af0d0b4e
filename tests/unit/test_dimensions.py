from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eigendet import channels, config, plugins
from eigendet.channels.groups import Channels
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.runs import definitions
from eigendet.spectra import tables
from eigendet.widths import dimensions
from eigendet.widths.dimensions import group_spectra
from tests.benchmarks.channels import torchvision_network
from tests.simulated import rewrite


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def planted(traced: Channels, rank: dict[str, int], seed: int = 0, point: str = "act") -> pd.DataFrame:
    """An eigenvalue table in which every tap of a group has the group's rank, or 1 beyond the group's first tap."""
    rows = []
    seen: set[str] = set()
    for (module, call), group in traced.outputs.items():
        if "relu" in module or point == "conv":
            values = np.zeros(traced.widths[group])
            values[: rank[group] if group not in seen else 1] = 1.0
            seen.add(group)
            rows += [
                {"arm": "scratch", "backbone": "b", "seed": seed, "step": step, "module": module, "call": call,
                 "point": point, "centered": True, "value": value}
                for step in (0, 5) for value in (values if step else np.ones_like(values))
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_dimensions_take_the_last_step_the_largest_of_all_taps_and_the_mean_of_seeds(traced: Channels) -> None:
    rank = {group: 4 + position for position, group in enumerate(traced.widths)}
    more = {group: value + 2 for group, value in rank.items()}
    settings = WidthSettings(rule=PluginChoice(plugin="ratio"))
    table = pd.concat([planted(traced, rank, 0), planted(traced, more, 1)])
    assert group_spectra(table, traced, settings).dimensions(settings) == {g: value + 1 for g, value in rank.items()}
    assert group_spectra(table, traced, settings, first=True).dimensions(settings) == traced.widths


def test_a_group_that_is_only_seen_among_others_is_read_at_another_point() -> None:
    """The maps that a DenseNet's layers add are activated only in concatenations."""
    dense = channels.trace(*torchvision_network("densenet121"))
    rank = dict.fromkeys(dense.widths, 2)
    act = planted(dense, rank)
    with pytest.raises(
        UserError,
        match=r"denseblock1.denselayer1.conv2, .* and 53 more have .*; add some of block, norm, conv, linear to",
    ):
        group_spectra(act, dense, WidthSettings())
    read = group_spectra(pd.concat([act, planted(dense, rank, point="conv")]), dense, WidthSettings())
    assert read.groups.keys() == dense.widths.keys()
    assert read.elsewhere["features.denseblock1.denselayer1.conv2"] == "conv"
    assert "features.denseblock1.denselayer1.conv1" not in read.elsewhere


def test_a_point_without_taps_is_named(traced: Channels) -> None:
    table = planted(traced, dict.fromkeys(traced.widths, 3)).assign(point="fpn")
    with pytest.raises(UserError, match=r"widths\.point is 'norm', and the channel groups conv1, .*; add some of act"):
        group_spectra(table, traced, WidthSettings(point="norm"))


def row(network: Definition, **changes: Any) -> pd.DataFrame:
    values: dict[str, Any] = dict.fromkeys(tables.COLUMNS["eigenvalues"], 0) | {
        "arm": "scratch", "backbone": "tiny", "detector": "rcnn", "module": "relu", "point": "act", "channels": 1,
        "effective_samples": 1.0, "centered": True,
    }  # fmt: skip
    table = pd.DataFrame([values | changes])
    table.attrs = tables.SPECTRA.mark | {"experiment": "minimal", "definition": network.plain()}
    return table


def test_tables_of_another_arm_run_backbone_or_experiment_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    network = definitions.definition_for_widths(config.parse(values), "tiny", "rcnn", heads=False)

    def read(*of_runs: pd.DataFrame) -> pd.DataFrame:
        folders = []
        for number, table in enumerate(of_runs):
            folders.append(tmp_path / str(number))
            folders[-1].mkdir(exist_ok=True)
            rewrite(folders[-1] / "eigenvalues.parquet", table)
        return dimensions.read_spectra_of_arm("minimal", network, "scratch", folders, "eigenvalues")

    good = row(network)
    assert len(read(good, row(network, seed=1))) == 2
    with pytest.raises(UserError, match=r"0: two of the tables are of the same run"):
        read(good, good)
    with pytest.raises(UserError, match="0: tables of finetune; expected some of the arm scratch"):
        read(row(network, arm="finetune"), row(network, arm="finetune", seed=1))
    with pytest.raises(UserError, match="0: tables of no arm; expected some of the arm scratch"):
        read(good[:0])
    with pytest.raises(
        UserError, match=r"0/eigenvalues.parquet: without the columns value; run 'eigendet spectra' again"
    ):
        read(good.drop(columns="value"))
    other = row(network)
    other.attrs = good.attrs | {"experiment": "bccd"}
    with pytest.raises(UserError, match=r"0/eigenvalues.parquet: of the experiment 'bccd'; this one is 'minimal'"):
        read(other)
    other = row(replace(network, backbone=network.backbone.model_copy(update={"depth": 50})))
    with pytest.raises(UserError, match=r"of the backbone .*'depth': 50.*; this one is .*'depth': 18"):
        read(other)
    with pytest.raises(UserError, match=r"of the detector .*'retinanet'.*; this one is .*'faster_rcnn'"):
        read(row(replace(network, detector=PluginChoice(plugin="retinanet"))))
    other = row(network)
    for version in ({}, {"version": 0}):
        other.attrs = {"experiment": "minimal", "definition": network.plain()} | version
        with pytest.raises(UserError, match=r"0/eigenvalues.parquet: of .*; expected .*: run 'eigendet spectra' again"):
            read(other)
    other.attrs = tables.SPECTRA.mark | {"experiment": "minimal"}
    with pytest.raises(
        UserError,
        match=r"does not say of which network it is \(backbone: Field required\); run 'eigendet spectra' again",
    ):
        read(other)
    (tmp_path / "0/eigenvalues.parquet").write_text("no")
    with pytest.raises(UserError, match=r"0/eigenvalues.parquet: cannot be read as a table"):
        dimensions.read_spectra_of_arm("minimal", network, "scratch", [tmp_path / "0"], "eigenvalues")
    with pytest.raises(UserError, match=r"nowhere/eigenvalues.parquet: no such file; 'eigendet spectra' writes it"):
        dimensions.read_spectra_of_arm("minimal", network, "scratch", [tmp_path / "nowhere"], "eigenvalues")


def test_a_jackknife_may_be_empty_but_not_of_another_arm(values: dict[str, Any], tmp_path: Path) -> None:
    network = definitions.definition_for_widths(config.parse(values), "tiny", "rcnn", heads=False)
    one = row(network, left_out=0)
    for table, found in ((one[:0], 0), (one, 1)):
        rewrite(tmp_path / "jackknife.parquet", table)
        assert len(dimensions.read_spectra_of_arm("minimal", network, "scratch", [tmp_path], "jackknife")) == found
    rewrite(tmp_path / "jackknife.parquet", row(network, left_out=0, arm="finetune"))
    with pytest.raises(UserError, match="tables of finetune; expected some of the arm scratch"):
        dimensions.read_spectra_of_arm("minimal", network, "scratch", [tmp_path], "jackknife")
    rewrite(tmp_path / "jackknife.parquet", row(network))  # without the column of what was left out
    with pytest.raises(UserError, match=r"jackknife.parquet: without the columns left_out"):
        dimensions.read_spectra_of_arm("minimal", network, "scratch", [tmp_path], "jackknife")
    with pytest.raises(UserError, match="SPECTRA: none given; expected folders of the arm scratch"):
        dimensions.read_spectra_of_arm("minimal", network, "scratch", [], "eigenvalues")


def test_each_group_is_read_at_the_first_point_that_has_it_and_nowhere_else(traced: Channels) -> None:
    act, conv = (
        planted(traced, dict.fromkeys(traced.widths, rank), point=point) for rank, point in ((3, "act"), (5, "conv"))
    )
    act = act[act["module"] != "relu"]  # the stem's
    act.loc[act.index[-1], "value"] = -0.5
    found = group_spectra(pd.concat([act, conv]), traced, WidthSettings())
    assert found.elsewhere == {"conv1": "conv"}
    assert max(int(values.sum()) for values in found.groups["conv1"][0]) == 5
    assert [int(values.sum()) for values in found.groups["layer1.0.conv1"][0]] == [3]
    assert min(values.min() for seeds in found.groups.values() for taps in seeds.values() for values in taps) == 0


def test_spectra_of_the_other_moment_are_refused_with_what_to_run(traced: Channels) -> None:
    table = planted(traced, dict.fromkeys(traced.widths, 3))
    of_raw = r"is true, which means spectra of the covariance; these are of the raw second moments: run .* again\."
    with pytest.raises(UserError, match=of_raw):
        group_spectra(table.assign(centered=False), traced, WidthSettings())
    centered = r"is false, .* of the raw second moments; these are of the covariance: run .* again with --raw\."
    with pytest.raises(UserError, match=centered):
        group_spectra(table, traced, WidthSettings(centered=False))


def test_a_map_that_never_varies_disturbs_no_other() -> None:
    shown = dimensions.GroupSpectra({"a": {0: [np.array([1.0, 3.0])], 1: [np.zeros(2)]}}, {})
    assert shown.dimensions(WidthSettings(rule=PluginChoice(plugin="ratio"))) == {"a": 1}
