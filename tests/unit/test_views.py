"""Every number on the page and in the summary is that of the arm it stands beside."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eigendet import config, files
from eigendet.config import layout
from eigendet.networks import widths_file
from eigendet.networks.widths_file import ChosenWidths, Cost
from eigendet.report import results, views
from eigendet.report.page import write_page
from eigendet.spectra import comparison
from eigendet.spectra.tables import TAP
from tests.simulated import compare, simulate

ARMS = ("finetune", "scratch", "mine")
SEEDS = (0, 1)
RUNS = list(itertools.product(ARMS, SEEDS))


def score(arm: str, seed: int) -> float:
    return 0.1 * (1 + ARMS.index(arm)) + 0.02 * seed


def costs(arm: str) -> dict[str, int]:
    factor = 1 + 2 * ARMS.index(arm)
    return {"parameters": 1000 * factor, "backbone_parameters": 500 * factor, "backbone_macs": 7000 * factor}


def milliseconds(arm: str) -> float:
    return 5.0 + ARMS.index(arm)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, config.Experiment]:
    """Results in which all arms have other scores, costs, latencies and spectra."""
    folder = tmp_path_factory.mktemp("arms")
    experiment = simulate(folder, ARMS, SEEDS, effect=1.0)
    for arm, seed in RUNS:
        path = Path(arm) / "tiny/rcnn" / f"seed_{seed}"
        record = json.loads((folder / "runs" / path / "run.json").read_text())
        files.write_json(folder / "runs" / path / "run.json", record | {"version": 1, "costs": costs(arm)})
        scores = {"AP": score(arm, seed), "AP50": score(arm, seed) / 2, "AP75": score(arm, seed) / 4}
        files.write_json(folder / "evaluation" / f"{path}.json", {"version": 1, "run": record["run"], "boxes": scores})
    measured = [
        {"arm": arm, "detector": {"median": milliseconds(arm)}, "backbone": {"median": milliseconds(arm) / 2}}
        for arm in ARMS
    ]
    files.write_json(folder / "latency/tiny/rcnn.json", {"version": 1, "runs": measured})
    compare(folder)
    return folder, experiment


def test_the_summary_has_each_runs_own_numbers(made: tuple[Path, config.Experiment]) -> None:
    table = results.summary(*made)
    assert list(zip(table["arm"], table["seed"], strict=True)) == RUNS
    for _, row in table.iterrows():
        arm = row["arm"]
        assert row["AP"] == pytest.approx(score(arm, row["seed"]))
        assert {name: row[name] for name in costs(arm)} == costs(arm)
        assert (row["detector_ms"], row["backbone_ms"]) == (milliseconds(arm), milliseconds(arm) / 2)


def test_averages_are_of_an_arms_own_seeds_and_ratios_are_to_the_reference(
    made: tuple[Path, config.Experiment],
) -> None:
    rows = {row.arm: row for row in results.averages(results.summary(*made))}
    assert list(rows) == list(ARMS)
    for place, (arm, row) in enumerate(rows.items()):
        values = [100 * score(arm, seed) for seed in SEEDS]
        assert row.scores["AP"] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
        assert row.costs == costs(arm)
        assert row.ratios["backbone_macs"] == pytest.approx((1 + 2 * place) / 1)  # finetune has the reference's widths
        assert row.ratios["detector_ms"] == pytest.approx(milliseconds(arm) / milliseconds("finetune"))


def test_the_pages_table_has_them_in_the_row_of_the_arm(made: tuple[Path, config.Experiment], tmp_path: Path) -> None:
    write_page(made[0])
    page = (made[0] / "report.html").read_text()
    rows = re.findall(r'<tr><td class="name arm">(\w+)</td>(.*?)</tr>', page, re.DOTALL)
    assert [arm for arm, _ in rows[: len(ARMS)]] == list(ARMS)
    for arm, cells in rows[: len(ARMS)]:
        shown = re.findall(r"<td[^>]*>(.*?)</td>", cells)
        assert shown[2].startswith(f"{100 * np.mean([score(arm, seed) for seed in SEEDS]):.1f} ±")
        exact = re.findall(r'data-value="([^"]*)"', cells)
        assert {str(cost) for cost in costs(arm).values()} <= set(exact)
        assert {f"{milliseconds(arm):.1f}", f"{milliseconds(arm) / 2:.1f}"} <= set(shown)


def test_courses_are_means_over_an_arms_own_seeds(made: tuple[Path, config.Experiment]) -> None:
    tables = results.read_spectra(made[0])
    shown = views.courses(tables.metrics, tables.distances)
    metrics = tables.metrics
    for arm, place in itertools.product(ARMS, range(4)):
        own = metrics[(metrics["arm"] == arm) & (metrics["metric"] == "entropy")]
        layer = own[own["module"] == f"layer{place}.relu"]
        wanted = [layer.loc[layer["step"] == step, "value"].mean() for step in (0, 1, 4)]
        assert shown["arms"][arm]["values"]["entropy"][place] == pytest.approx(wanted, rel=1e-3)
        assert shown["arms"][arm]["steps"] == [0, 1, 4]
    between = shown["between"]["jensen_shannon arms"]
    assert between.keys() == {"finetune|scratch", "finetune|mine", "mine|scratch"}
    distances = tables.distances.query("relation == 'arms' and measure == 'jensen_shannon' and snapshot == 2")
    for pair, grid in between.items():
        both = distances["arm"].isin(pair.split("|")) & distances["other_arm"].isin(pair.split("|"))
        of_layer = distances[both & (distances["module"] == "layer2.relu")]["value"]
        assert grid[2][2] == pytest.approx(of_layer.mean(), rel=1e-3)


def test_a_mean_over_some_of_the_seeds_is_none(made: tuple[Path, config.Experiment]) -> None:
    """A layer that is dead in one run has no row of a metric of shape, and NaN for its distances."""
    tables = results.read_spectra(made[0])
    metrics, distances = tables.metrics, tables.distances.copy()
    is_dead = (metrics["module"] == "layer1.relu") & (metrics["arm"] == "scratch") & (metrics["seed"] == 1)
    metrics = metrics[~(is_dead & (metrics["metric"] == "entropy") & (metrics["step"] == 4))]
    metrics = metrics[~((metrics["metric"] == "enrichment") & (metrics["arm"] == "mine"))]
    last = distances["snapshot"] == 2
    of_run = (distances["other_arm"] == "scratch") & (distances["other_seed"] == 1)
    distances.loc[last & of_run & (distances["module"] == "layer1.relu"), "value"] = np.nan
    distances.loc[(distances["measure"] == "overlap") & (distances["snapshot"] == 1), "value"] = np.nan
    shown = views.courses(metrics, distances)
    entropy = shown["arms"]["scratch"]["values"]["entropy"]
    assert entropy[1][2] is None and None not in entropy[1][:2] + entropy[0] + entropy[2] + entropy[3]
    assert shown["arms"]["mine"]["values"]["enrichment"] == [[None] * 3] * 4  # and the other arm can be drawn beside it
    grid = shown["between"]["jensen_shannon arms"]["finetune|scratch"]
    assert grid[1][2] is None and None not in grid[0] + grid[1][:2]
    for row in shown["between"]["overlap arms"]["finetune|mine"]:  # snapshots stay where they are
        assert row[1] is None and None not in (row[0], row[2])


def test_runs_that_were_not_compared_are_no_gap(made: tuple[Path, config.Experiment]) -> None:
    tables = results.read_spectra(made[0])
    without = tables.distances[~((tables.distances["arm"] == "mine") & (tables.distances["seed"] == 1))]
    own = views.courses(tables.metrics, without)["arms"]["mine"]["values"]["jensen_shannon own start"]
    assert all(value is not None for row in own for value in row)


def test_what_a_comparison_was_made_without_is_said(made: tuple[Path, config.Experiment], tmp_path: Path) -> None:
    folder, experiment = made
    shutil.copytree(folder, tmp_path / "copy")
    unscored = "The initializations of rcnn on tiny have not been scored yet."
    assert results.missing(tmp_path / "copy", experiment) == [unscored]
    spectra = sorted((tmp_path / "copy/spectra").glob("*/tiny/rcnn/seed_0"))
    comparison.write_comparison(spectra, tmp_path / "copy/comparison/tiny/rcnn", {})
    assert results.missing(tmp_path / "copy", experiment) == [
        unscored,
        "The comparison of rcnn on tiny was made without finetune/tiny/rcnn/seed_1, scratch/tiny/rcnn/seed_1, "
        "mine/tiny/rcnn/seed_1.",
    ]


@pytest.mark.parametrize(
    ("scores", "text"),
    [([0.381, 0.381], "38.1 ± 0.0"), ([0.381, 0.3814], "38.12 ± 0.03"), ([0.3, 0.4], "35.0 ± 7.1"),
     ([0.3], "30.0"), ([0.3, np.nan], ""), ([np.nan], "")],
)  # fmt: skip
def test_a_spread_is_none_only_where_there_is_none(scores: list[float], text: str) -> None:
    runs = pd.DataFrame({"arm": "scratch", "backbone": "b", "detector": "d", "AP": scores})
    assert results.averages(runs)[0].scores["AP"] == text


def test_the_page_names_all_that_made_its_runs_and_leaves_out_what_is_not_there(
    made: tuple[Path, config.Experiment], tmp_path: Path
) -> None:
    shutil.copytree(made[0], tmp_path / "copy")
    run = tmp_path / "copy/runs/mine/tiny/rcnn/seed_1/run.json"
    files.write_json(
        run, json.loads(run.read_text()) | {"device": "another card", "torch": "9.9", "identity": {"data": "e" * 64}}
    )
    for file in (tmp_path / "copy/evaluation/scratch").rglob("*.json"):
        files.write_json(file, json.loads(file.read_text()) | {"boxes": {"AP": None, "AP50": None, "AP75": None}})
    measured = [{"arm": "mine", "detector": {"median": 5.0}, "backbone": {"median": 2.0}}]
    files.write_json(tmp_path / "copy/latency/tiny/rcnn.json", {"version": 1, "device": "timed card", "runs": measured})
    write_page(tmp_path / "copy")
    page = (tmp_path / "copy/report.html").read_text().partition("<script")[0]
    assert (
        "cpu and another card, data dddddddd and eeeeeeee. Runs differ in torch, device, data: see their table." in page
    )
    assert "Times are medians for one image on timed card, of all arms" in page
    assert not re.search(r"\bnan\b|None", page.partition('id="provenance"')[0])
    assert "Not every run has an average precision" in page


def test_the_page_says_of_widths_what_their_files_hold(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, ("scratch", "derived", "profile"), seeds=(0,))
    for arm, macs in (("derived", 9000), ("profile", 8900)):
        chosen = ChosenWidths(
            widths={"a": 16, "b": 60}, reference={"a": 64, "b": 64}, multiples={"a": 8, "b": 4}, rule="dof",
            parameters=Cost(9999, 9998), macs=Cost(10_000, macs), arm="scratch", bound={"a": "macs", "b": "target"},
            settings={"point": "act", "centered": True}, dimensions={"a": 3.0, "b": 9.0}, elsewhere={},
        )  # fmt: skip
        path = layout.path(tmp_path, layout.WIDTHS, arm=arm, backbone="tiny", detector="rcnn")
        widths_file.write_chosen(path, chosen)
    assert results.missing(tmp_path, experiment) == [
        "The initializations of rcnn on tiny have not been scored yet.",
        "The spectra of rcnn on tiny have not been compared yet.",
    ]
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text().partition("<script")[0]
    assert "0.9999 of the backbone's parameters at\n  0.900 of its MACs" in page
    assert "give 1 of 2 channel groups half their width or less (a ×0.25), and 0 more than they had." in page
    assert "Of what derived widths cost, profile has 1.000 of the parameters and 0.989 of the MACs." in page
    assert "interval" not in page.partition('<h2 id="runs">')[0].partition("Widths before and after")[2]


def test_spectra_on_the_page_are_those_of_the_run_they_are_called_after(made: tuple[Path, config.Experiment]) -> None:
    tables = results.read_eigenvalues(*made, "tiny", "rcnn")
    shown = views.packed(tables)
    assert [(run["arm"], run["seed"]) for run in shown["runs"]] == RUNS
    for table, run in zip(tables, shown["runs"], strict=True):
        assert (table["arm"].iloc[0], table["seed"].iloc[0]) == (run["arm"], run["seed"])
    for layer, (number, table) in itertools.product(shown["layers"], enumerate(tables)):
        (one,) = [found for found in layer["runs"] if found["run"] == number]
        levels = np.frombuffer(base64.b64decode(one["packed"]), "<u2").reshape(3, -1)
        of_layer = table[table["module"] == layer["name"].partition("#")[0]]
        for step, found in zip((0, 1, 4), levels, strict=True):
            values = of_layer[of_layer["step"] == step].sort_values("index")["value"].to_numpy()
            drawn = 10 ** (views.DECADES * (found / views.LEVELS - 1))
            kept = np.array(shown["index"][16]) - 1
            np.testing.assert_allclose(drawn, (values / values[0])[kept], rtol=1e-3)


def test_the_last_layers_spectra_and_the_spread_say_whose_they_are(made: tuple[Path, config.Experiment]) -> None:
    name, drawn = views.last_spectra(results.read_eigenvalues(*made, "tiny", "rcnn"))
    assert name == "layer3.relu"
    for (arm, seed), rows in drawn.groupby(["arm", "seed"]):
        table = pd.read_parquet(made[0] / f"spectra/{arm}/tiny/rcnn/seed_{seed}/eigenvalues.parquet")
        own = table[(table["step"] == 4) & (table["module"] == "layer3.relu")]["value"].to_numpy()
        np.testing.assert_allclose(rows["value"], own / own.max())
    distances = results.read_spectra(made[0]).distances
    pairs = views.spread_of_spectra(distances)
    for layer in range(4):
        (value,) = pairs[(pairs["pair"] == "finetune 0, mine 1") & (pairs["layer"] == f"layer{layer}.relu")]["value"]
        (wanted,) = distances[
            (distances[TAP[0]] == f"layer{layer}.relu")
            & (distances["snapshot"] == 2)
            & (distances["measure"] == "jensen_shannon")
            & (distances["arm"] == "finetune")
            & (distances["seed"] == 0)
            & (distances["other_arm"] == "mine")
            & (distances["other_seed"] == 1)
        ]["value"]
        assert value == wanted
