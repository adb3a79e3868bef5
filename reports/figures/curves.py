"""Loss curves of the trainings."""

import altair as alt
import polars as pl

from reports import numbers
from reports.figures.charts import (
    Chart,
    Figure,
    Panel,
    Swatch,
    color_scale,
    inline,
    layer,
    log_x,
    log_y,
    tips,
)
from reports.palette import budget_color, var
from reports.view import View
from sweeps.laws.types import GroupAnalysis

_MOST, _FEWEST, _IN_ALL = 60, 8, 6000
"""Points of a curve, and of all curves together."""


def curves(view: View, context_length: int) -> Figure | None:
    """Training loss against tokens, a line a run, one panel an architecture; None without histories."""
    if view.curves is None:
        return None
    named = view.curves.join(
        view.runs.select("run_key", "run_name", "g", "b", "N").unique("run_key", keep="first"), on="run_key"
    )
    named = _thinned(named.filter((pl.col("D") > 0) & (pl.col("loss") > 0)))
    groups = view.at_context(context_length)
    here = named.filter(pl.col("g").is_in([view.groups.index(group) for group in groups]))
    if here.is_empty():
        return None
    x = log_x("D", here["D"].to_list(), "Tokens seen")
    y = log_y("loss", here["loss"].to_list(), f"Training loss ({view.loss_unit})", form="plain")
    return Figure(
        key=f"curves-{context_length}",
        caption=(
            f"Training loss against tokens{view.at(context_length)}, a line a run."
            " Look for spikes, for runs that diverged and for runs that stopped early: each bends the fits."
        ),
        panels=tuple(
            Panel(title=view.label(group), chart=_panel(view, group, here, x, y), arch=group.arch)
            for group in groups
            if view.groups.index(group) in here["g"]
        ),
        legend=tuple(
            Swatch(label=f"{numbers.flops(budget)} FLOPs", color=budget_color(i))
            for i, budget in enumerate(view.budgets)
        ),
        context_length=context_length,
    )


def _thinned(table: pl.DataFrame) -> pl.DataFrame:
    """Points that are evenly spread in ln D, fewer a run the more runs there are, the last always kept."""
    n_runs = max(table["run_key"].n_unique(), 1)
    bins = min(_MOST, max(_FEWEST, _IN_ALL // n_runs))
    start, end = pl.col("D").log().min().over("run_key"), pl.col("D").log().max().over("run_key")
    place = ((pl.col("D").log() - start) / (end - start + 1e-12) * bins).floor()
    return (
        table.sort("run_name", "run_key", "D")
        .group_by("run_key", place.alias("bin"), maintain_order=True)
        .last()
    )


def _panel(view: View, group: GroupAnalysis, table: pl.DataFrame, x: alt.X, y: alt.Y) -> Chart:
    own = table.filter(pl.col("g") == view.groups.index(group))
    rows = [
        {
            "run": row["run_name"],
            "b": row["b"],
            "N": float(f"{row['N']:.4g}"),
            "D": float(f"{row['D']:.4g}"),
            "loss": float(f"{row['loss']:.4g}"),
        }
        for row in own.iter_rows(named=True)
    ]
    places = range(len(view.budgets))
    color = color_scale("b:N", [(-1, var("muted")), *((i, budget_color(i)) for i in places)])
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=color, detail="run:N")
    return layer(
        base.mark_line(strokeWidth=1.2, opacity=0.8),
        base.mark_point(size=40, opacity=0, filled=True).encode(
            tooltip=tips(run="", N=".3s", D=".3s", loss=".4f")
        ),
        height=280,
    )
