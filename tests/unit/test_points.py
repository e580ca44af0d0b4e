"""A point is found by what a module is: its class, or the family that its name and its parts say."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from eigendet.errors import UserError
from eigendet.observe.points import point_of
from eigendet.observe.taps import tap

NOT_OF_EACH_ELEMENT = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin"}
ARGUMENTS = {"MultiheadAttention": (8, 2), "Threshold": (0.1, 0.0)}


def classes_of(module: str, reason: str = "") -> Iterator[type[nn.Module]]:
    """Every module class that a Python module defines, and not one that it imports."""
    imported = pytest.importorskip(module, reason=reason)
    for _, cls in inspect.getmembers(imported, inspect.isclass):
        if issubclass(cls, nn.Module) and cls.__module__ == module:
            yield cls


def is_elementwise(module: nn.Module) -> bool:
    """Whether each element of what comes out depends on the same one of what goes in, and on no other."""
    maps = torch.linspace(-3, 3, 96).reshape(2, 8, 2, 3)
    with torch.no_grad():
        whole = module.eval()(maps)
        other = maps.clone()
        other[1, 3, 1, 2] += 1
        changed = module(other) != whole
    return bool(whole.shape == maps.shape and changed.sum() <= 1 and not changed[0].any())


def test_the_whole_list_of_torch() -> None:
    module = "torch.nn.modules.activation"
    names = importlib.import_module(module).__all__
    assert set(names) <= {cls.__name__ for cls in classes_of(module)}
    others = set()
    for name in names:
        activation = getattr(nn, name)(*ARGUMENTS.get(name, ()))
        if point_of(activation) == "act":
            assert is_elementwise(activation), name
        else:
            others.add(name)
    assert others == NOT_OF_EACH_ELEMENT


@pytest.mark.parametrize("module", ["timm.layers.activations", "timm.layers.activations_me"])
def test_every_activation_of_timm(module: str) -> None:
    activations = [cls() for cls in classes_of(module, "needs timm")]
    assert len(activations) >= 5
    for activation in activations:
        assert point_of(activation) == "act", activation
        assert is_elementwise(activation), activation


def test_every_activation_of_transformers() -> None:
    functions = pytest.importorskip("transformers.activations", reason="needs transformers").ACT2FN
    assert len(functions) >= 20
    for name in functions:
        assert point_of(functions[name]) == "act", name
        assert is_elementwise(functions[name]), name


def test_gates_of_squeeze_and_excitation() -> None:
    layers = pytest.importorskip("timm.layers", reason="needs timm")
    squeeze = layers.SqueezeExcite(8, gate_layer="hard_sigmoid")
    assert [point_of(part) for part in (squeeze, squeeze.gate, squeeze.act)] == ["output", "act", "act"]
    assert point_of(layers.SqueezeExcite(8, gate_layer=layers.activations.Sigmoid).gate) == "act"


class HardSigmoid(nn.Module):
    """As networks of the web write it: an activation in an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, maps: Tensor) -> Tensor:
        return self.relu(maps + 3) / 6


class h_swish(nn.Module):  # noqa: N801
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = HardSigmoid()
        self.beta = nn.Buffer(torch.tensor(1.0))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.sigmoid(self.beta * maps)


class DynamicReLU(nn.Module):
    """Coefficients from the whole map: no function of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, maps: Tensor) -> Tensor:
        return maps.relu() * self.fc(maps.mean((2, 3)))[:, :, None, None]


class MixingReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.einsum("dc,nchw->ndhw", self.weight, maps.relu())


def test_a_class_of_ones_own_is_an_activation_by_its_name_and_parts() -> None:
    for activation in (HardSigmoid(), h_swish()):
        assert is_elementwise(activation)
        assert point_of(activation) == "act", activation
    for module in (DynamicReLU(), MixingReLU(), nn.Identity(), nn.Dropout(), nn.Flatten()):
        assert point_of(module) == "output", module


def test_a_network_with_functions_for_activations_is_refused_with_what_it_has() -> None:
    class Functional(nn.Sequential):
        def forward(self, maps: Tensor) -> Tensor:
            return torch.relu(super().forward(maps))

    with (
        pytest.raises(
            UserError,
            match=r"none of the modules is act; there are conv \(1\), output \(1\); functions such as torch.relu",
        ),
        tap(Functional(nn.Conv2d(3, 4, 1))),
    ):
        pass
