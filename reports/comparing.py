"""The page of two sweeps: what changed between them, whether it is significant, and on what it rests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import altair as alt
from markupsafe import Markup

from reports import numbers
from reports.cells import Cell, Table, compact, estimate, integer, left, number, right, yes
from reports.embed import script, script_json, template, vega, vega_bundle
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
from reports.palette import arch_color, arch_label, css_variables, var
from sweeps.comparing import Difference, GroupDifference, Losses, SweepComparison

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What is known of the two sweeps beyond their runs."""

    made: str
    """When the page was made: ISO 8601, UTC."""
    facts: tuple[tuple[str, str, str], ...] = ()
    """Name, first, second: corpus, tokenizer, revision, folder."""
    caution: str = ""
    """Why the losses may not be comparable; empty where nothing speaks against it. It is said first."""
    same_data: bool = True
    """False where the losses are known to be of different texts or tokens: no worth in compute follows."""
    unit: str = "nats per token"
    regenerate: str = ""


def render(comparison: SweepComparison, sides: Sides) -> str:
    """The page as HTML, self-contained."""
    groups = [g for g in comparison.groups if g.losses]
    archs = [g.arch for g in comparison.groups]
    drawn = [figure for figure in (_losses(comparison, groups, sides),) if figure is not None]
    tables = [_loss_table(comparison, sides), _difference_table(comparison), _test_table(comparison)]
    return str(
        template("comparison.html.j2").render(
            names=comparison.names,
            sides=sides,
            headline=headline(comparison, sides),
            sentences=[sentence(comparison, group, sides) for group in comparison.groups],
            notes=[flag.message for flag in _flags(comparison)],
            figures=drawn,
            tables=[compact(table) for table in tables if table.rows],
            archs=list(dict.fromkeys(archs)),
            figure_data=script_json(vega(drawn)),
            light=Markup(css_variables(1, dark=False)),
            dark=Markup(css_variables(1, dark=True)),
            vega=Markup(vega_bundle()),
            scripts={name: script(name) for name in ("controls", "tables", "figures")},
        )
    )


def headline(comparison: SweepComparison, sides: Sides) -> str:
    """The answer in a sentence: which groups changed their law."""
    said = _verdict(comparison)
    return said if sides.same_data else f"By losses on different data: {said}"


def _verdict(comparison: SweepComparison) -> str:
    tested = [g for g in comparison.groups if g.test is not None]
    changed = [g for g in tested if g.test is not None and g.test.p_value < SIGNIFICANT / len(tested)]
    first, second = comparison.names
    if not tested:
        return f"{second} and {first} could not be tested for one law."
    if not changed:
        return f"Nothing says that {second} follows another law than {first}."
    if len(changed) == len(tested):
        return (
            f"{second} follows another law than {first}" + (_where(tested) if len(tested) == 1 else "") + "."
        )
    named = " and ".join(_label(g) for g in changed)
    return f"{second} follows another law than {first} for {named}; elsewhere nothing says so."


def _where(groups: Sequence[GroupDifference]) -> str:
    return f" for {_label(groups[0])}"


def _label(group: GroupDifference) -> str:
    return f"the {arch_label(group.arch)} at context {group.context_length:,}"


def sentence(comparison: SweepComparison, group: GroupDifference, sides: Sides) -> str:
    """One group's largest budget: the loss difference with its interval, and what it is worth in compute.

    Of different data the difference is worth nothing, and the sentence says so.
    """
    first, second = comparison.names
    start = _label(group)[0].upper() + _label(group)[1:]
    if not group.losses:
        return f"{start}: the fits of the two sweeps support no comparison."
    top = group.losses[-1]
    gap, level = top.difference, numbers.level(top.difference)
    side = "below" if gap.value < 0 else "above"
    span = numbers.span(gap, numbers.loss)
    sure = f"{level} interval of the difference {span}" if numbers.has_interval(gap) else span
    lead = (
        f"{start}, {numbers.flops(top.budget)} FLOPs: the best loss of {second} is"
        f" {numbers.loss(abs(gap.value))} {sides.unit} {side} that of {first} ({sure})"
    )
    if not top.significant:
        return f"{lead}, which decides nothing."
    if not sides.same_data:
        return f"{lead}, which their different data alone may make."
    ratio = top.compute_ratio
    worth, better, other = (
        (ratio.value, second, first) if ratio.value >= 1 else (_inverse(ratio.value), first, second)
    )
    return f"{lead}: {other} needs {numbers.times(worth)} times the compute to reach {better}."


def _inverse(value: float) -> float:
    return 1.0 / value if value else float("inf")


def _flags(comparison: SweepComparison) -> list:  # type: ignore[type-arg]
    own = chain.from_iterable(group.flags for group in comparison.groups)
    return list(dict.fromkeys([*comparison.flags, *own]))


def _group_cells(group: GroupDifference) -> tuple[Cell, ...]:
    name = Cell(arch_label(group.arch), owner=("arch", group.arch))
    return name, integer(group.context_length)


def _loss_table(comparison: SweepComparison, sides: Sides) -> Table:
    rows = [
        (
            *_group_cells(group),
            number(found.budget, numbers.flops),
            *estimate(found.difference, lambda v: numbers.fixed(v, 4)),
            *(estimate(found.compute_ratio, numbers.ratio) if sides.same_data else (Cell(""), Cell(""))),
            yes(found.significant),
            Cell(found.method, mark="quiet"),
        )
        for group in comparison.groups
        for found in group.losses
    ]
    first, second = comparison.names
    worth = (
        f", and its worth in compute: above 1 {first} needs that many times the FLOPs to reach {second}."
        if sides.same_data
        else ", each on its own data."
    )
    return Table(
        key="losses",
        caption=(
            f"The best loss of {second} minus that of {first} ({sides.unit}){worth} Significant: the interval"
            f" leaves 0 out; of twenty such intervals one does so by chance where nothing differs."
        ),
        columns=(
            *left("Architecture"),
            *right("Context", "Budget", "Difference", "interval", "Compute", "interval"),
            *left("Significant", "By"),
        ),
        rows=tuple(rows),
    )


