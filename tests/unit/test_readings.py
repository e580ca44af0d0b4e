"""The same spectra under each reading: every rule, of both moments, with positions and images counting alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from eigendet import Covariance, config
from eigendet.channels.groups import Channels
from eigendet.config import Experiment
from eigendet.errors import UserError
from eigendet.moments.weighting import Weighting
from eigendet.networks import snapshots
from eigendet.networks.definition import Definition
from eigendet.observe import store
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Tap
from eigendet.report.results import Network
from eigendet.runs import covariances, definitions, gradients, stages
from eigendet.runs import readings as runs_readings
from eigendet.widths import derivation, readings
from eigendet.widths.allocation import Budget, targets
from eigendet.widths.rounding import rounded
from tests.conftest import minimal_experiment
from tests.own_data import coco_content, write_coco, write_images

# Each rule by its formula, of eigenvalues in descending order.
FORMULAS: dict[str, Callable[[np.ndarray], float]] = {
    "absolute at threshold 0.001": lambda values: sum(value > 1e-3 for value in values),
    "dof at scale 0.3": lambda values: sum(value / (value + 0.3 * np.mean(values)) for value in values),
    "effective_rank": lambda values: np.exp(-sum(share * np.log(share) for share in values / sum(values) if share > 0)),
    "energy at share 0.99": lambda values: 1 + sum(np.cumsum(values) < 0.99 * sum(values)),
    "participation": lambda values: sum(values) ** 2 / sum(values**2),
    "ratio at threshold 0.001": lambda values: sum(value > 1e-3 * values[0] for value in values),
}
SEEDS = (0, 1)
NETWORK = Network("tiny", "rcnn")


def parsed(**changes: Any) -> Experiment:
    values = minimal_experiment() | changes
    values["widths"] = {"macs": 0.8, "round_to": 2} | changes.get("widths", {})
    return config.parse(values)


def network_of(experiment: Experiment) -> Definition:
    return definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)


def table_of(experiment: Experiment, files: dict[Weighting, dict[int, Path]]) -> pd.DataFrame:
    return readings.readings(experiment, network_of(experiment), files)


@pytest.fixture
def files(tmp_path: Path) -> dict[Weighting, dict[int, Path]]:
    """Covariances of a network that never ran, in either weighting, at two steps."""
    (channels, reference), random = network_of(parsed()).reference(64), np.random.default_rng(0)
    written: dict[Weighting, dict[int, Path]] = {"positions": {}, "images": {}}
    for weighting, of_seeds in written.items():
        for seed in SEEDS:
            of_seeds[seed] = tmp_path / f"{weighting}_{seed}.h5"
            steps = [(step, [_tap(key, place, reference[group], random)
                             for place, (key, group) in enumerate(channels.outputs.items())])
                     for step in (0, 5)]  # fmt: skip
            store.write_covariances(of_seeds[seed], steps, {})
    return written


def _tap(key: tuple[str, int], place: int, width: int, random: np.random.Generator) -> Tap:
    moments = Covariance(width)
    falling = np.arange(1.0, width + 1) ** -random.uniform(1, 3)
    moments.update(torch.from_numpy((random.normal(size=(200, width)) + random.normal(size=width)) * falling * 0.1))
    return Tap(TapKey(*key, "act" if "relu" in key[0] else "conv"), place, "none", moments)


def test_every_row_is_the_rules_formula_spent_within_the_budget(files: dict[Weighting, dict[int, Path]]) -> None:
    experiment = parsed(widths={"rule": {"plugin": "dof", "scale": 0.3}, "allocation": "marginal"})
    channels, reference = network_of(experiment).reference(64)
    table = table_of(experiment, files)
    assert len(table) == 4 * len(FORMULAS) and not table["reason"].any()
    assert table["parameters"].nunique() > 12  # or else rows could be exchanged unseen
    budget = Budget.of(channels, reference, experiment.widths)
    spectra: dict[tuple[str, bool], list[dict[str, list[np.ndarray]]]] = {
        (weighting, centered): [_spectra(file, channels, centered) for file in of_seeds.values()]
        for weighting, of_seeds in files.items()
        for centered in (True, False)
    }
    for (rule, weighting, centered), rows in table.groupby(["rule", "weighting", "centered"]):
        dimensions: dict[str, float] = dict.fromkeys(reference, 0.0)
        for of_groups in spectra[str(weighting), bool(centered)]:
            for group, maps in of_groups.items():
                dimensions[group] += max(map(FORMULAS[rule], maps)) / len(SEEDS)
        widths = rounded(budget, targets(budget, dimensions))
        (row,) = rows.to_dict("records")
        assert (row["parameters"], row["macs"]) == (channels.parameters(widths), channels.macs(widths))
        assert row["parameter_share"] == channels.parameters(widths) / channels.parameters(reference)
        assert row["mac_share"] == channels.macs(widths) / channels.macs(reference) <= 0.8
    (own,) = table[table["own"]].to_dict("records")
    assert (own["rule"], own["centered"], own["weighting"]) == ("dof at scale 0.3", True, "positions")


def _spectra(file: Path, channels: Channels, centered: bool) -> dict[str, list[np.ndarray]]:
    """The eigenvalues of each group's activations at the last step, by the formula of the moments."""
    spectra: dict[str, list[np.ndarray]] = {}
    for record in store.read(file):
        key = record.key
        if (record.step, key.point) == (5, "act"):
            matrix = record.scatter / record.count + (0 if centered else np.outer(record.mean, record.mean))
            values = np.linalg.eigvalsh(matrix)[::-1].clip(0)
            spectra.setdefault(channels.outputs[key.module, key.call], []).append(values)
    return spectra


