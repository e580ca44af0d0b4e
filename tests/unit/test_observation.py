"""Every channel group is observed somewhere, with settings that name one point alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eigendet import config
from eigendet.cli import plugin_commands
from eigendet.config.sections import BackboneChoice, CovarianceSettings, PluginChoice
from eigendet.networks.definition import Definition
from eigendet.observe.tap import Tap
from eigendet.runs import covariances, definitions, network_check, plan, stages
from eigendet.runs.observation import observed_taps, taps_elsewhere
from eigendet.spectra import spectrum
from eigendet.widths.derivation import derive_widths

SMALL = {"fpn_channels": 16, "head_channels": 32, "proposals": 20, "anchor_sizes": [8, 16, 32, 64, 96]}
RCNN = PluginChoice.model_validate({"plugin": "faster_rcnn"} | SMALL)
FUNCTIONAL = ("nn.GroupNorm(8, width), nn.ReLU(inplace=True)", "nn.GroupNorm(8, width)")


def definition(**backbone: Any) -> Definition:
    return Definition(BackboneChoice(**backbone), ["a", "b"], (64, 64), RCNN)


def taps_of(network: Definition, groups: bool = True, **settings: Any) -> dict[str, Tap]:
    torch.manual_seed(0)
    model = network.build().eval()
    images = [[torch.rand(3, 64, 64)] for _ in range(2)]
    chosen = CovarianceSettings(**settings)
    return {
        str(tap.key): tap
        for tap in observed_taps(model, chosen, images, groups=network.reference()[0] if groups else None)
    }


@pytest.fixture
def functional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template of backbones, whose activations are functions: it has normalizations, and no activation."""
    monkeypatch.chdir(tmp_path)
    plugin_commands.write_example("backbone", "net", tmp_path / "plugins")
    file = tmp_path / "plugins" / "net.py"
    text = file.read_text()
    for old, new in (
        FUNCTIONAL,
        ("return x + self", "return x.relu() + self"),
        ("x = self.stem(images)", "x = self.stem(images).relu()"),
    ):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


NETWORKS = [
    ({"plugin": "torchvision", "name": "mobilenet_v2", "width": 0.25}, {"block"}),  # its bottlenecks are linear
    ({"plugin": "torchvision", "name": "efficientnet_b0", "width": 0.25}, {"block"}),
    ({"plugin": "torchvision", "name": "convnext_tiny", "width": 0.125}, {"block"}),
    ({"plugin": "timm", "name": "convnext_atto", "width": 0.25}, {"block"}),
    ({"plugin": "resnet", "depth": 18, "width": 0.125, "norm_groups": 4}, set()),
]


@pytest.mark.parametrize(("backbone", "others"), NETWORKS)
def test_a_group_without_an_activation_is_observed_at_the_nearest_point(
    backbone: dict[str, Any], others: set[str]
) -> None:
    if backbone["plugin"] == "timm":
        pytest.importorskip("timm", reason="needs timm")
    network = definition(**backbone)
    groups, _ = network.reference()
    taps = taps_of(network)
    read = {key: groups.outputs.get((tap.key.module, tap.key.call)) for key, tap in taps.items()}
    assert set(groups.widths) <= set(read.values())
    alone = taps_of(network, groups=False)
    more = {key: group for key, group in read.items() if key not in alone}
    assert set(alone) <= set(taps)
    assert {taps[key].key.point for key in more} == others
    assert set(more.values()).isdisjoint(read[key] for key in alone)  # and nothing is that needs not be
    for key in alone:
        assert torch.equal(taps[key].covariance.covariance(), alone[key].covariance.covariance()), key


def test_a_limit_of_memory_changes_nothing() -> None:
    network = definition(plugin="torchvision", name="mobilenet_v2", width=0.25)
    whole, parts = taps_of(network), taps_of(network, memory=2**-10)  # GiB: a megabyte at a time
    assert list(whole) == list(parts)
    for key, tap in whole.items():
        assert torch.equal(tap.covariance.covariance(), parts[key].covariance.covariance()), key


@pytest.mark.usefixtures("functional")
def test_a_network_with_functions_for_activations_is_observed_at_its_normalizations() -> None:
    network = definition(plugin="net", channels=8)
    taps = taps_of(network)
    groups, _ = network.reference()
    assert set(groups.widths) <= {groups.outputs[tap.key.module, tap.key.call] for tap in taps.values()}
    assert {tap.key.point for tap in taps.values()} == {"block", "norm"}
    assert not taps_elsewhere(network.build(), groups, ["norm", "block"])
    assert not taps_elsewhere(network.build(), groups, ["fpn"])  # where no width is read


def test_so_are_layers_of_heads() -> None:
    network = replace(definition(plugin="resnet", depth=18, width=0.125, norm_groups=4), heads=True)
    groups, _ = network.reference()
    taps = taps_of(network, heads=True)
    read = {groups.outputs.get((tap.key.module, tap.key.call)) for tap in taps.values()}
    assert set(groups.widths) <= read
    assert taps["roi_heads.box_head.fc6#0:linear"].covariance.channels == 32  # its ReLU is a function


def test_widths_of_a_network_with_linear_bottlenecks_need_no_settings(values: dict[str, Any], tmp_path: Path) -> None:
    values["backbones"] = {"net": {"plugin": "torchvision", "name": "mobilenet_v2", "width": 0.25}}
    values["training"] |= {"steps": 1, "snapshots": []}
    values["covariance"] = {"images": 2, "jackknife": None}
    experiment = config.parse(values)
    network_check.check_network(experiment, "net", "rcnn")
    assert plan.planned_stages(experiment, tmp_path)
    stages.train(experiment, "scratch", "net", "rcnn", 0, tmp_path / "run")
    covariances.compute_covariance(experiment, tmp_path / "run", tmp_path / "c.h5")
    spectrum.write_spectra(tmp_path / "c.h5", tmp_path / "spectra")
    network = definitions.definition_for_widths(experiment, "net", "rcnn", heads=False)
    widths = derive_widths(experiment, network, [tmp_path / "spectra"], "scratch")
    assert widths.widths.keys() == network.reference()[0].widths.keys()
    assert widths.elsewhere is not None and set(widths.elsewhere.values()) == {"block"}
    assert len(widths.elsewhere) == 7
