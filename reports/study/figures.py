"""The figures of the study that the general report does not have."""

import altair as alt
import numpy as np

from reports import numbers
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
from reports.palette import arch_color, arch_label, budget_color, context_color, var
from reports.study.marks import (
    ARCHS,
    COMPUTE,
    HEIGHT,
    arch_color_scale,
    arch_shape_scale,
    arch_swatches,
    bounds,
    column,
    ends,
    interval_layers,
    spelt,
)
from sweeps.laws import Estimate
from sweeps.study import Study
from sweeps.study.contexts import TRANSFORMER


def gaps(study: Study) -> Figure | None:
    """The xLSTM's optimum against the Transformer's, by compute and context."""
    if not study.gaps:
        return None
    rows: Rows = [
        {
            "series": f"Context {g.context_length}",
            "C": six(g.budget),
            "Context": str(g.context_length),
            "Compute": numbers.flops(g.budget),
            "Ratio of N*": spelt(g.N_ratio),
            "Gap of L*": spelt(g.loss_gap, 4),
            **bounds(g.N_ratio, "ratio"),
            **bounds(g.loss_gap, "gap"),
        }
        for g in study.gaps
    ]
    series = [(f"Context {T}", context_color(i)) for i, T in enumerate(study.contexts)]
    color = color_scale("series:N", series)
    x = log_x("C", column(rows, "C"), COMPUTE, form="flops")
    ratio = log_y("ratio", [*ends(rows, "ratio"), 1.0], "N* xLSTM / N* Transformer", form="plain")
    gap = linear_y("gap", [*ends(rows, "gap"), 0.0], "L* xLSTM minus L* Transformer (nats)")
    tips = ("Context", "Compute", "Ratio of N*", "Gap of L*")
    return Figure(
        key="gaps",
        caption=(
            "The compute-optimal xLSTM against the compute-optimal Transformer, with"
            f" {numbers.level(study.gaps[0].N_ratio)} intervals. Above 1 the xLSTM is the larger model; below"
            " 0 its loss is the lower."
        ),
        panels=(
            Panel(
                title="Size at the optimum",
                chart=layer(
                    neutral_line(1.0), *interval_layers(rows, x, ratio, color, tips, "ratio"), height=HEIGHT
                ),
            ),
            Panel(
                title="Loss at the optimum",
                chart=layer(
                    neutral_line(0.0), *interval_layers(rows, x, gap, color, tips, "gap"), height=HEIGHT
                ),
            ),
        ),
        legend=tuple(Swatch(label=label, color=shade) for label, shade in series),
    )


def contexts(study: Study) -> Figure | None:
    """N* and D* against context length, a line a budget."""
    if len(study.contexts) < 2:
        return None
    budgets = sorted({law.budget for law in study.context_laws})
    panels = []
    for quantity, title in (("N", "Best size N*"), ("D", "Best number of tokens D*")):
        rows = [
            {
                "T": context,
                "arch": curves.arch,
                "series": f"{curves.arch} {budget:.0e}",
                "Architecture": arch_label(curves.arch),
                "Context": str(context),
                "Compute": numbers.flops(budget),
                **bounds(getattr(p, quantity)),
            }
            for budget in budgets
            for context in study.contexts
            for curves in study.curves
            if curves.context_length == context
            for p in curves.ours.parabolas
            if p.budget == budget and p.usable
        ]
        x = log_x("T", column(rows, "T"), "Context length (tokens)", form="plain")
        x["axis"]["values"] = list(study.contexts)
        y = log_y("y", ends(rows), "Parameters" if quantity == "N" else "Tokens")
        color = arch_color_scale()
        lines = (
            alt.Chart(inline(rows))
            .mark_line(strokeWidth=1.5)
            .encode(x=x, y=y, color=color, detail="series:N")
        )
        marks = interval_layers(rows, x, y, color, ("Architecture", "Context", "Compute"))
        panels.append(Panel(title=title, chart=layer(lines, *marks, height=HEIGHT)))
    listed = ", ".join(numbers.flops(b) for b in budgets)
    return Figure(
        key="contexts",
        caption=(
            f"The optimum against context length at {listed} FLOPs (one line each, larger budgets higher)."
            " The Transformer pays for a longer context with a smaller model; the xLSTM hardly does."
        ),
        panels=tuple(panels),
        legend=arch_swatches(),
    )


