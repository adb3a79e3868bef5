"""The optimum against compute and against context length."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np

from reports import numbers
from reports.figures.charts import (
    Chart,
    Figure,
    Panel,
    Rows,
    arch_legend,
    arch_scale,
    dash,
    inline,
    layer,
    log_x,
    log_y,
    shape_scale,
    six,
)
from reports.palette import arch_label, var
from reports.view import View, best_optimum
from sweeps.laws.types import Estimate, GroupAnalysis, OptimumPrediction, Parabola, PowerLaw

_TITLES = {"N": "Best size N*", "D": "Best number of tokens D*", "loss": "Loss at the optimum L*"}
_TIPS = ["Architecture:N", "Compute:N", "Value:N", "From:N"]


def power_laws(view: View, context_length: int) -> Figure | None:
    """N*, D* and L* against compute, every architecture in one figure; None without any optimum."""
    groups = [g for g in view.at_context(context_length) if g.power_laws or g.optima or g.parabolas]
    if not groups:
        return None
    where = view.at(context_length)
    level = numbers.level(next((o.N for g in groups for o in g.optima), Estimate(value=0)))
    return Figure(
        key=f"power-laws-{context_length}",
        caption=(
            f"The best size, its tokens and its loss against training compute{where}. Filled points are the"
            f" optima of single budgets with their {level} intervals; lines are the laws, bands the intervals"
            " of their predictions. Dashes and hollow points are extrapolation."
        ),
        panels=tuple(Panel(title=_TITLES[q] + where, chart=_law_panel(view, groups, q)) for q in _TITLES),
        legend=arch_legend(view, groups),
        context_length=context_length,
    )


def _law_panel(view: View, groups: Sequence[GroupAnalysis], quantity: str) -> Chart:
    points = [row for g in groups for p in g.parabolas if p.usable for row in _optimum(g, p, quantity)]
    band = [row for g in groups for o in _along_the_law(g) for row in _optimum(g, o, quantity)]
    lines = [row for g in groups for row in _line(view, g, quantity)]
    beyond = [
        row for g in groups for o in _answers(g) if o.is_extrapolated for row in _optimum(g, o, quantity)
    ]
    shown = [*points, *band, *lines, *beyond]
    x = log_x("C", [row["C"] for row in shown], "Training compute (FLOPs)", form="flops")
    ends = [v for row in shown for v in (row["y"], row.get("low"), row.get("high")) if v]
    y = log_y("y", ends, _axis_title(view, quantity), form=_axis_form(quantity))
    color, shape = arch_scale(view), shape_scale(view)
    marks = {"x": x, "y": y, "color": color, "shape": shape, "tooltip": _TIPS}
    low = y.copy()
    low["shorthand"] = "low:Q"
    return layer(
        alt.Chart(inline(band)).mark_area(opacity=0.15).encode(x=x, y=low, y2="high:Q", color=color),
        alt.Chart(inline(lines))
        .mark_line(strokeWidth=2)
        .encode(x=x, y=y, color=color, strokeDash=dash("inside:N"), detail="inside:N"),
        alt.Chart(inline([*points, *beyond]))
        .mark_rule(strokeWidth=2)
        .encode(x=x, y=low, y2="high:Q", color=color),
        alt.Chart(inline(points)).mark_point(filled=True, size=60, opacity=1).encode(**marks),
        alt.Chart(inline(beyond))
        .mark_point(filled=False, fill=var("paper"), size=60, strokeWidth=2, opacity=1)
        .encode(**marks),
        height=270,
    )


def _axis_title(view: View, quantity: str) -> str:
    return {"N": "Parameters", "D": "Training tokens"}.get(quantity, view.loss_unit.capitalize())


def _axis_form(quantity: str) -> str:
    return "plain" if quantity == "loss" else "count"


def _along_the_law(group: GroupAnalysis) -> list[OptimumPrediction]:
    """Predictions by one method at every budget: the one that the lines belong to."""
    first = group.optima[0].method if group.optima else ""
    return sorted((o for o in group.optima if o.method == first), key=lambda o: o.budget)


def _answers(group: GroupAnalysis) -> list[OptimumPrediction]:
    """The prediction to trust at each budget."""
    best = (best_optimum(group, budget) for budget in dict.fromkeys(o.budget for o in group.optima))
    return [optimum for optimum in best if optimum is not None]


def _optimum(
    group: GroupAnalysis, optimum: Parabola | OptimumPrediction, quantity: str
) -> Iterator[dict[str, Any]]:
    """One row, or none where the optimum is not a positive number."""
    estimate: Estimate = getattr(optimum, quantity)
    if not (numbers.known(estimate.value) and estimate.value > 0):
        return
    form = numbers.loss if quantity == "loss" else numbers.count
    bounded = numbers.has_interval(estimate) and estimate.low > 0
    yield {
        "arch": group.arch,
        "C": six(optimum.budget),
        "y": six(estimate.value),
        "low": six(estimate.low) if bounded else None,
        "high": six(estimate.high) if bounded else None,
        "Architecture": arch_label(group.arch),
        "Compute": f"{numbers.flops(optimum.budget)} FLOPs",
        "Value": f"{form(estimate.value)} ({numbers.span(estimate, form)})",
        "From": optimum.method if isinstance(optimum, OptimumPrediction) else "parabola of this budget",
    }


def _line(view: View, group: GroupAnalysis, quantity: str) -> Iterator[dict[str, Any]]:
    """The power law; where there is none, the predictions of the fitted surface, joined."""
    law = group.power_laws.get(quantity)
    if law is None:
        yield from _joined(group, quantity)
        return
    trained = [p.budget for p in group.parabolas if p.usable] or view.trained_budgets
    low, top, far = min(trained), max(trained), max([*trained, *(o.budget for o in group.optima)])
    yield from _stretch(group, law, low, top, inside=True)
    if far > 1.001 * top:
        yield from _stretch(group, law, top, far, inside=False)


def _joined(group: GroupAnalysis, quantity: str) -> Iterator[dict[str, Any]]:
    along = _along_the_law(group)
    trained = [o for o in along if not o.is_extrapolated]
    beyond = [o for o in along if o.is_extrapolated]
    for stretch, inside in ((trained, True), ([*trained[-1:], *beyond], False)):
        for row in (row for o in stretch for row in _optimum(group, o, quantity)):
            yield {"arch": group.arch, "C": row["C"], "y": row["y"], "inside": inside}


def _stretch(
    group: GroupAnalysis, law: PowerLaw, low: float, high: float, *, inside: bool
) -> Iterator[dict[str, Any]]:
    C = np.geomspace(low, high, 24)
    for c, y in zip(C, law(C), strict=True):
        yield {"arch": group.arch, "C": six(c), "y": six(y), "inside": inside}


def contexts(view: View) -> Figure | None:
    """The headline's optimum against context length; None with one context."""
    if len(view.contexts) < 2 or not view.headline_budgets:
        return None
    budget = view.headline_budgets[0]
    panels = [
        Panel(title=_TITLES[quantity], chart=_context_panel(view, rows, quantity))
        for quantity in _TITLES
        if (rows := _context_rows(view, budget, quantity))
    ]
    if not panels:
        return None
    return Figure(
        key="contexts",
        caption=f"The optimum at {numbers.flops(budget)} FLOPs against context length, with intervals.",
        panels=tuple(panels),
        legend=arch_legend(view, view.groups),
    )


def _context_rows(view: View, budget: float, quantity: str) -> Rows:
    found = [(group, best_optimum(group, budget)) for group in view.groups]
    return [
        row | {"T": group.context_length}
        for group, optimum in found
        if optimum is not None
        for row in _optimum(group, optimum, quantity)
    ]


def _context_panel(view: View, rows: Rows, quantity: str) -> Chart:
    values = [v for row in rows for v in (row["y"], row["low"], row["high"]) if v]
    x = log_x("T", view.contexts, "Context length (tokens)", form="plain")
    x["axis"]["values"] = view.contexts
    y = log_y("y", values, _axis_title(view, quantity), form=_axis_form(quantity))
    low = y.copy()
    low["shorthand"] = "low:Q"
    base = alt.Chart(inline(rows)).encode(x=x, color=arch_scale(view))
    return layer(
        base.mark_line(strokeWidth=1.5).encode(y=y),
        base.mark_rule(strokeWidth=2).encode(y=low, y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape_scale(view), tooltip=_TIPS),
        height=250,
    )
