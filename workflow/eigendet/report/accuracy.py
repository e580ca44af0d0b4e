"""Say how accurate arms are beside one another, in sentences that are computed from the runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from eigendet.report.wording import LEVEL, told_apart, too_few, verdict
from eigendet.spectra import significance
from eigendet.spectra.significance import PermutationTest

COSTS = {"parameters": "parameters", "macs": "MACs", "activations": "activations"}
COSTS_OF_CONTROLS = {
    "uniform_parameters": ["parameters"], "uniform_macs": ["macs"], "profile": ["parameters", "macs"],
    "untrained": ["parameters", "macs"], "permuted": ["parameters", "macs"],
}  # fmt: skip
SCORES = {"AP": "Average precision", "mask_AP": "Average precision of masks"}


def on_accuracy(runs: pd.DataFrame, derived: str | None = None, starts: Sequence[str] = ()) -> list[str]:
    """Say whether arms with different starts differ in average precision, and derived widths from each control.

    Args:
        runs: a row for each run of a network, as in the summary.
        derived: the arm with derived widths that controls are compared with.
        starts: arms with the reference's widths beside fine-tuned and from scratch.

    Examples:
        >>> runs = pd.DataFrame({"arm": ["finetune", "scratch"], "seed": 0, "AP": [0.4, 0.3]})
        >>> on_accuracy(runs)[0][:59]
        'Average precision is 40.0 fine-tuned and 30.0 from scratch.'
    """
    sentences = []
    for score, name in SCORES.items():
        if score in runs:
            sentences += [
                _on_starts(runs, score, name, ["finetune", *starts, "scratch"])
                if starts
                else _on_pre_training(runs, score, name),
                _on_derived(runs, score, name, derived),
                _on_starts(runs, score, name, ["derived_finetune", derived or "", "finetune"])
                if (runs["arm"] == "derived_finetune").any()
                else "",
            ]
    return [sentence for sentence in sentences if sentence]


def _on_pre_training(runs: pd.DataFrame, score: str, name: str) -> str:
    both = _scores(runs, score, ["finetune", "scratch"])
    if len(both) < 2:
        return ""
    if any(values.isna().any() for values in both.values()):
        return f"Not every run has an {_lower(name)}, so fine-tuned and from scratch are not compared."
    tuned, scratch = told_apart(both["finetune"].mean(), both["scratch"].mean(), digits=1)
    means = f"{name} is {tuned} fine-tuned and {scratch} from scratch"
    if min(map(len, both.values())) < 2:
        return f"{means}. There is no test, which takes two seeds of each: nothing says how much others would differ."
    test = _test(runs, score, list(both))
    return f"{means}: {verdict(test.overall, test.smallest, 'a difference', 'a difference is not shown')}."


def _on_starts(runs: pd.DataFrame, score: str, name: str, arms: Sequence[str]) -> str:
    """Compare several arms with one another."""
    scores = _scores(runs, score, arms)
    if len(scores) < 2:
        return ""
    if any(values.isna().any() for values in scores.values()):
        return f"Not every run has an {_lower(name)}, so {_listed(list(scores))} are not compared."
    means = {arm: values.mean() for arm, values in scores.items()}
    pairs_of_means = [told_apart(one, other, digits=1)[0] for one, other in itertools.combinations(means.values(), 2)]
    decimals = max(len(text.partition(".")[2]) for text in pairs_of_means)
    text = f"{name} is " + _listed([f"{mean:.{decimals}f} of {arm}" for arm, mean in means.items()])
    tested = [arm for arm, values in scores.items() if len(values) >= 2]
    pairs = list(itertools.combinations(tested, 2))
    if not pairs:
        return f"{text}. There is no test, which takes two seeds of each: nothing says how much others would differ."
    tests = significance.over_pairs([_test(runs, score, pair) for pair in pairs])
    if min(test.smallest for test in tests) > LEVEL:  # said once
        return f"{text}: {too_few(min(test.smallest for test in tests), len(pairs))}."
    clauses = [
        f"{first} and {other}: "
        + verdict(test.overall, test.smallest, "a difference", "a difference is not shown", len(pairs))
        for (first, other), test in zip(pairs, tests, strict=True)
    ]
    return f"{text}. {'; '.join(clauses)}."


def _listed(parts: Sequence[str]) -> str:
    """Return parts of a sentence with commas and an and."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _on_derived(runs: pd.DataFrame, score: str, name: str, derived: str | None) -> str:
    """Compare derived widths with every control, each of which has costs of theirs."""
    scores = _scores(runs, score, [derived or "", *COSTS_OF_CONTROLS])
    controls = [arm for arm in scores if arm != derived]
    if derived not in scores or not controls:
        return ""
    if any(values.isna().any() for values in scores.values()):
        return f"Not every run has an {_lower(name)}, so {derived} and its controls are not compared."
    tested = min(map(len, scores.values())) >= 2
    tests = significance.over_pairs([_test(runs, score, [derived, arm]) for arm in controls]) if tested else []
    clauses = []
    for place, arm in enumerate(controls):
        own, other = told_apart(scores[derived].mean(), scores[arm].mean(), digits=1)
        clauses.append(f"{own} beside {other} of {arm}, which has its {_costs(arm)}")
        if tested:
            found = tests[place].overall, tests[place].smallest
            clauses[-1] += f": {verdict(*found, 'a difference', 'a difference is not shown', len(controls))}"
    no_test = "" if tested else " There is no test, which takes two seeds of each."
    return f"{name} with the widths of {derived} is {'; it is '.join(clauses)}.{no_test}"


def _scores(runs: pd.DataFrame, score: str, arms: Sequence[str]) -> dict[str, pd.Series]:
    """Return the scores of those arms that there are, in percent."""
    present = [arm for arm in arms if (runs["arm"] == arm).any()]
    return {arm: 100 * runs.loc[runs["arm"] == arm, score].astype(float) for arm in present}


def _test(runs: pd.DataFrame, score: str, arms: Sequence[str]) -> PermutationTest:
    both = runs[runs["arm"].isin(arms)]
    return significance.differences(both[score].to_numpy(float)[None], list(both["arm"]), list(both["seed"]))


def _costs(control: str) -> str:
    return " and ".join(COSTS[cost] for cost in COSTS_OF_CONTROLS[control])


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