def test_the_experiments_own_row_is_what_it_derives(files: dict[Weighting, dict[int, Path]], tmp_path: Path) -> None:
    experiment = parsed(widths={"rule": "energy", "centered": False})
    table = table_of(experiment, files)
    own = table[table["own"]].iloc[0]
    channels, reference = network_of(experiment).reference(64)
    both = readings._both_moments(files["positions"], channels, experiment.widths)
    widths = derivation.spend(channels, reference, both[False], experiment.widths).widths
    assert (own["parameters"], own["macs"]) == (channels.parameters(widths), channels.macs(widths))


def test_a_rule_that_cannot_be_had_says_why_in_its_rows(
    files: dict[Weighting, dict[int, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mine.py").write_text(
        "from eigendet.plugins import rule\n\n\n"
        '@rule\ndef breaks(values):\n    """Breaks."""\n    return 1 / 0\n\n\n'
        '@rule\ndef finds_nothing(values):\n    """Zero."""\n    return 0.0\n\n\n'
        '@rule\ndef says_text(values):\n    """Text."""\n    return "many\\nlines"\n\n\n'
        '@rule\ndef asks(values, *, share: float):\n    """Has no default."""\n    return share\n\n\n'
        '@rule\ndef works(values):\n    """Works."""\n    return float(len(values))\n'
    )
    (tmp_path / "plugins/absent.py").write_text(
        "import a_package_that_is_not_there\nfrom eigendet.plugins import rule\n\n\n"
        '@rule\ndef lacks(values):\n    """Cannot be imported."""\n    return 1.0\n'
    )
    monkeypatch.chdir(tmp_path)
    table = table_of(parsed(), files)
    reasons = {rule: set(rows["reason"]) for rule, rows in table.groupby("rule")}
    expected = {
        "breaks": "fails at line 7: ZeroDivisionError: division by zero",
        "finds_nothing": "every dimension is zero",
        "says_text": "expected a number of channels",
        "asks": "share",
        "lacks": "a_package_that_is_not_there",
    }
    for rule, words in expected.items():
        (reason,) = reasons.pop(rule)
        assert words in reason and "\n" not in reason
        assert table.loc[table["rule"] == rule, ["parameters", "macs", "mac_share"]].isna().all(axis=None)
    assert len(reasons) == 7 and set.union(*reasons.values()) == {""}
    own = parsed(widths={"rule": {"plugin": "asks", "share": 2.0}})
    assert "asks at share 2" in set(table_of(own, files).query("reason == ''")["rule"])


@pytest.mark.parametrize("rule", ["absolute", "ratio"])
def test_both_readings_of_a_presets_threshold_are_marked(rule: str, files: dict[Weighting, dict[int, Path]]) -> None:
    table = table_of(parsed(preset="paper", widths={"rule": rule}), files)
    marked = table[table["preset"] == "paper"]
    assert set(marked["rule"]) == {"absolute at threshold 0.001", "ratio at threshold 0.001"}
    assert not marked["centered"].any() and set(marked["weighting"]) == {"images"} and len(marked) == 2
    assert list(marked.loc[marked["own"], "rule"]) == [f"{rule} at threshold 0.001"]
    assert table["own"].sum() == 1
    assert not table_of(parsed(), files)["preset"].any()


@pytest.mark.parametrize("point", ["norm", "block"])
def test_a_map_that_is_missing_is_named(files: dict[Weighting, dict[int, Path]], point: str) -> None:
    for of_seeds in files.values():
        for file in of_seeds.values():
            store.write_covariances(file, [(5, [_tap(("fc", 0), 0, 8, np.random.default_rng(0))])], {})
    with pytest.raises(UserError, match="holds no feature map of the network whose widths are chosen"):
        table_of(parsed(widths={"point": point}, covariance={"points": [point], "images": 3}), files)


class Observed:
    """A run over images of different sizes, and its covariance file."""

    def __init__(self, folder: Path, **covariance: Any) -> None:
        values = minimal_experiment() | {"covariance": {"images": 4, "jackknife": 2, "gradients": True, **covariance}}
        names = ["1.png", "2.png", "3.png", "4.png"]
        content = coco_content(names)
        write_images(folder / "images", names)
        for entry, (width, height) in zip(content["images"], ((60, 40), (40, 40), (40, 60), (60, 44)), strict=True):
            entry |= {"width": width, "height": height}
            pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / entry["file_name"])
        annotations = write_coco(folder / "annotations.json", content)
        split = {"plugin": "coco", "annotations": str(annotations), "images": str(folder / "images")}
        values["data"]["detection"] = {"train": split, "val": split}
        values["training"] |= {"min_size": 40, "max_size": 64}
        self.content, self.experiment = values, config.parse(values)
        self.run, self.covariance = folder / "run", folder / "covariance.h5"
        stages.train(self.experiment, "scratch", "tiny", "rcnn", 0, self.run)
        covariances.compute_covariance(self.experiment, self.run, self.covariance)

    def write(self, output: Path, experiment: Experiment | None = None) -> pd.DataFrame:
        experiment = experiment or self.experiment
        network = network_of(experiment)
        table = runs_readings.write_readings(experiment, network, [self.run], [self.covariance], output)
        assert table is not None
        return table


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    return Observed(tmp_path_factory.mktemp("observed"))


def test_the_other_weighting_is_that_of_the_stage_covariance(
    observed: Observed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder: None)
        table = observed.write(tmp_path / "readings.csv")
    by_images = Experiment.model_validate(
        observed.content | {"covariance": observed.content["covariance"] | {"weighting": "images"}}
    )
    covariances.compute_covariance(by_images, observed.run, tmp_path / "images.h5")
    expected = [record for record in store.read(tmp_path / "images.h5") if record.step == 4]
    found = list(store.read(tmp_path / "readings.csv.observed/seed_0.h5"))
    own = [record for record in store.read(observed.covariance) if record.step == 4]
    assert len(found) == len(expected) == len(own) > 8
    moved = []
    for one, other, before in zip(found, expected, own, strict=True):
        assert (one.step, one.key, one.count, one.weighting) == (4, other.key, other.count, "images")
        assert one.weight == pytest.approx(other.weight, rel=1e-12) and not one.parts
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one.scatter, other.scatter, rtol=1e-9, atol=1e-12 * np.abs(other.scatter).max())
        moved.append(np.abs(one.mean - before.mean).max() / np.abs(before.mean).max())
    assert moved[0] > 1e-3  # images differ in size
    # With the weightings exchanged the table is the same, but for which row is the experiment's own.
    shutil.copy(tmp_path / "images.h5", observed.covariance.with_name("images.h5"))
    network = network_of(by_images)
    exchanged = runs_readings.write_readings(
        by_images, network, [observed.run], [tmp_path / "images.h5"], tmp_path / "exchanged.csv"
    )
    assert exchanged is not None and not (tmp_path / "exchanged.csv.observed").exists()
    pd.testing.assert_frame_equal(exchanged.drop(columns="own"), table.drop(columns="own"))
    assert list(exchanged.loc[exchanged["own"], "weighting"]) == ["images"]
    assert pd.read_csv(tmp_path / "readings.csv", keep_default_na=False)["rule"].tolist() == table["rule"].tolist()


