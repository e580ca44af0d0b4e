"""Say and show how arms differ where they are equally accurate (see `eigendet.spectra.matching`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from eigendet.report import differences
from eigendet.report.layers import layer_names
from eigendet.report.wording import verdict
from eigendet.spectra.tables import TAP, Comparison

FIRST = {"finetune", "scratch"}  # arms whose comparison the paper asks for


@dataclass(frozen=True)
class LevelRow:
    """Two arms at one accuracy.

    Attributes:
        arms: both.
        score: average precision, 0 to 1.
        steps: of each arm, after which its runs reach it.
        snapshots: of each arm, between which that lies.
        between: median over layers of the Jensen-Shannon distance of runs of both.
        within: the same of runs of one arm; nan where each has one.
        overlap: median over layers of the overlap of leading eigenvectors; nan without.
        cka: the same of CKA.
        p: of all layers together, that spectra differ; nan without a test.
    """

    arms: tuple[str, str]
    score: float
    steps: tuple[str, str]
    snapshots: tuple[str, str]
    between: float
    within: float
    overlap: float
    cka: float
    p: float


def on_equal_accuracy(compared: Comparison) -> list[str]:
    """Say of every two arms whether their spectra differ at equal accuracy, at the highest that all their runs reach.

    What cannot be compared so comes last, with the reason.
    """
    distances = _of_spectra(compared.matched)
    sentences = []
    for arm, other in _pairs(compared.matched):
        of_pair = distances[(distances["arm"] == arm) & (distances["other_arm"] == other)]
        last = of_pair[of_pair["level"] == of_pair["level"].max()]
        tested = differences.tested_pairs(distances[distances["level"] == distances["level"].max()])
        level, score = last["level"].iloc[0], 100 * last["score"].iloc[0]
        own, its = (_steps(compared.places, *names, level)[0] for names in ((arm, other), (other, arm)))
        where = f"an average precision of {score:.3g}, which {arm} reaches after {own} and {other} after {its}"
        sentences.append(f"Spectra of {arm} and {other} at equal accuracy: {_verdict(last, tested, where)}")
    return [*sentences, *compared.unmatched]


def _verdict(table: pd.DataFrame, pairs: int, where: str) -> str:
    compared = table.dropna(subset="between")
    if compared.empty:
        return f"no layer has a spectrum in every run, at {where}."
    if not (compared["between"] > 0).any():
        return f"they are equal in every run, at {where}."
    smallest, overall = compared["smallest"].iloc[0], compared["overall"].iloc[0]
    if math.isnan(smallest):
        return (
            f"there is no test, which takes two seeds of each arm. At {where}, they are "
            f"{compared['between'].median():.3g} apart in the median layer (Jensen-Shannon distance, 0 to 1)."
        )
    found = verdict(overall, smallest, "they differ by more than between seeds", "that they differ is not shown", pairs)
    farther = int((compared["between"] > compared["within"]).sum())
    single = differences.single_layers(compared) if differences.is_shown(compared) else ""
    return (
        f"{found}. At {where}, they {differences.times_as_far(compared)}, and are farther apart than these in "
        f"{farther} of {differences.of_layers(compared)}{single}.{differences.left_out(table)}"
    )


def level_rows(compared: Comparison) -> list[LevelRow]:
    """Return a row for each level of every two arms."""
    rows = []
    for arm, other in _pairs(compared.matched):
        both = compared.matched[(compared.matched["arm"] == arm) & (compared.matched["other_arm"] == other)]
        for level, tests in both.groupby("level"):
            by_measure = dict(list(tests.groupby("measure")))
            spectra = by_measure["jensen_shannon"]
            reached = [_steps(compared.places, *names, level) for names in ((arm, other), (other, arm))]
            rows.append(
                LevelRow(
                    arms=(arm, other),
                    score=float(tests["score"].iloc[0]),
                    steps=(reached[0][0], reached[1][0]),
                    snapshots=(reached[0][1], reached[1][1]),
                    between=float(spectra["between"].median()),
                    within=float(spectra["within"].median()),
                    overlap=_similarity(by_measure.get("overlap")),
                    cka=_similarity(by_measure.get("cka")),
                    p=float(spectra["overall"].iloc[0]),
                )
            )
    return rows


def layers_at_equal_accuracy(compared: Comparison) -> pd.DataFrame:
    """Return a row for each layer of every two arms at their highest level, with None for what there is not.

    Columns layer, arm, other_arm, score, between, within, corrected, overlap, cka, rank, other_rank.
    """
    tables = []
    for arm, other in _pairs(compared.matched):
        both = compared.matched[(compared.matched["arm"] == arm) & (compared.matched["other_arm"] == other)]
        last = both[both["level"] == both["level"].max()].set_index(TAP)
        table = _of_spectra(last)[["arm", "other_arm", "score", "between", "within", "corrected"]]
        for measure in ("overlap", "cka"):
            table[measure] = 1 - last.loc[last["measure"] == measure, "between"] ** 2
        ranks = last[last["measure"] == "effective_rank"]
        tables.append(table.assign(rank=ranks["mean"], other_rank=ranks["other_mean"]).reset_index())
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table.astype(object).where(table.notna(), None).assign(layer=layer_names(table))


def distances_by_accuracy(compared: Comparison) -> pd.DataFrame:
    """Return how far spectra lie apart at each level: columns pair, AP (percent), relation, layer, value."""
    distances = _of_spectra(compared.matched)
    if distances.empty:
        return pd.DataFrame(columns=["pair", "AP", "relation", "layer", "value"])
    common = {"pair": distances["arm"] + " and " + distances["other_arm"], "AP": 100 * distances["score"]}
    tables = [
        pd.DataFrame(common | {"relation": relation, "layer": layer_names(distances), "value": distances[column]})
        for relation, column in (("arms", "between"), ("seeds", "within"))
    ]
    return pd.concat(tables, ignore_index=True).dropna(subset="value")


def _of_spectra(tests: pd.DataFrame) -> pd.DataFrame:
    return tests[tests["measure"] == "jensen_shannon"]


def _pairs(tests: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield every two arms, that of the paper first."""
    pairs = dict.fromkeys(tests[["arm", "other_arm"]].itertuples(index=False, name=None))
    yield from sorted(pairs, key=lambda pair: set(pair) != FIRST)


def _similarity(tests: pd.DataFrame | None) -> float:
    """Return the median over layers of a similarity, of which tests have the distance √(1 - similarity)."""
    return math.nan if tests is None else float((1 - tests["between"] ** 2).median())


def _steps(places: pd.DataFrame, arm: str, other: str, level: int) -> tuple[str, str]:
    """Return the steps at which an arm's runs reach a level beside another, and the snapshots these lie between."""
    own = places[(places["arm"] == arm) & (places["other_arm"] == other) & (places["level"] == level)]
    first, last = f"{own['reached'].min():,.0f}", f"{own['reached'].max():,.0f}"
    span = first if first == last else f"{first} to {last}"
    return f"{span} step{'' if span == '1' else 's'}", f"{own['before'].min():,} to {own['after'].max():,}"
