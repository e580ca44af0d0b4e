from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eigendet.cli import main
from eigendet.errors import UserError
from eigendet.report import events
from eigendet.report.results import read_spectra
from tests.simulated import compare, simulate


def test_tensorboard_reads_losses_and_metrics_once_however_often_they_are_written(tmp_path: Path) -> None:
    simulate(tmp_path / "results", seeds=(0, 1))
    compare(tmp_path / "results")
    for _ in range(2):
        outcome = CliRunner().invoke(main, ["tensorboard", str(tmp_path / "results"), "-o", str(tmp_path / "events")])
        assert outcome.output == f"{tmp_path / 'events'}: 4 runs\n"
    found = EventAccumulator(str(tmp_path / "events/scratch/tiny/rcnn/seed_1"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("training/loss")] == [(0, 2.5), (4, 1.5)]
    wanted = read_spectra(tmp_path / "results").metrics.query(
        "arm == 'scratch' and seed == 1 and module == 'layer2.relu' and metric == 'dof'"
    )
    scalars = found.Scalars("layer2.relu#0:act/dof")
    assert [event.step for event in scalars] == [0, 1, 4]
    assert [event.value for event in scalars] == pytest.approx(wanted["value"].tolist(), rel=1e-6)


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path / "results", seeds=(0,))
    compare(tmp_path / "results")
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    outcome = CliRunner().invoke(main, ["tensorboard", str(tmp_path / "results"), "-o", str(tmp_path / "events")])
    assert outcome.output == "Error: tensorboard is not installed: pip install 'eigendet[tensorboard]'\n"


def test_other_files_are_not_removed_and_nothing_is_an_error(tmp_path: Path) -> None:
    simulate(tmp_path / "results", seeds=(0,))
    (tmp_path / "events").mkdir()
    (tmp_path / "events/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"events: holds thesis.tex, which is not an event file"):
        events.write_events(tmp_path / "results", tmp_path / "events")
    assert (tmp_path / "events/thesis.tex").exists()
