"""What each stage reads, and which settings make it run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.config.sections import WidthSettings
from eigendet.plugins import dependencies

PLUGINS = ("plugins/rules.py", "plugins/allocators.py")
RESULTS = dependencies.RESULTS
NETWORK = ("tiny", "rcnn")


@pytest.fixture
def experiment(values: dict[str, Any], tmp_path: Path) -> config.Experiment:
    """Two seeds, two rounds, a control of every sort, and an arm with a file of widths."""
    (tmp_path / "mine.json").write_text("{}")
    arms: dict[str, Any] = {arm: {} for arm in config.ARMS}
    return config.parse(
        values | {"seeds": [0, 1], "rounds": 2, "arms": arms | {"mine": {"widths": str(tmp_path / "mine.json")}}}
    )


def spectra(arm: str) -> list[str]:
    return [f"{RESULTS}/spectra/{arm}/tiny/rcnn/seed_{seed}" for seed in (0, 1)]


def tables(arm: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" for folder in spectra(arm) for name in names]


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        ("finetune", f"--init {RESULTS}/pretrained/tiny/seed_0/backbone.pt"),
        ("scratch", ""),
        ("derived_2", f"--widths {RESULTS}/widths/tiny/rcnn/derived_2.json"),
        ("profile", f"--widths {RESULTS}/widths/tiny/rcnn/profile.json"),
        ("mine", f"--widths {RESULTS}/widths/tiny/rcnn/mine.json"),
        (
            "derived_finetune",
            f"--init {RESULTS}/pretrained/tiny/rcnn/derived_finetune/seed_0/backbone.pt "
            f"--widths {RESULTS}/widths/tiny/rcnn/derived_2.json",
        ),
    ],
)
def test_a_run_reads_what_it_starts_from(experiment: config.Experiment, arm: str, options: str) -> None:
    assert dependencies.train_options(experiment, arm, *NETWORK, "0") == ["--arm", arm, *options.split()]
    inputs = dependencies.train_inputs(experiment, arm, *NETWORK, "0")
    assert inputs["start"] == options.split()[1::2]
    assert inputs["network"] == [f"{RESULTS}/networks/tiny/rcnn.json"]
    assert inputs["data"] == [dependencies.checked_data(experiment, "detection", "train")]
    assert inputs["plugins"] == ["plugins/resnet.py", "plugins/rcnn.py"]


@pytest.mark.parametrize(
    ("arm", "source", "derived"),
    [
        ("derived", "scratch", False),
        ("derived_2", "derived", False),
        ("reference", None, False),
        ("uniform_parameters", None, True),
        ("uniform_macs", None, True),
        ("profile", None, True),
        ("untrained", "scratch", True),
        ("permuted", "derived", True),
    ],
)
def test_widths_are_made_from_spectra_and_the_last_derived_widths(
    experiment: config.Experiment, arm: str, source: str | None, derived: bool
) -> None:
    file = f"{RESULTS}/widths/tiny/rcnn/derived_2.json"
    expected = tables(source, "eigenvalues.parquet", "jackknife.parquet") if source else []
    expected += [file] if derived else []
    assert dependencies.width_inputs(experiment, *NETWORK, arm) == [*expected, *PLUGINS]
    arguments = spectra(source) if source else []
    arguments += ["--derived", file] if derived else []
    assert dependencies.width_sources(experiment, *NETWORK, arm) == arguments


def test_an_arms_own_file_is_read_and_gives_no_arguments(experiment: config.Experiment, tmp_path: Path) -> None:
    inputs = dependencies.width_inputs(experiment, *NETWORK, "mine")
    assert inputs == [str(tmp_path / "mine.json"), *PLUGINS]
    assert dependencies.width_sources(experiment, *NETWORK, "mine") == []


def test_the_front_is_made_from_the_spectra_that_widths_are_first_derived_from(experiment: config.Experiment) -> None:
    assert dependencies.width_spectra(experiment, *NETWORK) == spectra("scratch")
    assert dependencies.front_inputs(experiment, *NETWORK) == [
        *tables("scratch", "eigenvalues.parquet"), *PLUGINS,
    ]  # fmt: skip


def test_all_observed_runs_are_compared_by_every_rule(experiment: config.Experiment) -> None:
    folders = dependencies.observed_spectra(experiment, *NETWORK)
    assert folders == [*spectra("finetune"), *spectra("scratch"), *spectra("derived")]
    assert dependencies.comparison_inputs(experiment, *NETWORK) == [
        *(f"{folder}/{name}" for folder in folders for name in ("eigenvalues.parquet", "similarity.h5")),
        *(f"{folder.replace('spectra', 'evaluation')}.json" for folder in folders),
        "plugins/rules.py",
    ]


def test_initializations_of_reference_widths_are_scored_on_checked_data(values: dict[str, Any]) -> None:
    values |= {"covariance": {"images": 3, "arms": ["scratch", "finetune", "derived"]}}
    experiment = config.parse(values)
    files = [f"{RESULTS}/covariance/{arm}/tiny/rcnn/seed_0.h5" for arm in ("finetune", "scratch")]
    assert dependencies.forecast_covariances(experiment, *NETWORK) == files
    assert dependencies.forecast_inputs(experiment, *NETWORK) == [*files, *dependencies.observed_data(experiment)]
    values |= {"covariance": {"images": 3, "arms": ["reference"]}, "arms": {"reference": {}}}
    assert not any("forecast" in path for path in dependencies.report_inputs(config.parse(values)))


def test_shards_are_merged_to_a_run(values: dict[str, Any]) -> None:
    experiment = config.parse(values | {"covariance": {"images": 3, "shards": 2}})
    assert dependencies.covariance_shards(experiment, "scratch", *NETWORK, "0") == [
        f"{RESULTS}/covariance/scratch/tiny/rcnn/seed_0.{shard}_of_2.h5" for shard in (1, 2)
    ]


def test_spectra_are_compared_with_the_scores_of_their_runs(values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    scores = [f"{RESULTS}/evaluation/{arm}/tiny/rcnn/seed_0.json" for arm in ("finetune", "scratch")]
    arguments = ["--evaluation", scores[0], "--evaluation", scores[1]]
    assert dependencies.observed_evaluations(experiment, *NETWORK) == arguments
    assert set(scores) <= set(dependencies.comparison_inputs(experiment, *NETWORK))


def test_latency_is_of_every_arms_first_run(experiment: config.Experiment) -> None:
    folders = dependencies.latency_runs(experiment, *NETWORK)
    assert folders == [f"{RESULTS}/runs/{arm}/tiny/rcnn/seed_0" for arm in experiment.all_arms]
    assert dependencies.latency_records(experiment, *NETWORK) == [f"{folder}/run.json" for folder in folders]


def test_the_page_reads_what_is_made_for_every_run_and_network(values: dict[str, Any]) -> None:
    inputs = dependencies.report_inputs(config.parse(values))
    assert inputs == [
        *(f"{RESULTS}/evaluation/{arm}/tiny/rcnn/seed_0.json"
          for arm in ("finetune", "scratch", "derived", "uniform_parameters", "profile")),
        *(dependencies.checked_data(config.parse(values), "detection", split) for split in ("train", "val")),
        f"{RESULTS}/comparison/tiny/rcnn/notes.json", f"{RESULTS}/latency/tiny/rcnn.json",
        f"{RESULTS}/forecast/tiny/rcnn.json", f"{RESULTS}/widths/tiny/rcnn/front.csv",
        f"{RESULTS}/widths/tiny/rcnn/readings.csv",
    ]  # fmt: skip
    without = dependencies.report_inputs(config.parse(values | {"arms": {"scratch": {}}}))
    assert not any("front" in path or "readings" in path for path in without)


def test_readings_are_of_the_runs_that_widths_are_read_from_by_every_rule(values: dict[str, Any]) -> None:
    experiment = config.parse(values | {"seeds": [0, 1], "widths": {"arm": "finetune"}})
    runs = [f"finetune/tiny/rcnn/seed_{seed}" for seed in (0, 1)]
    files = [f"{RESULTS}/covariance/{run}.h5" for run in runs]
    assert dependencies.readings_sources(experiment, *NETWORK) == [
        *(f"{RESULTS}/runs/{run}" for run in runs), "--covariance", files[0], "--covariance", files[1],
    ]  # fmt: skip
    watched = dependencies.readings_inputs(experiment, *NETWORK)
    records = [f"{RESULTS}/runs/{run}/run.json" for run in runs]
    assert {*files, *records, *dependencies.observed_data(experiment), "plugins/rules.py"} == set(watched)
    before = dependencies.readings_settings(experiment)
    wider = experiment.model_copy(update={"widths": experiment.widths.model_copy(update={"macs": 0.5})})
    assert before != dependencies.readings_settings(wider)
    assert before != dependencies.readings_settings(experiment.model_copy(update={"preset": "paper"}))


def test_pre_training_reads_checked_data_and_perhaps_widths(experiment: config.Experiment) -> None:
    checked = [dependencies.checked_data(experiment, "classification", split) for split in ("train", "val")]
    assert dependencies.pretrain_inputs(experiment) == checked
    assert dependencies.pretrain_options(experiment, *NETWORK, "derived_finetune") == [
        "--widths", f"{RESULTS}/widths/tiny/rcnn/derived_2.json", "--detector", "rcnn"
    ]  # fmt: skip


def test_an_arm_starts_from_weights_of_its_own(values: dict[str, Any], tmp_path: Path) -> None:
    weights, widths = tmp_path / "weights.pt", tmp_path / "mine.json"
    widths.write_text("{}")
    values["backbones"]["tiny"]["pretrained"] = str(weights)
    values["arms"] = {
        "finetune": {}, "scratch": {}, "supervised": {"init": "workflow"},
        "both": {"init": str(weights), "widths": str(widths)},
        "resized": {"init": "workflow", "widths": str(widths)},
    }  # fmt: skip
    experiment = config.parse(values)
    starts = {arm: dependencies.train_options(experiment, arm, *NETWORK, "0")[2:] for arm in values["arms"]}
    assert starts == {
        "finetune": ["--init", f"{RESULTS}/fetched/finetune/tiny/backbone.pt"],
        "scratch": [],
        "supervised": ["--init", f"{RESULTS}/pretrained/tiny/seed_0/backbone.pt"],
        "both": ["--init", f"{RESULTS}/fetched/both/tiny/backbone.pt",
                 "--widths", f"{RESULTS}/widths/tiny/rcnn/both.json"],
        "resized": ["--init", f"{RESULTS}/pretrained/tiny/rcnn/resized/seed_0/backbone.pt",
                    "--widths", f"{RESULTS}/widths/tiny/rcnn/resized.json"],
    }  # fmt: skip
    assert experiment.observed == ["finetune", "scratch", "supervised"]
    assert dependencies.fetch_inputs(experiment, "both", "tiny") == [str(widths)]  # the command says what is missing
    weights.touch()
    assert dependencies.fetch_inputs(experiment, "both", "tiny") == [str(weights), str(widths)]
    assert dependencies.fetch_inputs(experiment, "finetune", "tiny") == [str(weights)]


def test_seeds_of_pre_training_take_turns(values: dict[str, Any]) -> None:
    values["seeds"], values["pretraining"]["seeds"] = [5, 6, 7], [1, 0]
    experiment = config.parse(values)
    starts = [dependencies.train_options(experiment, "finetune", *NETWORK, seed)[-1] for seed in ("5", "6", "7")]
    assert starts == [f"{RESULTS}/pretrained/tiny/seed_{seed}/backbone.pt" for seed in (1, 0, 1)]


def test_files_among_a_data_sets_options_are_read_and_folders_are_not(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "boxes.json").touch()
    values["data"]["detection"]["val"] = {
        "plugin": "coco", "annotations": str(tmp_path / "boxes.json"), "images": str(tmp_path),
    }  # fmt: skip
    files = dependencies.data_files(config.parse(values), "detection", "val")
    assert files == ["plugins/coco.py", str(tmp_path / "boxes.json")]


def test_only_what_changes_a_result_is_among_the_settings(values: dict[str, Any]) -> None:
    before = config.parse(values)
    values["training"] |= {"workers": 3, "log_every": 1, "tensorboard": True}
    values["covariance"] |= {"memory": 2.0, "shards": 2}
    values["backbones"]["tiny"]["pretrained"] = "elsewhere.pt"
    same = config.parse(values)
    values["training"]["steps"] = 5
    values["covariance"]["images"] = 2
    values["backbones"]["tiny"]["norm_groups"] = 2
    other = config.parse(values)
    for settings in (
        dependencies.covariance_settings,
        lambda experiment: dependencies.train_settings(experiment, "scratch", *NETWORK),
        lambda experiment: dependencies.network_settings(experiment, *NETWORK),
    ):
        assert settings(before) == settings(same) != settings(other)


def test_what_is_observed_and_scored_was_checked(values: dict[str, Any]) -> None:
    values["covariance"]["split"] = "train"
    experiment = config.parse(values)
    assert dependencies.observed_data(experiment) == [dependencies.checked_data(experiment, "detection", "train")]
    assert dependencies.scored_data(experiment) == [dependencies.checked_data(experiment, "detection", "val")]


def test_what_an_allocator_needs_is_read_and_named_and_nothing_else(experiment: config.Experiment) -> None:
    def asking(allocator: str) -> config.Experiment:
        allocation = {"plugin": allocator}
        return experiment.model_copy(
            update={"widths": WidthSettings(**experiment.widths.model_dump() | {"allocation": allocation})}
        )

    runs = [f"scratch/tiny/rcnn/seed_{seed}" for seed in (0, 1)]
    covariances = [f"{RESULTS}/covariance/{run}.h5" for run in runs]
    records = [f"{RESULTS}/runs/{run}/run.json" for run in runs]
    named = [argument for file in covariances for argument in ("--covariance", file)]
    folders = [argument for run in runs for argument in ("--run", f"{RESULTS}/runs/{run}")]
    tables_of_runs = tables("scratch", "eigenvalues.parquet", "jackknife.parquet")
    for allocator, files, arguments in (
        ("marginal", [], []),
        ("loss_weighted", covariances, named),
        ("conet", records, folders),
        ("output_aware", [*covariances, *records], [*named, *folders]),
    ):
        inputs = dependencies.width_inputs(asking(allocator), *NETWORK, "derived")
        assert inputs == [*tables_of_runs, *files, *PLUGINS]
        sources = dependencies.width_sources(asking(allocator), *NETWORK, "derived")
        assert sources == dependencies.front_sources(asking(allocator), *NETWORK) == [*spectra("scratch"), *arguments]
        assert set(files) <= set(dependencies.front_inputs(asking(allocator), *NETWORK))
        assert dependencies.width_sources(asking(allocator), *NETWORK, "reference") == []
