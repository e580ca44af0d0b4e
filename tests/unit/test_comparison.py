from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon

import eigendet
from eigendet import config
from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance
from eigendet.observe import store
from eigendet.observe.tap import Tap
from eigendet.report import differences, results
from eigendet.report.accuracy import on_accuracy
from eigendet.spectra import comparison, significance, spectrum
from tests.simulated import compare, rewrite, simulate


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of four seeds, whose spectra differ in the end by ten times what seeds do."""
    folder = tmp_path_factory.mktemp("planted")
    simulate(folder, seeds=range(4), effect=1.0)
    compare(folder)
    return folder


def test_every_number_of_every_tap_is_in_the_tables(planted: Path) -> None:
    tables = eigendet.read_spectra(planted)
    assert len(tables.eigenvalues) == 8 * 3 * 4 * 16
    numbers = tables.metrics[tables.metrics["metric"] == "effective_rank"]
    assert len(numbers) == 8 * 3 * 4
    for table in tables:
        assert set(table["backbone"]) == {"tiny"} and set(table["detector"]) == {"rcnn"}
    run = numbers[(numbers["arm"] == "scratch") & (numbers["seed"] == 2) & (numbers["step"] == 4)].iloc[0]
    values = tables.eigenvalues.query("arm == 'scratch' and seed == 2 and step == 4 and module == 'layer0.relu'")[
        "value"
    ]
    shares = values / values.sum()
    assert run["value"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_distances_are_those_of_scipy_and_know_what_they_compare(planted: Path) -> None:
    tables = eigendet.read_spectra(planted)
    spectra = {
        key: rows["value"].to_numpy() for key, rows in tables.eigenvalues.groupby(["arm", "seed", "step", "module"])
    }
    found = tables.distances[tables.distances["measure"] == "jensen_shannon"]
    assert set(found["relation"]) == {"arms", "seeds", "own start", "pre-trained"}
    for row in found.sample(40, random_state=0).itertuples():
        first = spectra[row.arm, row.seed, row.step, row.module]
        second = spectra[row.other_arm, row.other_seed, row.other_step, row.module]
        assert row.value == pytest.approx(jensenshannon(first, second, base=2), abs=1e-7)
        assert (row.arm == row.other_arm) == (row.relation in ("seeds", "own start")) or row.relation == "pre-trained"
        assert row.other_step == (0 if row.relation in ("own start", "pre-trained") else row.step)
    at_start = found[(found["relation"] == "own start") & (found["step"] == 0)]
    assert (at_start["value"] < 1e-6).all() and len(at_start) == 8 * 4
    overlap = tables.distances[tables.distances["measure"] == "overlap"]
    assert set(overlap["chance"]) == {2 / 16}
    unrelated = overlap[overlap["relation"] == "arms"]["value"]
    assert unrelated.mean() == pytest.approx(2 / 16, abs=0.02)
    cka = tables.distances[(tables.distances["measure"] == "cka")]
    assert cka[(cka["relation"] == "own start") & (cka["step"] == 0)]["value"].min() == pytest.approx(1)
    assert cka[cka["relation"] == "arms"]["value"].mean() == pytest.approx(0, abs=0.05)


def test_a_planted_difference_is_found_where_and_when_it_is(planted: Path) -> None:
    found = eigendet.read_spectra(planted).tests
    spectra = found[found["measure"] == "jensen_shannon"]
    assert (spectra[spectra["snapshot"] == 2]["corrected"] <= 0.05).all()
    assert (spectra["smallest"] == 1 / 35).all()
    assert (spectra[spectra["snapshot"] == 0]["overall"] > 0.05).all()  # they start alike
    ranks = found[(found["measure"] == "effective_rank") & (found["snapshot"] == 2)]
    assert (ranks["mean"] < ranks["other_mean"]).all() and (ranks["corrected"] <= 0.05).all()
    layer = spectra[(spectra["snapshot"] == 2) & (spectra["module"] == "layer1.relu")].iloc[0]
    distances = eigendet.read_spectra(planted).distances.query(
        "snapshot == 2 and measure == 'jensen_shannon' and module == 'layer1.relu'"
    )
    arms = distances[distances["relation"] == "arms"]["value"]
    assert layer["between"] == pytest.approx(np.sqrt((arms**2).mean()))
    sentences = differences.on_spectra(eigendet.read_spectra(planted).tests)
    assert "the arms differ by more than their seeds (test over runs, p = 0.029)" in sentences[0]
    assert "4 differ on their own" in sentences[0]
    assert "larger in finetune in 0 and in scratch in 4 of 4 layers" in sentences[1]


def test_planted_equality_is_not_called_a_difference(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=range(4))
    compare(tmp_path)
    sentences = differences.on_spectra(eigendet.read_spectra(tmp_path).tests)
    assert "that the arms differ is not shown (p = " in sentences[0]


def test_with_few_seeds_no_claim_is_made(tmp_path: Path) -> None:
    simulate(tmp_path / "two", seeds=(0, 1), effect=1.0)
    compare(tmp_path / "two")
    assert "with so few seeds no difference can be established (p = 0.33" in " ".join(
        differences.on_spectra(eigendet.read_spectra(tmp_path / "two").tests)
    )
    experiment = simulate(tmp_path / "one", seeds=(0,), effect=1.0)
    compare(tmp_path / "one")
    tests = eigendet.read_spectra(tmp_path / "one").tests
    assert "There is no test, which takes two seeds of each arm" in differences.on_spectra(tests)[0]
    assert tests["p"].isna().all() and tests["between"].notna().any()
    runs = results.summary(tmp_path / "one", experiment)
    assert "There is no test, which takes two seeds of each" in on_accuracy(runs)[0]


def test_one_arm_alone_is_measured_and_compared_with_its_start(tmp_path: Path) -> None:
    simulate(tmp_path, arms=("scratch",), seeds=(0,))
    compare(tmp_path)
    tables = eigendet.read_spectra(tmp_path)
    assert set(tables.distances["relation"]) == {"own start"} and tables.tests.empty
    assert differences.on_spectra(tables.tests) == [differences.NOTHING_TO_COMPARE]


def rewritten(folder: Path, path: str, **changes: object) -> None:
    """Change what a run's covariance file says, or one of its taps, and make its spectra again."""
    file = folder / "covariance" / f"{path}.h5"
    provenance = store.provenance(file) | {
        name: value for name, value in changes.items() if name in ("probe", "run", "backbone")
    }
    snapshots: dict[int, list[store.TapRecord]] = {}
    for record in store.read(file):
        snapshots.setdefault(record.step, []).append(record)

    def tap(position: int, record: store.TapRecord) -> Tap:
        zero = changes.get("zero") == record.key.module
        accumulator = Covariance.from_moments(
            1000, record.accumulator.mean * 0, record.accumulator.scatter * (not zero)
        )
        return Tap(record.key, position, record.padding, accumulator)

    kept = {step: records for step, records in snapshots.items() if step not in changes.get("without", ())}  # type: ignore[operator]
    taps = [(step, [tap(n, record) for n, record in enumerate(records)]) for step, records in kept.items()]
    store.write_covariances(file, taps, provenance, range(12))
    spectrum.write_spectra(file, folder / "spectra" / path)


