from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from eigendet import config
from eigendet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The experiment with the value at a dotted key replaced."""
    *path, last = key.split(".")
    section = values
    for part in path:
        section = section[part]
    section[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.stepz", 5, "training.stepz: unknown key; did you mean 'steps'? accepted here: steps, batch_size"),
        ("trainin", {}, "trainin: unknown key; did you mean 'training'? accepted here: name"),
        ("training.steps", "many", "training.steps: got 'many'; input should be a valid integer"),
        ("training.steps", 0, "training.steps: got 0; input should be greater than 0"),
        ("training.steps", True, "training.steps: got True; expected a number"),
        ("detectors", {"rcnn": "faster_rcnn"}, "detectors.rcnn: got 'faster_rcnn'; expected a mapping with keys such"),
        ("training.optimizer", "adam", "training.optimizer: got 'adam'; input should be 'sgd' or 'adamw'"),
        ("training.warmup_steps", 4, "training: warmup_steps is 4; it must be below steps, 4"),
        ("training.snapshots", [0, 99], "no snapshot can come after the last step, 4"),
        ("training.max_size", 32, "training: min_size is 64; it must not exceed max_size, 32"),
        ("arms", {"scratc": {}}, "arms: unknown arm 'scratc'. Did you mean 'scratch'?"),
        ("arms", {"scratch": {"widths": "a.json"}}, "arms.scratch.widths is given; this arm has widths of its own"),
        ("arms", {"scratch": {}, "mine": {"widths": 3}}, "arms.mine.widths: got 3; input should be a valid string"),
        ("arms", {"scratch": {}, "mine": {"widths": ""}}, "arms.mine.widths: got ''; expected a file of widths"),
        (
            "arms",
            {"scratch": {}, "dino": {"init": ""}},
            "arms.dino.init: got ''; expected 'workflow', a file, or published",
        ),
        ("arms", {"scratch": {}, "dino": {"init": 3}}, "arms.dino.init: got 3; input should be a valid string"),
        ("arms", {"scratch": {"init": "w.pt"}}, "arms.scratch.init is given; this arm has init of its own, so choose"),
        ("arms", {"scratch": {}, "dino": {}}, "An arm of another name needs `widths`, a file of widths, or `init`"),
        (
            "arms",
            {"scratch": {}, "derived_finetune": {}},
            "arms.derived_finetune has the widths of derived, which is not",
        ),
        ("widths.arm", "derived", "widths.arm is 'derived', whose widths are not the reference's; expected one of"),
        ("widths.arm", "dino", "widths.arm is 'dino', whose covariance is not observed"),
        ("pretraining.seeds", [0, 1], "pretraining.seeds is [0, 1], and seeds is [0]; expected at most as many"),
        ("pretraining.seed", 1, "pretraining.seed: is called 'pretraining.seeds' now"),
        ("widths.macs", float("inf"), "widths.macs: got inf; input should be a finite number"),
        ("arms", {"scratch": {}, "profile": {}}, "arms.profile is compared with derived, which is not in arms"),
        ("arms", {"scratch": {}, "derived_2": {"widths": "x"}}, "arms.derived_2: the name of a later round of derived"),
        ("arms", {"finetune": {}, "untrained": {}}, "arms.untrained takes its widths from step 0 of scratch"),
        ("arms", {"scratch": {"stepz": 9}}, "arms.scratch.stepz: unknown key; did you mean 'steps'?"),
        ("seeds", [], "seeds: got []"),
        ("seeds", [1, 1], "seeds: got [1, 1]; each may occur once"),
        ("seeds", [2**63], "seeds.0: got 9223372036854775808; input should be less than 9223372036854775808"),
        ("seeds", [0, True], "seeds: got [0, True]; expected numbers"),
        ("covariance.points", ["act", "act"], "covariance.points: got ['act', 'act']; each may occur once"),
        ("covariance.points", [], "covariance.points: got []; expected 1 or more"),
        ("covariance.arms", ["scratch", "scratch"], "covariance.arms: got ['scratch', 'scratch']; each may occur once"),
        ("training.snapshots", 1, "training.snapshots: got 1; expected how many, at least 2, or a list of steps"),
        ("training.snapshots", [-1], "training.snapshots: got [-1]; expected how many, at least 2, or a list of"),
        ("training.learning_rate", float("inf"), "training.learning_rate: got inf; input should be a finite number"),
        ("training.scale_jitter", [1, float("inf")], "training.scale_jitter.1: got inf; input should be a finite"),
        ("training.scale_jitter", [1, 1, 1], "training.scale_jitter: got [1, 1, 1]; expected 2"),
        ("backbones.tiny.width", float("inf"), "backbones.tiny.width: got inf; input should be a finite number"),
        ("rounds", 10**6, "rounds: got 1000000; input should be less than or equal to 100"),
        ("arms", {"a b": {}}, "arms.a b: got 'a b'; expected letters and digits, and after the first also '-' and '_'"),
        (
            "covariance.points",
            ["relu"],
            "covariance.points.0: got 'relu'; input should be 'conv', 'linear', 'norm', 'act'",
        ),
        ("covariance.arms", ["finetune"], "widths.arm is 'scratch', whose covariance is not observed"),
        ("covariance.arms", ["scrach"], "covariance.arms: unknown arm 'scrach'. Did you mean 'scratch'?"),
        ("widths.macs", 4_089_184_256, "widths.macs: got 4089184256; input should be less than or equal to 100"),
        ("widths.parameters", 0, "widths.parameters: got 0; input should be greater than 0"),
        ("widths.activations", float("inf"), "widths.activations: got inf; input should be a finite number"),
        ("widths.macs", float("nan"), "widths.macs: got nan; input should be a finite number"),
        ("widths.macs", None, "widths: macs, parameters and activations are all null; give at least one cap"),
        ("widths", {"min_factor": 2.0, "max_factor": 1.5}, "min_factor is 2.0; it must not exceed max_factor, 1.5"),
        ("widths.point", "norm", "widths.point is 'norm'; it must be one of covariance.points, ['act']"),
        ("training.scale_jitter", [1.25, 0.8], "scale_jitter is [1.25, 0.8]; the lower end comes first"),
        ("widths.round_to", -1, "widths.round_to: got -1; input should be greater than 0"),
        ("widths.rule", 3, "widths.rule: got 3; expected a mapping with keys such as plugin"),
        ("data.classification", None, "which needs the sections data.classification and pretraining"),
        ("name", "a/b", "name: got 'a/b'"),
        ("experiment", "digits", "experiment: is called 'name' now"),
        ("widths.tie", "max", "widths.tie: is gone: channels that several layers write are as wide as the widest asks"),
        ("covariance.compress", True, "covariance.compress: is gone: it was slow"),
        ("arms", {"scratch": None}, "arms.scratch: got None; expected a mapping with keys such as steps, batch_size"),
        ("widths.centred", True, "widths.centred: is called 'widths.centered' now"),
        ("covariance.dump_shards", 2, "covariance.dump_shards: is called 'covariance.shards' now"),
        ("detectors", {}, "detectors: got {}"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_accepted(
    values: dict[str, Any], key: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError) as error:
        config.parse(changed(values, key, value), "my.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("my.yaml: ")
    assert len(str(error.value).splitlines()) == 1


def test_each_round_starts_from_the_spectra_of_the_round_before(values: dict[str, Any]) -> None:
    values |= {"rounds": 3, "arms": {"scratch": {}, "derived": {"steps": 9}, "profile": {}, "permuted": {}}}
    experiment = config.parse(values)
    assert experiment.all_arms == ["scratch", "derived", "derived_2", "derived_3", "profile", "permuted"]
    assert experiment.observed == ["scratch", "derived", "derived_2"]
    sources = [experiment.spectra_for(arm) for arm in experiment.all_arms]
    assert sources == [None, "scratch", "derived", "derived_2", None, "derived_2"]
    assert experiment.training_of("derived_3").steps == 9
    with pytest.raises(UserError, match="rounds is 2; derived, which is repeated, is not in arms"):
        config.parse(values | {"rounds": 2, "arms": {"scratch": {}}})


def test_every_fault_has_its_line(values: dict[str, Any]) -> None:
    values["training"]["steps"] = -1
    values["seeds"] = "none"
    with pytest.raises(UserError) as error:
        config.parse(values)
    assert len(str(error.value).splitlines()) == 2


def test_later_files_override_key_by_key(values: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(yaml.safe_dump(values))
    second.write_text("training: {steps: 9}\nseeds: [4, 5]\n")
    loaded = config.load([first, second])
    assert (loaded.training.steps, loaded.training.batch_size, loaded.seeds) == (9, 2, [4, 5])


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "not YAML"), ("- 1", "holds list; expected a mapping"), (None, "cannot be read")]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        config.load([file])


def test_an_arm_may_change_its_training_alone(values: dict[str, Any]) -> None:
    values["arms"] = {"finetune": {}, "scratch": {"steps": 12}, "derived": {}}
    experiment = config.parse(values)
    assert [experiment.training_of(arm).steps for arm in experiment.arms] == [4, 12, 4]


def test_the_written_configuration_reads_back_to_the_same(values: dict[str, Any]) -> None:
    experiment = config.parse(values)
    assert config.parse(yaml.safe_load(config.dump_yaml(experiment))) == experiment


@pytest.mark.parametrize("file", sorted((ROOT / "workflow/experiments").glob("*.yaml")), ids=lambda file: file.name)
def test_the_shipped_experiments_are_valid(file: Path) -> None:
    base = file.with_name(file.name.replace("_full", ""))
    assert config.load([base, file]).name == file.stem


def test_the_schema_file_is_up_to_date() -> None:
    committed = (ROOT / "workflow/schemas/experiment.schema.json").read_text()
    assert committed == config.schema_text(), "run `make generated`"


def test_a_renamed_key_is_not_missing_too(values: dict[str, Any]) -> None:
    values["experiment"] = values.pop("name")
    with pytest.raises(UserError) as error:
        config.parse(values, "my.yaml")
    assert str(error.value) == "my.yaml: experiment: is called 'name' now"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["scratch", "derived"]}, r"arms: got \['scratch', 'derived'\]; .*apart: {scratch: {}, derived: {}}$"),
        ({"arms": "scratch"}, r"arms: got 'scratch'; expected a mapping of names .*{scratch: {}, derived: {}}$"),
        ({"backbones": ["resnet18"]}, r"backbones: got \['resnet18'\]; expected a mapping of names to their settings$"),
        ({"seeds": 3}, r"seeds: got 3; expected a list, for example \[3\]$"),
        ({"seeds": "x" * 10_000}, r"seeds: got 'x{1,60}\.\.\.x{1,60}'; expected a list"),
    ],
)
def test_what_is_written_another_way_is_shown_as_it_would_be_right(
    values: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config.parse(values | change, "own.yaml")


def test_what_starts_from_pre_training_here_needs_its_data(values: dict[str, Any]) -> None:
    del values["data"]["classification"], values["pretraining"]
    values["backbones"]["tiny"]["pretrained"] = "w.pt"
    config.parse(values)
    for arm, settings, message in (
        ("supervised", {"init": "workflow"}, "arms.supervised.init is 'workflow', which needs the sections data.class"),
        (
            "derived_finetune",
            {},
            "arms.derived_finetune is there, which needs the sections data.classification and pre",
        ),
    ):
        with pytest.raises(UserError, match=message):
            config.parse(values | {"arms": {"finetune": {}, "scratch": {}, "derived": {}, arm: settings}})


def test_arms_with_weights_of_their_own_have_the_references_widths_and_are_observed(values: dict[str, Any]) -> None:
    experiment = config.parse(
        values | {"arms": {"scratch": {}, "dino": {"init": "d.pt"}, "derived": {}, "derived_finetune": {}}}
    )
    assert experiment.with_reference_widths == experiment.observed == ["scratch", "dino"]
    assert experiment.controls == [] and experiment.widths_of("derived_finetune") == "derived"
    assert experiment.init_of("dino", "tiny") == "d.pt" and experiment.init_of("derived_finetune", "tiny") == "workflow"
    assert config.parse(values | {"covariance": {"arms": ["scratch"]}}).observed == ["scratch"]
