from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigendet import Covariance, TapKey, config
from eigendet.data.datasets import open_split
from eigendet.data.presence import presence
from eigendet.errors import UserError
from eigendet.observe import store
from eigendet.observe.tap import Tap
from eigendet.runs import covariances, forecast, stages
from eigendet.spectra import transfer

IMAGES, SIDES = 12, {"stem": 4, "layer1": 4, "layer2": 2, "squeezed": 1, "outside": 2}
Write = Callable[..., Path]


@pytest.fixture
def experiment(values: dict[str, Any]) -> config.Experiment:
    values["covariance"] = {"images": IMAGES}
    return config.parse(values)


@pytest.fixture
def write(experiment: config.Experiment, tmp_path: Path) -> Write:
    """Write a covariance file as `eigendet covariance` would, of made-up maps with 32 channels."""
    digest = open_split(experiment, "detection", "train").digest

    def written(
        arm: str = "scratch",
        seed: int = 0,
        step: int = 0,
        images: list[Any] | None = None,
        channels: int = 32,
        scale: float = 1.0,
        keep_means: bool = True,
        **provenance: Any,
    ) -> Path:
        names = list(range(IMAGES)) if images is None else images
        taps = []
        for position, (module, side) in enumerate(SIDES.items()):
            maps = scale * features(channels, side, seed)[: len(names)]
            moments = Covariance(channels)
            moments.update(maps.flatten(0, 1))
            means = maps.mean(1) if keep_means else None
            taps.append(Tap(TapKey(module, 0, "act"), position, "none", moments, image_means=means))
        run = {"arm": arm, "backbone": "tiny", "detector": "rcnn", "seed": seed}
        content = {
            "run": run,
            "definition": {"widths": None},
            "probe": {"split": "train", "images": len(names), "data": digest},
            "backbone": [module for module in SIDES if module != "outside"],
        }
        path = tmp_path / f"{arm}_{len(list(tmp_path.iterdir()))}.h5"
        store.write_covariances(path, [(step, taps), (9, taps)], content | provenance, names)
        return path

    return written


def features(channels: int, side: int, seed: int) -> torch.Tensor:
    """Of every position of every image, (images, positions, channels)."""
    random = torch.Generator().manual_seed(10 * seed + side)
    return 1 + torch.randn(IMAGES, side * side, channels, generator=random).relu()


def test_scores_are_those_of_the_maps_positions_and_image_means(experiment: config.Experiment, write: Write) -> None:
    result = forecast.forecast(experiment, [write()])
    assert [score["module"] for score in result["scores"]] == ["layer1", "layer2"]  # of each resolution the last
    rows = features(32, 2, 0)
    singular = np.linalg.svd(rows.flatten(0, 1).numpy().astype(float), compute_uv=False)
    deepest = result["scores"][-1]
    assert deepest["rankme"] == pytest.approx(transfer.rankme(singular**2), rel=1e-5)
    assert deepest["alpha"] == pytest.approx(
        transfer.alpha_req(np.linalg.eigvalsh(np.cov(rows.flatten(0, 1).numpy().T))), rel=1e-5
    )
    dataset = open_split(experiment, "detection", "train")
    labels = np.array([np.isin(np.arange(1, 11), dataset[image][1]["labels"].numpy()) for image in range(IMAGES)])
    varied = labels.any(0) & ~labels.all(0)
    evidence = transfer.logme(rows.mean(1).numpy(), labels)
    assert deepest["logme"] == pytest.approx(np.nanmean(evidence), abs=1e-5)
    assert result["classes"] == varied.sum() == np.isfinite(evidence).sum()
    assert result["images"] == IMAGES
    constant = transfer.logme(np.ones((IMAGES, 1)), labels)
    assert result["constant"] == pytest.approx(np.nanmean(constant))


def test_images_are_matched_by_name_not_by_place(experiment: config.Experiment, write: Write) -> None:
    """As shards may be merged in any order, so may files list the same images in any."""
    order = list(reversed(range(IMAGES)))
    first, other = write(seed=0), write(seed=1, images=order)
    together, alone = forecast.forecast(experiment, [first, other]), forecast.forecast(experiment, [other])
    assert [score for score in together["scores"] if score["seed"]] == alone["scores"]
    assert alone["scores"][-1]["logme"] != forecast.forecast(experiment, [write(seed=1)])["scores"][-1]["logme"]


def test_what_cannot_be_compared_is_left_out_with_its_reason(experiment: config.Experiment, write: Write) -> None:
    files = [
        write("finetune", 0),
        write("scratch", 0),
        write("scratch", 1, images=list(range(5))),
        write("late", 0, step=3),
        write("derived", 0, definition={"widths": {"conv1": 4}}),
        write("old", 0, backbone=None),
    ]
    result = forecast.forecast(experiment, files)
    assert {(score["arm"], score["seed"]) for score in result["scores"]} == {("finetune", 0), ("scratch", 0)}
    assert result["notes"][:4] == [
        "Not scored, since RankMe counts channels and widths are not the reference's: derived (seed 0).",
        "No forecast without a snapshot at step 0, which 0 in training.snapshots keeps: late (seed 0).",
        "No forecast where the file does not say which maps are of the backbone: old (seed 0).",
        "Not scored, since observed on other images than the rest: scratch (seed 1).",
    ]


