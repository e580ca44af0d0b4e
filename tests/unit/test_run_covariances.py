from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigendet import config, progress
from eigendet.errors import UserError
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import merging, store
from eigendet.runs import covariances, stages


@pytest.fixture
def run(values: dict[str, Any], tmp_path: Path) -> tuple[config.Experiment, Path]:
    values["covariance"] = {"images": 5, "jackknife": 3, "points": ["act", "block", "fpn"]}
    experiment = config.parse(values)
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, tmp_path / "run")
    return experiment, tmp_path / "run"


def test_shards_merge_to_the_unsplit_dump(run: tuple[config.Experiment, Path], tmp_path: Path) -> None:
    covariances.compute_covariance(*run, tmp_path / "whole.h5")
    shards = [tmp_path / f"{number}.h5" for number in (1, 2, 3)]
    for number, shard in enumerate(shards, start=1):
        covariances.compute_covariance(*run, shard, (number, 3))
    merging.merge(tmp_path / "merged.h5", shards)
    assert store.images(tmp_path / "merged.h5") == store.images(tmp_path / "whole.h5")
    assert store.provenance(tmp_path / "merged.h5") == store.provenance(tmp_path / "whole.h5")
    for whole, merged in zip(store.read(tmp_path / "whole.h5"), store.read(tmp_path / "merged.h5"), strict=True):
        assert (whole.step, whole.key, whole.count) == (merged.step, merged.key, merged.count)
        assert np.linalg.norm(whole.scatter - merged.scatter) <= 1e-12 * np.linalg.norm(whole.scatter)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-15)
        assert whole.image_means is not None and merged.image_means is not None
        np.testing.assert_allclose(merged.image_means, whole.image_means, rtol=1e-6, atol=1e-7)  # in the same order
        np.testing.assert_allclose(whole.image_means.mean(0), whole.mean, rtol=1e-4, atol=1e-5)  # images of one size
        assert len(whole.parts) == len(merged.parts) == (3 if whole.step == 4 else 0)
        assert sum(part.count for part in whole.parts.values()) in (0, whole.count)
        for block, part in whole.parts.items():  # they are stored in float32
            assert merged.parts[block].count == part.count
            torch.testing.assert_close(merged.parts[block].mean, part.mean, rtol=1e-12, atol=1e-15)
            scatter = merged.parts[block].scatter
            assert torch.linalg.norm(scatter - part.scatter) <= 1e-6 * torch.linalg.norm(part.scatter)
    with pytest.raises(UserError, match=r"saw image '\d+', which .* saw too"):
        merging.merge(tmp_path / "twice.h5", [shards[0], tmp_path / "whole.h5"])
    with pytest.raises(UserError, match="shard 7/9 of 5 probe images is empty"):
        covariances.compute_covariance(*run, tmp_path / "empty.h5", (7, 9))


def test_a_dump_that_was_stopped_goes_on_with_the_next_snapshot(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    covariances.compute_covariance(*run, tmp_path / "whole.h5")
    covariances.compute_covariance(*run, tmp_path / "again.h5")
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    read: list[int] = []

    def failing(path: Path) -> Any:
        read.append(int(path.stem.rpartition("_")[2]))
        if len(read) == 3:
            raise KeyboardInterrupt
        return read_snapshot(path)

    monkeypatch.setattr(covariances, "read_snapshot", failing)
    with pytest.raises(KeyboardInterrupt):
        covariances.compute_covariance(*run, tmp_path / "stopped.h5")
    assert not (tmp_path / "stopped.h5").exists()
    covariances.compute_covariance(*run, tmp_path / "stopped.h5")
    assert read == [0, 1, 4, 4]
    assert (tmp_path / "stopped.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not (tmp_path / "stopped.h5.parts").exists()


def test_parts_of_other_settings_are_not_reused(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "c.h5.parts"
    with monkeypatch.context() as patch:
        patch.setattr(merging, "join_steps", lambda path, parts: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            covariances.compute_covariance(*run, tmp_path / "c.h5")
    assert len(list(parts.iterdir())) == 3
    (parts / "step_0000001.h5").write_bytes(b"cut")
    changed = config.parse(run[0].model_dump() | {"covariance": {"images": 4}})
    covariances.compute_covariance(changed, run[1], tmp_path / "c.h5")
    assert len(store.images(tmp_path / "c.h5") or []) == 4
    assert {record.key.point for record in store.read(tmp_path / "c.h5")} == {"act"}


def test_settings_that_change_no_result_change_no_byte(run: tuple[config.Experiment, Path], tmp_path: Path) -> None:
    covariances.compute_covariance(*run, tmp_path / "one.h5")
    values = run[0].model_dump()
    for section in ("training", "pretraining"):
        values[section] |= {"tensorboard": True, "log_every": 1}
    covariances.compute_covariance(config.parse(values), run[1], tmp_path / "other.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


def test_reports_tell_how_far_the_snapshots_are(
    run: tuple[config.Experiment, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "SOON", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    caplog.set_level("INFO", progress.logger.name)
    covariances.compute_covariance(*run, tmp_path / "whole.h5")
    reports = [re.match(r"covariance scratch seed 0: snapshot (\d) of 3, ", message) for message in caplog.messages]
    places = [int(report[1]) for report in reports if report]
    assert len(places) == len(reports) and places == sorted(places)
    assert all(places.count(snapshot) >= run[0].covariance.images for snapshot in (1, 2, 3))
    assert " took " in caplog.messages[-1]


def test_a_run_that_diverged_is_named_with_tap_and_image(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(path: Path) -> Any:
        step, model, definition = read_snapshot(path)
        model.get_parameter("backbone.body.layer2.0.conv1.weight").data.fill_(float("nan"))
        return step, model, definition

    monkeypatch.setattr(covariances, "read_snapshot", spoilt)
    with pytest.raises(UserError, match=r"layer2.0.relu#0:act: NaN, .* in forward pass 0"):
        covariances.compute_covariance(*run, tmp_path / "c.h5")
    assert not (tmp_path / "c.h5").exists()
