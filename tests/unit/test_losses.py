"""What a step says of itself is read late, and yet in time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from eigendet.config.sections import BackboneChoice, Optimization
from eigendet.errors import UserError
from eigendet.networks.definition import Definition
from eigendet.runs import losses, resuming, training
from eigendet.runs.folder import RunFolder
from tests.questions import Questions

DEFINITION = Definition(BackboneChoice(plugin="resnet"), ["a", "b", "c"], (8, 8))  # for the record; never built
CPU = torch.device("cpu")


def settings(**changes: Any) -> Optimization:
    return Optimization(**({"steps": 7, "batch_size": 2, "snapshots": [7], "log_every": 7} | changes))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 4, generator=torch.Generator().manual_seed(step)), torch.tensor([step % 3, 1])


def fit(folder: Path, of_step: Any = lambda step, loss: loss, **changes: Any) -> training.Outcome:
    """Train a linear classifier; `of_step` may change the loss of a step, which counts from 0."""
    chosen = settings(**changes)
    numbers: list[int] = []

    def batches(start: int) -> Any:
        for step in range(start, chosen.steps):
            numbers.append(step)
            yield batch(step)

    def its_losses(model: nn.Module, batch: Any, device: torch.device) -> losses.Losses:
        ((name, loss),) = training.classification_losses(model, batch, device).items()
        return {name: of_step(numbers[-1], loss)}

    torch.manual_seed(0)
    task = training.Task(batches, its_losses)
    return training.fit(RunFolder(folder), nn.Linear(4, 3), DEFINITION, task, chosen, 0, {}, CPU)


def test_a_loss_leaves_a_gpu_without_being_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of a GPU that is not there, of which no value can be asked."""
    recorded: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: type("Event", (), {"record": lambda self: recorded.append("")})())
    with FakeTensorMode():
        loss = torch.zeros((), device="cuda")
        sent = losses.send({"first": loss, "second": loss.half()}, 2, stop=True)
    assert sent.names == ["first", "second"] and sent.images == 2
    assert (sent.told.device.type, sent.told.shape, len(recorded)) == ("cpu", (3,), 1)


def test_no_step_asks_the_device_for_a_value(tmp_path: Path) -> None:
    with Questions() as questions:
        fit(tmp_path, clip_norm=1.0)
        assert questions.asked == []
        torch.ones(1).item()
    assert questions.asked == ["_local_scalar_dense"]  # so it would have been noticed


def test_losses_are_read_one_step_late_but_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    update, receive, write = training._Learner.update, losses.receive, RunFolder.write_snapshot

    def noted(kind: str, original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            events.append(kind)
            return original(*arguments)

        return call

    monkeypatch.setattr(training._Learner, "update", noted("u", update))
    monkeypatch.setattr("eigendet.runs.training.receive", noted("r", receive))
    monkeypatch.setattr(RunFolder, "write_snapshot", noted("S", write))
    fit(tmp_path, snapshots=[4, 7])
    assert "".join(events) == "uurururrSuururrS"


def test_the_log_and_the_throughput_count_every_step(tmp_path: Path) -> None:
    seen: list[float] = []

    def note(step: int, loss: torch.Tensor) -> torch.Tensor:
        seen.append(loss.item())
        return loss

    outcome = fit(tmp_path, note, log_every=3)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["step"].tolist() == [3, 6, 7]
    means = [sum(seen[:3]) / 3, sum(seen[3:6]) / 3, seen[6]]
    assert log["loss"].tolist() == pytest.approx(means) and outcome["images_per_second"] > 0


def test_what_diverged_reaches_no_snapshot_and_no_checkpoint(tmp_path: Path) -> None:
    def diverging(step: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * float("nan") if step == 3 else loss

    for kept in ({"snapshots": [4]}, {"checkpoint_every": 4}, {"log_every": 4}, {}):
        with pytest.raises(UserError, match=r"diverged at step 3: loss_classifier is nan"):
            fit(tmp_path, diverging, **kept)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_network_that_fails_on_nan_does_not_hide_what_made_it(tmp_path: Path) -> None:
    def failing(step: int, loss: torch.Tensor) -> torch.Tensor:
        if step == 4:
            raise ValueError("matrix contains invalid numeric entries")
        return loss / 0.0 if step == 3 else loss

    with pytest.raises(UserError, match=r"diverged at step 3: loss_classifier is inf"):
        fit(tmp_path, failing)


def test_a_network_that_fails_by_itself_says_so(tmp_path: Path) -> None:
    def failing(step: int, loss: torch.Tensor) -> torch.Tensor:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        fit(tmp_path, failing)


@pytest.mark.parametrize(("asked", "after"), [(1, 3), (3, 4)], ids=["one step late", "where a file is written at once"])
def test_a_run_that_is_asked_to_stop_ends_with_the_next_step(tmp_path: Path, asked: int, after: int) -> None:
    def stopping(step: int, loss: torch.Tensor) -> torch.Tensor:
        if step == asked:
            signal.raise_signal(signal.SIGTERM)
        return loss

    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, stopping, snapshots=[4])
    checkpoint = torch.load(RunFolder(tmp_path).checkpoint, weights_only=True)
    assert (stopped.value.code, checkpoint["progress"]["step"]) == (143, after)
    assert checkpoint["progress"]["since"][:2] == [after, 2 * after]  # all of them are read


def test_the_scaler_goes_on_from_a_checkpoint_and_may_be_new_to_it(tmp_path: Path) -> None:
    chosen, folder = settings(precision="float16"), RunFolder(tmp_path)

    def learner(enabled: bool, scale: float = 8.0) -> training._Learner:
        made = training._Learner(nn.Linear(4, 3), chosen, CPU)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=enabled)
        return made

    before = learner(enabled=True)
    before.update(training.classification_losses(before.model, batch(0), CPU)["loss_classifier"])
    resuming.write_checkpoint(folder, {}, before.stateful, resuming.Progress(step=1))
    after = learner(enabled=True, scale=2.0)
    assert resuming.resume(folder, {}, after.stateful, 2).step == 1
    assert after.scaler.get_scale() == before.scaler.get_scale() == 8.0
    assert after.scaler.state_dict() == before.scaler.state_dict()
    resuming.write_checkpoint(folder, {}, learner(enabled=False).stateful, resuming.Progress(step=1))  # as on a CPU
    fresh = learner(enabled=True, scale=2.0)
    assert resuming.resume(folder, {}, fresh.stateful, 2).step == 1 and fresh.scaler.get_scale() == 2.0
