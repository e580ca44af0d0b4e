"""What a monitor refuses before training begins, and what it cannot observe, which ends no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from eigendet import monitor
from eigendet.errors import UserError
from eigendet.monitoring.writers import Measurement
from eigendet.observe.taps import tap
from tests.unit.test_monitor import Windows, hooks, images, network, train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every: got 0; expected a whole number from 1 on"),
        ({"every": 2.5}, "every: got 2.5"),
        ({"window": True}, "window: got True"),
        ({"every": 2, "window": 3}, "window is 3 and every is 2"),
        ({"start": -1}, "start: got -1; expected a whole number from 0 on"),
        ({"points": "relu"}, "points: unknown point 'relu'"),
        ({"points": "fpn"}, "none of the modules is fpn"),
        ({"modules": "layer9"}, "no module matches 'layer9'"),
        ({"metrics": ["effective_rang"]}, "metrics: unknown metric 'effective_rang'. Did you mean 'effective_rank'"),
        ({"metrics": "dof"}, "metrics: got 'dof'; expected a list with some of stable_rank"),
        ({"metrics": []}, "metrics: got"),
        ({"metrics": 3}, "metrics: got 3; expected a list with some of stable_rank"),
        ({"points": 3}, "points: got int; expected some of conv, linear, norm, act, block, fpn, output"),
        ({"points": None}, "points: got NoneType; expected some of"),
        ({"modules": 3}, "modules: got int; expected a pattern of module paths, or a list of them"),
        ({"modules": None}, "modules: got NoneType; expected a pattern"),
        ({"modules": []}, "modules: got a list of 0; expected a pattern"),
        ({"modules": ["0", 1]}, "modules: int in the list; expected patterns of module paths"),
        ({"channels": 5}, "channels: got 5; expected numbers of channels, such as range(64, 513)"),
        ({"channels": "5"}, "channels: got '5'; expected numbers of channels"),
        ({"writer": 3}, "writer: got int; expected the path of a CSV file"),
        ({"writer": None}, "writer: got NoneType"),
        ({"writer": "."}, "writer: '.' is a folder"),
        ({"writer": "README.md"}, "'README.md' is not a monitor's file, and would be replaced"),
    ],
)
def test_a_mistake_is_said_before_training_begins(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        monitor(network(), **{"writer": list} | arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert hooks() == 0


def test_what_is_not_a_model_is_refused() -> None:
    model: Any = nn.ReLU
    with pytest.raises(UserError, match=r"the model is type; expected a torch\.nn\.Module"):
        monitor(model, writer=list)


def test_a_file_with_other_metrics_is_not_continued(tmp_path: Path) -> None:
    file, model = tmp_path / "spectra.csv", network()
    with monitor(model, writer=file, metrics=["dof"]):
        model(images(0))
    with pytest.raises(UserError, match=r"spectra.csv' has the columns .*, dof; now they are .*, energy\."):
        monitor(model, writer=file, metrics=["energy"], start=1)


def test_spectra_need_a_writer_of_histograms() -> None:
    class Scalars:
        def add_scalar(self, name: str, value: float, step: int) -> None: ...

    with pytest.raises(UserError, match="Scalars has no add_histogram, which spectra=True needs"):
        monitor(network(), writer=Scalars(), spectra=True)


@pytest.mark.parametrize("arguments", [{"channels": 5}, {"modules": 3}, {"modules": []}, {"points": 3}])
def test_tap_refuses_the_same_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(arguments))}: got"), tap(network(), **arguments):
        pass


def test_numbers_of_numpy_are_numbers() -> None:
    model, windows = network(), Windows()
    two, narrow = cast(int, np.int64(2)), cast(range, np.arange(7))
    with monitor(model, every=two, window=two, start=two, channels=narrow, writer=windows.append) as watched:
        train(model, 4, watched)
    assert windows.steps == [2, 4] and [one.key.module for one in windows[0]] == ["4"]


def test_two_open_monitors_on_one_file_are_refused(tmp_path: Path) -> None:
    model, file = network(), tmp_path / "spectra.csv"
    (tmp_path / "linked").symlink_to(tmp_path)
    first = monitor(model, writer=file, spectra=True)
    for other in (file, tmp_path / "linked" / "spectra.csv", tmp_path / "spectra_eigenvalues.csv"):
        with pytest.raises(UserError, match=r"spectra.*csv' is written by another monitor, which is still open"):
            monitor(model, writer=other)
    with monitor(model, writer=tmp_path / "other.csv"):
        train(model, 1)
    first.close()
    with monitor(model, writer=file, start=1), pytest.raises(UserError, match="another monitor"):
        monitor(model, writer=file)
    monitor(model, writer=file).discard()
    forgotten = monitor(model, writer=file)
    del forgotten
    monitor(model, writer=file).discard()
    assert hooks() == 0


def test_a_closed_monitor_observes_nothing_more() -> None:
    model, windows = network(), Windows()
    watched = monitor(model, every=1, writer=windows.append)
    train(model, 2, watched)
    watched.close()
    train(model, 2, watched)
    assert windows.steps == [0, 1] and hooks() == 0 and watched.steps == 4


def test_channels_that_no_layer_has_are_said_once_and_nothing_is_written(caplog: pytest.LogCaptureFixture) -> None:
    model, windows = network(), Windows()
    with monitor(model, every=1, channels=range(64, 513), writer=windows.append) as watched:
        train(model, 3, watched)
    assert not windows and len(caplog.records) == 1
    assert "`channels` asks for other numbers of channels than the layers have, 6, 8" in caplog.text


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


def test_modules_that_a_fast_path_would_skip_are_watched(caplog: pytest.LogCaptureFixture) -> None:
    model, windows = encoder().eval(), Windows()
    with torch.no_grad(), monitor(model, "linear", every=1, training=False, writer=windows.append) as watched:
        for _ in range(3):
            model(torch.rand(4, 5, 16))
            watched.step()
    assert len(windows) == 3 and not caplog.records
    assert "layers.0.linear1#0:linear" in {str(one.key) for one in windows[0]}
    assert torch.backends.mha.get_fastpath_enabled()


class Nesting(nn.Module):
    """Gives sequences of two lengths."""

    def forward(self, samples: Tensor) -> Tensor:
        return torch.nested.nested_tensor([samples[:3], samples[:5]])


def nested(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.rand(6, 4))
    return output.to_padded_tensor(0.0)


def per_sample_gradients(model: nn.Module) -> Tensor:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample[None],)).square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, torch.rand(4, 6))
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


CANNOT = [
    (nn.Sequential(Nesting()).eval(), nested, "output", "0#0:output"),
    (nn.Sequential(nn.Linear(6, 8), nn.ReLU()), per_sample_gradients, "act", "1#0:act"),
]


@pytest.mark.parametrize(("model", "run", "point", "key"), CANNOT)
def test_what_cannot_be_accumulated_ends_no_training(
    model: nn.Module, run: Any, point: Any, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    bare, windows = run(model), Windows()
    with monitor(model, point, every=1, training=model.training, writer=windows.append) as watched:
        for _ in range(2):
            torch.manual_seed(0)
            assert torch.equal(run(model), bare)
            watched.step()
    lost = {str(one.key): one for window in windows for one in window}[key]
    assert windows.steps == [0, 1] and lost.samples == 0 and all(np.isnan(list(lost.metrics.values())))
    assert len(caplog.records) == 1 and f"{key}: cannot be accumulated: RuntimeError: " in caplog.text
    assert "training goes on" in caplog.text and hooks() == 0


@pytest.mark.parametrize(("model", "run", "point", "key"), CANNOT)
def test_tap_names_the_tap_that_cannot_be_accumulated(model: nn.Module, run: Any, point: Any, key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: cannot be accumulated: RuntimeError: "), tap(model, point):
        run(model)
    assert hooks() == 0


def test_a_model_that_is_traced_in_a_window_ends_no_training() -> None:
    model, windows = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), Windows()
    with monitor(model, every=1, writer=windows.append) as watched:
        model(torch.rand(4, 6))
        traced = torch.jit.trace(model, torch.rand(4, 6), check_trace=False)
        exported = torch.export.export(model, (torch.rand(4, 6),))
        watched.step()
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.rand(4, 6))
        watched.step()
    assert windows.samples == [4, 0] and traced(torch.ones(2, 6)).equal(model(torch.ones(2, 6)))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.linear.default", "aten.relu.default"]
    with (
        pytest.raises(UserError, match=r"^1#0:act: cannot be accumulated: "),
        tap(model),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        model(torch.rand(4, 6))


def test_a_window_after_a_fault_is_measured_again() -> None:
    model, windows = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), Windows()
    with monitor(model, every=1, writer=windows.append) as watched:
        per_sample_gradients(model)
        model(torch.rand(4, 6))
        watched.step()
        model(torch.rand(4, 6))
        watched.step()
    assert windows.samples == [0, 4]


def test_an_exception_of_the_users_own_writer_is_the_users() -> None:
    def fails(window: list[Measurement]) -> None:
        raise RuntimeError("no more room")

    model = network()
    with pytest.raises(RuntimeError, match="no more room"), monitor(model, every=1, writer=fails) as watched:
        train(model, 1, watched)
    assert hooks() == 0
