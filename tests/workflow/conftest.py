"""The one experiment that a test run makes, from data to report, and copies of it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from eigendet import config
from eigendet.cli import plugin_commands
from eigendet.runs import definitions
from tests.conftest import minimal_experiment
from tests.workflow.running import contents, said, snakemake

ARMS = ("finetune", "scratch", "derived", "derived_2", "profile", "mine")


class Finished(NamedTuple):
    """A folder in which an experiment has run to its end, and the configuration."""

    folder: Path
    configuration: dict[str, Any]

    @property
    def results(self) -> Path:
        return self.folder / "results/minimal"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The minimal experiment with two seeds, two rounds, widths of the whole detector and an arm of one's own.

    Its detector is a plugin of the folder's own, as `eigendet plugins new` writes it. It is made once for all workers
    of a test run, and only read: a test that changes something takes `copied`.
    """
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):  # one of several workers
        shared = shared.parent
    made = Finished(shared / "finished", _configuration())
    with FileLock(shared / "finished.lock"):
        if not made.folder.exists():
            _make(made)
    failure = made.folder / "failure"
    if failure.exists():
        pytest.fail(failure.read_text(), pytrace=False)
    before = contents(made.folder)
    yield made
    assert contents(made.folder) == before, "a test has changed what others read"


def _configuration() -> dict[str, Any]:
    configuration = minimal_experiment() | {"seeds": [0, 1], "rounds": 2}
    configuration["detectors"]["rcnn"] = {"plugin": "my_rcnn", "fpn_channels": 16, "head_channels": 32, "proposals": 20}
    configuration["arms"] = {arm: {} for arm in ("finetune", "scratch", "derived", "profile")}
    configuration["arms"]["mine"] = {"widths": "mine.json", "init": "workflow"}
    configuration["covariance"] |= {"jackknife": 2, "heads": True, "points": ["act", "conv", "linear"]}
    configuration["widths"] |= {"heads": True}
    return configuration


def _make(made: Finished) -> None:
    plugin_commands.write_example("detector", "my_rcnn", made.folder / "plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        _, widths = definitions.definition_for_widths(
            config.parse(made.configuration), "tiny", "rcnn", heads=True
        ).reference()
    (made.folder / "mine.json").write_text(json.dumps({"widths": widths | {"rpn.head.conv.0.0": 20}}))
    result = snakemake(made.folder, made.configuration)
    if result.returncode:
        (made.folder / "failure").write_text(said(result))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """A copy of the finished experiment, in which Snakemake too finds all that it knows of the original."""
    shutil.copytree(finished.folder, tmp_path / "finished", symlinks=True)
    return Finished(tmp_path / "finished", copy.deepcopy(finished.configuration))
