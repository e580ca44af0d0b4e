from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from eigendet import channels, plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import PluginChoice, WidthSettings
from eigendet.widths import derivation, intervals
from eigendet.widths.allocation import Budget, targets
from eigendet.widths.dimensions import group_spectra
from eigendet.widths.intervals import Intervals, jackknife_interval
from eigendet.widths.rounding import nearest
from tests.benchmarks import intervals as benchmark
from tests.benchmarks.intervals import Case
from tests.planted import planted


@pytest.fixture(scope="module")
def traced() -> Channels:
    return channels.trace(plugins.bind("backbone", PluginChoice(plugin="resnet", norm="batch")), (128, 128))


def test_a_jackknife_must_leave_out_each_part_in_every_seed(caplog: pytest.LogCaptureFixture) -> None:
    spectra = pd.DataFrame({"seed": [0, 1]})
    whole = pd.DataFrame({"seed": [0, 1, 0, 1], "left_out": [0, 0, 1, 1]})
    assert intervals.is_complete(whole, spectra)
    assert not intervals.is_complete(whole[:0], spectra) and not caplog.text
    assert not intervals.is_complete(whole[:3], spectra)
    assert "no intervals: the seeds have different parts" in caplog.text
    assert not intervals.is_complete(whole[:2], spectra)


@pytest.mark.parametrize("bias", [0.0, -1.5])
def test_the_jackknife_of_a_mean_is_the_interval_of_students_t_whatever_its_bias(bias: float) -> None:
    """Of logarithms, and of a bias that falls with the number of samples, which is taken away exactly."""
    logs = np.random.default_rng(0).normal(1, 0.2, 9)
    without = [float(np.exp(np.delete(logs, k).mean() + bias / 8)) for k in range(9)]
    estimate = float(np.exp(logs.mean() + bias / 9))
    exact = np.exp(scipy.stats.t.interval(0.95, 8, logs.mean(), scipy.stats.sem(logs)))
    assert jackknife_interval(estimate, without) == pytest.approx(exact, rel=1e-12)
    assert intervals.bias(estimate, without) == pytest.approx(bias / 9, abs=1e-12)
    wider = np.log(jackknife_interval(estimate, without, left=0.3))
    half = np.hypot(0.3, np.diff(np.log(exact))[0] / 2)
    assert wider == pytest.approx([logs.mean() - half, logs.mean() + half], rel=1e-12)