def test_only_maps_of_the_backbone_are_compared_with_the_pre_trained_one(tmp_path: Path) -> None:
    """Heads and pyramids begin with random weights in a fine-tuned detector too."""
    simulate(tmp_path, seeds=(0, 1), layers=3)
    for path in ("finetune/tiny/rcnn/seed_0", "finetune/tiny/rcnn/seed_1"):
        rewritten(tmp_path, path, backbone=["layer0.relu", "layer1"])  # layer1.relu is no module of it
    assert compare(tmp_path) == []
    rows = eigendet.read_spectra(tmp_path).distances.query("relation == 'pre-trained'")
    assert set(rows["module"]) == {"layer0.relu"} and set(rows["arm"]) == {"finetune", "scratch"}
    assert set(rows["other_arm"]) == {"finetune"} and set(rows["other_step"]) == {0}


@pytest.mark.parametrize("changes", [{"without": [0]}, {"backbone": None}])
def test_without_the_pre_trained_backbones_own_maps_nothing_is_compared_with_it(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    simulate(tmp_path, seeds=(0,))
    rewritten(tmp_path, "finetune/tiny/rcnn/seed_0", **changes)
    assert (
        "no run of finetune has a snapshot at step 0 that says which maps are of the backbone" in compare(tmp_path)[-1]
    )
    assert "pre-trained" not in set(eigendet.read_spectra(tmp_path).distances["relation"])


def test_cka_says_how_many_images_it_rests_on(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,), layers=2)
    with h5py.File(tmp_path / "spectra/scratch/tiny/rcnn/seed_0/similarity.h5", "r+") as file:
        file["step_0000004/layer1.relu#0:act/images"][:3] = np.nan  # as where a region has no samples
    compare(tmp_path)
    distances = eigendet.read_spectra(tmp_path).distances
    cka = distances.query("measure == 'cka'").set_index(["module", "relation", "snapshot", "arm"])["images"]
    assert cka["layer1.relu", "arms", 2, "finetune"] == 9 and cka["layer1.relu", "own start", 2, "scratch"] == 9
    assert set(cka["layer0.relu"]) == {12} and cka["layer1.relu", "arms", 1, "finetune"] == 12
    assert distances[distances["measure"] != "cka"]["images"].isna().all()


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0, 1))
    rewritten(tmp_path, "scratch/tiny/rcnn/seed_1", probe={"split": "val"})
    assert compare(tmp_path) == [
        "scratch seed 1 was observed on other images than finetune seed 0, so it is compared with no other run."
    ]
    assert len(eigendet.read_spectra(tmp_path).metrics.groupby(["arm", "seed"])) == 4  # it is measured
    rewritten(tmp_path, "scratch/tiny/rcnn/seed_1", probe={"split": "train"}, zero="layer2.relu", without=[1])
    notes = compare(tmp_path)
    assert notes[0] == (
        "scratch seed 1 has maps that do not vary in some snapshot, so that they have no spectrum there: "
        "layer2.relu#0:act."
    )
    assert notes[1] == "The runs have snapshots at different steps; compared are those at 0 and the last of each."
    tests = eigendet.read_spectra(tmp_path).tests
    dead = tests[(tests["module"] == "layer2.relu") & (tests["measure"] == "jensen_shannon")]
    assert dead["p"].isna().all() and tests[tests["module"] == "layer1.relu"]["p"].notna().any()
    ranks = tests[(tests["module"] == "layer2.relu") & (tests["measure"] == "effective_rank")]
    assert ranks["p"].isna().all() and (ranks["other_mean"] < ranks["mean"] / 1.9).all()  # one of two is zero
    shutil.rmtree(tmp_path / "spectra/scratch")
    assert compare(tmp_path) == []
    assert differences.on_spectra(eigendet.read_spectra(tmp_path).tests) == [differences.NOTHING_TO_COMPARE]


