"""Weights as people have them: taken where it is clear which are meant, refused by name where it is not."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from eigendet.config.sections import BackboneChoice
from eigendet.networks import weights
from eigendet.networks.backbones import build_backbone
from tests.faults.refusal import check_refusal, refused

State = dict[str, Tensor]


@lru_cache
def trained() -> State:
    """Return a small ResNet-18's weights, with a classifier."""
    torch.manual_seed(0)
    network = build_backbone(BackboneChoice(plugin="resnet", depth=18, width=0.125, norm="batch"))
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + ("running_var" in name))
    return network.state_dict() | {"fc.weight": torch.rand(7, 64), "fc.bias": torch.rand(7)}


def state(prefix: str = "", **changed: Tensor | None) -> State:
    """Return it with names that begin so, and some of its entries changed or, with None, left out."""
    entries = trained() | {name.replace("__", "."): value for name, value in changed.items()}
    return {prefix + name: value.clone() for name, value in entries.items() if value is not None}


def others(prefix: str = "") -> State:
    """Return weights of the same network with other values."""
    return {name: value + 1 for name, value in state(prefix).items()}


def inside(entries: State, name: str, wrapper: str) -> State:
    """Return entries with a wrapper's name inside the names that begin with `name`."""
    return {key.replace(name, name + wrapper, 1) if key.startswith(name) else key: own for key, own in entries.items()}


class Recipe:
    """Something of another library that stands beside weights."""

    def __init__(self) -> None:
        self.steps = [1, 2]


ACCEPTED: dict[str, Callable[[], Any]] = {
    "as they are": state,
    "ordered": lambda: OrderedDict(state()),
    "without a classifier": lambda: state(fc__weight=None, fc__bias=None),
    "with a classifier of another size": lambda: state(fc__weight=torch.rand(1000, 64), fc__bias=torch.rand(1000)),
    "state_dict": lambda: {"state_dict": state(), "epoch": 3},
    "model": lambda: {"model": state(), "lr": 0.1},
    "model_state_dict": lambda: {"model_state_dict": state(), "history": [1.0, 2.0]},
    "network": lambda: {"network": state()},
    "two wrappers": lambda: {"checkpoint": {"model": state("module.")}},
    "module.": lambda: state("module."),
    "_orig_mod.": lambda: state("_orig_mod."),
    "module._orig_mod.": lambda: state("module._orig_mod."),
    "a compiled stage": lambda: inside(state(), "layer1.", "_orig_mod."),
    "a checkpointed stage": lambda: inside(state(), "layer2.0.", "_checkpoint_wrapped_module."),
    "model.": lambda: state("model."),
    "net.": lambda: state("net."),
    "0.body.": lambda: state("0.body."),
    "backbone.0.body., a detector": lambda: state("backbone.0.body.") | {"transformer.weight": torch.rand(3)},
    "backbone.body., a detector": lambda: state("backbone.body.") | {"rpn.head.conv.weight": torch.rand(3)},
    "module.encoder_q.": lambda: (
        state("module.encoder_q.") | others("module.encoder_k.") | {"module.queue": torch.rand(2)}
    ),
    "Lightning's": lambda: {"state_dict": state("model."), "hyper_parameters": {"lr": 1}, "global_step": 5},
    "a teacher as its student": lambda: state("student.") | state("teacher."),
    "an average alone": lambda: {"model_ema": state("module.")},
    "beside an average": lambda: {"model": state(), "model_ema": others()},
    "beside an averaged state": lambda: {"state_dict": state(), "state_dict_ema": others()},
    "beside an average in names": lambda: state("model.") | others("ema.module."),
    "with an optimizer": lambda: {
        "model": state(),
        "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "with args": lambda: {"model": state(), "args": argparse.Namespace(lr=0.1, data=Path("/data"))},
    "with numpy's numbers": lambda: {"state_dict": state(), "best": np.float64(0.7), "loss": np.ones(3)},
    "with another library's objects": lambda: {"state_dict": state(), "recipe": Recipe(), "kind": Recipe},
    "in half precision": lambda: {
        name: own.half() if own.is_floating_point() else own for name, own in state().items()
    },
    "in double precision": lambda: {
        name: own.double() if own.is_floating_point() else own for name, own in state().items()
    },
    "as parameters": lambda: {name: nn.Parameter(own, own.is_floating_point()) for name, own in state().items()},
    "without counters": lambda: {name: own for name, own in state().items() if "num_batches" not in name},
    "with a profiler's counters": lambda: state(layer1__0__total_ops=torch.zeros(1), total_params=torch.zeros(1)),
}


def network(**options: object) -> nn.Module:
    return build_backbone(
        BackboneChoice(**({"plugin": "resnet", "depth": 18, "width": 0.125, "norm": "batch"} | options))
    )


def load(file: Path, **options: object) -> tuple[State, str]:
    into = network(**options)
    said = weights.load_backbone(into, weights.read_weights(str(file)), str(file))
    return into.state_dict(), said


def check_taken(got: State, precision: float = 0.0) -> None:
    for name, tensor in got.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, trained()[name], rtol=precision, atol=0, msg=name)


