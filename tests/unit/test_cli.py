from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from eigendet import progress
from eigendet.cli import main

VERBS = [
    "init",
    "check-data",
    "check-network",
    "plan",
    "pretrain",
    "fetch",
    "train",
    "evaluate",
    "latency",
    "covariance",
    "inspect",
    "merge",
    "spectra",
    "comparison",
    "forecast",
    "channels",
    "widths",
    "front",
    "readings",
    "report",
    "figures",
    "tensorboard",
    "export",
    "plugins",
]


def test_every_verb_explains_itself_without_importing_torch() -> None:
    code = (
        "import sys; from eigendet.cli import main\n"
        f"for verb in {VERBS}: main([verb, '--help'], 'eigendet', standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = re.findall(r"^Usage: eigendet ([\w-]+)", result.stdout, re.MULTILINE)
    assert said == VERBS
    assert result.stdout.splitlines()[-1] == "False"


def test_help_names_the_stages_in_order() -> None:
    lines = CliRunner().invoke(main, ["--help"]).output.splitlines()
    assert [line.split()[0] for line in lines[lines.index("Commands:") + 1 :]] == VERBS


@pytest.mark.parametrize("detector", [[], ["--detector", "rcnn"]])
def test_channel_groups_are_printed_with_what_they_cost(
    values: dict[str, Any], tmp_path: Path, detector: list[str]
) -> None:
    configuration = tmp_path / "config.yaml"
    configuration.write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(main, ["channels", "tiny", "-c", str(configuration), *detector])
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert {"conv1", "layer4.0.conv2"} <= rows.keys()
    assert ("roi_heads.box_head.fc6" in rows) == bool(detector)
    assert re.search(r"in all [\d,]+ parameters, [\d,]+ MACs", result.output)


# What each of the stages below reports when it ends.
ENDS = [
    "check-data detection val: image 4", "pretrain: step 4", "pretrain: image 16", "train finetune seed 0: step 4",
    "train scratch seed 0: step 4", *(f"evaluate finetune seed 0 step {step}: image 4" for step in (0, 1, 4)),
    "evaluate seed 0: image 16",
    "latency: round 28", "covariance scratch seed 0: snapshot 3", "covariance scratch seed 0 shard 1/3: snapshot 3",
    "covariance scratch seed 0 shard 3/3: snapshot 3", "covariance scratch seed 0: snapshot 1",
    "train derived seed 0: step 4",
]  # fmt: skip


def test_the_stages_run_by_hand_one_after_the_other(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", progress.logger.name)
    configuration = tmp_path / "config.yaml"
    configuration.write_text(yaml.safe_dump(values))
    results = tmp_path / "out"

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("check-data", "-c", configuration, "detection", "val", "-o", results / "val.json")
    run("pretrain", "-c", configuration, "-o", results / "pre")
    init = ["--arm", "finetune", "--init", results / "pre/backbone.pt"]
    run("train", "-c", configuration, *init, "-o", results / "tuned")
    run("train", "-c", configuration, "-o", results / "scratch")
    assert "AP50 " in run("evaluate", "-c", configuration, results / "tuned", "-o", results / "tuned.json")
    assert "top1 " in run("evaluate", "-c", configuration, results / "pre", "-o", results / "pre.json")
    classifier = CliRunner().invoke(main, ["latency", "-c", str(configuration), str(results / "pre"), "-o", "x"])
    assert "pre: a run of a classifier; expected the folder of a detector's run" in classifier.output
    lines = run("latency", "-c", configuration, results / "tuned", results / "scratch", "-o", results / "latency.json")
    assert [line.split(",")[0] for line in lines.splitlines()] == ["finetune", "scratch"]
    for measured in json.loads((results / "latency.json").read_text())["runs"]:
        assert 0 < measured["backbone"]["median"] < measured["detector"]["median"]
        assert measured["detector"]["low"] <= measured["detector"]["median"] <= measured["detector"]["high"]
    run("covariance", "-c", configuration, results / "scratch", "-o", results / "c.h5")
    assert re.search(r"^layer4.1.relu#1:act +64 +12 +excluded ", run("inspect", results / "c.h5"), re.MULTILINE)
    for part in ("1/3", "3/3"):
        run("covariance", "-c", configuration, results / "scratch", "--shard", part, "-o", results / f"{part[0]}.h5")
    merged = run("merge", results / "1.h5", results / "3.h5", "-o", results / "two.h5")
    assert "2 of the 3 probe images: shards are missing" in merged
    run("spectra", results / "c.h5", "-o", results / "spectra")
    run("comparison", results / "spectra", "-o", results / "comparison")
    assert not pd.read_parquet(results / "comparison/metrics.parquet").empty
    said = run("forecast", "-c", configuration, results / "c.h5", "-o", results / "forecast.json")
    assert re.search(
        r"^scratch, seed 0, layer3.1.relu#1:act: rankme [\d.]+, alpha [\d.]+, logme -?[\d.]+$", said, re.MULTILINE
    )
    derived = results / "widths/derived.json"
    assert "of the parameters" in run("widths", "-c", configuration, "derived", results / "spectra", "-o", derived)
    assert "dof at scale" in run("front", "-c", configuration, results / "spectra", "-o", results / "front.csv")
    observed = [results / "scratch", "--covariance", results / "c.h5", "-o", results / "readings.csv"]
    assert re.search(r"dof at scale 0.1 +True +positions +True ", run("readings", "-c", configuration, *observed))
    for runs in (["tuned"], ["scratch", "scratch"]):
        given = [argument for name in runs for argument in ("--run", str(results / name))]
        arguments = ["widths", "-c", str(configuration), "derived", str(results / "spectra"), *given, "-o", "x"]
        said = "seed 0 of the arm scratch, like another --run" if len(runs) > 1 else "the arm finetune"
        assert f"{runs[0]}: a run of {said}; expected one of the arm scratch for each seed." in (
            CliRunner().invoke(main, arguments).output.replace("\n", " ")
        )
    control = results / "widths/profile.json"
    assert "of the MACs" in run("widths", "-c", configuration, "profile", "--derived", derived, "-o", control)
    run("train", "-c", configuration, "--arm", "derived", "--widths", derived, "-o", results / "derived")
    ends = [message for name, _, message in caplog.record_tuples if name == progress.logger.name and "took" in message]
    assert [re.split(r",| of ", line)[0] for line in ends] == ENDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "-o", "x", "--arm", "scrach"], "--arm: unknown arm 'scrach'. Did you mean 'scratch'?"),
        *(
            ([*command, "-c", "no.yaml"], "no.yaml: no such file; give --config FILE, or write one with 'eigendet init")
            for command in (["train", "-o", "x"], ["plan"], ["widths", "derived", "-o", "x"])
        ),
        (["train", "-o", "x", "--backbone", "vgg"], "unknown entry of backbones 'vgg'"),
        (["evaluate", "README.md", "-o", "x"], "README.md/run.json: cannot be read"),
        (["report", "plugins"], "If plugins is of another version, 'snakemake' makes it anew"),
        (["dump", "plugins", "-o", "x"], "'dump' is called 'covariance' now: eigendet covariance --help"),
        (["covariance", "plugins", "-o", "x"], "plugins/run.json: cannot be read"),
        (["spectra", "README.md", "-o", "x"], "README.md: not HDF5, or truncated"),
        (["widths", "derived", "plugins", "-o", "x"], "plugins/eigenvalues.parquet: no such file"),
        (
            ["widths", "derived", "-o", "x"],
            "SPECTRA: none given; expected folders of the arm scratch, one for each seed",
        ),
        (["widths", "scratch", "-o", "x"], "unknown arm with widths of its own 'scratch'. Known: derived, profile"),
        (["report", "plugins"], "plugins/config.yaml: cannot be read"),
        (["covariance", "plugins", "-o", "x", "--shard", "9/8"], "--shard: got '9/8'; expected K/N with K from 1 to N"),
        (["channels", "resnet19"], "unknown entry of backbones 'resnet19'"),
        (["evaluate", "README.md", "-o", "/proc/x.json"], "README.md/run.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_message_and_no_traceback(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())
    assert isinstance(result.exception, SystemExit)
    assert not Path("x").exists()
