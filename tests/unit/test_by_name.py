from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eigendet import channels
from eigendet.cli import main
from eigendet.errors import UserError
from eigendet.networks import by_name
from eigendet.networks.by_name import trace_by_name

MODULE = """
from torch import nn
from torchvision.models import detection

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))

class Family:
    small = Net

network = Net()

def detector():
    return detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=64)

def asks(width): ...
def gives_no_network(): return 3
def fails(): raise RuntimeError("no data")
def fails_at_length(): raise RuntimeError("no data\\nnor anything else")
def gives_what_exists(): return network
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that one works in, without a configuration."""
    (tmp_path / "lab_networks.py").write_text(MODULE)
    (tmp_path / "lab_broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / "lab_long.py").write_text("raise ValueError('one\\\\ntwo')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "lab_networks", raising=False)
    return tmp_path


def output(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["channels", *arguments])
    assert isinstance(result.exception, SystemExit | None)
    return result.output


def test_a_network_of_torchvision_needs_no_configuration(folder: Path) -> None:
    printed = output("torchvision:resnet18")
    assert printed.splitlines()[1].startswith(
        "conv1              64            1      83,520  349,224,960  conv1 (out)"
    )
    assert "in all 11,689,512 parameters, 1,814,073,344 MACs" in printed
    assert printed.splitlines()[-1] == "MACs are for one image of 224x224 pixels"
    with FlopCounterMode(display=False) as flops:
        torchvision.models.resnet18().eval()(torch.rand(1, 3, 64, 96))
    counted = f"in all 11,689,512 parameters, {flops.get_total_flops() // 2:,} MACs"
    assert counted in output("torchvision:resnet18", "--size", "64x96")


@pytest.mark.parametrize(
    ("name", "side"), [("inception_v3", 299), ("mobilenet_v3_small", 224), ("efficientnet_b1", 240)]
)
def test_images_are_those_that_torchvision_has_the_network_for(name: str, side: int) -> None:
    traced = trace_by_name(f"torchvision:{name}")
    assert traced.image == (3, side, side) and traced.channels.widths


