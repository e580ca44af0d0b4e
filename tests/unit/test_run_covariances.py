from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigendet import config, progress
from eigendet.data.datasets import Detection, Target, open_split
from eigendet.errors import UserError
from eigendet.networks.snapshots import read_snapshot
from eigendet.observe import merging, store
from eigendet.runs import covariances, observation, stages
from eigendet.runs.images import Decoded


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


def test_the_file_says_which_maps_are_of_the_backbone(run: tuple[config.Experiment, Path], tmp_path: Path) -> None:
    """What is not, a pyramid for example, has random weights where a detector begins from a pre-trained backbone."""
    covariances.compute_covariance(*run, tmp_path / "c.h5")
    inside = store.provenance(tmp_path / "c.h5")["backbone"]
    modules = {record.key.module for record in store.read(tmp_path / "c.h5")}
    assert {module for module in modules if module not in inside} == {m for m in modules if "fpn" in m} != set()


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


def test_every_image_is_decoded_once_for_all_snapshots_parts_and_passes(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, folder = run
    asked: list[int] = []
    data = type(open_split(experiment, "detection", "train"))
    look_up = data.__getitem__

    def counting(self: Detection, index: int) -> tuple[torch.Tensor, Target]:
        asked.append(index)
        return look_up(self, index)

    monkeypatch.setattr(data, "__getitem__", counting)
    covariances.compute_covariance(experiment, folder, tmp_path / "once.h5")
    assert sorted(map(str, asked)) == sorted(store.images(tmp_path / "once.h5") or [])
    asked.clear()
    values = experiment.model_dump()
    values["covariance"]["memory"] = 8 * 128**2 / 2**30  # of one accumulator of the widest map
    passes = config.parse(values)
    covariances.compute_covariance(passes, folder, tmp_path / "passes.h5")
    assert len(asked) == 5
    asked.clear()
    covariances.compute_covariance(experiment, folder, tmp_path / "shard.h5", (2, 2))
    assert len(asked) == len(set(asked)) == 1 + 3  # the first image gives the shifts
    asked.clear()
    monkeypatch.setattr(covariances, "Decoded", partial(Decoded, memory=0))
    covariances.compute_covariance(experiment, folder, tmp_path / "again.h5")
    assert len(asked) == 3 * 5 + 2  # the last snapshot has three parts
    asked.clear()
    covariances.compute_covariance(passes, folder, tmp_path / "passes_again.h5")
    assert len(asked) > 2 * (3 * 5 + 2)
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "once.h5").read_bytes()
    assert (tmp_path / "passes.h5").read_bytes() == (tmp_path / "once.h5").read_bytes()


def test_the_network_runs_in_full_float32_whatever_the_process_has_chosen(
    run: tuple[config.Experiment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    covariances.compute_covariance(*run, tmp_path / "plain.h5")
    cudnn: Any = torch.backends.cudnn
    inside = []

    def noting(*arguments: Any) -> Any:
        inside.append((cudnn.conv.fp32_precision, cudnn.allow_tf32))
        return taps(*arguments)

    taps = observation.observed_taps
    monkeypatch.setattr(covariances, "observed_taps", noting)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            covariances.compute_covariance(*run, tmp_path / "chosen.h5")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(inside) == {("ieee", False)}
    assert (cudnn.conv.fp32_precision, cudnn.allow_tf32) == ("tf32", True)
    assert (tmp_path / "chosen.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()
    assert str(store.provenance(tmp_path / "plain.h5")["precision"]).endswith("; network in float32")


LACK = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of which 3 MiB is free."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(f"{LACK} Including non-PyTorch memory, this process has 79 GiB in use."), LACK),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuDNN error: CUDNN_STATUS_ALLOC_FAILED."),
        (RuntimeError("CUDA error: out of memory\nand so on"), "CUDA error: out of memory."),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_a_gpu_that_is_full_is_named_with_the_setting_and_snapshots_before_it_are_kept(
    error: Exception,
    said: str | None,
    run: tuple[config.Experiment, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The GPU is played by the CPU: what is tested is what comes of its error."""
    covariances.compute_covariance(*run, tmp_path / "whole.h5")
    read: list[int] = []

    def reading(path: Path) -> Any:
        step, model, definition = read_snapshot(path)
        read.append(step)
        if len(read) == 2:
            model.get_submodule("backbone.body.layer2").register_forward_pre_hook(full)
        return step, model, definition

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(covariances, "read_snapshot", reading)
    with pytest.raises(UserError if said else type(error)) as raised:
        covariances.compute_covariance(*run, tmp_path / "c.h5")
    expected = (
        f"step 1: {said} covariance.memory is null, no limit: give the GiB that accumulators may take beside the "
        "network, and the images are gone over as often as it needs. Snapshots before this one are kept."
    )
    assert str(raised.value) == (expected if said else str(error))
    values = run[0].model_dump()
    values["covariance"]["memory"] = 0.001
    covariances.compute_covariance(config.parse(values), run[1], tmp_path / "c.h5")
    assert read == [0, 1, 1, 4]
    assert (tmp_path / "c.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
