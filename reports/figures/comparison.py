"""Architectures against each other and against the unigram model."""

from typing import Any

import altair as alt
import numpy as np

from reports import numbers
from reports.answer import decided
from reports.figures.charts import (
    Chart,
    Figure,
    Panel,
    Rows,
    Swatch,
    color_scale,
    inline,
    layer,
    linear_y,
    log_x,
    log_y,
    neutral_line,
    six,
)
from reports.palette import arch_color, arch_label, context_color, var
from reports.view import View, finished
from sweeps.laws.types import Comparison


def comparison(view: View) -> Figure | None:
    """Loss difference and compute ratio of two architectures; None with nothing, or with more than a pair."""
    pairs = {tuple(sorted((c.better, c.other), key=view.archs.index)) for c in view.analysis.comparisons}
    if len(pairs) != 1:
        return None
    first, second = (arch_label(arch) for arch in next(iter(pairs)))
    rows = [_row(view, c) for c in view.analysis.comparisons]
    series = [(f"Context {c}", context_color(i)) for i, c in enumerate(view.contexts)]
    difference = _panel(rows, series, "gap", f"{first} minus {second} ({view.loss_unit})", neutral=0.0)
    ratio = _panel(rows, series, "ratio", f"FLOPs of the {second} over the {first}", neutral=1.0)
    return Figure(
        key="comparison",
        caption=(
            f"Where the points of the loss difference lie below 0, the {first} is better. Where those of the"
            f" compute lie above 1, the {second} needs that many times the FLOPs for the same loss. A hollow"
            " point decides nothing: the interval of its loss difference holds 0."
        ),
        panels=(
            Panel(title="Difference of the best losses", chart=difference),
            Panel(title="Compute for equal loss", chart=ratio),
        ),
        legend=tuple(Swatch(label=label, color=color) for label, color in series) if len(series) > 1 else (),
    )


def _row(view: View, c: Comparison) -> dict[str, Any]:
    """One comparison, always as first architecture against second, whichever is better there."""
    straight = view.archs.index(c.better) < view.archs.index(c.other)
    gap = np.array([c.loss_difference.value, c.loss_difference.low, c.loss_difference.high])
    ratio = np.array([c.compute_ratio.value, c.compute_ratio.low, c.compute_ratio.high])
    if not straight:
        with np.errstate(divide="ignore"):
            gap, ratio = -gap[[0, 2, 1]], 1 / ratio[[0, 2, 1]]
    row: dict[str, Any] = {
        "series": f"Context {c.context_length}",
        "C": six(c.budget),
        "decided": decided(c),
        "Compute": f"{numbers.flops(c.budget)} FLOPs",
        "Better": arch_label(c.better) + ("" if decided(c) else " (not decided)"),
    }
    for name, values in (("gap", gap), ("ratio", ratio)):
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), map(six, values), strict=True))
    return row


def _panel(rows: Rows, series: list[tuple[str, str]], name: str, title: str, neutral: float) -> Chart:
    ends = (name, f"{name}_low", f"{name}_high")
    values = [row[end] for row in rows for end in ends if row[end] is not None] + [neutral]
    x = log_x("C", [row["C"] for row in rows], "Training compute (FLOPs)", form="flops")
    y = linear_y(name, values, title) if name == "gap" else log_y(name, values, title, form="plain")
    low = y.copy()
    low["shorthand"] = f"{name}_low:Q"
    color = color_scale("series:N", series)
    tooltip = [alt.Tooltip("Compute:N"), alt.Tooltip("Better:N"), alt.Tooltip(f"{name}:Q", format=".4f")]
    base = alt.Chart(inline(rows))
    points = base.mark_point(size=70, strokeWidth=2, opacity=1).encode(
        x=x,
        y=y,
        color=color,
        tooltip=tooltip,
        fill=alt.condition("datum.decided", color, alt.value(var("paper"))),
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=x, y=low, y2=f"{name}_high:Q", color=color)
    return layer(neutral_line(neutral), bars, points, height=250)


def baseline(view: View) -> Figure | None:
    """Each architecture's best loss beside the unigram model's; None where that is not known."""
    unigram = view.provenance.unigram_loss
    done = view.runs.filter(finished())
    if unigram is None or not done.height:
        return None
    losses = {"Unigram model": (unigram, -1)}
    for group in view.groups:
        place = view.groups.index(group)
        best = done.filter(done["g"] == place)["loss"].min()
        if isinstance(best, float):
            losses[view.label(group)] = (best, view.archs.index(group.arch))
    return Figure(
        key="baseline",
        caption=(
            "The best loss of each architecture beside a unigram model, which knows how often each token"
            " occurs and nothing of its context. What lies between is what the models have learned."
        ),
        panels=(Panel(title="Best loss of any run", chart=_bars(view, losses)),),
    )


def _bars(view: View, losses: dict[str, tuple[float, int]]) -> Chart:
    rows = [
        {"who": who, "loss": six(loss), "label": numbers.loss(loss), "color": color}
        for who, (loss, color) in losses.items()
    ]
    top = 1.1 * max(loss for loss, _ in losses.values())
    scale = alt.Scale(domain=[0, top], nice=False)
    x = alt.X("loss:Q", title=f"Validation loss ({view.loss_unit})", scale=scale)
    y = alt.Y("who:N", sort=list(losses), title=None, axis=alt.Axis(grid=False, labelLimit=220))
    archs = [(i, arch_color(i)) for i in range(len(view.archs))]
    color = color_scale("color:N", [(-1, var("muted")), *archs])
    base = alt.Chart(inline(rows)).encode(x=x, y=y)
    return layer(
        base.mark_bar(height=14, cornerRadiusEnd=2, opacity=0.9).encode(color=color),
        base.mark_text(align="left", dx=6, color=var("ink")).encode(text="label:N"),
        height=30 * len(rows),
    )
