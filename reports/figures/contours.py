"""The fitted surface itself: lines of equal loss over N and D, the budgets across them, the optima along."""

from collections.abc import Iterator
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
    href,
    inline,
    layer,
    log_x,
    log_y,
    six,
    tips,
)
from reports.palette import arch_color, var
from reports.view import View, finished
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.inference_cost import tokens_for_loss
from sweeps.laws.inputs import Points, prepare
from sweeps.laws.optima import optima, tokens_at
from sweeps.laws.predictions import law_and_params
from sweeps.laws.types import FitError, GroupAnalysis

_LEVELS = 9
_ALONG = 56
"""Points of a line."""


def contours(view: View, context_length: int) -> Figure | None:
    """A map of L(N, D), one panel an architecture; None without a fitted law."""
    groups = [g for g in view.at_context(context_length) if g.parametric]
    panels = [
        Panel(title=view.label(group), chart=chart, arch=group.arch)
        for group in groups
        if (chart := _panel(view, group)) is not None
    ]
    if not panels:
        return None
    return Figure(
        key=f"contours-{context_length}",
        caption=(
            f"The fitted surface{view.at(context_length)}: along a thin line the predicted loss is the same,"
            " points are the runs. A dashed line is what one budget can buy; it touches the lowest loss where"
            " the thick line, the path of the optima, crosses it."
        ),
        panels=tuple(panels),
        legend=(
            Swatch(label="Equal loss", color=var("muted")),
            Swatch(label="Optima", color=var("ink")),
        ),
        context_length=context_length,
    )


def _panel(view: View, group: GroupAnalysis) -> Chart | None:
    table = view.runs.filter(finished() & (pl.col("g") == view.groups.index(group)))
    try:
        points = prepare(table, drop_invalid=True)
        budgets = list(_budgets(group, points))
        best = list(_optima(group, points))
    except FitError:
        return None
    lines = list(_contours(group, points))
    runs = [
        {key: six(row[key]) for key in ("N", "D", "loss")} | {"run": row["run_name"], "url": row["url"]}
        for row in table.iter_rows(named=True)
    ]
    x = log_x("N", points.N.tolist(), "Parameters N")
    y = log_y("D", points.D.tolist(), "Training tokens D")
    labels = _apart([row for row in lines if row["label"]], points)
    return layer(
        _line(lines, strokeWidth=1, color=var("muted"), opacity=0.7).encode(x=x, y=y, detail="level:Q"),
        _line(budgets, strokeWidth=1.2, strokeDash=[4, 4], color=var("muted")).encode(
            x=x, y=y, detail="budget:N", tooltip="budget:N"
        ),
        _line(best, strokeWidth=3, color=var("ink")).encode(x=x, y=y),
        alt.Chart(inline(labels))
        .mark_text(clip=True, dx=2, dy=-6, align="right", fontSize=10.5, color=var("muted"))
        .encode(x=x, y=y, text="label:N"),
        alt.Chart(inline(runs))
        .mark_point(filled=True, size=36, opacity=0.9, color=arch_color(view.archs.index(group.arch)))
        .encode(x=x, y=y, tooltip=tips(run="", N=".3s", D=".3s", loss=".4f"), href=href()),
        height=320,
    )


def _line(rows: Rows, **style: Any) -> alt.Chart:
    return alt.Chart(inline(rows)).mark_line(clip=True, **style)


def _contours(group: GroupAnalysis, points: Points) -> Iterator[dict[str, object]]:
    """Each level's D over N, labelled where the line leaves the picture on the right."""
    law, params = law_and_params(group.parametric[0])
    N = np.geomspace(points.N.min() / 1.5, points.N.max() * 1.5, _ALONG)
    rows = np.tile(params, (_ALONG, 1))
    observed = law.predict(params, N=points.N, D=points.D)
    for level in _levels(observed):
        D = tokens_for_loss(law, rows, N, np.full(_ALONG, level))
        within = (points.D.min() < D) & (points.D.max() > D) & (points.N.max() >= N)
        inside = np.flatnonzero(within)
        drawn = (30 * points.D.max() > D) & (points.D.min() / 30 < D)
        for i in np.flatnonzero(drawn):
            label = numbers.loss(level) if len(inside) and i == inside[-1] else ""
            yield {"level": six(level), "N": six(N[i]), "D": six(D[i]), "label": label}


def _apart(labels: Rows, points: Points) -> Rows:
    """Labels that do not run into one another: a line apart in height, or a label's width aside."""
    height, width = np.ptp(np.log(points.D)) / 16, np.ptp(np.log(points.N)) / 7
    kept: Rows = []
    for row in labels:
        x, y = np.log(row["N"]), np.log(row["D"])
        if all(abs(y - np.log(k["D"])) > height or abs(x - np.log(k["N"])) > width for k in kept):
            kept.append(row)
    return kept


def _levels(losses: np.ndarray) -> np.ndarray:
    """Evenly spread over the losses that the runs reach, denser where they are low."""
    return np.geomspace(losses.min(), losses.max(), _LEVELS + 2)[1:-1]


def _budgets(group: GroupAnalysis, points: Points) -> Iterator[dict[str, object]]:
    flops = flops_of_runs(points)
    N = np.geomspace(points.N.min() / 1.5, points.N.max() * 1.5, _ALONG // 2)
    for parabola in group.parabolas:
        for n, d in zip(N, tokens_at(flops, N, parabola.budget), strict=True):
            yield {"budget": f"{numbers.flops(parabola.budget)} FLOPs", "N": six(n), "D": six(d)}


def _optima(group: GroupAnalysis, points: Points) -> Iterator[dict[str, object]]:
    law, params = law_and_params(group.parametric[0])
    C = np.geomspace(points.C.min() / 3, points.C.max() * 3, _ALONG // 2)
    best = optima(law, params, C, flops=flops_of_runs(points))
    for n, d in zip(best.N[0], best.D[0], strict=True):
        if np.isfinite(n):
            yield {"N": six(n), "D": six(d)}
