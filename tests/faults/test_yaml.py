"""Configurations that are no YAML, too much of it, or more than plain values."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eigendet import config
from eigendet.config.plain_yaml import read_yaml
from tests.conftest import minimal_experiment
from tests.faults.refusal import refused
from tests.workflow.running import command, said

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
CASES: dict[str, tuple[str | bytes, str]] = {
    "deep lists": ("[" * 100_000, "line 1: nested more than 50 deep"),
    "deep lists that are closed": ("a: " + "[" * 100_000 + "]" * 100_000, "nested more than 50 deep"),
    "deep mappings": ("{a: " * 100_000, "nested more than 50 deep"),
    "deep blocks": ("- " * 100_000 + "x", "nested more than 50 deep"),
    "deep keys": ("? " * 20_000, "nested more than 50 deep"),
    "deep by names": (CHAIN, "nested more than 50 deep"),
    "a billion laughs": (LAUGHS, "line 6: more than 100,000 values"),
    "a list that holds itself": ("a: &a [*a]", "line 1: a part that holds itself"),
    "a mapping that holds itself": ("a: &a {b: *a}", "holds itself"),
    "a merge that holds itself": ("a: &a {<<: *a}", "holds itself"),
    "a merge of a number": ("a: {<<: 3}", "not YAML"),
    "a name of nothing": ("a: *b", "not YAML: .*undefined alias"),
    "a long integer": ("\n\nsteps: " + "9" * 5000, "line 3: the number '9+'"),
    "an integer beyond 64 bits": ("steps: 18446744073709551616", "the number '18446744073709551616'"),
    "a hexadecimal beyond 64 bits": ("steps: 0xffffffffffffffffff", "the number '0x"),
    "an integer that is none": ("steps: !!int abc", "the number 'abc'"),
    "infinity": ("rate: .inf", "the number '.inf'; expected a finite one"),
    "minus infinity": ("rate: -.inf", "the number"),
    "NaN": ("rates: [1.0, .nan]", "the number '.nan'"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
    "a key twice within": ("a:\n  b: {c: 1, c: 2}", "line 2: the key 'c' stands twice"),
    "a list as a key": ("? [a]\n: 1", "a key of type"),
    "yes as a key": ("yes: 1", "a key of type 'tag:yaml.org,2002:bool'"),
    "nothing as a key": ("? \n: 1", "a key of type"),
    "a date": ("name: 2024-01-01", "line 1: a value of type .*timestamp.*in quotes"),
    "a date that is none": ("name: 2024-13-45", "a value of type"),
    "bytes": ("name: !!binary aGVsbG8=", "a value of type"),
    "a set": ("name: !!set {a, b}", "a value of type"),
    "code": ("name: !!python/object/apply:os.system [ls]", "a value of type"),
    "a type of one's own": ("name: !mine x", "a value of type '!mine'"),
    "two documents": ("a: 1\n---\nb: 2", "not YAML: expected a single document"),
    "a tab": ("\ta: 1", "not YAML"),
    "an open text": ("a: 'b", "not YAML"),
    "an open list": ("a: [1, 2", "not YAML"),
    "a colon too many": ("a: b: c", "not YAML"),
    "a control sign": ("a: \x1b[31m", "not YAML: .*control characters"),
    "a zero byte": (b"a: \0", "not YAML"),
    "no text": (b"a: \xff\xfe", "not YAML"),
    "another text encoding": (b"\xff\xfea", "not YAML"),
    "too large": ("# " + "x" * 1_000_000, "larger than 1 MB"),
}


@pytest.mark.fault(kind="hostile YAML", stage="configuration")
@pytest.mark.parametrize(("content", "says"), CASES.values(), ids=CASES)
def test_what_is_more_than_plain_values_is_refused(content: str | bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with refused(file, says):
        read_yaml(file)
    with refused(file, says):
        config.load([file])


@pytest.mark.fault(kind="hostile YAML", stage="configuration")
@pytest.mark.parametrize("place", ["missing", "a folder"])
def test_what_is_not_there_is_refused(place: str, tmp_path: Path) -> None:
    with refused(tmp_path / "config.yaml" if place == "missing" else tmp_path, "cannot be read"):
        read_yaml(tmp_path / "config.yaml" if place == "missing" else tmp_path)


@pytest.mark.fault(kind="accepted YAML", stage="configuration")
@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}),
        ("a: 1e-3\nb: 1.0e-3\nc: -5\nd: 0x10\ne: 1_000", {"a": "1e-3", "b": 1e-3, "c": -5, "d": 16, "e": 1000}),
        ("a: ~\nb: yes\nc: 'yes'", {"a": None, "b": True, "c": "yes"}),
        ("\ufeffa: Käfer", {"a": "Käfer"}),
        ("a: " + "[" * 48 + "]" * 48, None),
    ],
)
def test_plain_values_are_those_of_yaml(content: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content, encoding="utf-8")
    assert read_yaml(file) == yaml.safe_load(content)
    if value is not None:
        assert read_yaml(file) == value


@pytest.mark.fault(kind="hostile YAML", stage="configuration")
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "steps", 0), ("training", "steps", -1), ("training", "steps", 1.5), ("training", "steps", "many"),
        ("training", "steps", True), ("training", "steps", None), ("training", "steps", [4]),
        ("training", "snapshots", 10**9), ("training", "snapshots", [10**9]), ("training", "snapshots", [-1]),
        ("training", "snapshots", "all"), ("training", "learning_rate", 0), ("training", "learning_rate", "1e400"),
        ("training", "batch_size", -2), ("training", "batch_size", {}), ("training", "\x1b[31m", 1),
        ("covariance", "images", 0), ("covariance", "jackknife", 1), ("covariance", "memory", -1.0),
        ("covariance", "points", ["nothing"]), ("widths", "round_to", 0), ("widths", "macs", -1.0),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_with_its_key(section: str, key: str, value: object, tmp_path: Path) -> None:
    values = minimal_experiment()
    values[section][key] = value
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    with refused(file, section, "31m" if key.startswith("\x1b") else key):
        config.load([file])


@pytest.mark.fault(kind="accepted YAML", stage="train")
def test_a_thousand_million_steps_take_no_memory_before_they_are_made(tmp_path: Path) -> None:
    """A list of the images of all of them would take 50 GB."""
    code = """