def frontier(study: Study) -> Figure | None:
    """Final losses of the token/parameter runs, the hulls, and the gap between them."""
    found = study.dominance
    if found is None:
        return None
    points: Rows = []
    hulls: Rows = []
    for f in found.frontiers:
        best = set(map(int, f.pareto))
        for i, (C, loss) in enumerate(zip(f.C, f.loss, strict=True)):
            points.append(
                {
                    "arch": f.arch,
                    "C": six(C),
                    "y": six(loss),
                    "best": i in best,
                    "Architecture": arch_label(f.arch),
                    "Loss": numbers.fixed(loss, 4),
                    "On the Pareto front": "yes" if i in best else "no",
                }
            )
        hulls += [{"arch": f.arch, "C": six(f.C[i]), "y": six(f.loss[i])} for i in f.hull]
    x = log_x("C", column(points, "C"), COMPUTE, form="flops")
    y = log_y("y", column(points, "y"), "Validation loss (nats per token)", form="plain")
    color = arch_color_scale()
    fill = alt.condition("datum.best", color, alt.value(var("paper")))
    runs = (
        alt.Chart(inline(points))
        .mark_point(size=50, strokeWidth=1.5, opacity=1)
        .encode(
            x=x,
            y=y,
            color=color,
            shape=arch_shape_scale(),
            fill=fill,
            tooltip=["Architecture:N", "C:Q", "Loss:N", "On the Pareto front:N"],
        )
    )
    lines = alt.Chart(inline(hulls)).mark_line(strokeWidth=2).encode(x=x, y=y, color=color)
    rows: Rows = [
        {
            "C": six(g.C),
            "Gap": spelt(_percent(g.log_loss_gap), 2),
            "who": "gap",
            **bounds(_percent(g.log_loss_gap)),
        }
        for g in found.gaps
    ]
    gap_x = log_x("C", column(rows, "C"), COMPUTE, form="flops")
    gap_y = linear_y("y", [*ends(rows), 0.0], "xLSTM over Transformer, loss (%)")
    marks = interval_layers(rows, gap_x, gap_y, alt.value(arch_color(1)), ("Gap",))
    return Figure(
        key="frontier",
        caption=(
            "Final loss of the token/parameter runs against compute. Filled: no run of the architecture is"
            " better at its compute or less. Lines: the hulls in logarithms. Right: the gap between the"
            " hulls; where the interval holds 0, dominance is not decided."
        ),
        panels=(
            Panel(title="Loss against compute", chart=layer(lines, runs, height=HEIGHT)),
            Panel(title="Gap of the hulls", chart=layer(neutral_line(0.0), *marks, height=HEIGHT)),
        ),
        legend=arch_swatches(),
    )


def _percent(value: Estimate) -> Estimate:
    """A difference of logarithms as a relative difference in percent."""
    low, middle, high = (100 * float(np.expm1(v)) for v in (value.low, value.value, value.high))
    return Estimate(value=middle, low=low, high=high, level=value.level, method=value.method)


def ratios_of(study: Study) -> list[float]:
    """The tokens a parameter that runs were planned at, ascending."""
    return sorted(set(study.runs["preset_token_param_ratio"].drop_nulls().to_list()))


def overtraining(study: Study) -> Figure | None:
    """Lines of constant tokens a parameter, and their slopes with Student's intervals."""
    lines = study.lines["train_flops"]
    if not lines:
        return None
    ratios = ratios_of(study)
    shade = [(f"{ratio:g}", budget_color(i)) for i, ratio in enumerate(ratios)]
    runs = study.runs.filter(
        (study.runs["experiment_set"] == "tokenparam") & study.runs["preset_token_param_ratio"].is_not_null()
    )
    every = [*runs["train_flops"].to_list()]
    x = log_x("C", every, COMPUTE, form="flops")
    y = log_y("y", runs["loss"].to_list(), "Validation loss (nats per token)", form="plain")
    panels = []
    for arch in ARCHS:
        points = [
            {
                "M": f"{row['preset_token_param_ratio']:g}",
                "C": six(row["train_flops"]),
                "y": six(row["loss"]),
                "run": row["run_name"],
            }
            for row in runs.filter(runs["arch"] == arch).iter_rows(named=True)
        ]
        drawn = [
            {
                "M": f"{line.ratio:g}",
                "C": six(C),
                "y": six(float(np.exp(line.intercept + line.slope * np.log(C)))),
            }
            for line in lines
            if line.arch == arch
            for C in (line.C_low, line.C_high)
        ]
        color = color_scale("M:N", shade)
        chart = layer(
            alt.Chart(inline(drawn)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color),
            alt.Chart(inline(points))
            .mark_point(filled=True, size=45, opacity=1)
            .encode(x=x, y=y, color=color, tooltip=["run:N", "M:N", "C:Q", "y:Q"]),
            height=HEIGHT,
        )
        panels.append(Panel(title=arch_label(arch), chart=chart))
    panels.append(Panel(title="Slopes", chart=_slopes(study)))
    return Figure(
        key="overtraining",
        caption=(
            "Loss against compute at a constant number of tokens a parameter D/N (colours), each line fitted"
            " to ln L against ln C. Right: the slopes, Transformer and xLSTM, with Student's intervals: with"
            " four to seven runs a line they are wide, and overlap everywhere."
        ),
        panels=tuple(panels),
        legend=tuple(Swatch(label=f"D/N = {label}", color=color) for label, color in shade),
    )


