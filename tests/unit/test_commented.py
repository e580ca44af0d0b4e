from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eigendet.config.commented import commented_yaml
from eigendet.errors import UserError

NAMES = [
    "a b",
    "a: b",
    "#",
    "- x",
    "null",
    "2017",
    "1.5",
    "true",
    "",
    "{a}",
    "a,b",
    "é ñ 日本",
    "it's",
    '"',
    "a\nb",
    "\t",
    "\\",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_back_as_they_were(name: str) -> None:
    values = {"path": name, "section": {"list": [name, 1]}}
    lines = list(commented_yaml(values, {"path": name, "section.list": name}))
    assert yaml.safe_load("\n".join(lines)) == values
    assert len([line for line in lines if not line.lstrip().startswith("#")]) == 3 + 1  # and a blank line


@given(st.text(), st.text())
def test_whatever_a_comment_holds_it_changes_nothing(comment: str, value: str) -> None:
    try:
        text = "\n".join(commented_yaml({"a": {"b": value}}, {"a": comment, "a.b": comment}))
    except UserError:
        with pytest.raises(UnicodeEncodeError):
            value.encode()
    else:
        assert yaml.safe_load(text) == {"a": {"b": value}}


def test_numbers_and_empty_sections_come_back_too() -> None:
    values = {"rates": {"a": 2.5e-4, "b": 1e-20, "c": 3, "d": True, "e": None, "f": {}}, "top": [0, 1], "inf": math.inf}
    assert yaml.safe_load("\n".join(commented_yaml(values, {}))) == values


def test_a_name_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"not valid Unicode, so a configuration cannot name it"):
        list(commented_yaml({"path": "caf\udce9"}, {}))


def test_comments_are_wrapped_and_keep_their_indent() -> None:
    text = "first\n  " + "word " * 40
    lines = list(commented_yaml({"a": {"b": 1}}, {"a.b": text}))
    assert lines[:3] == ["a:", "  # first", "  #   " + ("word " * 19).strip()]
    assert all(len(line) <= 100 for line in lines) and lines[-1] == "  b: 1"
