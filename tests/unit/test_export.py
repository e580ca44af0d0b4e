from __future__ import annotations

import ast
import errno
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torchvision.models.detection import _utils, roi_heads
from torchvision.ops import MultiScaleRoIAlign, boxes, poolers

from eigendet.cli import main
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.errors import UserError
from eigendet.networks import program, sources
from eigendet.networks.definition import Definition
from eigendet.networks.standalone import outputs, standalone_code
from eigendet.runs import export
from tests.exporting import FAMILIES, RESNET, SIZE, Exported, definition_of, trained


def test_a_program_finds_nothing_where_nothing_is() -> None:
    choice = PluginChoice(plugin="fcos", **FAMILIES["fcos"])
    definition = Definition(BackboneChoice(**RESNET), ["cat"], SIZE, choice)
    with torch.no_grad():
        followed = program.program_of(definition.build().eval(), SIZE).module()
        found = followed(torch.rand(3, *SIZE))  # a new head says no everywhere
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
    }


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_code_of_other_backbones_and_detectors_names_its_packages(name: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    options = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 16, "queries": 5}
    backbone = {"timm": "resnet10t", "torchvision": "mobilenet_v3_small"}[name]
    choice = BackboneChoice(plugin=name, name=backbone, width=0.5)
    definition = Definition(choice, ["cat"], SIZE, PluginChoice(plugin="detr", **options))
    code = standalone_code(definition.build().eval(), definition, "Here.", "detector.pt")  # which tries it
    timm = "timm, " if name == "timm" else ""
    assert f"It needs {timm}torch, torchvision, transformers, and nothing else" in code
    modules = [node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module and module.startswith("eigendet")]


# What is replaced while torch.export follows a detector.


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_boxes_of_one_class_compete_as_in_torchvision(count: int) -> None:
    corners = torch.rand(count, 2, 2).mul(60).sort(dim=1).values.flatten(1)
    scores, classes = torch.rand(count), torch.randint(3, (count,))
    ours = program.batched_nms(corners, scores, classes, 0.3)
    assert torch.equal(ours, boxes.batched_nms(corners, scores, classes, 0.3))


@pytest.mark.parametrize("maps", [1, 3])
def test_boxes_are_pooled_from_their_own_level(maps: int) -> None:
    features = {str(level): torch.rand(1, 4, 64 >> level, 64 >> level) for level in range(maps)}
    corners = torch.rand(50, 2, 2).mul(256).sort(dim=1).values.flatten(1)
    pool = MultiScaleRoIAlign([*features], 7, 2, canonical_scale=64)
    expected = pool(features, [corners], [(256, 256)])
    with program.traceable():
        torch.testing.assert_close(pool(features, [corners], [(256, 256)]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 20])
def test_masks_are_pasted_as_in_torchvision(count: int) -> None:
    masks, corners = torch.rand(count, 1, 28, 28), torch.rand(count, 2, 2).mul(50).sort(dim=1).values.flatten(1)
    corners[:2] = torch.tensor([[-5.0, -3.0, 70.0, 60.0], [4.0, 4.0, 4.1, 4.2]])[:count]
    expected = roi_heads.paste_masks_in_image(masks, corners, (48, 64))
    torch.testing.assert_close(program.paste_masks(masks, corners, (48, 64)), expected, rtol=0, atol=1e-5)


def test_torchvision_is_as_before_afterwards() -> None:
    before = boxes.batched_nms, poolers._multiscale_roi_align, _utils.BoxCoder.decode
    with pytest.raises(RuntimeError), program.traceable():
        raise RuntimeError
    assert before == (boxes.batched_nms, poolers._multiscale_roi_align, _utils.BoxCoder.decode)


# What cannot be exported.


class Branching(nn.Module):
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        score = images[0].mean()
        return [{"boxes": score if score > 0.5 else -score}]


class Eigenvalues(nn.Module):
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        values = torch.linalg.eigvals(images[0][0, :4, :4]).real
        return [{"boxes": values, "labels": values, "scores": values}]