def _slopes(study: Study) -> Chart:
    rows = []
    for line in study.lines["train_flops"]:
        side = 0.96 if line.arch == TRANSFORMER else 1.04
        value = line.interval(study.settings.level)
        rows.append(
            {
                "arch": line.arch,
                "M": six(line.ratio * side),
                "D/N": f"{line.ratio:g}",
                "Slope": spelt(value, 4),
                **bounds(value),
            }
        )
    x = log_x("M", column(rows, "M"), "Tokens a parameter D/N", form="plain")
    y = linear_y("y", ends(rows), "Slope of ln L on ln C")
    marks = interval_layers(rows, x, y, arch_color_scale(), ("D/N", "Slope"))
    return layer(*marks, height=HEIGHT)


def offsets(study: Study) -> Figure | None:
    """E by set of runs, with intervals."""
    if not study.offsets:
        return None
    panels = []
    sets = ("tokenparam", "all", "isoflop")
    every = [v for o in study.offsets for e in o.by_set.values() for v in (e.value, e.low, e.high)]
    y = linear_y("y", every, "E (nats per token)")
    for gamma, title in ((True, "With gamma"), (False, "Without gamma")):
        rows = [
            {
                "arch": o.arch,
                "place": sets.index(name) + 1 + (-0.08 if o.arch == TRANSFORMER else 0.08),
                "Runs": name,
                "E": spelt(value, 3),
                **bounds(value),
            }
            for o in study.offsets
            if o.gamma == gamma
            for name, value in o.by_set.items()
        ]
        labels = " : ".join(f"datum.value == {i + 1} ? '{name}'" for i, name in enumerate(sets)) + " : ''"
        axis = alt.Axis(values=[1, 2, 3], labelExpr=labels, grid=False)
        x = alt.X("place:Q", title="Runs fitted", scale=alt.Scale(domain=[0.5, 3.5]), axis=axis)
        marks = interval_layers(rows, x, y, arch_color_scale(), ("Runs", "E"))
        panels.append(Panel(title=title, chart=layer(*marks, height=HEIGHT)))
    return Figure(
        key="offsets",
        caption=(
            "The irreducible loss E of the parametric law by the runs that it was fitted to (delta 0.001),"
            f" with {study.settings.level:.0%} intervals of a pairs bootstrap. Were E a property of the data,"
            " the intervals would share a value."
        ),
        panels=tuple(panels),
        legend=arch_swatches(),
    )


def grid(study: Study) -> Figure | None:
    """The exponent of N* over the whole grid of parametric fits."""
    if not study.fits:
        return None
    rows = [
        {
            "arch": fit.cell.arch,
            "delta": six(fit.cell.delta),
            "y": six(fit.N_exponent),
            "series": f"{fit.cell.arch} {fit.cell.max_ratio:g}",
            "Runs": fit.cell.experiment_set,
            "D/N up to": f"{fit.cell.max_ratio:g}",
            "Exponent": numbers.fixed(fit.N_exponent, 4),
            "set": fit.cell.experiment_set,
        }
        for fit in study.fits.values()
        if fit.cell.gamma
    ]
    panels = []
    x = log_x("delta", column(rows, "delta"), "Huber's delta", form="plain")
    x["axis"]["values"] = [1e-5, 1e-3, 1e-1, 10, 1e3]
    y = linear_y("y", column(rows, "y"), "beta / (alpha + beta)")
    for name in ("tokenparam", "all", "isoflop"):
        part = [row for row in rows if row["set"] == name]
        if part:
            base = alt.Chart(inline(part))
            color, tips = arch_color_scale(), ["Runs:N", "D/N up to:N", "Exponent:N"]
            chart = layer(
                base.mark_line(strokeWidth=1.2, opacity=0.7).encode(x=x, y=y, color=color, detail="series:N"),
                base.mark_point(filled=True, size=26, opacity=1).encode(x=x, y=y, color=color, tooltip=tips),
                height=HEIGHT,
            )
            panels.append(Panel(title=f"{name} runs", chart=chart))
    return Figure(
        key="grid",
        caption=(
            "What N*(C) grows with if C were 6 N D, by every fit with gamma of the authors' grid: a line a"
            " range of D/N. The choice of runs, range and delta moves the exponent by more than any interval"
            " of one fit."
        ),
        panels=tuple(panels),
        legend=arch_swatches(),
    )