def test_without_any_snapshot_at_step_0_there_is_a_note_and_no_score(
    experiment: config.Experiment, write: Write
) -> None:
    result = forecast.forecast(experiment, [write(seed=0, step=1), write(seed=1, step=1)])
    assert not result["scores"] and not result["images"] and result["constant"] is None
    assert result["notes"] == [
        "No forecast without a snapshot at step 0, which 0 in training.snapshots keeps: scratch (seed 0, 1)."
    ]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"images": [f"{k}.jpg" for k in range(IMAGES)]}, "not named by their numbers in data.detection.train"),
        ({"images": list(range(5, 5 + IMAGES))}, "not named by their numbers in data.detection.train"),
        ({"probe": {"split": "train", "data": "other"}}, "not those of data.detection.train as it is now"),
        ({"probe": None}, "not those of data.detection.train as it is now"),
        ({"keep_means": False}, "No LogME where means of images were not kept: layer1#0:act, layer2#0:act."),
    ],
)
def test_without_labels_the_other_scores_remain(
    experiment: config.Experiment, write: Write, changes: dict[str, Any], note: str
) -> None:
    result = forecast.forecast(experiment, [write(**changes)])
    assert any(note in own for own in result["notes"])
    assert all(score["logme"] is None and score["rankme"] and score["alpha"] for score in result["scores"])


def test_maps_without_a_score_say_why(experiment: config.Experiment, write: Write) -> None:
    result = forecast.forecast(experiment, [write(channels=8, scale=0.0)])
    assert all(score[name] is None for score in result["scores"] for name in ("rankme", "alpha", "logme"))
    both = "layer1#0:act, layer2#0:act"
    assert result["notes"][-3:] == [
        f"No RankMe where a map is zero everywhere: {both}.",
        f"No α where fewer than 20 eigenvalues are above zero: {both}.",
        "No LogME where features give the presence of a class without error, or where no two images that have samples "
        f"differ in it: {both}.",
    ]


def test_few_images_are_said(experiment: config.Experiment, write: Write) -> None:
    notes = forecast.forecast(experiment, [write(channels=64)])["notes"]
    few = "LogME rests on 12 images, no more than there are channels (covariance.images sets it), of "
    assert f"{few}layer1#0:act, layer2#0:act." in notes
    assert "RankMe is at most the number of positions, fewer than there are channels, of layer2#0:act." in notes


def test_a_single_image_has_no_class_that_some_have_and_some_have_not(
    experiment: config.Experiment, write: Write
) -> None:
    result = forecast.forecast(experiment, [write(images=[0])])
    assert result["notes"][0] == "No LogME: each class is in all of the 1 images or in none."
    assert result["classes"] == 0 and result["scores"][0]["logme"] is None


def test_files_of_several_networks_or_twice_the_same_run_are_refused(
    experiment: config.Experiment, write: Write
) -> None:
    one = write()
    other = write(run={"arm": "scratch", "backbone": "tiny", "detector": "ssd", "seed": 0})
    with pytest.raises(UserError, match=r"of tiny under ssd; .* is of tiny under rcnn\."):
        forecast.forecast(experiment, [one, other])
    with pytest.raises(UserError, match=r"of scratch seed 0, as .* is; each run counts once"):
        forecast.forecast(experiment, [one, write()])
    with pytest.raises(UserError, match="each run counts once"):
        forecast.forecast(experiment, [one, one])


@pytest.mark.parametrize("provenance", [{"model": "mine"}, {"run": "mine"}, {"run": {"arm": "scratch", "seed": 0}}])
def test_a_file_of_no_run_is_refused(experiment: config.Experiment, tmp_path: Path, provenance: dict[str, Any]) -> None:
    store.write_covariances(tmp_path / "own.h5", [], provenance)
    with pytest.raises(UserError, match="names no run; expected a file written by 'eigendet covariance'"):
        forecast.forecast(experiment, [tmp_path / "own.h5"])


def test_of_a_real_run_it_is_the_snapshot_before_training(values: dict[str, Any], tmp_path: Path) -> None:
    experiment = config.parse(values)
    stages.train(experiment, "scratch", "tiny", "rcnn", 0, tmp_path / "run")
    covariances.compute_covariance(experiment, tmp_path / "run", tmp_path / "c.h5")
    result = forecast.forecast(experiment, [tmp_path / "c.h5"])
    assert [score["module"].split(".")[0] for score in result["scores"]] == [
        "relu", "layer1", "layer2", "layer3", "layer4",
    ]  # fmt: skip
    deepest = result["scores"][-1]
    key = TapKey(deepest["module"], deepest["call"], deepest["point"])
    assert str(key) == "layer4.1.relu#1:act" and deepest["channels"] == 64
    start, *_ = (record for record in store.read(tmp_path / "c.h5") if record.key == key)
    raw = np.linalg.eigvalsh(start.moment(centered=False))
    assert start.step == 0 and deepest["rankme"] == pytest.approx(transfer.rankme(raw))


def test_crowds_count_and_images_without_objects_have_no_class() -> None:
    class Scenes:
        classes = "cat", "dog", "bird"

        def __getitem__(self, index: int) -> Any:
            labels = [torch.tensor([], dtype=torch.int64), torch.tensor([3, 1, 3])][index]
            return None, {"labels": labels, "crowd": torch.ones(len(labels), dtype=torch.bool)}

    scenes: Any = Scenes()
    assert presence(scenes, [1, 0]).tolist() == [[True, False, True], [False, False, False]]