def test_what_torch_export_cannot_follow_is_named_and_nothing_else_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        UserError, match=r"^Branching: torch\.export cannot follow it at test_export\.py:\d+: .*data-dependent"
    ) as error:
        program.program_of(Branching(), (8, 8))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_onnx_lacks_is_named() -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match=r"^as ONNX it cannot be written: .*linalg_eig"):
        program.onnx_of(program.program_of(Eigenvalues(), (8, 8)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return trained(definition_of("ssd", 0.5), tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "python", "-o", "a.pt"], "a.pt: the suffix is '.pt'; for python expected '.py'."),
        (["--to", "onnx", "-o", "a"], "a: the suffix is ''; for onnx expected '.onnx'."),
        (["--to", "state-dict", "-o", "a.safetensors", "--size", "8x8"], "--size goes with torch.export and onnx"),
        (["--to", "torch.export", "-o", "a.pt2", "--size", "8"], "--size: got '8'; expected HEIGHTxWIDTH"),
        (["--to", "torch.export", "-o", "a.pt2", "--size", "0x8"], "--size: got '0x8'; expected HEIGHTxWIDTH"),
        (["--to", "python", "-o", "folder.py"], "folder.py: a folder; expected the name of a file to write."),
        (["--to", "python", "-o", "beside.py"], "beside.pt: a folder; expected the name of a file to write."),
        (["--to", "python", "-o", "file/a.py"], "file: File exists"),
    ],
    ids=["python", "onnx", "size", "one side", "no pixel", "folder", "weights' folder", "below a file"],
)
def test_a_wrong_request_is_one_line(
    run: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "beside.pt").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(main, ["export", str(run.folder), *arguments])
    assert result.exit_code == 1 and result.output.startswith(f"Error: {message}"), result.output
    assert len(result.output.splitlines()) == 1 and sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_not_complete_or_of_a_classifier_is_refused(run: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json: cannot be read .*; expected the record of a complete run"):
        export.export(tmp_path, "python", tmp_path / "a.py")
    own = trained(Definition(BackboneChoice(**RESNET), ["cat", "dog"], (32, 32)), tmp_path / "classifier")
    with pytest.raises(UserError, match=r"classifier: a run of a classifier; expected the folder of a detector's run"):
        export.export(own.folder, "python", tmp_path / "a.py")


@pytest.mark.parametrize(("to", "package"), [("state-dict", "safetensors"), ("onnx", "onnxscript")])
def test_a_missing_package_is_named(
    run: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find("json"))
    with pytest.raises(UserError, match=rf"^--to {to}: {package} is not installed: pip install {package}$"):
        export.export(run.folder, to, tmp_path / f"a{export.SUFFIXES[to]}")


def test_a_full_disk_leaves_what_was_there(run: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    code, weights = tmp_path / "a.py", tmp_path / "a.pt"
    code.write_text("# before")
    weights.write_bytes(b"before")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"a\.pt: cannot be written \(No space left on device\); what was there stands"):
        export.export(run.folder, "python", code)
    assert sorted(tmp_path.iterdir()) == [weights, code]
    assert (code.read_text(), weights.read_bytes()) == ("# before", b"before")


PLUGIN = """
from functools import cache
import torch
from eigendet.plugins import backbone
from eigendet.networks import parts
{extra}

@backbone
def mine(*, width: int = 8) -> "torch.nn.Module":
    {body}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    def write(body: str, extra: str = "") -> Any:
        name = f"eigendet_plugins_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(body=body, extra=extra))
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name).mine

    return write


def test_what_a_plugin_uses_is_taken_along_and_its_mark_is_not(plugin: Callable[..., Any]) -> None:
    taken = sources.Sources()
    taken.add(
        plugin(
            "count: int = half(width)\n    return count",
            "@cache\ndef half(number: int) -> int:\n    return number // 2",
        )
    )
    assert taken.definitions["half"] == "@cache\ndef half(number):\n    return number // 2"
    assert taken.definitions["mine"] == "def mine(*, width=8):\n    count = half(width)\n    return count"
    assert list(taken.definitions) == ["half", "mine"] and taken.imports == {"from functools import cache"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return parts.feature_channels(width)", "'from eigendet.networks import parts' cannot be taken along"),
        ("import eigendet.networks.parts\n    return width", "'import eigendet.networks.parts' cannot be taken along"),
        ("return build(width)", "'build' is also a name of the file that it is written to"),
    ],
)
def test_what_cannot_be_taken_along_is_named(plugin: Callable[..., Any], body: str, message: str) -> None:
    function = plugin(body, "def build(width):\n    return width")
    with pytest.raises(UserError, match=message):
        sources.Sources(["build"]).add(function)


def test_code_that_gives_other_outputs_is_refused(run: Exported) -> None:
    own: Any = run.definition.build().eval()
    own.load_state_dict(run.model.state_dict())
    own.score_thresh = 0.3  # a number, which the file sets
    assert "'score_thresh': 0.3" in standalone_code(own, run.definition, "Here.", "a.pt")
    own.register_forward_hook(lambda module, inputs, given: [{"boxes": given[0]["boxes"] + 1}])
    with pytest.raises(UserError, match="as code of its own the detector gives other outputs"):
        standalone_code(own, run.definition, "Here.", "a.pt")
    assert len(outputs(own, run.definition)) > 3
