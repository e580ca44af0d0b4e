"""detectron2's real code under the contract, in the workflow, and beside torchvision's."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from eigendet import channels, config, plugins
from eigendet.config.sections import BackboneChoice, CovarianceSettings, PluginChoice
from eigendet.data.samples import Rectangles
from eigendet.errors import UserError
from eigendet.networks.backbones import backbone_of, parameter_count
from eigendet.networks.definition import Definition
from eigendet.networks.detector import learns_masks
from eigendet.plugins.discovery import find
from eigendet.runs import stages, training
from eigendet.runs.folder import RunFolder
from eigendet.runs.images import Decoded, Images
from eigendet.runs.observation import observed_taps
from eigendet.spectra import spectrum
from eigendet.testing import BackboneContract, DetectorContract
from tests.conftest import ROOT, minimal_experiment
from tests.detectron2 import CACHE
from tests.workflow.running import said, snakemake

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
]
SMALL: dict[str, Any] = {"fpn_channels": 16, "anchor_sizes": [8, 16, 32, 48, 64]}
OWN: dict[str, Any] = {"plugin": "detectron2_resnet", "depth": 18, "width": 0.25, "norm_groups": 8}
BOXES = SMALL | {"head_channels": 32, "proposals": 50, "box_samples": 16}


class TestFasterRCNN(DetectorContract):
    plugin, options = "detectron2", BOXES | {"model": "faster_rcnn"}


class TestMaskRCNN(DetectorContract):
    plugin, options = "detectron2", BOXES | {"model": "mask_rcnn", "mask_channels": 16}


class TestCascadeRCNN(DetectorContract):
    plugin, options = "detectron2", BOXES | {"model": "cascade_rcnn"}


class TestRetinaNet(DetectorContract):
    plugin, options = "detectron2", SMALL | {"model": "retinanet"}
    steps = 150  # its losses are first divided by 100, then ever more by the number of boxes


class TestResNet(BackboneContract):
    plugin, options = "detectron2_resnet", {"depth": 18, "norm_groups": 8}


class TestFasterRCNNOverItsOwnResNet(DetectorContract):
    plugin, options = "detectron2", BOXES
    backbone = OWN


def definition(over: dict[str, Any] | None = None, **options: Any) -> Definition:
    detector = PluginChoice(plugin="detectron2", **SMALL | options)
    backbone = BackboneChoice(**over or DetectorContract.backbone)
    return Definition(backbone, ["red", "green", "blue"], (64, 64), detector)


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet"])
def test_pyramid_and_heads_are_resized_at_the_predicted_cost(name: str) -> None:
    options: dict[str, Any] = {} if name == "retinanet" else {"head_channels": 32, "proposals": 50}
    if name == "mask_rcnn":
        options["mask_channels"] = 16
    reference = replace(definition(model=name, **options), heads=True)
    groups, usual = reference.reference(64)
    boxes = {"cascade_rcnn": "box_head.0.fc1", "retinanet": None}.get(name, "box_head.fc1")
    assert "model.backbone.fpn_lateral5" in usual
    assert boxes is None or f"model.roi_heads.{boxes}" in usual
    assert usual.get("model.roi_heads.mask_head.mask_fcn1", 16) == 16
    random = Random(0)
    widths = {g: groups.multiples[g] * random.randint(1, max(1, 40 // groups.multiples[g])) for g in usual}
    model = replace(reference, widths=widths).build()
    assert parameter_count(model) == groups.parameters(widths)
    seen: dict[str, int] = {}
    for prefix, path in {
        "model.roi_heads": f"model.roi_heads.{str(boxes).rpartition('.')[0]}",
        "model.roi_heads.mask": "model.roi_heads.mask_head",
    }.items():
        if path in dict(model.named_modules()):
            model.get_submodule(path).register_forward_pre_hook(
                lambda module, inputs, prefix=prefix: seen.update({prefix: len(inputs[0])})
            )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()([torch.rand(3, 64, 64)])
    build = partial(definition(model=name, **options)._at_full_width, (64, 64))
    counted = channels.trace_detector(build, (64, 64), seen).renamed("model.backbone.bottom_up.body.")
    assert counted.macs(widths) == counter.get_total_flops() // 2


def test_it_learns_the_same_after_an_interruption(tmp_path: Path) -> None:
    """RetinaNet's running mean is part of what is resumed."""

    class Check(DetectorContract):
        plugin, options, steps = "detectron2", SMALL | {"model": "retinanet"}, 6

    contract, runs = Check(), [RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")]
    settings = contract.settings().model_copy(update={"checkpoint_every": 3, "log_every": 1})
    whole = training.fit(runs[0], contract.build(), contract.definition(), contract.task(), settings, 0, {}, CPU)

    def stopping(start: int) -> Any:
        for number, batch in enumerate(contract.task().batches(start), start):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    task = training.Task(stopping, training.detection_losses)
    with pytest.raises(KeyboardInterrupt):
        training.fit(runs[1], contract.build(), contract.definition(), task, settings, 0, {}, CPU)
    training.fit(runs[1], contract.build(), contract.definition(), contract.task(), settings, 0, {}, CPU)
    states = [torch.load(run.snapshot(whole["snapshots"][-1]), weights_only=True)["model"] for run in runs]
    assert "normalizer" in states[0]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "a file"])