def test_a_network_of_timm_needs_no_configuration(folder: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    printed = output("timm:resnet10t")
    assert "MACs are for one image of 176x176 pixels" in printed
    parameters = sum(parameter.numel() for parameter in timm.create_model("resnet10t").parameters())
    assert f"in all {parameters:,} parameters" in printed


def test_a_detector_of_torchvision_is_followed_whole() -> None:
    traced, image, resized, regions = trace_by_name("torchvision:ssdlite320_mobilenet_v3_large")
    assert image == (3, 320, 320) and resized == (320, 320) and not regions
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert traced.parameters(traced.widths) == sum(parameter.numel() for parameter in model.parameters())
    assert any(layer.module.startswith("head.") for layer in traced.layers)


@pytest.mark.parametrize("name", ["Net", "network", "Family.small"])
def test_what_a_module_of_this_folder_builds(folder: Path, name: str) -> None:
    printed = output(f"lab_networks:{name}", "--size", "1x8x8")
    assert printed.splitlines()[1].split()[:4] == ["0", "8", "1", "80"]
    assert "in all 2,970 parameters, 5,472 MACs" in printed


def test_a_detector_of_a_module_of_this_folder(folder: Path) -> None:
    printed = output("lab_networks:detector", "--size", "64x64")
    assert "\nhead.classification_head.conv.0.0 " in printed
    assert printed.endswith("\nMACs are for one image of 64x64 pixels\n")
    assert output("lab_networks:detector").endswith(
        "\nMACs are for one image of 224x224 pixels, which the detector resizes to 64x64; that size is assumed, --size "
        "says another\n"
    )


def test_a_detector_is_counted_with_as_many_boxes_as_it_looks_at(folder: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    detector = partial(torchvision.models.get_model, name, weights=None, weights_backbone=None)
    traced = channels.trace_detector(detector, size=(320, 320))
    macs = {layer.module: layer.macs(traced.widths) for layer in traced.layers}
    named = trace_by_name(f"torchvision:{name}", (3, 320, 320))
    assert {layer.module: layer.macs(traced.widths) for layer in named.channels.layers} == macs
    assert macs["roi_heads.box_head.fc7"] == 150 * 1024 * 1024 and named.regions == {"roi_heads": 150}
    assert named.counted_for(is_assumed=False) == "one image of 320x320 pixels, 150 boxes in roi_heads"


def test_masks_and_keypoints_are_of_the_detections_and_a_detector_inside_another_module_counts_alike() -> None:
    options = {"weights": None, "weights_backbone": None}
    masked = torchvision.models.detection.maskrcnn_resnet50_fpn(**options, box_detections_per_img=7)
    assert by_name._regions(nn.ModuleDict({"net": masked})) == {"net.roi_heads": 1000, "net.roi_heads.mask": 7}
    posed = torchvision.models.detection.keypointrcnn_resnet50_fpn(**options, rpn_post_nms_top_n_test=20)
    assert by_name._regions(posed) == {"roi_heads": 20, "roi_heads.keypoint": 100}
    masked.regions = {"roi_heads": 5}
    assert by_name._regions(masked) == {"roi_heads": 5} and masked.training
    assert by_name._resized(masked, (3, 100, 200)) == (666, 1333)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision:resnet19"], "unknown network of torchvision 'resnet19'. Did you mean 'resnet18'?"),
        (["torchvision:"], "'torchvision:' names no network; expected torchvision:NAME, timm:NAME, or MODULE:FUNCTION"),
        ([":build"], "':build' names no network"),
        (["torchvision:raft_small"], "RAFT: cannot be run on an image of (224, 224): "),
        (["torchvision:ssd300_vgg16", "--size", "64x64"], "--size: ssd300_vgg16 resizes every image to 300x300"),
        (
            ["torchvision:fcos_resnet50_fpn", "--size", "1x64x64"],
            "--size: images of 1 channels; a detector is tried on",
        ),
        (["torchvision:resnet18", "--size", "64"], "--size: got '64'; expected HEIGHTxWIDTH"),
        (["torchvision:resnet18", "--size", "0x64"], "--size: got '0x64'"),
        (["torchvision:resnet18", "--size", "axb"], "--size: got 'axb'"),
        (["torchvision:resnet18", "--detector", "rcnn"], "'torchvision:resnet18' stands for itself"),
        (["torchvision:resnet18", "-c", "my.yaml"], "'torchvision:resnet18' stands for itself"),
        (["lab_network:build"], "there is no module 'lab_network' in "),
        (["lab_networks.py:Net"], "Write 'lab_networks:Net'."),
        (["lab_networks:build"], "lab_networks:build: module 'lab_networks' has no attribute 'build'"),
        (["lab_networks:asks"], "lab_networks:asks() fails: TypeError: asks() missing 1 required positional argument"),
        (["lab_networks:gives_no_network"], "lab_networks:gives_no_network: gives int; expected a network"),
        (["lab_networks:fails"], "lab_networks:fails() fails: RuntimeError: no data; expected a function"),
        (["lab_networks:Net"], "cannot be run on an image of (224, 224): "),
        (
            ["lab_networks:Net"],
            "That image had 3 channels, assumed without --size; another --size CHANNELSxHEIGHTxWIDTH",
        ),
        (
            ["lab_networks:Net", "--size", "2x64x64"],
            "That image had 2 channels; another --size CHANNELSxHEIGHTxWIDTH may",
        ),
        (["torchvision:r3d_18"], "That image had 3 channels, assumed without --size; another --size"),
        (["lab_networks:fails_at_length"], "lab_networks:fails_at_length() fails: RuntimeError: no data; expected a"),
        (
            ["lab_networks:gives_what_exists"],
            "Net: the function gives the network again each time it is called; expected",
        ),
        (["lab_long:build"], "lab_long cannot be imported: ValueError: one"),
        (["lab_broken:build"], "lab_broken cannot be imported: No module named 'nowhere_to_be_found'"),
        (["resnet50"], "config.yaml: no such file, in whose `backbones` 'resnet50' would be looked for. Without a"),
        (["resnet50"], "torchvision:resnet50, timm:resnet50, or my_module:resnet50"),
        (["resnet50", "-c", "my.yaml"], "my.yaml: no such file"),
        (["resnet50", "--size", "64x64"], "--size: of 'resnet50' the configuration says it"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    printed = output(*arguments)
    assert message in printed and len(printed.splitlines()) == 1


def test_timm_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed: pip install 'eigendet\[timm\]'"):
        trace_by_name("timm:resnet50")


def test_the_same_groups_as_those_of_the_function() -> None:
    traced = trace_by_name("torchvision:resnet18", (3, 64, 64)).channels
    assert traced == channels.trace(torchvision.models.resnet18, (64, 64))
