"""Losses over training and precision over recall, as the page draws them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eigendet import config, files
from eigendet.report import curves, figures, page, results
from eigendet.report.page import write_page
from tests.simulated import simulate


def log_of(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"runs/{arm}/tiny/rcnn/seed_{seed}/log.csv"


@pytest.fixture
def experiment(tmp_path: Path) -> config.Experiment:
    return simulate(tmp_path, ("scratch", "mine"), seeds=(0, 1, 2), layers=1, channels=4)


def write_logs(folder: Path, rows: int, every: int = 20) -> dict[tuple[str, int], pd.DataFrame]:
    logs = {}
    for arm in ("scratch", "mine"):
        for seed in range(3):
            random = np.random.default_rng(seed)
            table = pd.DataFrame({"step": every * np.arange(1, rows + 1), "learning_rate": 1e-3})
            table["loss_box"], table["loss_class"] = random.random(rows), 1 + random.random(rows)
            table["loss"] = table["loss_box"] + table["loss_class"]
            table["images_per_second"] = 9.0
            table.to_csv(log_of(folder, arm, seed), index=False)
            logs[arm, seed] = table
    return logs


def test_losses_are_means_over_seeds_and_bands_their_deviation(experiment: config.Experiment, tmp_path: Path) -> None:
    logs = write_logs(tmp_path, 30)
    table, notes = curves.losses(tmp_path, experiment)
    assert notes == [] and list(table["term"].unique()) == ["loss", "loss_class", "loss_box"]
    for arm in ("scratch", "mine"):
        for term in ("loss", "loss_box"):
            drawn = table[(table["arm"] == arm) & (table["term"] == term)]
            values = np.array([logs[arm, seed][term] for seed in range(3)])
            assert drawn["step"].tolist() == logs[arm, 0]["step"].tolist()
            np.testing.assert_allclose(drawn["loss"], values.mean(0), rtol=1e-12)
            np.testing.assert_allclose(drawn["high"] - drawn["loss"], values.std(0, ddof=1), rtol=1e-9)
            np.testing.assert_allclose(drawn["loss"] - drawn["low"], values.std(0, ddof=1), rtol=1e-9)


def test_long_runs_are_averaged_and_no_row_is_dropped(experiment: config.Experiment, tmp_path: Path) -> None:
    logs = write_logs(tmp_path, 13_500)  # 270,000 steps
    table, _ = curves.losses(tmp_path, experiment)
    assert table.groupby(["arm", "term"]).size().max() == curves.POINTS and len(table) <= curves.ROWS
    drawn = table[(table["arm"] == "mine") & (table["term"] == "loss")]
    ends = drawn["step"].to_numpy()
    assert ends[-1] == 270_000
    rows = np.diff(ends // 20, prepend=0)  # that a point is the mean of
    means = [logs["mine", seed]["loss"].mean() for seed in range(3)]
    assert np.average(drawn["loss"], weights=rows) == pytest.approx(np.mean(means), rel=1e-12)


@pytest.mark.parametrize("width", [7, 20, 33, 1000])
def test_thinning_is_the_mean_over_steps(width: int) -> None:
    random = np.random.default_rng(0)
    steps = np.cumsum(random.integers(1, 5, 40))
    log = pd.DataFrame({"step": steps, "loss": random.random(40)})
    thinned = curves.thin(log, width).set_index("step")["loss"]
    lengths = np.diff(steps, prepend=0)
    for end, value in thinned.items():
        rows = np.ceil(steps / width) == np.ceil(int(str(end)) / width)
        assert value == pytest.approx(np.average(log["loss"][rows], weights=lengths[rows]))
    assert len(thinned) == len(set(np.ceil(steps / width)))


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, ("scratch",), seeds=(3,), layers=1, channels=4)
    table, notes = curves.losses(tmp_path, experiment)
    assert notes == [] and table["low"].isna().all() and table["loss"].tolist() == [2.5, 1.5]
    drawn = figures.specification(figures.draw_losses(table, "loss", figures.colors(experiment)))
    assert [layer["mark"]["type"] for layer in drawn["layer"]] == ["line"]
    write_page(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert 'id="losses-loss"' in text and "a band of one" not in text


def test_rows_that_a_resumed_run_wrote_twice_count_once_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("step,loss\n20,3\n40,2\n40,1.5\n30,9\n")
    assert curves.read_log(file).to_dict("list") == {"step": [20, 30, 40], "loss": [3, 9, 1.5]}


def test_seeds_that_stopped_elsewhere_are_averaged_where_all_have_a_point(
    experiment: config.Experiment, tmp_path: Path
) -> None:
    write_logs(tmp_path, 30)
    cut = log_of(tmp_path, "mine", 1)
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:11]))
    table, _ = curves.losses(tmp_path, experiment)
    assert table.groupby(["arm", "term"]).size().to_dict()[("mine", "loss")] == 10
    assert table.groupby(["arm", "term"]).size().to_dict()[("scratch", "loss")] == 30


def test_of_many_terms_the_largest_are_drawn(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, ("scratch",), seeds=(0,), layers=1, channels=4)
    names = [f"loss_{number}" for number in range(20)]
    rows = [[20, sum(range(20)), *range(20)], [40, sum(range(20)), *range(20)]]
    pd.DataFrame(rows, columns=["step", "loss", *names]).to_csv(log_of(tmp_path, "scratch", 0), index=False)
    table, notes = curves.losses(tmp_path, experiment)
    assert list(table["term"].unique()) == ["loss", *reversed(names[-curves.TERMS :])]
    assert notes == ["Of 20 terms the 8 that are largest on average are drawn."]


BROKEN = {
    "empty": "", "not text": b"\xff\xfe\x00", "without steps": "loss\n1\n", "without a loss": "step,loss_box\n1,1\n",
    "no rows": "step,loss\n", "text": "step,loss\n1,high\n", "not finite": "step,loss\n1,inf\n",
    "a gap": "step,loss\n1,1\n2,\n", "a negative step": "step,loss\n-1,1\n", "ragged": "step,loss\n1,2,3\n4,5,6,7\n",
    "binary": bytes(range(256)), "too large": "step,loss\n1,1e300\n", "no step of training": "step,loss\n1e20,1\n",
    "a step of thirty digits": f"step,loss\n{10**30},1\n",
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_log_is_refused_in_one_line(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"not a table|has no|not a number|not finite|not between") as refused:
        curves.read_log(file)
    assert "\n" not in str(refused.value)


def test_a_broken_log_is_named_and_the_others_are_drawn(experiment: config.Experiment, tmp_path: Path) -> None:
    file = log_of(tmp_path, "mine", 1)
    file.write_text("step,loss\n1,high\n")
    table, (note,) = curves.losses(tmp_path, experiment)
    assert note == (
        f"{file}: holds what is not a number, in column 'loss', so its losses are left out; to have them, delete the "
        "run's folder and train it again."
    )
    assert table.groupby("arm")["seeds"].max().to_dict() == {"mine": 2, "scratch": 3}


def test_without_logs_the_page_says_so(experiment: config.Experiment, tmp_path: Path) -> None:
    for file in tmp_path.rglob("log.csv"):
        file.unlink()
    table, notes = curves.losses(tmp_path, experiment)
    assert table.empty and len(notes) == 1 and notes[0].startswith("Without log.csv, and so without losses: scratch/")
    write_page(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Without log.csv, and so without losses" in text and 'id="losses-loss"' not in text


def test_terms_of_any_name_have_figures_and_files_of_their_own(tmp_path: Path) -> None:
    simulate(tmp_path, ("scratch",), seeds=(0,), layers=1, channels=4)
    names = ["../../x", "loss a", "loss-a", "名" * 200, "y" * 500, "</script>"]
    table = pd.DataFrame([[20, 1.0, *range(6)], [40, 1.0, *range(6)]], columns=["step", "loss", *names])
    table.to_csv(log_of(tmp_path, "scratch", 0), index=False)
    shown = results.read_results(tmp_path)
    figures_ = page._names_of_losses(shown)
    assert set(figures_) == {"loss", *names} and len(set(figures_.values())) == 7
    before = set(tmp_path.parent.iterdir())
    write_page(tmp_path)
    assert len(list((tmp_path / "figures").glob("losses*.svg"))) == 7 and set(tmp_path.parent.iterdir()) == before


def test_precision_is_the_mean_over_seeds_and_older_evaluations_have_none(
    experiment: config.Experiment, tmp_path: Path
) -> None:
    assert curves.precision(tmp_path, experiment).empty
    write_page(tmp_path)
    assert 'id="precision-boxes-AP"' not in (tmp_path / "report.html").read_text()
    expected = {}
    for arm in ("scratch", "mine"):
        of_seeds = np.random.default_rng(1).random((3, 101)).round(4)
        for seed in range(3):
            file = tmp_path / f"evaluation/{arm}/tiny/rcnn/seed_{seed}.json"
            content = json.loads(file.read_text())
            files.write_json(
                file, content | {"curves": {"boxes": dict.fromkeys(curves.OVERLAPS, of_seeds[seed].tolist())}}
            )
        expected[arm] = of_seeds.mean(0)
    table = curves.precision(tmp_path, experiment)
    for arm, values in expected.items():
        own = table[(table["arm"] == arm) & (table["overlap"] == "AP75")]
        np.testing.assert_allclose(own["precision"], values)
        np.testing.assert_allclose(own["recall"], np.linspace(0, 1, 101), atol=1e-4)
    write_page(tmp_path)
    assert 'id="precision-boxes-AP"' in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures/precision-boxes-AP.svg").is_file()
