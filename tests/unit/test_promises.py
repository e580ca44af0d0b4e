from __future__ import annotations

import re

from tests.conftest import ROOT


def test_the_table_of_promises_names_tests_that_are_there() -> None:
    text = (ROOT / "tests/README.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 50
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []
