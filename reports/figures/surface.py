"""The fitted law L(N, D): what it predicts for the runs and what it leaves over."""

import altair as alt
import numpy as np
import polars as pl

from reports.figures.charts import (
    Figure,
    Panel,
    Rows,
    arch_legend,
    arch_scale,
    href,
    inline,
    layer,
    linear_y,
    log_x,
    log_y,
    neutral_line,
    shape_scale,
    six,
    tips,
)
from reports.palette import var
from reports.view import View, finished
from sweeps.laws.types import GroupAnalysis

_HEIGHT = 270


def surface(view: View, context_length: int) -> Figure | None:
    """Observed against predicted loss, and residuals; None without a law whose residuals match the runs."""
    groups = [g for g in view.at_context(context_length) if g.parametric]
    rows = [row for group in groups for row in _residual_rows(view, group)]
    if not rows:
        return None
    where = view.at(context_length)
    law = groups[0].parametric[0]
    return Figure(
        key=f"surface-{context_length}",
        caption=(
            f"The fitted law {law.formula}{where}. On the diagonal of the first panel observed and"
            " predicted loss agree. The second shows what is left over against model size: a trend there"
            " would mean that the form of the law is wrong."
        ),
        panels=(
            Panel(title=f"Observed against predicted{where}", chart=_agreement(view, rows)),
            Panel(title=f"Residuals{where}", chart=_residuals(view, rows)),
        ),
        legend=arch_legend(view, groups),
        context_length=context_length,
    )


def _agreement(view: View, rows: Rows) -> alt.LayerChart:
    both = [v for row in rows for v in (row["observed"], row["predicted"])]
    x = log_x("predicted", both, f"Predicted ({view.loss_unit})", form="plain")
    y = log_y("observed", both, f"Observed ({view.loss_unit})", form="plain")
    ends = inline([{"predicted": v, "observed": v} for v in (min(both), max(both))])
    diagonal = alt.Chart(ends).mark_line(color=var("muted"), strokeWidth=1, strokeDash=[4, 3])
    return layer(diagonal.encode(x=x, y=y), _cloud(view, rows, x, y), height=_HEIGHT)


def _residuals(view: View, rows: Rows) -> alt.LayerChart:
    x = log_x("N", [row["N"] for row in rows], "Parameters N")
    y = linear_y("residual", [*(row["residual"] for row in rows), 0.0], "Residual of ln L (%)")
    return layer(neutral_line(0.0), _cloud(view, rows, x, y), height=_HEIGHT)


def _cloud(view: View, rows: Rows, x: alt.X, y: alt.Y) -> alt.Chart:
    return (
        alt.Chart(inline(rows))
        .mark_point(filled=True, size=42, opacity=0.85)
        .encode(x=x, y=y, color=arch_scale(view), shape=shape_scale(view), tooltip=_tips(), href=href())
    )


def _tips() -> list[alt.Tooltip]:
    return tips(run="", N=".3s", D=".3s", observed=".4f", predicted=".4f", residual=".2f")


def _residual_rows(view: View, group: GroupAnalysis) -> Rows:
    """Residuals beside their runs; none where the fit left out rows that the table does not mark."""
    residuals = np.asarray(group.parametric[0].residuals, dtype=float)
    runs = view.runs.filter(finished() & (pl.col("g") == view.groups.index(group)))
    if runs.height != len(residuals):
        return []
    return [
        {
            "arch": group.arch,
            "run": row["run_name"],
            "N": six(row["N"]),
            "D": six(row["D"]),
            "observed": six(row["loss"]),
            "predicted": six(row["loss"] * np.exp(-residual)),
            "residual": six(100 * residual),
            "url": row["url"],
        }
        for row, residual in zip(runs.iter_rows(named=True), residuals, strict=True)
        if np.isfinite(residual)
    ]