import resource
from eigendet.config.sections import DetectorTraining
from eigendet.data.batches import detection_batches
from eigendet.data.samples import Rectangles
settings = DetectorTraining(steps=10**9, batch_size=2, min_size=48, max_size=48)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images, _ = next(iter(detection_batches(Rectangles(48), settings, 0, 10**9 - 2, masks=False)))
images, _ = next(iter(detection_batches(Rectangles(48), settings, 0, 3, masks=False)))
assert len(images) == 2 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.fault(kind="hostile YAML", stage="configuration")
@pytest.mark.parametrize("case", ["a key that stands twice", "an integer of 400 digits"])
def test_what_snakemake_would_take_is_refused_by_the_workflow(case: str, tmp_path: Path) -> None:
    more = {"a key that stands twice": "name: other\n", "an integer of 400 digits": f"rounds: 1{'0' * 399}\n"}[case]
    command_line = command(tmp_path, minimal_experiment(), "--dry-run")
    with (tmp_path / "experiment.yaml").open("a") as file:
        file.write(more)
    plan = subprocess.run(command_line, capture_output=True, text=True, cwd=tmp_path)
    assert plan.returncode == 1 and "Traceback" not in said(plan)
    (line,) = [line for line in said(plan).splitlines() if "experiment.yaml" in line and "line " in line]
    assert re.search("stands twice" if "twice" in case else "at most 64 bits", line)
