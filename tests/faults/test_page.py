"""The page, at the end of everything: whatever the stages before it left is shown, or refused by its file's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eigendet.files import digest_file
from eigendet.report.page import write_page
from tests import chromium
from tests.faults.refusal import one_line_or_nothing
from tests.workflow.conftest import Finished

NETWORK = "tiny/rcnn"


def in_json(pattern: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return what changes the content of every file of a pattern."""

    def fault(results: Path) -> None:
        files = list(results.glob(pattern))
        assert files, pattern
        for file in files:
            content = json.loads(file.read_text())
            changed = change(content)
            file.write_text(json.dumps(content if changed is None else changed))

    return fault


def of_file(pattern: str, change: Callable[[bytes], bytes] | None) -> Callable[[Path], None]:
    """Return what changes the bytes of every file of a pattern, or with None removes it."""

    def fault(results: Path) -> None:
        files = [file for file in results.glob(pattern) if file.is_file()]
        assert files, pattern
        for file in files:
            if change is None:
                file.unlink()
            else:
                file.write_bytes(change(file.read_bytes()))

    return fault


def in_table(pattern: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Return what changes every parquet table of a pattern."""

    def fault(results: Path) -> None:
        files = list(results.glob(pattern))
        assert files, pattern
        for file in files:
            table = pd.read_parquet(file)
            attributes = table.attrs
            changed = change(table)
            changed.attrs = attributes
            changed.to_parquet(file)
            digest_file(file).unlink()

    return fault


def all_scores(value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        content["boxes"] = dict.fromkeys(content["boxes"], value)

    return change


def put(key: str, value: Any) -> Callable[[Any], None]:
    return lambda content: content.__setitem__(key, value)


def drop(key: str) -> Callable[[Any], None]:
    return lambda content: content.pop(key, None) and None


def not_finite(table: pd.DataFrame) -> pd.DataFrame:
    for name in table.select_dtypes("float").columns:
        table[name] = float("nan")
    return table


EVALUATIONS = f"evaluation/*/{NETWORK}/*.json"
SHOWN: dict[str, Callable[[Path], None]] = {
    "no score in any run": in_json(EVALUATIONS, all_scores(None)),
    "no score in one run": in_json(f"evaluation/scratch/{NETWORK}/seed_0.json", all_scores(None)),
    "no score in an arm": in_json(f"evaluation/derived/{NETWORK}/*.json", all_scores(None)),
    "scores of zero": in_json(EVALUATIONS, all_scores(0.0)),
    "no score of large objects": in_json(EVALUATIONS, lambda content: content["boxes"].update(AP_large=None)),
    "an arm without scores": of_file(f"evaluation/mine/{NETWORK}/*.json", None),
    "no latency": of_file(f"latency/{NETWORK}.json", None),
    "no forecast": of_file(f"forecast/{NETWORK}.json", None),
    "a forecast without scores": in_json(f"forecast/{NETWORK}.json", lambda content: content | {"scores": []}),
    "a forecast of one arm": in_json(
        f"forecast/{NETWORK}.json", lambda content: content | {"scores": content["scores"][:1]}
    ),
    "no front": of_file(f"widths/{NETWORK}/front.csv", None),
    "no readings": of_file(f"widths/{NETWORK}/readings.csv", None),
    "no widths": of_file(f"widths/{NETWORK}/*.json", None),
    "no comparison": of_file(f"comparison/{NETWORK}/*", None),
    "no losses": of_file("runs/*/*/*/*/log.csv", None),
    "losses that are no table": of_file("runs/*/*/*/seed_0/log.csv", lambda content: b"\x00" + content[:20]),
    "losses cut off": of_file("runs/*/*/*/seed_0/log.csv", lambda content: content[: len(content) // 2]),
    "no curves": in_json(EVALUATIONS, drop("curves")),
    "no examples": in_json(EVALUATIONS, drop("examples")),
    "no examples of an arm": in_json(f"evaluation/scratch/{NETWORK}/*.json", drop("examples")),
    "other examples in an arm": in_json(f"evaluation/scratch/{NETWORK}/*.json", put("data", "other")),
    "distances that are not finite": in_table(f"comparison/{NETWORK}/distances.parquet", not_finite),
    "metrics that are not finite": in_table(f"comparison/{NETWORK}/metrics.parquet", not_finite),
    "no distances": in_table(f"comparison/{NETWORK}/distances.parquet", lambda table: table.iloc[:0]),
    "no metrics": in_table(f"comparison/{NETWORK}/metrics.parquet", lambda table: table.iloc[:0]),
    "no tests": in_table(f"comparison/{NETWORK}/tests.parquet", lambda table: table.iloc[:0]),
}


@pytest.mark.fault(kind="results", stage="report")
@pytest.mark.parametrize("fault", SHOWN.values(), ids=SHOWN)
def test_the_page_shows_what_there_is(fault: Callable[[Path], None], copied: Finished) -> None:
    fault(copied.results)
    (copied.results / "report.html").unlink()
    write_page(copied.results)
    page = (copied.results / "report.html").read_text()
    assert "Accuracy and cost" in page and "scratch" in page


TEXTS = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\xfe" + content[:100],
    "another document": lambda content: b"[1, 2, 3]",
    "nothing in it": lambda content: b"{}",
}
FILES = [EVALUATIONS, f"widths/{NETWORK}/derived.json", f"latency/{NETWORK}.json", f"forecast/{NETWORK}.json",
         "runs/scratch/*/*/seed_0/run.json", f"widths/{NETWORK}/readings.csv",
         "data/detection_*.json", "config.yaml", f"comparison/{NETWORK}/*"]  # fmt: skip


@pytest.mark.fault(kind="results", stage="report")
@pytest.mark.parametrize("change", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("pattern", FILES)
def test_what_cannot_be_read_is_named_or_not_needed(
    pattern: str, change: Callable[[bytes], bytes], copied: Finished
) -> None:
    of_file(pattern, change)(copied.results)
    message = one_line_or_nothing(lambda: write_page(copied.results))
    assert not message or str(copied.results) in message


VALUES: dict[str, Callable[[Path], None]] = {
    "a score that is text": in_json(EVALUATIONS, all_scores("0.5")),
    "a score that is a list": in_json(EVALUATIONS, all_scores([0.5])),
    "a score that is not finite": in_json(EVALUATIONS, all_scores(float("nan"))),
    "scores that are no object": in_json(EVALUATIONS, put("boxes", 3)),
    "no boxes": in_json(EVALUATIONS, drop("boxes")),
    "curves of text": in_json(EVALUATIONS, put("curves", {"boxes": {"AP": ["high"] * 101}})),
    "a curve above one": in_json(EVALUATIONS, put("curves", {"boxes": {"AP": [2.0] * 101}})),
    "examples that are no list": in_json(EVALUATIONS, put("examples", {"index": 0})),
    "an example without a picture": in_json(
        EVALUATIONS, lambda content: content["examples"][0].pop("picture") and None
    ),
    "another run": in_json(EVALUATIONS, put("run", {"arm": "x"})),
    "widths of text": in_json(f"widths/{NETWORK}/derived.json", put("widths", {"conv1": "8"})),
    "no widths": in_json(f"widths/{NETWORK}/derived.json", drop("widths")),
    "costs that are no object": in_json(f"widths/{NETWORK}/derived.json", put("macs", 3)),
    "times of text": in_json(f"latency/{NETWORK}.json", put("times", "x")),
    "scores of a forecast that are text": in_json(f"forecast/{NETWORK}.json", put("scores", "x")),
    "a record without costs": in_json("runs/scratch/*/*/*/run.json", drop("costs")),
    "a record with costs of text": in_json("runs/scratch/*/*/*/run.json", put("costs", "x")),
    "a table without a column": in_table(f"comparison/{NETWORK}/metrics.parquet", lambda table: table.iloc[:, 1:]),
    "tests without a column": in_table(f"comparison/{NETWORK}/tests.parquet", lambda table: table.iloc[:, :-1]),
}


@pytest.mark.fault(kind="results", stage="report")
@pytest.mark.parametrize("fault", VALUES.values(), ids=VALUES)
def test_values_that_cannot_be_shown_are_named(fault: Callable[[Path], None], copied: Finished) -> None:
    fault(copied.results)
    message = one_line_or_nothing(lambda: write_page(copied.results))
    assert not message or str(copied.results) in message


@pytest.mark.fault(kind="results", stage="report")
@pytest.mark.browser
def test_names_blank_no_chart(copied: Finished) -> None:
    hostile = ["<!--<script>", "</script><b>x", "{{x}}{% raw %}", "\u2028\x00"]
    in_json("data/detection_*.json", lambda content: content | {"classes": hostile, "notes": hostile})(copied.results)
    metrics = copied.results / f"comparison/{NETWORK}/metrics.parquet"
    table = pd.read_parquet(metrics)
    own = table["module"].iloc[0]
    for file in metrics.parent.glob("*.parquet"):
        table = pd.read_parquet(file)
        if "module" in table:
            table["module"] = table["module"].astype(str).replace(own, hostile[0])
            table.to_parquet(file)
            digest_file(file).unlink()
    write_page(copied.results)
    with chromium.started() as browser, chromium.opened(browser, copied.results / "report.html") as page:
        drawn = page.eval_on_selector_all("figure:not([hidden]) svg", "all => all.length")
        assert drawn >= len(page.query_selector_all("figure:not([hidden])")) > 4
        assert hostile[0] in page.inner_text("body") and hostile[1] in page.inner_text("body")