def test_a_map_that_is_dead_in_one_arm_decides_no_test(tmp_path: Path) -> None:
    """Its rank of zero is far from that of the other arm, whatever all other maps do."""
    simulate(tmp_path, seeds=range(4), layers=6)
    for seed in range(4):
        rewritten(tmp_path, f"scratch/tiny/rcnn/seed_{seed}", zero="layer2.relu")
    compare(tmp_path)
    last = eigendet.read_spectra(tmp_path).tests.query(
        "snapshot == 2 and measure in ['effective_rank', 'dof', 'trace']"
    )
    assert (last["overall"] > 0.05).all() and last[last["module"] == "layer2.relu"]["p"].isna().all()
    assert (last[last["module"] == "layer2.relu"]["other_mean"] == 0).all()


def test_a_map_that_is_dead_at_the_start_alone_is_not_said_to_be_so_in_the_end(tmp_path: Path) -> None:
    """As the last normalization of a residual branch whose weights begin with zero."""
    simulate(tmp_path, seeds=(0, 1))
    file = tmp_path / "spectra/scratch/tiny/rcnn/seed_0/eigenvalues.parquet"
    table = pd.read_parquet(file)
    table.loc[(table["module"] == "layer0.relu") & (table["step"] == 0), "value"] = 0.0
    rewrite(file, table)
    (note,) = compare(tmp_path)
    assert note.startswith(
        "scratch seed 0 has maps that do not vary in some snapshot, so that they have no spectrum there"
    )
    tests = eigendet.read_spectra(tmp_path).tests.query("module == 'layer0.relu' and measure == 'jensen_shannon'")
    assert tests.groupby("snapshot")["p"].first().isna().to_dict() == {0: True, 1: False, 2: False}
    assert "Left out" not in " ".join(differences.on_spectra(eigendet.read_spectra(tmp_path).tests))


def test_a_run_on_other_images_is_the_one_left_out_although_it_comes_first(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0, 1))
    rewritten(tmp_path, "finetune/tiny/rcnn/seed_0", probe={"split": "val"})
    assert compare(tmp_path) == [
        "finetune seed 0 was observed on other images than finetune seed 1, so it is compared with no other run."
    ]
    distances = eigendet.read_spectra(tmp_path).distances
    assert set(distances["seed"][distances["arm"] == "finetune"]) == {1} and set(distances["seed"]) == {0, 1}