def test_of_each_run_one_snapshot_passes_each_image_once(
    observed: Observed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, read_snapshot = [], snapshots.read_snapshot

    def reading(path: Path) -> Any:
        steps.append(read_snapshot(path)[0])
        return read_snapshot(path)

    monkeypatch.setattr(covariances, "read_snapshot", reading)
    monkeypatch.setattr(gradients, "loss_gradients", lambda *arguments: pytest.fail("not asked for"))
    observed.write(tmp_path / "readings.csv")
    assert steps == [4]


def _changed(observed: Observed, **covariance: Any) -> Experiment:
    return config.parse(observed.content | {"covariance": observed.content["covariance"] | covariance})


BAD: dict[str, tuple[Callable[[Observed, Path], Any], str]] = {
    "another weighting": (
        lambda one, copy: one.write(copy / "r.csv", _changed(one, weighting="images")),
        "covariance.h5: weighting is 'positions' there, and 'images' in the configuration; run 'eigendet covariance' ",
    ),
    "another experiment": (
        lambda one, copy: one.write(copy / "r.csv", config.parse(one.content | {"name": "other"})),
        "covariance.h5: experiment is 'minimal' there, and 'other' in the configuration",
    ),
    "another arm": (
        lambda one, copy: one.write(copy / "r.csv", config.parse(one.content | {"widths": {"arm": "finetune"}})),
        "run: a run of the arm scratch; expected one of the arm finetune for each seed",
    ),
    "another backbone": (
        lambda one, copy: one.write(
            copy / "r.csv",
            config.parse(one.content | {"backbones": {"tiny": one.content["backbones"]["tiny"] | {"width": 0.25}}}),
        ),
        "run: of the backbone ",
    ),
    "fewer images": (
        lambda one, copy: one.write(copy / "r.csv", _changed(one, images=3)),
        "covariance.h5: saw 4 images, not the 3 probe images of the configuration",
    ),
    "more images than there are": (
        lambda one, copy: one.write(copy / "r.csv", _changed(one, images=9)),
        "covariance.images is 9; data.detection.train has 4 images",
    ),
}


@pytest.mark.parametrize(("attempt", "message"), BAD.values(), ids=BAD)
def test_what_is_not_the_experiments_is_one_line(
    attempt: Callable[[Observed, Path], Any], message: str, observed: Observed, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        attempt(observed, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "r.csv").exists()


def test_runs_and_covariances_that_do_not_belong_together_are_one_line(observed: Observed, tmp_path: Path) -> None:
    network = network_of(observed.experiment)

    def refused(runs: list[Path], files: list[Path], message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            runs_readings.write_readings(observed.experiment, network, runs, files, tmp_path / "r.csv")
        assert "\n" not in str(error.value)

    file, run = observed.covariance, observed.run
    refused([run], [], r"--covariance: of the run .*run there is none; give its covariance file")
    refused([run, run], [file], "a run of seed 0 of the arm scratch, like another RUN")
    refused([run], [file, file], "covariance.h5: of the same run as .*covariance.h5; expected one file for each")
    refused([], [file], "covariance.h5: of none of the runs")
    refused([run], [tmp_path / "none.h5"], "none.h5")
    other = tmp_path / "other.h5"
    content = store.provenance(file)
    taps = [Tap(TapKey("relu", 0, "act"), 0, "none", Covariance.from_moments(2, torch.zeros(2), torch.eye(2).double()))]
    store.write_covariances(other, [(1, taps)], content, store.images(file))
    refused([run], [other], r"other.h5: its last step is \[1\]; that of the run is 4: run 'eigendet covariance' again")
    store.write_covariances(other, [(4, taps)], content | {"definition": {}}, store.images(file))
    refused([run], [other], "other.h5: of another network than its run has now")
    store.write_covariances(other, [(4, taps)], {"experiment": "minimal"})
    refused([run], [other], "other.h5: names no run; expected a file written by 'eigendet covariance'")
    bare = tmp_path / "bare"
    bare.mkdir()
    refused([bare], [file], "run.json: cannot be read .No such file or directory")
    shutil.copy(run / "run.json", bare)
    refused([bare], [file], r"step_0000004.pt: no such file; expected a snapshot")
