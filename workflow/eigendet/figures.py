"""The report's figures."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from eigendet.config import Experiment
from eigendet.front import UNIFORM

# Okabe and Ito's colours, then some of Tol's, told apart by colour-blind readers; one an arm, in every figure.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
PALETTE += ["#882255", "#999933", "#332288", "#44AA99", "#999999"]


def colours(experiment: Experiment) -> dict[str, str]:
    """Arm -> colour: always the same for those that most experiments have."""
    usual = ["scratch", "finetune", "derived"]
    others = [arm for arm in experiment.all_arms if arm not in usual]
    return dict(zip([*usual, *others], itertools.cycle(PALETTE), strict=False))


def scores(runs: pd.DataFrame, colours: dict[str, str]) -> go.Figure:
    """AP of every run against parameters and multiply-accumulates of its backbone."""
    costs = {"backbone_parameters": "backbone parameters", "backbone_macs": "backbone multiply-accumulates"}
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05)
    networks = runs.groupby(["backbone", "detector"]).groups
    symbols = dict(zip(networks, itertools.cycle(["circle", "square", "diamond", "cross", "x"]), strict=False))
    for (arm, backbone, detector), group in runs.groupby(["arm", "backbone", "detector"], sort=False):
        several = len(symbols) > 1
        name = f"{arm}, {detector} on {backbone}" if several else str(arm)
        for column, (cost, title) in enumerate(costs.items(), start=1):
            hover = f"{name}, seed %{{customdata}}<br>AP %{{y:.2f}}<br>{title} %{{x:.3s}}<extra></extra>"
            marker = {"color": colours[str(arm)], "size": 11, "symbol": symbols[backbone, detector]}
            figure.add_scatter(
                x=group[cost], y=100 * group["AP"], mode="markers", name=name, legendgroup=name, marker=marker,
                showlegend=column == 1, customdata=group["seed"], hovertemplate=hover, row=1, col=column,
            )  # fmt: skip
    for column, title in enumerate(costs.values(), start=1):
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    figure.update_yaxes(title_text="box AP, percent", row=1, col=1)
    return styled(figure, 380)


def widths(entry: dict[str, Any], colours: dict[str, str]) -> go.Figure:
    """Widths of every arm by group; of derived ones the interval before rounding as well, where there is one."""
    reference = entry["derived"][0]["reference"]
    groups = list(reference)
    figure = go.Figure()
    figure.add_bar(x=groups, y=list(reference.values()), name="reference widths", marker_color="#999999")
    for arm, content in entry["files"].items():
        error = None
        if "width_intervals" in content:
            low, high = zip(*(content["width_intervals"][group] for group in groups), strict=True)
            found = [content["widths"][group] for group in groups]
            error = {
                "type": "data", "symmetric": False, "thickness": 1, "width": 2,
                "array": [max(h - w, 0) for h, w in zip(high, found, strict=True)],
                "arrayminus": [max(w - least, 0) for least, w in zip(low, found, strict=True)],
            }  # fmt: skip
        figure.add_bar(
            x=groups, y=[content["widths"][group] for group in groups], name=arm, marker_color=colours[arm],
            error_y=error, visible=True if "bound" in content else "legendonly",
        )  # fmt: skip
    figure.update_layout(
        barmode="group", xaxis_title="channel group, named after its first layer", yaxis_title="channels"
    )
    return styled(figure, 460)


def front(entry: dict[str, Any], colours: dict[str, str]) -> go.Figure:
    """Parameters against MACs: a line for each value of the rule's option, with what every arm has."""
    table = entry["front"]
    figure = go.Figure()
    lines = [how for how in table["widths"].unique() if how != UNIFORM]
    shades = sample_colorscale("Viridis", [i / max(len(lines) - 1, 1) for i in range(len(lines))])
    for how, colour in zip([*lines, UNIFORM], [*shades, "#999999"], strict=True):
        rows = table[table["widths"] == how]
        figure.add_scatter(
            x=rows["mac_share"], y=rows["parameter_share"], name=how, mode="lines+markers",
            line={"color": colour, "dash": "dash" if how == UNIFORM else "solid", "width": 1.5},
            marker={"symbol": ["circle" if on else "circle-open" for on in rows["on_front"]], "size": 7},
            hovertemplate=f"{how}<br>MACs %{{x:.3f}}<br>parameters %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    for arm, content in entry["files"].items():
        x, y = (content[cost]["result"] / content[cost]["reference"] for cost in ("macs", "parameters"))
        figure.add_scatter(
            x=[x], y=[y], name=arm, mode="markers", marker={"color": colours[arm], "size": 13, "symbol": "star"},
            hovertemplate=f"{arm}<br>MACs %{{x:.3f}}<br>parameters %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="MACs / reference", rangemode="tozero")
    figure.update_yaxes(title_text="parameters / reference", rangemode="tozero")
    return styled(figure, 520)


def styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 40, "b": 60},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 13},
    )  # fmt: skip
    return figure


def div(figure: go.Figure) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html
