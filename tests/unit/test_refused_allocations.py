"""What an allocator must not do or lack, named before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigendet import config, plugins
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.runs import definitions, network_check, plan

# What an allocator must not do.

BAD = [
    ("{}", "gives no width for the channel groups conv1, layer1"),
    ("None", "gives NoneType; expected a dict with a width for each group"),
    ("[1.0] * len(groups)", "gives a list of .*; expected a dict with a width for each group"),
    (
        "{g.name: 8.0 for g in groups} | {'conv9': 8.0}",
        "gives a width of what is not there: unknown channel group 'conv9'",
    ),
    ("{g.name: float('nan') for g in groups}", "gives nan for the channel group 'conv1'; expected a finite width"),
    ("{g.name: -8 for g in groups}", "gives -8 for the channel group 'conv1'; expected a finite width, 0 or more"),
    ("{g.name: float('inf') for g in groups}", "gives inf for the channel group 'conv1'"),
    ("{g.name: True for g in groups}", "gives True for the channel group 'conv1'"),
    ("{g.name: 10**400 for g in groups}", r"gives 10+\.\.\.0+ for the channel group 'conv1'; expected a finite width"),
    ("{g.name: 8 + 0j for g in groups}", r"gives \(8\+0j\) for the channel group 'conv1'"),
    ("{g.name: '8' for g in groups}", "gives '8' for the channel group 'conv1'"),
    *(
        (f"{array}.fill(1e9) or dict.fromkeys(budget.costs.groups, 8.0)", "fails at line 5: ValueError: .* read-only")
        for array in ("budget.caps", "budget.most", "budget.costs.linear", "groups[0].maps[0].eigenvalues")
    ),
    ("groups[0].absent", "fails at line 5: AttributeError: 'GroupView' object has no attribute 'absent'"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "plugins"


def tried(values: dict[str, Any], **widths: Any) -> None:
    """What is looked at before anything is trained."""
    values["widths"] = {"round_to": 4} | widths
    experiment = config.parse(values)
    plugins.validate(experiment, paths=False)
    groups, reference = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False).reference()
    network_check.check_allocation(groups, reference, experiment.widths)


@pytest.mark.parametrize(("result", "message"), BAD)
def test_what_is_no_width_is_named_before_any_training(
    folder: Path, values: dict[str, Any], result: str, message: str
) -> None:
    (folder / "bad.py").write_text(
        "from eigendet.plugins import allocator\n\n@allocator\ndef bad(groups, budget):\n"
        f'    """Bad."""; return {result}\n'
    )
    with pytest.raises(UserError, match=rf"allocator plugin 'bad' \(plugins/bad.py:4\).* {message}"):
        tried(values, allocation="bad")


def test_a_budget_that_nothing_meets_is_named_before_any_training(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"widths.macs is 0.0001; the narrowest network .* so give at least that"):
        tried(values, macs=1e-4)
    tried(values, macs=0.9)


@pytest.mark.parametrize("name", ["loss_weighted", "growth"])
def test_an_allocator_that_needs_gradients_asks_for_them_before_any_training(values: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=rf"widths.allocation: {name} needs the moments .*; set covariance.gradients"):
        tried(values, allocation=name)
    values["covariance"] = values.get("covariance", {}) | {"gradients": True}
    tried(values, allocation={"plugin": name})


def test_a_plan_and_a_check_of_the_network_ask_for_gradients_too(values: dict[str, Any]) -> None:
    values["widths"] = {"round_to": 4, "allocation": "loss_weighted"}
    experiment = config.parse(values)
    named = r"rcnn over tiny: widths.allocation: loss_weighted needs the moments of the loss's gradient; set covariance"
    with pytest.raises(UserError, match=named):
        network_check.check_network(experiment, "tiny", "rcnn")
    with pytest.raises(UserError, match=named):
        plan.planned_stages(experiment, Path("absent"))


def test_one_need_by_itself_is_that_need(folder: Path, values: dict[str, Any]) -> None:
    (folder / "one.py").write_text(
        "from eigendet.plugins import allocator\n\n@allocator(needs='covariance')\ndef one(groups, budget):\n"
        '    """One."""; return {g.name: len(g.maps[0].covariance) for g in groups}\n'
    )
    assert plugins.needs(PluginChoice(plugin="one")) == ("covariance",)
    tried(values, allocation="one")


def test_what_is_needed_is_one_of_what_there_is(folder: Path, values: dict[str, Any]) -> None:
    (folder / "odd.py").write_text(
        "from eigendet.plugins import allocator\n\n@allocator(needs=('gradient',))\ndef odd(groups, budget):\n"
        '    """Odd."""; return {}\n'
    )
    with pytest.raises(UserError, match=r"allocator plugin 'odd' .*unknown need 'gradient'. Did you mean 'gradients'"):
        tried(values, allocation="odd")


def test_names_and_options_are_checked_as_of_every_plugin(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"widths.allocation: unknown allocator plugin 'marginel'.*marginal"):
        tried(values, allocation="marginel")
    with pytest.raises(UserError, match=r"widths.allocation.power: got 0; input should be greater than 0"):
        tried(values, allocation={"plugin": "loss_weighted", "power": 0})
    assert WidthSettings(allocation="marginal").model_dump()["allocation"] == {"plugin": "marginal"}