CASES = [
    Case("Gaussian", 50, 8),
    Case("Gaussian", 50, 2),
    Case("heavy tails, t5", 100, 8),
    Case("Gaussian", 60, 8, decay=0.5, reach=100.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_intervals_hold_what_infinitely_many_images_would_show(case: Case) -> None:
    """In 95 %, on simulated images of known spectra, where those around the estimate do so far more rarely."""
    network = benchmark.network()
    rule = plugins.bind("rule", PluginChoice(plugin="dof"))
    budget = Budget.of(network, network.widths, WidthSettings(macs=0.9, parameters=None, activations=None))
    true = benchmark.result(benchmark.infinite(case.kind, case.decay, case.reach), rule, budget)
    held, of_widths, uncorrected = [], [], []
    for number in range(50):
        shown = benchmark.observed(case, np.random.default_rng([3, number]))
        one = benchmark.result(shown, rule, budget)
        held += benchmark.holds(one.of_dimension, true.dimension)
        of_widths += benchmark.holds(one.of_width, true.target)
        uncorrected += benchmark.holds(benchmark.centered_on_the_estimate(one), true.dimension)
    assert len(held) == len(of_widths) == 150
    assert np.mean(held) >= 0.9 and np.mean(of_widths) >= 0.9  # binomial: below by chance once in 200
    assert case.parts == 2 or np.mean(uncorrected) < 0.7


def sure(
    traced: Channels,
    settings: WidthSettings,
    parts: list[dict[str, int]],
    effective_samples: float = np.inf,
    reference: Widths | None = None,
) -> Intervals:
    """Intervals where every group has rank 40, and without each part the ranks that are given."""
    whole = dict.fromkeys(traced.widths, 40)
    left_out = [
        planted(traced, whole | rest, 0, left_out=part, effective_samples=effective_samples)
        for part, rest in enumerate(parts)
    ]
    spectra = group_spectra(planted(traced, whole, 0), traced, settings)
    budget = Budget.of(traced, traced.widths, settings)
    _, _, widths, target = derivation.spend(traced, traced.widths, spectra, settings)
    return intervals.intervals(
        pd.concat(left_out),
        traced,
        reference or traced.widths,
        budget,
        settings,
        spectra.dimensions(settings),
        dict(zip(widths, target, strict=True)),
        widths,
    )


UNSURE = "layer3.2.conv1"
PARTS = [{UNSURE: 30 + 4 * k} for k in range(6)]


def test_widths_that_more_images_might_change_are_named(traced: Channels) -> None:
    content = sure(traced, WidthSettings(), PARTS)
    assert content.dimensions is not None and content.widths is not None and content.undetermined is not None
    narrow, wide = content.undetermined[UNSURE]
    assert narrow < wide and narrow % 8 == wide % 8 == 0
    low, high = content.dimensions[UNSURE]
    assert low < 40 / (1 + 0.1 * 40 / traced.widths[UNSURE]) < high  # dof of 40 equal ones, with a scale of a tenth
    assert content.dimensions["conv1"] == pytest.approx([40 / (1 + 0.1 * 40 / 64)] * 2)
    spans = {group: high / low for group, (low, high) in content.widths.items()}
    assert max(spans, key=spans.__getitem__) == UNSURE
    assert content.lacking is None


def test_a_width_is_named_whose_interval_lies_beside_it(traced: Channels) -> None:
    """Every part that is left out takes a little away, so that infinitely many images would give far more."""
    content = sure(traced, WidthSettings(), [{UNSURE: 36}] * 6)
    assert content.dimensions is not None and content.undetermined is not None
    low, high = content.dimensions[UNSURE]
    assert 50 < low == pytest.approx(high)
    assert UNSURE in content.undetermined


def test_a_width_beside_the_nearest_multiple_is_named(traced: Channels) -> None:
    """Some groups give way or fill up so that the budget is kept and used; intervals, of no width here, do not."""
    settings = WidthSettings(round_to=16)
    content = sure(traced, settings, [{}] * 6)
    spectra = group_spectra(planted(traced, dict.fromkeys(traced.widths, 40), 0), traced, settings)
    budget = Budget.of(traced, traced.widths, settings)
    _, _, widths, target = derivation.spend(traced, traced.widths, spectra, settings)
    alone = budget.named(nearest(budget, target))
    beside = {group: tuple(sorted((alone[group], widths[group]))) for group in widths}
    assert content.undetermined == {group: ends for group, ends in beside.items() if ends[0] < ends[1]} != {}


def test_few_samples_for_many_channels_widen_what_has_a_bias_and_too_few_leave_nothing(traced: Channels) -> None:
    lower = [{UNSURE: 38}] * 6
    spans = []
    for effective in (np.inf, 1000.0, 300.0):
        content = sure(traced, WidthSettings(), lower, effective)
        assert content.dimensions is not None and content.widths is not None
        low, high = content.dimensions[UNSURE]
        spans.append(high - low)
        assert np.diff(content.dimensions["conv1"]) < 1e-9  # without a bias
    assert all(before < after for before, after in itertools.pairwise(spans))
    content = sure(traced, WidthSettings(), lower, 20.0)
    assert content.dimensions is not None and content.widths is None and content.undetermined is None
    assert "conv1" in content.dimensions and UNSURE not in content.dimensions
    assert "more than 8 channels for each effective sample" in (content.lacking or "")
    nothing = sure(traced, WidthSettings(), lower, np.nan)
    assert nothing.dimensions == {} and nothing.widths is None


def test_a_bias_that_all_dimensions_have_in_common_widens_no_width() -> None:
    network = benchmark.network()
    budget = Budget.of(network, network.widths, WidthSettings(macs=0.9, parameters=None, activations=None))
    dimension = {"0": 8.0, "2": 12.0, "4": 20.0}
    target = dict(zip(budget.costs.groups, targets(budget, dimension).tolist(), strict=True))

    def spans(lower: list[float], shortage: float) -> list[float]:
        without = {group: [factor * dimension[group]] * 4 for group, factor in zip(dimension, lower, strict=True)}
        few = dict.fromkeys(dimension, shortage)
        found = intervals.width_intervals(dimension, without, target, few, budget)
        return [high - low for low, high in found.values()]

    assert spans([0.97, 0.97, 0.97], shortage=0.5) == pytest.approx([0.0] * 3, abs=1e-6)
    assert spans([0.97, 0.97, 0.90], shortage=0.0) == pytest.approx([0.0] * 3, abs=1e-6)
    assert min(spans([0.97, 0.97, 0.90], shortage=0.5)) > 0.5


def test_what_jumps_has_no_interval(traced: Channels) -> None:
    counted = sure(traced, WidthSettings(rule=PluginChoice(plugin="ratio")), PARTS)
    assert counted[:3] == (None, None, None) and (counted.lacking or "").startswith("No intervals: ratio gives whole")
    stepwise = sure(traced, WidthSettings(allocation="marginal"), PARTS)
    assert stepwise.dimensions is not None and stepwise.widths is None and stepwise.undetermined is None
    assert "marginal allocation has steps" in (stepwise.lacking or "")


def test_a_group_that_does_not_vary_without_a_part_has_no_interval_and_disturbs_no_other(traced: Channels) -> None:
    content = sure(traced, WidthSettings(), [{UNSURE: 0}, {}, {}])
    assert content.dimensions is not None and content.widths is not None
    assert UNSURE not in content.dimensions and content.dimensions.keys() == traced.widths.keys() - {UNSURE}
    assert content.widths.keys() == traced.widths.keys()


def test_no_dimension_exceeds_the_channels(traced: Channels) -> None:
    """Those of the network that was observed, which may have a factor of the widths of its backbone."""
    for conv1 in (64, 48):
        parts, reference = [{"conv1": rank} for rank in (20, 45, 30, 40)], traced.widths | {"conv1": conv1}
        content = sure(traced, WidthSettings(), parts, reference=reference)
        assert content.dimensions is not None
        assert content.dimensions["conv1"][1] == conv1
