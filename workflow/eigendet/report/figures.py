"""Define each figure once, for the page and as a file for papers.

Every figure is a Vega-Lite chart over one tidy table, so that its data can be taken from it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from eigendet.config import UNIFORM, Experiment
from eigendet.files import replacing
from eigendet.networks.widths_file import ChosenWidths
from eigendet.report.layers import set_apart
from eigendet.report.results import NetworkWidths

# Okabe and Ito's colors, then some of Tol's, told apart by color-blind readers, on white and on black.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]
PALETTE += ["#AA4466", "#999933", "#7766CC", "#44AA99", "#BB8855"]
RELATIONS = {"arms": "of two arms", "seeds": "of one arm, two seeds"}
STATIC_WIDTH = 520  # pixels, of a file; on the page figures are as wide as there is room

Colors = dict[str, str]
Chart = alt.Chart | alt.LayerChart | alt.FacetChart
Specification = dict[str, Any]  # Vega-Lite's JSON


def colors(experiment: Experiment) -> Colors:
    """Return the color of every arm, always the same for those that most experiments have."""
    frequent = ["scratch", "finetune", "derived"]
    others = [arm for arm in experiment.all_arms if arm not in frequent]
    return dict(zip([*frequent, *others], itertools.cycle(PALETTE), strict=False))


def draw_scores(runs: pd.DataFrame, cost: str, colors: Colors) -> Chart:
    """Draw AP of every run against a cost of its backbone, `backbone_parameters` or `backbone_macs`."""
    several = runs.groupby(["backbone", "detector"]).ngroups > 1
    table = runs[["arm", "backbone", "detector", "seed", cost]].assign(AP=100 * runs["AP"])
    table["network"] = table["detector"] + " on " + table["backbone"]
    title = {
        "backbone_parameters": "parameters of the backbone",
        "backbone_macs": "multiply-accumulates of the backbone",
    }
    return (
        _chart(table)
        .mark_point(size=90, filled=True, opacity=0.85)
        .encode(
            x=alt.X(f"{cost}:Q").title(title[cost]).axis(format="~s").scale(zero=True),
            y=alt.Y("AP:Q").title("box AP, percent").scale(zero=False, padding=12),
            color=_arms(table["arm"], colors),
            tooltip=[
                "arm:N",
                "seed:N",
                "network:N",
                alt.Tooltip("AP:Q").format(".2f"),
                alt.Tooltip(f"{cost}:Q").format(","),
            ],
            shape=alt.Shape("network:N").title(None) if several else alt.Undefined,
        )
    )


def draw_accuracy(table: pd.DataFrame, colors: Colors) -> Chart:
    """Draw AP over training: every run, their mean over seeds, and their standard deviation where there are several.

    Args:
        table: columns arm, backbone, detector, seed, step, AP.
        colors: of arms.
    """
    table = table[["arm", "backbone", "detector", "seed", "step"]].assign(AP=100 * table["AP"].astype(float))
    table["run"] = table[["arm", "backbone", "detector", "seed"]].astype(str).agg(" ".join, axis=1)
    table, dash = _of_networks(table)
    base = alt.Chart().encode(x=alt.X("step:Q").title("step"), color=_arms(table["arm"], colors), detail="network:N")
    y = alt.Y("AP:Q").title("box AP, percent").scale(domainMin=0)
    of_runs = base.mark_line(strokeWidth=0.8, opacity=0.45).encode(y=y, detail="run:N", strokeDash=dash)
    band = base.mark_errorband(extent="stdev", opacity=0.15, borders=False, clip=True).encode(y=y)
    mean = base.mark_line(strokeWidth=2.2, point=alt.OverlayMarkDef(size=36)).encode(
        y=y.aggregate("mean"),
        strokeDash=dash,
        tooltip=[
            "arm:N",
            "network:N",
            "step:Q",
            alt.Tooltip("mean(AP):Q").format(".2f"),
            alt.Tooltip("count():Q").title("seeds"),
        ],
    )
    layers = [band, of_runs, mean] if len(set(table["seed"])) > 1 else [mean]
    return alt.layer(*layers, data=_data(table)).properties(height=300)


def draw_losses(table: pd.DataFrame, term: str, colors: Colors) -> Chart:
    """Draw a loss over the steps of training: the mean over seeds, and their standard deviation as a band.

    Args:
        table: as `curves.losses` returns it.
        term: one of its terms.
        colors: of arms.
    """
    table, dash = _of_networks(table[table["term"] == term].drop(columns="term"))
    base = alt.Chart().encode(x=alt.X("step:Q").title("step"), color=_arms(table["arm"], colors), detail="network:N")
    title = "loss, all terms" if term == "loss" else term.replace("_", " ")
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q").title(title).scale(zero=False), y2="high:Q")
    mean = base.mark_line(strokeWidth=1.6).encode(
        y=alt.Y("loss:Q").title(title).scale(zero=False),
        strokeDash=dash,
        tooltip=[
            *("arm:N", "network:N", "step:Q", "seeds:Q"),
            *(alt.Tooltip(f"{name}:Q").format(".4~g") for name in ("loss", "low", "high")),
        ],
    )
    layers = [band, mean] if table["low"].notna().any() else [mean]
    return alt.layer(*layers, data=_data(_to_digits(table))).properties(height=220)


def draw_precision(table: pd.DataFrame, title: str, colors: Colors) -> Chart:
    """Draw precision over recall, a line for each arm.

    Args:
        table: columns arm, backbone, detector, recall, precision.
        title: of the axis of precision.
        colors: of arms.
    """
    table, dash = _of_networks(table[["arm", "backbone", "detector", "recall", "precision"]])
    axis = alt.Scale(domain=[0, 1])
    tips = [alt.Tooltip(f"{name}:Q").format(".3f") for name in ("recall", "precision")]
    return (
        _chart(_to_digits(table))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("recall:Q").scale(axis),
            y=alt.Y("precision:Q").title(title).scale(axis),
            color=_arms(table["arm"], colors),
            detail="network:N",
            strokeDash=dash,
            tooltip=["arm:N", "network:N", *tips],
        )
        .properties(height=260)
    )


def draw_widths(network: NetworkWidths, colors: Colors) -> Chart:
    """Draw the widths of every arm by group; of derived ones the interval before rounding as well, if there is one."""
    reference = network.derived[0].reference
    table = _widths_table(reference, network.files)
    base = _chart(table).encode(
        y=alt.Y("group:N").sort(list(reference)).title("channel group, after its first layer").axis(labelLimit=260),
        color=_arms(table["arm"], {"reference": "#888888"} | colors),
        tooltip=["group:N", "arm:N", "width:Q", "reference:Q",
                 alt.Tooltip("low:Q").format(".1f"), alt.Tooltip("high:Q").format(".1f")],
    )  # fmt: skip
    x, offset = alt.X("width:Q").title("channels"), alt.YOffset("arm:N")
    before = base.transform_filter("datum.arm == 'reference'").mark_tick(thickness=4, opacity=0.6).encode(x=x)
    arms = base.transform_filter("datum.arm != 'reference'")
    spans = arms.mark_rule(strokeWidth=2, opacity=0.6).encode(x=alt.X("low:Q"), x2="high:Q", yOffset=offset)
    points = arms.mark_point(filled=True, size=45, opacity=1).encode(x=x, yOffset=offset)
    return alt.layer(before, spans, points).properties(height=24 * len(reference))


def _widths_table(reference: dict[str, int], files: dict[str, ChosenWidths]) -> pd.DataFrame:
    """Return columns arm, group, width, low, high, reference; the reference widths are an arm of that name."""
    rows = [{"arm": "reference", "group": group, "width": width} for group, width in reference.items()]
    for arm, chosen in files.items():
        if chosen.widths == reference and arm == "reference":
            continue
        for group, width in chosen.widths.items():
            low, high = (chosen.width_intervals or {}).get(group, (None, None))
            rows.append({"arm": arm, "group": group, "width": width, "low": low, "high": high})
    return pd.DataFrame(rows).assign(reference=lambda table: table["group"].map(reference))


def draw_front(table: pd.DataFrame, files: dict[str, ChosenWidths], colors: Colors) -> Chart:
    """Draw parameters against MACs: a line for each value of the rule's option, and what every arm has.

    Args:
        table: as `eigendet front` writes it.
        files: each arm's file of widths.
        colors: of arms.
    """
    table = table.rename(columns={"mac_share": "MACs", "parameter_share": "parameters_share"})
    table = table[["widths", "cap", "MACs", "parameters_share", "on_front"]]
    arms = pd.DataFrame(
        {"arm": arm, "MACs": chosen.macs.share, "parameters_share": chosen.parameters.share}
        for arm, chosen in files.items()
    )
    rows = pd.concat([table, arms], ignore_index=True)
    x = alt.X("MACs:Q").title("MACs / reference")
    y = alt.Y("parameters_share:Q").title("parameters / reference")
    lines = [rule for rule in table["widths"].unique() if rule != UNIFORM]
    shade = alt.Color("widths:N").sort([*lines, UNIFORM]).scale(scheme="viridis").title(None)
    of_rule = _chart(rows).transform_filter("isValid(datum.widths)")
    course = of_rule.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=shade)
    tips = ["widths:N", "cap:Q", *(alt.Tooltip(f"{name}:Q").format(".3f") for name in ("MACs", "parameters_share"))]
    caps = of_rule.mark_point(size=45).encode(x=x, y=y, color=shade.legend(None), tooltip=tips)
    best = caps.transform_filter("datum.on_front").mark_point(size=60, filled=True, opacity=1)
    stars = (
        alt.Chart()
        .transform_filter("isValid(datum.arm)")
        .mark_point(shape="diamond", size=160, filled=True, opacity=1)
        .encode(
            x=x, y=y, color=_arms(arms["arm"], colors),
            tooltip=["arm:N", alt.Tooltip("MACs:Q").format(".3f"), alt.Tooltip("parameters_share:Q").format(".3f")],
        )
    )  # fmt: skip
    return (
        alt.layer(course, caps, best, stars, data=_data(rows)).resolve_scale(color="independent").properties(height=380)
    )


def draw_equal_accuracy(table: pd.DataFrame) -> Chart:
    """Draw how far spectra lie apart over the accuracy that arms have in common, beside how far those of seeds do.

    Args:
        table: columns pair, AP, relation (`arms` or `seeds`), layer, value.
    """
    several = len(set(table["pair"])) > 1
    base = _chart(_relations(table)).encode(x=alt.X("AP:Q").title("box AP of both arms, percent"), color=_relation())
    medians = base.mark_line(point=True).encode(
        y=alt.Y("median(value):Q").title("distance, median over layers"),
        tooltip=[
            "pair:N",
            "relation:N",
            alt.Tooltip("AP:Q").format(".2f"),
            alt.Tooltip("median(value):Q").format(".4f"),
        ],
        strokeDash=alt.StrokeDash("pair:N").title(None) if several else alt.Undefined,
    )
    band = base.mark_errorband(extent="iqr", opacity=0.15).encode(y=alt.Y("value:Q").title(""))
    return (medians if several else alt.layer(band, medians)).properties(height=260)


def draw_course(table: pd.DataFrame, title: str) -> Chart:
    """Draw a heat map, layer by snapshot, with stages set apart.

    Args:
        table: columns layer (in order of execution), step, value.
        title: of the colors.

    >>> table = pd.DataFrame({"layer": ["conv1"], "step": [0], "value": [3.5]})
    >>> specification(draw_course(table, "rank"))["mark"]
    {'type': 'rect'}
    """
    rows = set_apart(list(dict.fromkeys(table["layer"])))
    return (
        _chart(table)
        .mark_rect()
        .encode(
            x=alt.X("step:O").title("step"),
            y=alt.Y("layer:N").scale(domain=rows).title(None).axis(labelLimit=240, ticks=False),
            color=alt.Color("value:Q").scale(scheme="viridis").title(title),
            tooltip=["layer:N", "step:O", alt.Tooltip("value:Q").format(".4~g")],
        )
        .properties(height=15 * len(rows))
    )


def draw_spread(table: pd.DataFrame) -> Chart:
    """Draw for every layer how far spectra of different arms lie apart, and spectra of one arm's seeds.

    Args:
        table: columns layer (in order of execution), pair, relation (`arms` or `seeds`), value.
    """
    order = list(dict.fromkeys(table["layer"]))
    base = _chart(_relations(table)).encode(
        y=alt.Y("layer:N").sort(order).title(None).axis(labelLimit=240),
        color=_relation(),
        yOffset=alt.YOffset("relation:N"),
    )
    points = base.mark_point(filled=True, size=22, opacity=0.5).encode(
        x=alt.X("value:Q").title("distance"),
        tooltip=["layer:N", "pair:N", "relation:N", alt.Tooltip("value:Q").format(".4f")],
    )
    means = base.mark_tick(thickness=3, size=8).encode(x=alt.X("mean(value):Q").title("distance"))
    return alt.layer(points, means).properties(height=18 * len(order))


def draw_spectra(table: pd.DataFrame, colors: Colors, logarithmic: bool = True) -> Chart:
    """Draw the spectra of one layer, a line for each run, the arms overlaid.

    Args:
        table: columns arm, seed, x (index, or share of the width), value (relative to the largest eigenvalue).
        colors: of arms.
        logarithmic: whether the axis of values is.
    """
    scale = alt.Scale(type="log", clamp=True) if logarithmic else alt.Scale(type="linear")
    return (
        _chart(table)
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("x:Q").title("index / width"),
            y=alt.Y("value:Q").scale(scale).title("eigenvalue / largest").axis(format=".0e" if logarithmic else "~g"),
            color=_arms(table["arm"], colors),
            detail="seed:N",
            tooltip=["arm:N", "seed:N", alt.Tooltip("x:Q").format(".3~g"), alt.Tooltip("value:Q").format(".3~e")],
        )
        .properties(height=380)
    )


def specification(chart: Chart) -> Specification:
    """Return a chart as Vega-Lite for the page: as wide as there is room."""
    return chart.properties(width="container").to_dict()


def save_chart(chart: Chart, path: Path) -> None:
    """Write a figure as .svg, or as .png with twice the pixels."""
    import vl_convert

    styled = chart.properties(width=STATIC_WIDTH).configure_view(stroke=None).configure_axis(gridOpacity=0.4)
    styled = styled.configure_legend(orient="top", titleLimit=400, labelLimit=320, columns=4).to_dict()
    if path.suffix == ".png":
        content = vl_convert.vegalite_to_png(styled, scale=2)
    else:
        content = vl_convert.vegalite_to_svg(styled).encode()
    with replacing(path) as part:
        part.write_bytes(content)


def file_name(*parts: str) -> str:
    """Return the name of a figure's file: lower case, words joined by hyphens.

    >>> file_name("spread", "faster_rcnn on ResNet18")
    'spread-faster_rcnn-on-resnet18'
    """
    return re.sub(r"[^a-z0-9_]+", "-", " ".join(parts).lower()).strip("-")


def _chart(table: pd.DataFrame) -> alt.Chart:
    return alt.Chart(_data(table))


def _data(table: pd.DataFrame) -> alt.Data:
    """Put the rows into the chart itself; what is missing is null, since JSON knows no NaN."""
    return alt.Data(values=table.astype(object).where(table.notna(), None).to_dict("records"))


def _relations(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(relation=table["relation"].map(RELATIONS))


def _relation() -> alt.Color:
    """Return the color of what lies between two runs."""
    scale = alt.Scale(domain=list(RELATIONS.values()), range=[PALETTE[1], PALETTE[0]])
    return alt.Color("relation:N").scale(scale).title("Jensen-Shannon distance between spectra")


def _to_digits(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its numbers to four digits, in a third of the letters."""
    numbers = table.select_dtypes("float").columns
    return table.assign(**{name: table[name].map(lambda value: float(f"{value:.4g}")) for name in numbers})


def _of_networks(table: pd.DataFrame) -> tuple[pd.DataFrame, alt.StrokeDash]:
    """Return a table with a column `network` for detector and backbone, and the dashes that tell several apart."""
    networks = table["detector"] + " on " + table["backbone"]
    dash = alt.StrokeDash("network:N").title(None)
    table = table.drop(columns=["detector", "backbone"]).assign(network=networks)
    return table, dash if len(set(networks)) > 1 else dash.legend(None)


def _arms(present: Sequence[str] | pd.Series, colors: Colors) -> alt.Color:
    shown = [arm for arm in colors if arm in set(present)]
    color = alt.Color("arm:N").scale(domain=shown, range=[colors[arm] for arm in shown]).title(None)
    return color.legend(symbolOpacity=1)  # of a band too