def test_its_yaml_configurations_can_be_named(name: str, tmp_path: Path) -> None:
    if name == "a file":
        (tmp_path / "mine.yaml").write_text(
            "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n  MASK_ON: false\n"
            "  FPN: {IN_FEATURES: [res2, res3, res4, res5], NORM: GN, OUT_CHANNELS: 64}\n"
            "  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}\n"
            "  ROI_HEADS: {NAME: StandardROIHeads}\n  RPN: {POST_NMS_TOPK_TEST: 77}\n"
            "  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_CONV: 1, NUM_FC: 1, FC_DIM: 48, POOLER_RESOLUTION: 7}\n"
        )
        name = str(tmp_path / "mine.yaml")
    plain = PluginChoice(plugin="detectron2", model=name)
    model: Any = replace(definition(), detector=plain).build()
    if name.endswith("mine.yaml"):
        assert model.regions == {"model.roi_heads": 77}
        assert {module.out_features for module in model.modules() if isinstance(module, torch.nn.Linear)} == {48, 4, 12}
        assert isinstance(model.model.backbone.fpn_lateral5.norm, torch.nn.GroupNorm)
    else:
        assert model.regions == {"model.roi_heads": 1000} and not learns_masks(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "fastr_rcnn"}, "unknown configuration of detectron2 'fastr_rcnn'. Did you mean 'faster_rcnn'"),
        ({"model": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"}, "which has no FPN; expected a configuration with"),
        ({"anchor_sizes": [8, 16]}, r"anchor_sizes is \[8, 16\]; this pyramid has 5 levels, so expected 5 sizes"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        definition(**options).build()


def test_maps_of_padding_are_known_and_pyramid_and_blocks_are_tapped() -> None:
    images = Images(Decoded(Rectangles(64)), [0], CPU)
    settings = CovarianceSettings(points=["conv", "block", "act", "fpn"], heads=True)
    found = {str(tap.key): tap for tap in observed_taps(definition(OWN, **BOXES).build(), settings, images)}
    assert {"stem.conv1#0:conv", "res5.1#0:block", "model.backbone[p6]#0:fpn"} <= found.keys()
    assert {tap.padding for key, tap in found.items() if "roi_heads" not in key} == {"excluded"}
    assert found["model.roi_heads.box_head.fc_relu1#0:act"].padding == "none"


def test_torchvisions_weights_give_torchvisions_features_in_its_resnet() -> None:
    torch.manual_seed(0)
    oracle = torchvision.models.resnet50()
    for module in oracle.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.get_buffer("running_mean"), -0.1, 0.1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    names = {"bn1.": "conv1.norm.", "bn2.": "conv2.norm.", "bn3.": "conv3.norm."}
    names |= {"downsample.0.": "shortcut.", "downsample.1.": "shortcut.norm."}
    state = {}
    for key, value in oracle.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        stage = key.startswith("layer")
        key = f"res{int(key[5]) + 1}{key[6:]}" if stage else f"stem.{key}"
        state[key] = value
    model = plugins.bind("backbone", PluginChoice(plugin="detectron2_resnet", norm="batch"))()
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("stem.fc")})
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        found = model.eval()(images)["res5"].mean((2, 3))
        oracle.fc = torch.nn.Identity()
        torch.testing.assert_close(found, oracle.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_the_same_weights_have_the_same_spectra_under_both_frameworks(size: tuple[int, int]) -> None:
    """Of every tap in the backbone, that is of what the pyramid reads, on images of several shapes."""
    backbone = BackboneChoice(plugin="resnet", depth=18, width=0.25, norm="batch", norm_groups=8)
    choices = {
        "detectron2": {"plugin": "detectron2"} | SMALL,
        "torchvision": {"plugin": "faster_rcnn"} | SMALL,
    }
    built = {
        name: Definition(backbone, ["a", "b"], size, PluginChoice(**choice)).build() for name, choice in choices.items()
    }
    weights = copy.deepcopy(backbone_of(built["detectron2"]).state_dict())
    backbone_of(built["torchvision"]).load_state_dict(weights)
    random = torch.Generator().manual_seed(0)
    shapes = [(64, 80), (120, 71), (33, 99)]
    images = [[torch.rand(3, *shape, generator=random)] for shape in shapes]
    settings = CovarianceSettings(points=["conv", "norm", "act", "block"])
    found = {
        name: {str(tap.key): tap for tap in observed_taps(model, settings, images)} for name, model in built.items()
    }
    assert found["detectron2"].keys() == found["torchvision"].keys() and len(found["torchvision"]) > 50
    for key, tap in found["detectron2"].items():
        other = found["torchvision"][key]
        assert (tap.covariance.count, tap.padding) == (other.covariance.count, "excluded")
        values = [spectrum.eigenvalues(t.covariance.covariance().numpy()) for t in (tap, other)]
        scale = max(float(values[0].max()), 1e-30)
        assert abs(values[0] - values[1]).max() <= 1e-6 * scale, key


@pytest.mark.slow
def test_it_goes_through_the_workflow_as_the_others_do(tmp_path: Path) -> None:
    configuration = minimal_experiment()
    configuration["arms"] = {"scratch": {}, "derived": {}}
    configuration["backbones"] = {"own": OWN}
    configuration["detectors"] = {"mask": {"plugin": "detectron2", "model": "mask_rcnn"} | BOXES}
    configuration["covariance"] |= {"arms": ["scratch"], "points": ["conv", "block"]}
    configuration["widths"]["point"] = "conv"
    result = snakemake(tmp_path, configuration)
    assert result.returncode == 0, said(result)
    summary = pd.read_csv(tmp_path / "results/minimal/summary.csv").set_index("arm")
    assert set(summary.index) == {"scratch", "derived"}
    assert summary["mask_AP"].between(0, 1).all()
    assert summary["backbone_macs"]["derived"] <= summary["backbone_macs"]["scratch"]


def test_without_detectron2_one_line_says_so_and_all_else_works() -> None:
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and str(CACHE) not in path]
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from eigendet import plugins\nfrom eigendet.config.sections import PluginChoice\n"
        "from eigendet.errors import UserError\nfrom eigendet.plugins import discovery\n"
        "print(discovery.find('detector', 'detectron2').unavailable)\n"
        "print(plugins.bind('detector', PluginChoice(plugin='faster_rcnn')).__name__)\n"
        "try: plugins.bind('detector', PluginChoice(plugin='detectron2'))\n"
        "except UserError as error: print(error)\n"
    )
    line = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    reason = "detectron2 is not installed: pip install --no-build-isolation on a checkout of its repository"
    first, second, third = result.stdout.splitlines()
    assert first.startswith(reason) and second == "detector faster_rcnn"
    assert third.startswith(
        f"detector plugin 'detectron2' (plugins/detectron2_networks.py:{find('detector', 'detectron2').line})"
    )
    assert reason in third


def test_real_masks_are_learnt_and_evaluated(values: dict[str, Any], tmp_path: Path) -> None:
    values["detectors"] = {"mask": {"plugin": "detectron2", "model": "mask_rcnn"} | BOXES}
    experiment = config.parse(values)
    stages.train(experiment, "scratch", "tiny", "mask", 0, tmp_path / "run")
    result = stages.evaluate(experiment, tmp_path / "run")
    assert result["boxes"].keys() == result["masks"].keys()
