"""Loss against model size, a curve a budget; without a grid, loss against compute."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from reports import numbers
from reports.figures.charts import (
    Chart,
    Figure,
    Panel,
    Rows,
    Swatch,
    color_scale,
    dash,
    href,
    inline,
    layer,
    linear_y,
    log_x,
    six,
    tips,
)
from reports.palette import budget_color, var
from reports.view import View, finished, place, same
from sweeps.laws.types import Estimate, GroupAnalysis, Parabola

_HEIGHT = 320
_CURVE_POINTS = 48


def isoflop(view: View, context_length: int) -> Figure:
    """Loss against N, a parabola a budget, one panel an architecture, on shared scales."""
    groups = view.at_context(context_length)
    runs = view.runs.filter(finished() & pl.col("g").is_in([view.groups.index(g) for g in groups]))
    curves = [row for group in groups for row in _curves(view, group)]
    loss = [*runs["loss"], *(row["loss"] for row in curves)]
    if curves:
        sizes = [*runs["N"], *(row["N"] for row in curves)]
        x = log_x("N", [*sizes, *_interval_ends(groups)], "Parameters N")
    else:
        x = log_x("C", runs["train_flops"].to_list(), "Training compute C (FLOPs)", form="flops")
    y = linear_y("loss", loss, f"Validation loss ({view.loss_unit})")
    data = _runs_data(view)
    panels = [
        Panel(title=view.label(group), chart=_panel(view, group, data, x, y), arch=group.arch)
        for group in groups
    ]
    used = [b for b in view.budgets if any(same(p.budget, b) for g in groups for p in g.parabolas)]
    swatches = [
        Swatch(label=f"{numbers.flops(b)} FLOPs", color=budget_color(place(b, view.budgets))) for b in used
    ]
    return Figure(
        key=f"isoflop-{context_length}",
        caption=_caption(view, groups),
        panels=tuple(panels),
        legend=tuple(swatches),
        context_length=context_length,
    )


def parabola_loss(parabola: Parabola, N: np.ndarray) -> np.ndarray:
    """The fitted loss at sizes N."""
    x = np.log(N) - parabola.center
    return parabola.c0 + parabola.c1 * x + parabola.c2 * x**2


def _caption(view: View, groups: Sequence[GroupAnalysis]) -> str:
    where = view.at(groups[0].context_length)
    parabolas = [p for g in groups for p in g.parabolas]
    if not parabolas:
        return (
            f"Every finished run{where}. These runs form no IsoFLOP grid, so no parabola was fitted. The"
            " lower edge of the cloud is the best loss that each amount of compute has bought."
        )
    unused = sum(not p.usable for p in parabolas)
    dashed = f" Dashed: {unused} of {len(parabolas)} curves without a usable optimum." if unused else ""
    return (
        f"Loss against model size{where}, one curve a compute budget. The diamond is the best size at a"
        f" budget, the bar through it its {numbers.level(parabolas[0].N)} interval. Trust an optimum that has"
        f" points on both sides.{dashed}"
    )


def _panel(view: View, group: GroupAnalysis, data: alt.InlineData, x: alt.X, y: alt.Y) -> Chart:
    places = range(len(view.budgets))
    color = color_scale("b:N", [(-1, var("muted")), *((i, budget_color(i)) for i in places)])
    points = (
        alt.Chart(data)
        .transform_filter(f"datum.g === {view.groups.index(group)}")
        .mark_point(filled=True, size=42, opacity=0.9)
        .encode(x=x, y=y, color=color, tooltip=_run_tips(), href=href())
    )
    curves = list(_curves(view, group))
    if not curves:
        return points.properties(height=_HEIGHT)
    lines = (
        alt.Chart(inline(curves))
        .mark_line(strokeWidth=2)
        .encode(x=x, y=y, color=color, detail="b:N", strokeDash=dash("usable:N"))
    )
    base = alt.Chart(inline(_optima(group))).encode(y=y, tooltip=_optimum_tips())
    bars = base.mark_rule(strokeWidth=2.5, color=var("ink"), clip=True).encode(x=alt.X("low:Q"), x2="high:Q")
    diamonds = base.mark_point(
        shape="diamond",
        filled=True,
        fill=var("ink"),
        size=120,
        stroke=var("paper"),
        strokeWidth=1.5,
        opacity=1,
    ).encode(x=x)
    return layer(lines, points, bars, diamonds, height=_HEIGHT)


def _curves(view: View, group: GroupAnalysis) -> Iterator[dict[str, Any]]:
    for parabola in group.parabolas:
        N = np.geomspace(parabola.N_low / 1.06, parabola.N_high * 1.06, _CURVE_POINTS)
        b = place(parabola.budget, view.budgets)
        for n, y in zip(N, parabola_loss(parabola, N), strict=True):
            yield {"b": b, "N": six(n), "loss": six(y), "usable": parabola.usable}


def _interval_ends(groups: Sequence[GroupAnalysis]) -> list[float]:
    """Ends of the intervals of N*, so far as they do not stretch the axis beyond twice the grid."""
    used = [p for g in groups for p in g.parabolas if p.usable]
    ends = [(p, end) for p in used for end in (p.N.low, p.N.high) if numbers.known(end)]
    return [min(max(end, p.N_low / 2), p.N_high * 2) for p, end in ends]


def _optima(group: GroupAnalysis) -> Rows:
    return [
        {
            "budget": numbers.flops(p.budget),
            "N": six(p.N.value),
            "low": six(p.N.low),
            "high": six(p.N.high),
            "loss": six(p.loss.value),
            "size": _spelt(p.N, numbers.count),
            "tokens": _spelt(p.D, numbers.count),
            "optimum": _spelt(p.loss, numbers.loss),
        }
        for p in group.parabolas
        if p.usable
    ]


def _spelt(estimate: Estimate, form: Any) -> str:
    return f"{form(estimate.value)} ({numbers.span(estimate, form)})"


def _optimum_tips() -> list[alt.Tooltip]:
    titles = {"budget": "Budget (FLOPs)", "size": "Best size", "tokens": "Tokens", "optimum": "Loss"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _runs_data(view: View) -> alt.InlineData:
    """One data set for every panel that draws runs, so that the page holds it once."""
    columns = ["g", "b", "run_name", "N", "D", "train_flops", "loss", "peak_lr", "steps", "url"]
    done = view.runs.filter(finished()).select(columns).rename({"run_name": "run", "train_flops": "C"})
    return inline(
        [
            {k: six(v) if isinstance(v, float) else v for k, v in row.items() if v is not None}
            for row in done.iter_rows(named=True)
        ]
    )


def _run_tips() -> list[alt.Tooltip]:
    return tips(run="", N=".3s", D=".3s", C=".3~g", loss=".4f", peak_lr=".3~g", steps=",")
