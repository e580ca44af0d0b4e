"""What breaks a link of a map to its layer's input, a pass, or where channels are: right, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.ops import Permute

from eigendet.errors import UserError
from eigendet.observe.taps import tap
from tests.tapping import error, exact
from tests.unit.test_hostile import EVERY, ByHand, batches, small


class Sine(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).sin()


def own_forward(layer: Any) -> None:
    plain = layer.forward
    layer.forward = lambda images: plain(images).sin()


CHANGES: dict[str, Callable[[Any], object]] = {
    "forward": own_forward,
    "class": lambda layer: setattr(layer, "__class__", Sine),
    "pre-hook": lambda layer: layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
    "hook": lambda layer: layer.register_forward_hook(lambda module, inputs, output: output * 2),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "bias": lambda layer: layer.bias.data.add_(3),
    "numpy": lambda layer: layer.weight.detach().numpy().__imul__(2),
    "autocast": lambda layer: torch.set_autocast_enabled("cpu", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_changes_between_passes(change: str) -> None:
    model = small()
    with torch.autocast("cpu", enabled=False), torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for number, batch in enumerate(batches(4)):
            if number == 2:
                CHANGES[change](model[2])
            model(batch)
    assert by_hand.worst(taps) < 1e-6


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_class_that_changes_between_passes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = small(), getattr(nn.Conv2d, method)
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            model(batch)
            monkeypatch.setattr(nn.Conv2d, method, lambda layer, *inputs: plain(layer, *inputs).sin())
    assert by_hand.worst(taps) < 1e-6


def last_row(layer: Any) -> None:
    layer.weight.data[-1].mul_(-3)


@pytest.mark.parametrize("change", [last_row, lambda layer: setattr(layer, "stride", (2, 2))])
def test_what_no_state_shows_is_refused_with_tap_and_pass(change: Callable[[Any], None]) -> None:
    model, (first, second, third) = small(), batches()
    message = r"^2#0:conv: does not follow in forward pass 1 .* Give shortcuts=False\.$"
    with pytest.raises(UserError, match=message), torch.no_grad(), tap(model, EVERY):
        model(first)
        change(model[2])
        model(second)
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY, shortcuts=False) as taps:
        model(first)
        model(third)
    assert by_hand.worst(taps) < 1e-6


@pytest.mark.parametrize("moment", ["before", "between"])
def test_weights_written_to_by_the_model_itself(moment: str) -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
            self.first = self.b.weight.detach().clone()

        def forward(self, images: Tensor) -> Tensor:
            maps: Tensor = self.a(images)
            if moment == "before":
                self.b.weight.data.mul_(1.5)
                return torch.as_tensor(self.b(maps))
            maps = self.b(maps)
            self.b.weight.data.mul_(-0.7)
            maps = self.b(maps)
            self.b.weight.data.copy_(self.first)
            return maps

    model = Writing().eval()
    if moment == "before":
        message = r"b#0:conv: does not follow in forward pass 1"
        with pytest.raises(UserError, match=message), torch.no_grad(), tap(model, EVERY):
            for batch in batches():
                model(batch)
        return
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            model(batch)
    assert by_hand.worst(taps) < 1e-6


def test_weights_written_to_after_the_last_pass_are_no_fault() -> None:
    model = small()
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            model(batch)
        model[2].weight.data.mul_(2)  # type: ignore[operator]
    assert by_hand.worst(taps) < 1e-6


@pytest.mark.parametrize("new", [nn.Conv2d(8, 16, 1), nn.Sequential(nn.Conv2d(8, 16, 1))])
def test_another_module_in_a_modules_place_is_refused(new: nn.Module) -> None:
    model = small()
    message = "2: another module was put in its place while the model was tapped"
    with pytest.raises(UserError, match=message), torch.no_grad(), tap(model, EVERY, shortcuts=False):
        model(batches()[0])
        model[2] = new
        model(batches()[0])


def test_a_wrapper_around_a_module_is_fine() -> None:
    model = small()
    with torch.no_grad(), tap(model, "conv") as taps:
        model(batches()[0])
        model[2] = nn.Sequential(model[2])
        model(batches()[0])
    assert taps["2#0:conv"].count == 2 * 2 * 49


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_failed_is_said_and_shifts_nothing(raised: type[BaseException], caplog: Any) -> None:
    class Failing(nn.Module):
        is_on = False

        def forward(self, images: Tensor) -> Tensor:
            if self.is_on:
                raise raised
            return images * 1

    failing = Failing()
    model = nn.Sequential(*list(small())[:2], failing, *list(small())[2:]).eval()
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for number, batch in enumerate(batches(4)):
            failing.is_on = number == 2
            by_hand.calls.clear()
            try:
                model(batch)
            except raised:
                continue
    assert taps.passes == 3
    assert by_hand.worst(taps) < 1e-6
    assert "forward pass 2 failed, but its samples stay counted in 0#0:conv, 1#0:norm" in caplog.text


def test_a_model_that_returns_nothing_has_passes() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, images: Tensor) -> None:
            self.body(images)

    model = Silent()
    with torch.no_grad(), tap(model, "conv") as taps:
        try:
            raise ValueError
        except ValueError:
            for batch in batches():
                model(batch)
    assert (taps.passes, taps["body.0#0:conv"].count) == (3, 3 * 2 * 49)


def test_parts_that_a_function_calls_in_turn_are_said_to_be_one_tap(caplog: pytest.LogCaptureFixture) -> None:
    act = nn.ReLU()
    model = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(4, 8, 3), act), "act": act})
    with torch.no_grad(), tap(model, "act"):
        for batch in batches():
            act(model["body"](batch) - 1)
    assert caplog.text.count("was seen in passes that began with body and with body.1, and is one tap") == 1


class Conv1d(nn.Module):
    """A convolution, a function, and layers without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.function, self.layers = nn.Conv1d(3, 6, 3), function, nn.Sequential(*layers)

    def forward(self, series: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(self.function(self.conv(series))))


