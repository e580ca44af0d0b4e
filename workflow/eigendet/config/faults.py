"""Say what is wrong with a configuration: a line for each fault, with the key, the value, what would be accepted."""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eigendet.config.arms import ARMS
from eigendet.config.sections import NAME, Arm, DetectorTraining

# Keys by their names in version 0.1.
RENAMED = {
    "experiment": "name", "covariance.dump_shards": "covariance.shards", "widths.centred": "widths.centered",
    "pretraining.seed": "pretraining.seeds",
}  # fmt: skip
REMOVED = {
    "covariance.compress": "gone: it was slow, and gained only where many channels are dead; leave it out",
    "widths.tie": "gone: channels that several layers write are as wide as the widest asks; leave it out",
}


def lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a line for each fault: the key, the value, what would be accepted."""
    lines = []
    for fault in error.errors():
        location = [str(part) for part in fault["loc"] if part != "[key]"]  # as pydantic calls a name that is wrong
        key = ".".join([prefix, *location] if prefix else location)
        key = key if key.isprintable() else ascii(key)
        if key in RENAMED:
            lines.append(f"{key}: is called '{RENAMED[key]}' now")
        elif key in REMOVED:
            lines.append(f"{key}: is {REMOVED[key]}")
        elif fault["type"] == "missing" and key in _renamed_to(error):
            continue  # the key that is called otherwise now says it
        elif fault["type"] == "extra_forbidden":
            accepted = _keys_at(model, fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), accepted, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            lines.append(f"{key}: unknown key; {hint}accepted here: {', '.join(accepted) or 'none'}")
        elif fault["type"] == "missing":
            lines.append(f"{key}: missing; a value is required")
        elif fault["type"] == "value_error":
            lines.append(f"{key}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"]))
        elif fault["type"] == "model_type":
            accepted = _keys_at(model, fault["loc"])
            lines.append(
                f"{key}: got {_shown(fault['input'])}; expected a mapping with keys such as {', '.join(accepted)}"
            )
        else:
            lines.append(f"{key}: got {_shown(fault['input'])}; {_expected(fault)}")
    return lines


def _shown(value: object) -> str:
    """Return a value as it would be written, its middle left out where it is long."""
    short = reprlib.Repr()
    short.maxlong = short.maxstring = short.maxother = 60
    return short.repr(value)


def _expected(fault: ErrorDetails) -> str:
    """Say what would be accepted, in pydantic's words where these do not speak of its own workings."""
    if fault["type"] == "too_short":
        return f"expected {fault['ctx']['min_length']} or more"
    if fault["type"] == "too_long":
        return f"expected {fault['ctx']['max_length']}" + (" or fewer" if fault["ctx"]["field_type"] == "List" else "")
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        return "expected letters and digits, and after the first also '-' and '_'"
    if fault["type"] == "dict_type":
        names = fault["input"] if isinstance(fault["input"], list) else []
        names = [name for name in names if isinstance(name, str) and name in ARMS] or ["scratch", "derived"]
        is_arms = fault["loc"][-1] == "arms"
        example = (
            f", each with what sets it apart: {{{', '.join(f'{name}: {{}}' for name in names)}}}" if is_arms else ""
        )
        return f"expected a mapping of names to their settings{example}"
    if fault["type"] == "list_type":
        return f"expected a list, for example [{_shown(fault['input'])}]"
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _renamed_to(error: ValidationError) -> set[str]:
    """Return today's names of the keys that are given by their old ones."""
    given = {".".join(map(str, fault["loc"])) for fault in error.errors()}
    return {new for old, new in RENAMED.items() if old in given}


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields of the section that `location` leads to."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif typing.get_origin(current) is dict:
            current = typing.get_args(current)[1]
        if isinstance(current, types.UnionType):
            current = next((arm for arm in typing.get_args(current) if isinstance(arm, type)), None)
    if current is Arm:  # whose own key is for arms of other names alone
        return [*DetectorTraining.model_fields, *Arm.model_fields]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
