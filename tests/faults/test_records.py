"""Records of runs and files of widths, in JSON, that someone damaged or changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.networks.widths_file import ChosenWidths, Cost, read_by_hand, read_chosen, read_widths, write_chosen
from eigendet.runs import definitions
from eigendet.runs.folder import RunFolder, RunRecord, code_versions
from tests.conftest import minimal_experiment
from tests.faults.refusal import refused

EMPTY: list[Any] = [None, True, 3, 1.5, "text", [], {}]  # values of every type


def definition() -> Any:
    return definitions.definition_for_widths(config.parse(minimal_experiment()), "tiny", "rcnn", heads=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of a complete run, but for its snapshots."""
    folder = RunFolder(tmp_path)
    record = RunRecord(
        run={"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": 0}, costs={"parameters": 3},
        identity={"seed": 0}, definition=definition(), snapshots=[0, 4], seconds=1.0, images_per_second=2.0,
        processes=1, device="cpu", **code_versions(),
    )  # fmt: skip
    folder.complete(record)
    return folder


def rewritten(file: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    changed = edit(content)
    file.write_text(json.dumps(content if changed is None else changed))


def put(*keys: str, value: Any) -> Callable[[Any], Any]:
    def edit(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def whole(value: object) -> Callable[[Any], Any]:
    return lambda content: value


FRACTIONS: list[Any] = [None, True, -1, 1.5, "0", [], {}]
STEPS: list[Any] = [*EMPTY, [4, 0], [0, 0, 4], [-1, 4], [0, 1.5], [True, 4], ["0"], [None]]
TIMES: list[Any] = [None, True, "1", [], float("nan"), float("inf")]
COUNTS: list[Any] = [None, -1, 1.5, "1"]
RECORDS: dict[str, Callable[[Any], Any]] = {
    **{f"the whole is {value!r}": whole(value) for value in EMPTY if value is not None},
    **{f"run is {value!r}": put("run", value=value) for value in EMPTY},
    **{f"seed is {value!r}": put("run", "seed", value=value) for value in FRACTIONS},
    **{f"snapshots is {value!r}": put("snapshots", value=value) for value in STEPS},
    **{f"seconds is {value!r}": put("seconds", value=value) for value in TIMES},
    **{f"definition is {value!r}": put("definition", value=value) for value in EMPTY},
    **{f"costs is {value!r}": put("costs", value=value) for value in EMPTY if value != {}},
    **{f"processes is {value!r}": put("processes", value=value) for value in COUNTS},
    **{f"version is {value!r}": put("version", value=value) for value in [*COUNTS, 99]},
    "backbone a number": put("definition", "backbone", value=3),
    "width negative": put("definition", "backbone", "width", value=-1),
    "classes a text": put("definition", "classes", value="cat"),
    "size of three": put("definition", "size", value=[1, 2, 3]),
    "widths texts": put("definition", "widths", value={"conv1": "wide"}),
}  # fmt: skip


@pytest.mark.fault(kind="changed records", stage="train")
@pytest.mark.parametrize("edit", RECORDS.values(), ids=RECORDS)
def test_a_record_of_a_run_that_cannot_be_so_is_refused(run: RunFolder, edit: Callable[[Any], Any]) -> None:
    assert run.read().snapshots == [0, 4]
    rewritten(run.record, edit)
    with refused(run.record):
        run.read()


WIDTHS = {
    "no object": [], "no widths": {}, "widths a list": {"widths": [8]}, "widths a number": {"widths": 8},
    "a width of four billion": {"widths": {"conv1": 4 * 10**12}},
    "a width of a million digits": {"widths": {"conv1": 10**300}},
}  # fmt: skip
WIDTH_VALUES = [0, -8, 8.0, 8.5, "8", True, None, [], {}, float("nan"), float("inf"), 10**7]


@pytest.mark.fault(kind="changed widths", stage="widths")
@pytest.mark.parametrize("content", WIDTHS.values(), ids=WIDTHS)
def test_a_file_of_widths_that_cannot_be_so_is_refused(content: object, tmp_path: Path) -> None:
    file = tmp_path / "widths.json"
    file.write_text(json.dumps(content))
    with refused(file, "expected"):
        read_by_hand(file)


@pytest.mark.fault(kind="changed widths", stage="widths")
@pytest.mark.parametrize("value", WIDTH_VALUES, ids=repr)
def test_a_width_that_cannot_be_is_refused_with_its_group(value: object, tmp_path: Path) -> None:
    network = definition()
    _, widths = network.reference()
    file = tmp_path / "widths.json"
    file.write_text(json.dumps({"widths": widths}))
    assert read_widths(file, network) == widths
    group = next(iter(widths))
    file.write_text(json.dumps({"widths": widths | {group: value}}))
    with refused(file, group):
        read_widths(file, network)


CHOSEN: dict[str, Callable[[Any], Any]] = {
    **{f"reference is {value!r}": put("reference", value=value) for value in EMPTY if value != {}},
    **{f"macs is {value!r}": put("macs", value=value) for value in EMPTY},
    "macs without a result": put("macs", value={"reference": 3}),
    "targets texts": put("targets", value={"conv1": "wide"}),
    "rule a number": put("rule", value=3),
    "bound a list": put("bound", value=[1]),
    "version later": put("version", value=99),
    "settings a list": put("settings", value=[1]),
}


@pytest.mark.fault(kind="changed widths", stage="widths")
@pytest.mark.parametrize("edit", CHOSEN.values(), ids=CHOSEN)
def test_what_the_command_wrote_is_refused_if_it_cannot_be_so(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    file, cost = tmp_path / "derived.json", Cost(100, 50)
    chosen = ChosenWidths(widths={"conv1": 8}, reference={"conv1": 16}, parameters=cost, macs=cost, rule="dof")
    write_chosen(file, chosen)
    assert read_chosen(file) == chosen
    rewritten(file, edit)
    with refused(file):
        read_chosen(file)