@pytest.mark.parametrize(
    "model",
    [
        Conv1d(torch.relu, nn.MaxPool1d(2)),
        Conv1d(lambda maps: nn.functional.max_pool1d(maps, 2), nn.ReLU()),
        Conv1d(lambda maps: nn.functional.pad(maps, (3, 3)), nn.ReLU()),
        Conv1d(torch.relu, nn.GLU(1), nn.Dropout()),
        nn.Sequential(nn.Conv2d(3, 6, (1, 3)), nn.Flatten(2)),
        nn.Sequential(nn.Conv2d(3, 6, (1, 3)), nn.Unfold((1, 3))),
    ],
)
def test_channels_are_found_behind_functions_and_layers_without_weights(model: nn.Module) -> None:
    shape = (2, 3, 40) if isinstance(model, Conv1d) else (2, 3, 4, 10)
    with torch.no_grad(), ByHand(model.eval()) as by_hand, tap(model, EVERY) as taps:
        model(torch.randn(shape))
    assert by_hand.worst(taps) < 1e-6


def test_channels_go_where_a_permutation_puts_them() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), Permute([0, 2, 3, 1]), nn.GELU())
    with torch.no_grad(), tap(model, ("act", "output")) as taps:
        output = model(batches()[0])
    assert error(taps["2#0:act"].covariance(), exact(output, -1)) < 1e-6
    assert taps["1#0:output"].channels == 8


@pytest.mark.parametrize(
    ("layer", "batch", "what"),
    [
        (nn.Linear(4, 6), torch.randn(4), r"torch.float32 \(6,\)"),
        (nn.Linear(4, 6, dtype=torch.cfloat), torch.randn(3, 4, dtype=torch.cfloat), r"torch.complex64 \(3, 6\)"),
    ],
)
def test_outputs_that_hold_no_samples_are_said_to(layer: nn.Module, batch: Tensor, what: str) -> None:
    message = rf"modules: '\*' chose the model itself \({what}\), which gave no batch of real floating-point numbers"
    with pytest.raises(UserError, match=message), tap(layer, "linear"):
        layer(batch)


def differences(common: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    apart, alike = torch.randn(2, 8, 9, 9, generator=generator), torch.randn(2, 1, 9, 9, generator=generator)
    return apart + common * alike


@pytest.mark.parametrize("first", [torch.zeros(2, 8, 9, 9), torch.zeros(0, 8, 9, 9), differences(3000, 9)])
def test_a_layer_that_cancels_what_its_input_has_in_common(first: Tensor) -> None:
    model = cancelling()
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in (first, *(differences(3000, seed) for seed in range(3))):
            model(batch)
    assert by_hand.worst(taps) < 1e-6


def test_a_layer_that_cancels_it_in_later_passes_alone_is_refused() -> None:
    model, message = cancelling(), r"^1#0:conv: its layer cancels what varies most in later passes"
    with pytest.raises(UserError, match=message), torch.no_grad(), tap(model, EVERY):
        for seed, common in enumerate((0, 3000, 3000)):
            model(differences(common, seed))
    double = copy.deepcopy(model).double()
    with torch.no_grad(), ByHand(double) as by_hand, tap(double, EVERY) as taps:
        for seed, common in enumerate((0, 3000, 3000)):
            double(differences(common, seed).double())
    assert by_hand.worst(taps) < 1e-6


def cancelling() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        layer.weight.sub_(layer.weight.mean(1, keepdim=True))
    return nn.Sequential(nn.Hardtanh(-1e9, 1e9), layer).eval()


def test_a_normalization_of_maps_that_hardly_vary_is_accumulated() -> None:
    """What it gives is rounded to a millionth of the mean, and hardly varies more than that."""
    norm = nn.BatchNorm2d(4).eval()
    model = nn.Sequential(nn.Hardtanh(-1e9, 1e9), norm)
    with torch.no_grad(), ByHand(model) as by_hand, tap(model, EVERY) as taps:
        for batch in batches():
            model(1000 + batch / 10)
    assert by_hand.worst(taps) < 1e-6