def test_maps_with_too_few_samples_are_named(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0, 1))
    assert compare(tmp_path) == []
    file = tmp_path / "spectra/scratch/tiny/rcnn/seed_0/eigenvalues.parquet"
    table = pd.read_parquet(file)
    table.loc[table["module"] == "layer3.relu", "effective_samples"] = 15.0  # of 16 channels
    rewrite(file, table)
    assert compare(tmp_path)[0].startswith(
        "Maps with fewer effective samples than channels in some run: 1 of 4 (layer3.relu#0:act). Their smallest"
    )


def test_notes_count_only_maps_that_are_compared_and_name_no_step_that_is_not(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,), steps=(0, 3, 4), layers=3)
    rewritten(tmp_path, "scratch/tiny/rcnn/seed_0", without=[0, 3])
    file = tmp_path / "spectra/finetune/tiny/rcnn/seed_0/eigenvalues.parquet"
    table = pd.read_parquet(file)
    table["effective_samples"] = 15.0  # of 16 channels, also in a map that the other run does not have
    rewrite(file, table)
    other = tmp_path / "spectra/scratch/tiny/rcnn/seed_0/eigenvalues.parquet"
    table = pd.read_parquet(other)
    rewrite(other, table[table["module"] != "layer2.relu"])
    notes = " ".join(compare(tmp_path))
    assert (
        "Maps with fewer effective samples than channels in some run: 2 of 2 (layer0.relu#0:act, layer1.relu" in notes
    )
    assert "The runs have snapshots at different steps; compared is the last of each alone." in notes


def test_nan_in_a_table_is_refused(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,))
    file = tmp_path / "spectra/scratch/tiny/rcnn/seed_0/eigenvalues.parquet"
    table = pd.read_parquet(file)
    table.loc[(table["module"] == "layer0.relu") & (table["index"] == 0), "value"] = np.nan
    rewrite(file, table)
    with pytest.raises(UserError, match=r"seed_0/eigenvalues.parquet: row \d+ has the eigenvalue nan; .*run 'eigendet"):
        compare(tmp_path)


def test_folders_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    simulate(tmp_path, seeds=(0,))
    first = tmp_path / "spectra/finetune/tiny/rcnn/seed_0"
    with pytest.raises(UserError, match=r"seed_0: finetune seed 0 is given twice"):
        comparison.write_comparison([first, first], tmp_path / "out", {})
    with pytest.raises(UserError, match=r"nowhere/eigenvalues.parquet: no such file; 'eigendet spectra' writes it"):
        comparison.write_comparison([tmp_path / "nowhere"], tmp_path / "out", {})
    run = {"arm": "scratch", "backbone": "tiny", "detector": "other", "seed": 0}
    rewritten(tmp_path, "scratch/tiny/rcnn/seed_0", run=run)
    with pytest.raises(UserError, match=r"of the detector 'other'; .* is of 'rcnn'"):
        comparison.write_comparison([first, tmp_path / "spectra/scratch/tiny/rcnn/seed_0"], tmp_path / "out", {})
    (first / "eigenvalues.parquet").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"eigenvalues.parquet: damaged: .*; run 'eigendet spectra' again"):
        comparison.write_comparison([first], tmp_path / "out", {})
    with pytest.raises(UserError, match=r"holds no spectra of this experiment"):
        config_only = tmp_path / "empty"
        config_only.mkdir()
        (config_only / "config.yaml").write_text((tmp_path / "config.yaml").read_text())
        eigendet.read_spectra(config_only)


def test_accuracy_is_said_with_its_uncertainty(tmp_path: Path) -> None:
    runs = pd.DataFrame(
        {
            "arm": ["finetune"] * 4 + ["scratch"] * 4,
            "seed": [0, 1, 2, 3] * 2,
            "AP": [0.40, 0.41, 0.39, 0.40, 0.30, 0.31, 0.29, 0.30],
        }
    )
    assert on_accuracy(runs)[0] == (
        "Average precision is 40.0 fine-tuned and 30.0 from scratch: a difference (test over runs, p = 0.029)."
    )
    assert on_accuracy(runs[runs["arm"] == "scratch"]) == []
    assert significance.smallest_p(list(runs["arm"])) == 1 / 35


def test_experiments_without_results_have_no_tables(tmp_path: Path) -> None:
    experiment = simulate(tmp_path, seeds=(0,))
    assert results.missing(tmp_path, experiment) == [
        "The initializations of rcnn on tiny have not been scored yet.",
        "The spectra of rcnn on tiny have not been compared yet.",
    ]
    shutil.rmtree(tmp_path / "evaluation/scratch")
    assert results.missing(tmp_path, experiment)[0].endswith("so without a score: scratch/tiny/rcnn/seed_0.")
    assert isinstance(experiment, config.Experiment)
