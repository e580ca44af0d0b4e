"""Budgets spent multiple by multiple, beside the exact optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eigendet import channels, plugins
from eigendet.channels.groups import Channels
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.errors import UserError
from eigendet.widths.allocation import Budget
from eigendet.widths.marginal import decay_law, held
from tests.handmade import NETWORK
from tests.optimal import flat, marginal, optimum


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def budget(traced: Channels, **settings: Any) -> Budget:
    return Budget.of(traced, traced.widths, WidthSettings(**settings))


def test_marginal_width_goes_where_the_spectrum_is_long(traced: Channels) -> None:
    short = {
        group: np.arange(1, width + 1) ** -(3.0 if "layer4" in group else 1.1) for group, width in traced.widths.items()
    }
    widths = marginal(budget(traced), short)
    late = [widths[group] / traced.widths[group] for group in widths if "layer4" in group]
    rest = [widths[group] / traced.widths[group] for group in widths if "layer4" not in group]
    assert max(late) < 1 < np.mean(rest)
    assert widths == marginal(budget(traced), short)


@pytest.mark.parametrize("caps", [{"macs": 2.0}, {"macs": None, "parameters": 1.5}, {"macs": 3.0, "activations": 2.0}])
@pytest.mark.parametrize(("first", "second"), [(1.1, 1.3), (0.5, 2.0), (2.0, 0.5)])
def test_of_two_groups_the_best_widths_of_all_are_found(caps: dict[str, Any], first: float, second: float) -> None:
    spent = Budget.of(NETWORK, NETWORK.widths, WidthSettings(round_to=1, max_factor=6.0, **caps))
    spectra = {"a": np.arange(1.0, 49) ** -first, "b": np.arange(1.0, 37) ** -second}
    worth = {group: np.append(0, np.cumsum(values)) / values.sum() for group, values in spectra.items()}
    every = [
        (worth["a"][a] + worth["b"][b], (a, b))
        for a in range(4, 49, 4)
        for b in range(3, 37, 3)
        if spent.affords(np.array([a, b], float))
    ]
    found = marginal(spent, spectra)
    best, wanted = max(every)
    assert worth["a"][found["a"]] + worth["b"][found["b"]] == pytest.approx(best, rel=1e-12), wanted


@pytest.mark.parametrize("caps", [{"macs": 0.5}, {"macs": 1.0, "parameters": 0.4}])
def test_what_is_held_is_within_a_percent_of_the_optimum(caps: dict[str, Any]) -> None:
    build = plugins.bind("backbone", PluginChoice(plugin="resnet", depth=18, norm="group", norm_groups=8))
    traced = channels.trace(build, (64, 64))
    reference = {group: max(8, width // 4) for group, width in traced.widths.items()}
    spent = Budget.of(traced, reference, WidthSettings(max_factor=2.0, **caps))
    random = np.random.default_rng(3)
    spectra = {group: np.arange(1.0, width + 1) ** -random.uniform(0.6, 2.2) for group, width in reference.items()}
    functions = [held(spectra[group] / spectra[group].sum()) for group in spent.costs.groups]
    levels = [np.arange(low, high + 1, 8) for low, high in zip(spent.least, spent.most, strict=True)]
    best = optimum(spent, levels, [[own(k) for k in level] for own, level in zip(functions, levels, strict=True)])
    found = [marginal(spent, spectra)[group] for group in spent.costs.groups]
    assert spent.affords(np.array(found, float))
    reached, exact = (sum(own(width) for own, width in zip(functions, widths, strict=True)) for widths in (found, best))
    assert 0.99 * exact <= reached <= exact * (1 + 1e-6)


def test_a_power_law_is_recovered_and_never_sums_to_infinity() -> None:
    factor, exponent = decay_law(5 * np.arange(1.0, 65) ** -1.7)
    assert factor == pytest.approx(5)
    assert exponent == pytest.approx(1.7)
    assert decay_law(np.ones(16))[1] == 1.01
    assert decay_law(np.zeros(8)) == (0.0, 1.01)
    noise = np.r_[np.ones(8), np.geomspace(1e-9, 1e-300, 8)]  # a spectrum that ends, and rounding errors
    assert decay_law(noise) == (0.0, 1.01)


def test_marginal_width_stops_where_a_spectrum_ends_and_at_the_range() -> None:
    spent = flat([1000, np.inf, np.inf], [4, 4], [np.inf, 12], multiple=1.0)
    spectra = {"a": np.r_[np.ones(6), np.zeros(10)], "b": np.arange(1.0, 9) ** -2}
    assert marginal(spent, spectra) == {"a": 6, "b": 12}


def test_where_no_channel_is_worth_anything_no_width_is_derived() -> None:
    spent, nothing = flat([40, np.inf, np.inf], [4, 4], [np.inf, 12]), np.zeros(8)
    with pytest.raises(
        UserError, match=r"no channel of any group is worth anything: .* or the loss does not depend on"
    ):
        marginal(spent, {"a": nothing, "b": nothing})
    assert marginal(spent, {"a": nothing, "b": np.ones(8)}) == {"a": 4, "b": 12}
    assert marginal(flat([40, np.inf, np.inf], [4, 4], [4, 4]), {"a": nothing, "b": nothing}) == {"a": 4, "b": 4}


def test_channels_beyond_those_observed_hold_what_the_power_law_says() -> None:
    values = 5 * np.arange(1.0, 33) ** -1.5
    sum_of = held(values)
    for width in (0, 1, 7, 32):
        assert sum_of(width) == pytest.approx(values[:width].sum())
    for width in (33, 40, 100, 1000):
        assert sum_of(width) == pytest.approx((5 * np.arange(1.0, width + 1) ** -1.5).sum(), rel=1e-4)
    assert held(np.zeros(4))(9) == 0


def test_the_power_law_is_of_the_smaller_half_without_rounding_errors() -> None:
    tail = 3 * np.arange(1.0, 41) ** -2.5
    head = np.r_[100 * np.ones(20), tail[20:]]
    assert decay_law(head) == pytest.approx((3, 2.5), rel=1e-9)
    noisy = np.r_[tail, np.full(6, 1e-9 * tail[0])]
    assert decay_law(noisy) == pytest.approx((3, 2.5), rel=1e-9)
    odd = np.r_[9.0, 7.0, tail[2:5]]
    assert decay_law(odd) == pytest.approx((3, 2.5), rel=1e-9)
    assert decay_law(np.array([4.0, 1.0])) == (0.0, 1.01)  # one eigenvalue has no slope
    assert decay_law(np.array([])) == (0.0, 1.01)


def test_the_unit_of_a_spectrum_does_not_change_its_exponent() -> None:
    values = np.arange(1.0, 41) ** -2.5
    for unit in (1e-12, 1.0, 1e12):
        assert decay_law(unit * values) == pytest.approx((unit, 2.5), rel=1e-9)
