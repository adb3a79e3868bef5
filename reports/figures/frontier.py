"""The loss-compute frontier: every run, the lowest loss that each compute has bought, and the law of L*."""

from collections.abc import Sequence

import altair as alt
import numpy as np
import polars as pl

from reports.figures.charts import (
    Chart,
    Figure,
    Panel,
    Rows,
    arch_legend,
    arch_scale,
    href,
    inline,
    layer,
    log_x,
    log_y,
    shape_scale,
    six,
    tips,
)
from reports.view import View, finished
from sweeps.laws.types import GroupAnalysis


def frontier(view: View, context_length: int) -> Figure | None:
    """Loss against compute, every architecture in one panel; None without finished runs."""
    groups = view.at_context(context_length)
    runs = [row for group in groups for row in _runs(view, group)]
    if not runs:
        return None
    where = view.at(context_length)
    laws = any("loss" in group.power_laws for group in groups)
    law = " The dashed line is the power law of the parabolas' optima, L*(C)." if laws else ""
    chart = _chart(view, groups, runs)
    return Figure(
        key=f"frontier-{context_length}",
        caption=(
            f"Every finished run{where}, by what it cost and what it reached. The steps are the lowest loss"
            f" that was had for that compute or less.{law}"
        ),
        panels=(Panel(title=f"Loss against training compute{where}", chart=chart),),
        legend=arch_legend(view, groups),
        context_length=context_length,
    )


def _chart(view: View, groups: Sequence[GroupAnalysis], runs: Rows) -> Chart:
    edge = [row for group in groups for row in _edge(runs, group.arch)]
    laws = [row for group in groups for row in _law(group, runs)]
    x = log_x("C", [row["C"] for row in runs], "Training compute (FLOPs)", form="flops")
    losses = [row["loss"] for row in (*runs, *laws)]
    y = log_y("loss", losses, f"Validation loss ({view.loss_unit})", form="plain")
    color, shape = arch_scale(view), shape_scale(view)
    tooltip = tips(run="", C=".3~g", N=".3s", D=".3s", loss=".4f")
    layers = [
        alt.Chart(inline(runs))
        .mark_point(filled=True, size=30, opacity=0.55)
        .encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip, href=href()),
        alt.Chart(inline(edge))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(x=x, y=y, color=color),
    ]
    if laws:
        line = alt.Chart(inline(laws)).mark_line(strokeWidth=1.5, strokeDash=[5, 4])
        layers.append(line.encode(x=x, y=y, color=color))
    return layer(*layers, height=320)


def _runs(view: View, group: GroupAnalysis) -> Rows:
    found = view.runs.filter(finished() & (pl.col("g") == view.groups.index(group)))
    return [
        {
            "arch": group.arch,
            "run": row["run_name"],
            "C": six(row["train_flops"]),
            "N": six(row["N"]),
            "D": six(row["D"]),
            "loss": six(row["loss"]),
            "url": row["url"],
        }
        for row in found.iter_rows(named=True)
        if row["loss"] > 0
    ]


def _edge(runs: Rows, arch: str) -> Rows:
    """Where a run beats all that cost less or as much, and the end of the last step."""
    own = sorted((row for row in runs if row["arch"] == arch), key=lambda row: (row["C"], row["loss"]))
    kept: Rows = []
    for row in own:
        if not kept or row["loss"] < kept[-1]["loss"]:
            kept.append({"arch": arch, "C": row["C"], "loss": row["loss"]})
    return [*kept, {**kept[-1], "C": own[-1]["C"]}] if kept else []


def _law(group: GroupAnalysis, runs: Rows) -> Rows:
    law = group.power_laws.get("loss")
    if law is None:
        return []
    spent = [row["C"] for row in runs if row["arch"] == group.arch]
    C = np.geomspace(min(spent), max(spent), 24)
    return [{"arch": group.arch, "C": six(c), "loss": six(y)} for c, y in zip(C, law(C), strict=True)]
