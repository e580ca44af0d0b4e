"""JSON that is no JSON, or too much of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigendet.files import read_json
from tests.faults.refusal import refused

CASES = {
    "empty": b"",
    "cut off": b'{"a": [1, 2',
    "two values": b"{} {}",
    "not text": b"\xff\xfe\x00\x01",
    "another text encoding": '{"a": 1}'.encode("utf-32")[:-2],
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "a long integer": b"1" * 5000,
    "an escape": b'{"a": "\x1b[31m"}',
}


@pytest.mark.fault(kind="not JSON", stage="any")
@pytest.mark.parametrize("content", CASES.values(), ids=CASES)
def test_what_is_not_json_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with refused(file, "expected a list"):
        read_json(file, "a list")