@pytest.mark.fault(kind="weights", stage="pretrained")
@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_weights_are_taken_from_what_people_have(content: Callable[[], Any], tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "own.pt")
    got, said = load(tmp_path / "own.pt")
    check_taken(got, 1e-3 if content is ACCEPTED["in half precision"] else 0.0)
    assert f"{tmp_path / 'own.pt'}: took 100 entries" in said


@pytest.mark.fault(kind="weights", stage="pretrained")
def test_safetensors_are_weights(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state("model."), tmp_path / "own.safetensors")
    got, _ = load(tmp_path / "own.safetensors")
    check_taken(got)


@pytest.mark.fault(kind="weights", stage="pretrained")
@pytest.mark.parametrize("name", ["nf_resnet26", "mobilenetv3_small_050"])  # the first has a stem of several modules
def test_whole_networks_of_timm_fit(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    whole = timm.create_model(name, num_classes=3)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "own.pt")
    into = build_backbone(BackboneChoice(plugin="timm", name=name))
    weights.load_backbone(into, weights.read_weights(str(tmp_path / "own.pt")), "own.pt")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        last = list(into.eval()(images).values())[-1]
        exact = whole.eval().forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(last, exact)


def test_what_was_stripped_and_left_out_is_said(tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    torch.save({"model": state("module.") | {"module.aux.weight": torch.rand(2)}, "model_ema": others()}, file)
    _, said = load(file)
    assert said == (
        f"{file}: took 100 entries, whose names begin with 'model.module.'; left out model.module.fc (2), "
        "model.module.aux (1), model_ema (102)"
    )


def changed(name: str, change: Callable[[Tensor], Tensor]) -> State:
    return state() | {name: change(trained()[name].clone())}


def one_wrong(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


CONV = "layer1.0.conv1.weight"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing in it": (dict, "holds no tensors"),
    "a list": (lambda: [torch.rand(2)], "holds no tensors"),
    "a tensor": (lambda: torch.rand(2), "holds no tensors"),
    "numbers": (lambda: {"conv1.weight": 1.0}, "holds no tensors"),
    "numpy's arrays": (lambda: {"conv1.weight": np.ones(3)}, "objects of numpy"),
    "a whole network": (lambda: models.resnet18(), r"objects of torch\.nn\..*: save the state_dict\(\)"),
    "a wrapped network": (lambda: {"model": models.resnet18()}, r"objects of torch\.nn\."),
    "an optimizer alone": (
        lambda: {"optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}}},
        "the backbone needs conv1",
    ),
    "another network": (
        lambda: models.vgg11(num_classes=2).features.state_dict(),
        "expected weights of the same network",
    ),
    "a part missing": (
        lambda: {k: v for k, v in state().items() if "layer4" not in k},
        r"no 'layer4.0.conv1.weight'.* 24 o",
    ),
    "one missing": (lambda: state(layer1__0__conv1__weight=None), f"no '{CONV}'"),
    "another width": (
        lambda: models.resnet18(num_classes=2).state_dict(),
        r"'conv1.weight' is \(64, 3, 7, 7\); .*\(8, 3",
    ),
    "a deeper stage": (
        lambda: state(layer1__2__conv1__weight=torch.rand(8, 8, 3, 3)),
        "has 'layer1.2.conv1.weight', for",
    ),
    "a deeper last stage": (lambda: state(layer4__2__conv1__weight=torch.rand(2)), "no place in its 'layer4'"),
    "a bias": (lambda: state(conv1__bias=torch.rand(8)), "has 'conv1.bias', for which"),
    "an attention gate": (lambda: state(layer1__0__se__fc__weight=torch.rand(8)), "no place in its 'layer1.0'"),
    "deeper, in a wrapper": (
        lambda: {"model": state("module.", layer1__2__bias=torch.rand(8))},
        "has 'model.module.layer1.2",
    ),
    "NaN": (lambda: changed(CONV, one_wrong(float("nan"))), f"'{CONV}' has 1 values of 576 that are not finite"),
    "infinite": (lambda: changed("bn1.bias", one_wrong(float("inf"))), "'bn1.bias' has 1 values of 8 that"),
    "a negative variance": (lambda: changed("bn1.running_var", one_wrong(-0.5)), "variance of -0.5"),
    "integers": (lambda: changed(CONV, lambda own: own.to(torch.int8)), "is of int8; expected finite"),
    "complex": (lambda: changed(CONV, lambda own: own.to(torch.complex64)), "is of complex64; expected finite"),
    "booleans": (lambda: changed(CONV, lambda own: own > 0), "is of bool; expected finite"),
    "sparse": (lambda: changed(CONV, Tensor.to_sparse), "quantized, sparse or without values"),
    "quantized": (
        lambda: changed(CONV, lambda own: torch.quantize_per_tensor(own, 0.1, 0, torch.qint8)),
        "quantized, sparse or without values",
    ),
    "without values": (lambda: changed(CONV, lambda own: own.to("meta")), "quantized, sparse or without values"),
    "pruned by a mask": (
        lambda: (
            state(layer1__0__conv1__weight=None)
            | {f"{CONV}_orig": trained()[CONV], f"{CONV}_mask": torch.ones(8, 8, 3, 3)}
        ),
        f"no '{CONV}'",
    ),
    "two networks": (lambda: state("student.") | others("teacher."), "more than once.*'student.' and 'teacher.'"),
    "two kinds of wrapper": (lambda: {"first": state(), "second": others()}, "more than once.*'first.' and 'second.'"),
    "compiled and not": (lambda: state() | state("_orig_mod."), "with and without"),
    "names that a terminal obeys": (lambda: {"\x1b[31mred\x07\nline": torch.rand(2)}, r"\\x1b\[31mred\\x07"),
    "names that are numbers": (lambda: {0: torch.rand(2)}, "holds 0; the backbone needs"),
}


@pytest.mark.fault(kind="weights", stage="pretrained")
@pytest.mark.parametrize(("content", "says"), REFUSED.values(), ids=REFUSED)
def test_weights_of_something_else_are_refused(content: Callable[[], Any], says: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "own.pt")
    with refused(tmp_path / "own.pt", says):
        load(tmp_path / "own.pt")


DEPTHS = [(18, 34), (34, 18), (50, 101), (101, 50), (18, 50)]


@pytest.mark.fault(kind="weights", stage="pretrained")
@pytest.mark.parametrize(("depth", "other"), DEPTHS)
def test_weights_of_another_depth_are_refused(depth: int, other: int, tmp_path: Path) -> None:
    torch.save(network(depth=other, width=0.125).state_dict(), tmp_path / "own.pt")
    with refused(tmp_path / "own.pt", "layer"):
        load(tmp_path / "own.pt", depth=depth)


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be loaded"),
    "text": (b"conv1.weight: 1\n", "cannot be loaded"),
    "a pickle": (b"\x80\x04}.", "cannot be loaded"),
    "an archive of something else": (b"PK\x05\x06" + bytes(18), "cannot be loaded"),
    "zeros": (bytes(4096), "cannot be loaded"),
}


@pytest.mark.fault(kind="weights", stage="pretrained")
@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", ["own.pt", "own.safetensors"])
def test_files_of_another_kind_are_refused(content: bytes, says: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(tmp_path / name, says if name == "own.pt" else "cannot be read"):
        load(tmp_path / name)


@pytest.mark.fault(kind="weights", stage="pretrained")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    torch.save(state(), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with refused(file, "cannot be loaded"):
        load(file)


@pytest.mark.fault(kind="weights", stage="pretrained")
def test_torchscript_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    (tmp_path / "folder.pt").mkdir()
    for name, says in (("script.pt", "TorchScript"), ("folder.pt", "a folder"), ("none.pt", "no such file")):
        with refused(tmp_path / name, says):
            load(tmp_path / name)


class Harmful:
    """Runs a function where it is unpickled."""

    def __init__(self, run: Callable[..., Any], file: Path) -> None:
        self.run, self.file = run, file

    def __reduce__(self) -> tuple[Any, ...]:
        return self.run, (str(self.file), "w")


@pytest.mark.fault(kind="weights", stage="pretrained")
def test_objects_beside_weights_are_not_run(tmp_path: Path) -> None:
    torch.save({"model": state(), "harm": Harmful(open, tmp_path / "ran")}, tmp_path / "own.pt")
    check_taken(load(tmp_path / "own.pt")[0])
    torch.save({"model": state(), "harm": Harmful(Path.write_text, tmp_path / "ran")}, tmp_path / "method.pt")
    with refused(tmp_path / "method.pt", "cannot be loaded"):
        load(tmp_path / "method.pt")
    assert not (tmp_path / "ran").exists()


def test_what_a_refusal_must_be() -> None:
    with pytest.raises(AssertionError, match="not one printable line"):
        check_refusal("own.pt: no\nexpected more", "own.pt")