def _difference_table(comparison: SweepComparison) -> Table:
    rows = [
        (*_group_cells(group), *_difference_cells(found))
        for group in comparison.groups
        for found in group.differences
    ]
    first, second = comparison.names
    return Table(
        key="differences",
        caption="Exponents and E by their difference, optima by their ratio, second sweep against first.",
        columns=(
            *left("Architecture"),
            *right("Context"),
            *left("Quantity"),
            *right("Budget", first, "interval", second, "interval", "Change", "interval"),
            *left("Significant", "By"),
        ),
        rows=tuple(rows),
    )


def _difference_cells(found: Difference) -> tuple[Cell, ...]:
    form = numbers.count if found.kind == "ratio" else lambda v: numbers.fixed(v, 3)
    change = (lambda v: f"{numbers.ratio(v)} x") if found.kind == "ratio" else (lambda v: numbers.fixed(v, 3))
    return (
        Cell(found.quantity),
        number(found.budget, numbers.flops),
        *estimate(found.first, form),
        *estimate(found.second, form),
        *estimate(found.change, change),
        Cell("yes") if found.significant else Cell("no", mark="quiet"),
        Cell(found.method, mark="quiet"),
    )


def _test_table(comparison: SweepComparison) -> Table:
    rows = [
        (
            *_group_cells(group),
            integer(group.runs[0]),
            integer(group.runs[1]),
            number(group.test.statistic, numbers.ratio),
            Cell(f"{group.test.freedom[0]}, {group.test.freedom[1]}"),
            number(group.test.p_value, lambda v: f"{v:.2g}"),
            Cell(group.test.law),
        )
        for group in comparison.groups
        if group.test is not None
    ]
    first, second = comparison.names
    return Table(
        key="tests",
        caption=(
            "Does one law hold for both sweeps? F test of one law against two (Chow 1960), least squares of"
            " ln L. The headline takes a p below 0.05, divided by the number of tests, for another law."
        ),
        columns=(
            *left("Architecture"),
            *right("Context", f"Runs of {first}", f"Runs of {second}", "F", "Degrees of freedom", "p"),
            *left("Law"),
        ),
        rows=tuple(rows),
    )


def _losses(comparison: SweepComparison, groups: Sequence[GroupDifference], sides: Sides) -> Figure | None:
    """Loss difference and compute ratio against budget, a colour a group."""
    if not groups:
        return None
    labels = [f"{arch_label(g.arch)}, context {g.context_length:,}" for g in groups]
    series = [(label, arch_color(i)) for i, label in enumerate(labels)]
    rows = [_row(label, found) for label, g in zip(labels, groups, strict=True) for found in g.losses]
    first, second = comparison.names
    gap = Panel(
        title="Difference of the best losses",
        chart=_panel(rows, series, "gap", f"{second} minus {first} ({sides.unit})", 0.0),
    )
    worth = Panel(title="Worth in compute", chart=_panel(rows, series, "ratio", "Times the FLOPs", 1.0))
    lower = f"{second} reaches a lower loss"
    read = (
        f"Points below 0 on the left: {lower}. Points above 1 on the right: {first} needs that many times the"
        f" compute to reach {second}."
        if sides.same_data
        else f"Points below 0: {lower}, each on its own data."
    )
    return Figure(
        key="sweeps",
        caption=f"{read} A hollow point decides nothing.",
        panels=(gap, worth) if sides.same_data else (gap,),
        legend=tuple(Swatch(label=label, color=color) for label, color in series),
    )


def _row(label: str, found: Losses) -> dict[str, object]:
    gap, ratio = found.difference, found.compute_ratio
    return {
        "series": label,
        "C": six(found.budget),
        "significant": found.significant,
        "Compute": f"{numbers.flops(found.budget)} FLOPs",
        "gap": six(gap.value),
        "gap_low": six(gap.low),
        "gap_high": six(gap.high),
        "ratio": six(ratio.value),
        "ratio_low": six(ratio.low),
        "ratio_high": six(ratio.high),
    }


def _panel(rows: Rows, series: list[tuple[str, str]], name: str, title: str, neutral: float) -> Chart:
    ends = (name, f"{name}_low", f"{name}_high")
    values = [row[end] for row in rows for end in ends if row[end] is not None] + [neutral]
    x = log_x("C", [row["C"] for row in rows], "Training compute (FLOPs)", form="flops")
    y = linear_y(name, values, title) if name == "gap" else log_y(name, values, title, form="plain")
    low = y.copy()
    low["shorthand"] = f"{name}_low:Q"
    color = color_scale("series:N", series)
    tooltip = [alt.Tooltip("series:N"), alt.Tooltip("Compute:N"), alt.Tooltip(f"{name}:Q", format=".4f")]
    base = alt.Chart(inline(rows))
    return layer(
        neutral_line(neutral),
        base.mark_rule(strokeWidth=2).encode(x=x, y=low, y2=f"{name}_high:Q", color=color),
        base.mark_line(strokeWidth=1, opacity=0.5).encode(x=x, y=y, color=color),
        base.mark_point(size=70, strokeWidth=2, opacity=1).encode(
            x=x,
            y=y,
            color=color,
            tooltip=tooltip,
            fill=alt.condition("datum.significant", color, alt.value(var("paper"))),
        ),
        height=260,
    )
