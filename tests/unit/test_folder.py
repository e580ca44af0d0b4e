from __future__ import annotations

from typing import Any

import pytest

from eigendet import config
from eigendet.runs.folder import RunNames, job_name


@pytest.mark.parametrize(
    ("run", "alone", "among_others"),
    [
        (
            {"arm": "scratch", "backbone": "tiny", "detector": "rcnn", "seed": 3},
            "train scratch seed 3",
            "train scratch tiny rcnn seed 3",
        ),
        ({"backbone": "tiny", "detector": "rcnn"}, "train", "train tiny rcnn"),
        ({"backbone": "tiny"}, "train", "train tiny"),
    ],
    ids=["a run", "a network", "a backbone"],
)
def test_a_job_is_called_by_what_tells_it_from_others(
    values: dict[str, Any], run: RunNames, alone: str, among_others: str
) -> None:
    assert job_name(config.parse(values), "train", run) == alone
    for kind, name in (("backbones", "tiny"), ("detectors", "rcnn")):
        values[kind]["another"] = values[kind][name]
    assert job_name(config.parse(values), "train", run) == among_others
