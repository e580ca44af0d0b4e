"""Settings that belong together, under one name: `preset: paper` is what the paper's authors have stated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from eigendet.files import Plain

Preset = Literal["paper"]
THRESHOLD = 1e-3
# The authors count eigenvalues above 1e-3; whether of the largest is not said, so both readings may be chosen.
READINGS: dict[str, Plain] = {
    "absolute": {"plugin": "absolute", "threshold": THRESHOLD},
    "ratio": {"plugin": "ratio", "threshold": THRESHOLD},
}
# The choices that each setting leaves, the default first.
PRESETS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "paper": {
        "covariance": {"weighting": ["images"]},
        "widths": {"centered": [False], "rule": list(READINGS.values())},
    }
}


def with_preset(values: Mapping[str, Any]) -> Plain:
    """Return the values of an experiment with those that its preset sets.

    Raises:
        ValueError: the experiment sets one otherwise; the message names it.

    Examples:
        >>> with_preset({"preset": "paper", "widths": {"macs": 0.5}})["widths"]
        {'macs': 0.5, 'centered': False, 'rule': {'plugin': 'absolute', 'threshold': 0.001}}
        >>> with_preset({"preset": "paper", "widths": {"centered": True}})
        Traceback (most recent call last):
        ...
        ValueError: widths.centered is True; the preset 'paper' sets it to False: leave it out, or leave out the preset
    """
    filled, preset = dict(values), values.get("preset")
    for section, settings in PRESETS[preset].items() if isinstance(preset, str) and preset in PRESETS else ():
        own = filled.get(section) or {}
        if not isinstance(own, Mapping):
            return filled  # which is said where sections are checked
        for key, choices in settings.items():
            given = _plain(own.get(key))
            if given is None:
                own = {**own, key: choices[0]}
            elif not any(_fits(given, choice) for choice in choices):
                accepted = " or ".join(map(str, choices))
                raise ValueError(
                    f"{section}.{key} is {given}; the preset '{preset}' sets it to {accepted}: leave it out, or leave "
                    "out the preset"
                )
        filled[section] = own
    return filled


def _plain(value: Any) -> Any:
    """Return a plugin's choice as a mapping, also where its name stands alone or it is a record already."""
    value = value.model_dump() if hasattr(value, "model_dump") else value
    return {"plugin": value} if isinstance(value, str) and value in READINGS else value


def _fits(given: Any, choice: Any) -> bool:
    """Tell whether what is given is a choice, or leaves out only what that says too."""
    if not (isinstance(given, Mapping) and isinstance(choice, Mapping)):
        return bool(given == choice)
    return given.get("plugin") == choice["plugin"] and all(choice.get(key) == value for key, value in given.items())
