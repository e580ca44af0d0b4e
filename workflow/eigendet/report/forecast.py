"""Show what initializations promised before training, beside what came of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import scipy.stats

from eigendet.report.layers import layer_name
from eigendet.report.records import Forecast, MapScores
from eigendet.report.wording import told_apart


class Score(NamedTuple):
    """A score: what the page calls it, its decimals, and what is larger the more a value promises."""

    title: str
    digits: int
    promise: Callable[[float], float]


SCORES = {
    "rankme": Score("RankMe", 1, lambda value: value),
    "alpha": Score("α", 2, lambda value: -abs(value - 1)),
    "logme": Score("LogME", 4, lambda value: value),
}


class Row(NamedTuple):
    """A map of an arm's initialization: mean ± standard deviation over seeds, in words; empty where a seed has none."""

    arm: str
    layer: str
    channels: int
    scores: dict[str, str]


class Shown(NamedTuple):
    """What the page shows of a network's forecast."""

    forecast: Forecast
    deepest: list[Row]  # the deepest map of each arm
    rows: list[Row]  # all maps
    sentences: list[str]


def shown(forecast: Forecast, runs: pd.DataFrame) -> Shown:
    """Return what the page shows.

    Args:
        forecast: the scores of a network's initializations.
        runs: a row for each run of that network, as in the summary.
    """
    by_map: dict[tuple[str, str], list[MapScores]] = {}
    for score in forecast.scores:
        by_map.setdefault((score.arm, layer_name(score.module, score.call)), []).append(score)
    last = {arm: seeds for (arm, _), seeds in by_map.items()}  # of an arm's maps the last stays
    rows = [_row(arm, layer, seeds) for (arm, layer), seeds in by_map.items()]
    deepest = list({row.arm: row for row in rows}.values())
    return Shown(forecast, deepest, rows, _sentences(last, runs) if last else [])


def _row(arm: str, layer: str, seeds: Sequence[MapScores]) -> Row:
    texts = {name: _mean_and_spread(_values(seeds, name), score.digits) for name, score in SCORES.items()}
    return Row(arm, layer, seeds[0].channels, texts)


def _values(seeds: Sequence[MapScores], name: str) -> pd.Series:
    return pd.Series([getattr(seed, name) for seed in seeds], dtype=float)


def _mean_and_spread(values: pd.Series, digits: int) -> str:
    if values.isna().any():
        return ""
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _sentences(deepest: dict[str, list[MapScores]], runs: pd.DataFrame) -> list[str]:
    """Say what was promised, by the deepest map of every arm, and what came of it."""
    if len(deepest) < 2:
        return ["Scores compare initializations, and there is one alone."]
    precision = {arm: 100 * runs.loc[runs["arm"] == arm, "AP"].astype(float) for arm in deepest}
    promises = {}
    for name in SCORES:
        means = {arm: float(_values(seeds, name).mean(skipna=False)) for arm, seeds in deepest.items()}
        if not any(map(math.isnan, means.values())):
            promises[name] = means
    if not promises:
        return ["No score is there for every initialization, so that none is ahead before training."]
    is_scored = not any(values.empty or values.isna().any() for values in precision.values())
    if len(deepest) > 2:
        return [_on_order(promises, precision) if is_scored else "Without the AP of every run no score is judged."]
    ahead = {name: _ahead(means, SCORES[name]) for name, means in promises.items()}
    outcome = _on_outcome(ahead, precision) if is_scored else "Without the AP of every run no score is judged."
    return [_on_promise(promises, ahead), outcome]


def _ahead(means: dict[str, float], score: Score) -> str:
    """Return which of two arms promises more; nothing if both promise the same."""
    first, other = means
    promised = [score.promise(means[arm]) for arm in (first, other)]
    return "" if promised[0] == promised[1] else first if promised[0] > promised[1] else other


def _on_promise(promises: dict[str, dict[str, float]], ahead: dict[str, str]) -> str:
    clauses = []
    for name, means in promises.items():
        best = ahead[name] or next(iter(means))
        other = next(arm for arm in means if arm != best)
        own, beside = told_apart(means[best], means[other], SCORES[name].digits)
        clauses.append(f"{ahead[name] or 'neither'} by {SCORES[name].title} ({own} beside {beside})")
    return f"Before training more was promised of {', of '.join(clauses)}."


def _on_outcome(ahead: dict[str, str], precision: dict[str, pd.Series]) -> str:
    """Say which of two arms came out ahead, if one did, and which scores had said so."""
    best, other = sorted(precision, key=lambda arm: -precision[arm].mean())
    own, beside = told_apart(precision[best].mean(), precision[other].mean(), digits=1)
    if precision[best].min() <= precision[other].max():
        return (
            f"After training neither is beyond the other's seeds in AP ({best} {own}, {other} {beside}), so that "
            "nothing came of it."
        )
    right = [SCORES[name].title for name, arm in ahead.items() if arm == best]
    wrong = [SCORES[name].title for name, arm in ahead.items() if arm == other]
    verdicts = [f"as forecast by {' and '.join(right)}"] if right else []
    verdicts += [f"against {' and '.join(wrong)}"] if wrong else []
    single = (
        " Each has a single seed, so that the difference may be chance."
        if max(map(len, precision.values())) == 1
        else ""
    )
    return (
        f"After training {best} is ahead in AP ({own} beside {beside}){', ' if verdicts else ''}{', '.join(verdicts)}. "
        f"Two initializations are one pair, of which a score that knows nothing is right in one of two cases."
        f"{' Each has a single seed, so that the difference may be chance.' if single else ''}"
    )


def _on_order(promises: dict[str, dict[str, float]], precision: dict[str, pd.Series]) -> str:
    """Say how alike the orders of three arms or more are before and after training."""
    outcome = [precision[arm].mean() for arm in precision]
    clauses = []
    for name, means in promises.items():
        tau = scipy.stats.kendalltau([SCORES[name].promise(means[arm]) for arm in precision], outcome).statistic
        clauses.append(f"{'not defined' if math.isnan(tau) else f'{tau:.2f}'} by {SCORES[name].title}")
    count = len(precision)
    return (
        f"Kendall's τ of what was promised with AP, over {count} initializations: {', '.join(clauses)}. It is 1 where "
        f"both orders are the same, which of {count} comes about by chance once in {math.factorial(count):,} times; "
        "seeds are averaged, and nothing is tested."
    )
