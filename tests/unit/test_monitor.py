from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.tensorboard import SummaryWriter
from torchvision.models import resnet18

from eigendet import monitor, plugins, processes
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.monitoring.measures import measures
from eigendet.monitoring.monitor import METRICS
from eigendet.monitoring.writers import TAP_COLUMNS, Measurement
from eigendet.observe.taps import tap
from eigendet.spectra import metrics
from eigendet.spectra.spectrum import eigenvalues
from tests.tapping import exact


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def images(batch: int) -> Tensor:
    return torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(batch))


def train(model: nn.Module, steps: int, watched: Any = None, start: int = 0) -> list[Tensor]:
    """Train for some steps; return the gradients of the last and all that the model keeps."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(start, start + steps):
        optimizer.zero_grad()
        model(images(step)).square().mean().backward()
        optimizer.step()
        if watched is not None:
            watched.step()
    return [*(p.grad for p in model.parameters() if p.grad is not None), *model.state_dict().values()]


def hooks() -> int:
    return len(nn.modules.module._global_forward_hooks) + len(nn.modules.module._global_forward_pre_hooks)


class Windows(list[list[Measurement]]):
    """Collects what a monitor measures."""

    @property
    def steps(self) -> list[int]:
        return [window[0].step for window in self]

    @property
    def samples(self) -> list[int]:
        return [window[0].samples for window in self]


def test_what_is_measured_is_that_of_the_exact_covariance_of_the_observed_batch() -> None:
    model, windows = network(), Windows()
    maps: list[Tensor] = []
    model[2].register_forward_hook(lambda module, inputs, output: maps.append(output.detach().clone()))
    with monitor(model, every=3, writer=windows.append, metrics=[*METRICS, "energy", "stable_rank"]) as watched:
        train(model, 5, watched)
    assert windows.steps == [0, 3]
    for window, observed in zip(windows, (maps[0], maps[3]), strict=True):
        assert [str(one.key) for one in window] == ["2#0:act", "4#0:act"]
        values = eigenvalues(exact(observed).numpy())
        assert window[0].samples == 4 * 8 * 8 and window[0].channels == 8
        assert window[0].eigenvalues == pytest.approx(np.clip(values, 0, None), rel=1e-4, abs=1e-7 * values[0])
        energy = int(np.searchsorted(np.cumsum(values), 0.99 * values.sum())) + 1
        dof = plugins.bind("rule", PluginChoice(plugin="dof"))(values)
        assert window[0].metrics["energy"] == energy and window[0].metrics["energy_share"] == energy / 8
        assert window[0].metrics["dof_share"] == pytest.approx(dof / 8, rel=1e-4)
        assert window[0].metrics["stable_rank"] == pytest.approx(metrics.stable_rank(values), rel=1e-4)


def test_saturation_is_delves_or_one_direction_more(tmp_path: Path) -> None:
    from delve.metrics import compute_intrinsic_dimensionality
    from delve.torch_utils import TorchCovarianceMatrix

    torch.manual_seed(0)
    model, windows, dimensions = resnet18(num_classes=2), Windows(), []

    def by_delve(module: nn.Module, inputs: Any, output: Tensor) -> None:
        matrix = TorchCovarianceMatrix(device="cpu")
        matrix.update(output.detach().movedim(1, -1).flatten(0, -2), False)
        dimensions.append(compute_intrinsic_dimensionality(matrix.fix()))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(by_delve)
    with monitor(model, "conv", metrics=["energy", "energy_share"], writer=windows.append):
        model(torch.rand(4, 3, 64, 64))
    more = [one.metrics["energy"] - delve for one, delve in zip(windows[0], dimensions, strict=True)]
    assert len(more) == 20 and set(more) <= {0, 1}


def test_training_is_bit_identical_and_the_model_stays_as_it_is() -> None:
    bare = train(network(), 5)
    model = network()
    with monitor(model, ("conv", "norm", "act"), every=2, window=2, writer=list) as watched:
        observed = train(model, 5, watched)
        pickle.loads(pickle.dumps(model))
        copy.deepcopy(model)
    assert all(torch.equal(one, other) for one, other in zip(bare, observed, strict=True))
    assert hooks() == 0


def test_there_are_no_hooks_between_observed_steps() -> None:
    model, counts = network(), []
    with monitor(model, every=3, window=2, writer=list) as watched:
        for step in range(7):
            counts.append(hooks() > 0)
            train(model, 1, watched, step)
    assert counts == [True, True, False, True, True, False, True]


def test_a_window_counts_all_batches_of_its_steps() -> None:
    model, windows = network(), Windows()
    with monitor(model, every=4, window=3, writer=windows.append) as watched:
        train(model, 9, watched)
    assert windows.steps == [0, 4, 8]
    assert windows.samples == [3 * 256, 3 * 256, 256]  # the last was cut short


def test_without_step_everything_is_one_window() -> None:
    model, windows = network(), Windows()
    with monitor(model, writer=windows.append):
        train(model, 5)
    assert (windows.steps, windows.samples) == ([0], [5 * 256])


def test_steps_that_are_counted_elsewhere_may_stand_still_or_jump() -> None:
    model, windows = network(), Windows()
    with monitor(model, every=4, start=2, writer=windows.append) as watched:
        for steps in (2, 3, 3, 5, 9, 9, 10):
            train(model, 1)
            watched.step(steps)
    assert windows.steps == [5, 9]
    assert windows.samples == [256, 2 * 256]  # two batches before the optimizer's next step


def test_validation_in_the_loop_is_left_out_and_can_be_watched_by_itself() -> None:
    model, windows, validation = network(), Windows(), Windows()
    with (
        monitor(model, every=1, writer=windows.append) as watched,
        monitor(model, every=1, training=False, writer=validation.append) as other,
    ):
        for step in range(2):
            model.eval()
            with torch.no_grad():
                model(images(90)), model(images(91))
            other.step()
            model.train()
            train(model, 1, watched, step)
    assert windows.samples == [256, 256]
    assert validation.samples == [512, 512]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_counts_every_map_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = (
                nn.Linear(3, 4),
                nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()),
            )

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.body, self.stem(x), use_reentrant=reentrant)

    model, windows = Checkpointed(), Windows()
    with monitor(model, every=1, writer=windows.append) as watched, tap(model) as taps:
        model(torch.rand(5, 3)).sum().backward()
        watched.step()
    assert [one.samples for one in windows[0]] == [5, 5] == [taps[key].count for key in taps]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_ends_no_training_and_is_said_once(value: float, caplog: pytest.LogCaptureFixture) -> None:
    model, windows = network(), Windows()
    with monitor(model, every=1, writer=windows.append) as watched:
        for step in range(3):
            batch = images(step)
            if step:
                batch *= value
            model[3:](model[2](model[0](batch)))
            watched.step()
    assert [window[0].samples for window in windows] == [256, 0, 0]
    assert all(np.isfinite(list(windows[0][0].metrics.values())))
    assert np.isnan(list(windows[2][0].metrics.values())).all() and not windows[2][0].eigenvalues.size
    assert windows[2][0].scalars() == {}
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("step 1: 2#0:act: NaN, infinity, or numbers whose squares overflow float32")
    assert message.endswith("training goes on")


def test_other_numbers_of_channels_end_no_training(caplog: pytest.LogCaptureFixture) -> None:
    model, windows = nn.Sequential(nn.ReLU()), Windows()
    with monitor(model, every=2, window=2, writer=windows.append) as watched:
        for channels in (3, 4):
            model(torch.rand(5, channels))
            watched.step()
    assert windows.samples == [0]
    assert "expected 3 channels" in caplog.text


def test_a_map_that_never_varies_has_no_dimension() -> None:
    values = np.zeros(4)
    shares = {name: measure(values) for name, measure in measures(["dof_share", "stable_rank", "entropy"]).items()}
    assert shares == {"dof_share": 0.0, "stable_rank": 0.0, "entropy": pytest.approx(float("nan"), nan_ok=True)}


def test_autocast_changes_only_what_the_model_computes() -> None:
    model, windows = network(), Windows()
    with monitor(model, every=1, writer=windows.append) as watched, torch.autocast("cpu", torch.bfloat16):
        model(images(0)).sum().backward()
        watched.step()
    assert windows.samples == [256] and windows[0][0].metrics["dof_share"] > 0


def test_a_run_that_raises_leaves_no_hooks_and_writes_nothing(tmp_path: Path) -> None:
    model, file = network(), tmp_path / "spectra.csv"
    with pytest.raises(RuntimeError), monitor(model, writer=file):
        model(images(0))
        raise RuntimeError
    assert hooks() == 0 and not file.exists()


def test_only_the_first_process_observes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "rank", lambda: 1)
    model, file = network(), tmp_path / "spectra.csv"
    with monitor(model, every=1, writer=file) as watched:
        assert hooks() == 0
        train(model, 2, watched)
    assert not file.exists()


def test_a_csv_file_holds_a_row_a_tap_and_eigenvalues_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new/spectra.csv"
    model = network()
    with monitor(model, every=2, writer=file, spectra=True) as watched:
        train(model, 3, watched)
    table = pd.read_csv(file)
    assert list(table) == [*TAP_COLUMNS, *METRICS]
    assert table[["step", "module"]].to_numpy().tolist() == [[0, 2], [0, 4], [2, 2], [2, 4]]
    assert table["energy_share"].between(0, 1).all()
    values = pd.read_csv(file.with_name("spectra_eigenvalues.csv"))
    assert list(values) == [*TAP_COLUMNS, "index", "value"]
    assert (
        values.groupby(["step", "module"])["value"].count() == values.groupby(["step", "module"])["channels"].first()
    ).all()


def test_a_training_that_goes_on_replaces_rows_from_there_on(tmp_path: Path) -> None:
    file, model = tmp_path / "spectra.csv", network()
    with monitor(model, every=2, writer=file) as watched:
        train(model, 7, watched)
    before = pd.read_csv(file)
    assert sorted(set(before["step"])) == [0, 2, 4, 6]
    with monitor(model, every=2, writer=file, start=4) as watched:
        pd.testing.assert_frame_equal(pd.read_csv(file), before)  # nothing is touched before there is something new
        train(model, 1, watched)
    after = pd.read_csv(file)
    assert sorted(set(after["step"])) == [0, 2, 4]
    pd.testing.assert_frame_equal(after[after["step"] < 4], before[before["step"] < 4])
    with monitor(model, every=2, writer=file) as watched:
        train(model, 1, watched)
    assert set(pd.read_csv(file)["step"]) == {0}


def test_a_file_that_cannot_be_written_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, model = tmp_path / "spectra.csv", network()
    with monitor(model, every=1, writer=file) as watched:
        file.mkdir()
        train(model, 2, watched)
    assert caplog.text.count("is not written") == 2


def test_tensorboard_gets_scalars_by_layer_and_histograms(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = network()
    with SummaryWriter(str(tmp_path)) as events, monitor(model, every=2, writer=events, spectra=True) as watched:
        train(model, 3, watched)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert {f"{tap}/{metric}" for tap in ("2#0:act", "4#0:act") for metric in METRICS} == set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("2#0:act/dof_share")] == [0, 2]
    assert "2#0:act/log10_eigenvalues" in read.Tags()["histograms"]


def test_a_model_that_never_runs_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network().eval()
    with monitor(model, every=1, writer=list) as watched:
        for _ in range(2):
            model(images(0))
            watched.step()
    assert caplog.text.count("did not run in the mode that is observed") == 1


def test_a_compiled_model_is_refused_and_one_that_was_compiled_beforehand_is_said_to_drop_hooks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    compiled: Any = torch.compile(model, backend="eager")
    with pytest.raises(UserError, match=r"compiled by torch\.compile"):
        monitor(compiled, writer=list)
    compiled(torch.rand(2, 3))
    with monitor(model, every=1, writer=list) as watched, caplog.at_level(logging.WARNING):
        compiled(torch.rand(2, 3))
        watched.step()
    assert "as a compiled function, which drops hooks" in caplog.text


def test_layers_can_be_chosen() -> None:
    model, windows = resnet18(num_classes=2), Windows()
    with monitor(
        model, ("act", "block"), modules=["layer3.*", "layer4.*"], channels=range(257), every=1, writer=windows.append
    ) as watched:
        model(torch.rand(2, 3, 64, 64))
        watched.step()
    assert {one.key.module for one in windows[0]} == {"layer3.0", "layer3.1", "layer3.0.relu", "layer3.1.relu"}
