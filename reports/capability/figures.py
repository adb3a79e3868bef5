"""The figures of a suite: accuracy against level, loss against position, losses by domain."""

from collections.abc import Sequence

import altair as alt

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
    neutral_line,
    six,
    tips,
)
from reports.palette import ARCH_SHAPES, arch_color, arch_label, arch_order, var
from sweeps.capability.claims import domain_names, position_curve
from sweeps.capability.results import Interval, Results, interval, paired
from sweeps.capability.spec import CapabilitySpec, Experiment, TextSource
from xlstm.capability.task import Task

HEIGHT = 250
TITLES = {
    "parity": ("Parity", "Length"),
    "modular": ("Modular arithmetic", "Numbers in the expression"),
    "search": ("Nearest-neighbour search", "Items"),
    "recall": ("Associative recall", "Pairs"),
}
"""Of a task's kind: its name, and what its levels are."""
REFERENCE = "transformer"
"""What losses are shown against."""


def kind_of(task: Task) -> str:
    """The kind of a generated task."""
    return str(vars(task)["kind"])


def levels(suite: CapabilitySpec, results: Results) -> Figure | None:
    """Accuracy against level, a panel a generated task; None where no run of one is finished."""
    drawn = [e for e in suite.experiments if isinstance(e.task, Task) and results.archs(e.name)]
    if not drawn:
        return None
    return Figure(
        key="levels",
        caption=(
            "Mean accuracy over seeds with its interval. Dashed, the best guess that knows nothing of the"
            " rule; upright, the level up to which the models were trained: what lies right of it was never"
            " seen."
        ),
        panels=tuple(Panel(title=_title(e), chart=_levels(suite, results, e)) for e in drawn),
        legend=legend(suite),
    )


def _title(experiment: Experiment) -> str:
    assert isinstance(experiment.task, Task)
    title = TITLES[kind_of(experiment.task)][0]
    return title if experiment.name == kind_of(experiment.task) else f"{title}: {experiment.name}"


def _levels(suite: CapabilitySpec, results: Results, experiment: Experiment) -> Chart:
    task = experiment.task
    assert isinstance(task, Task)
    shown = list(task.measured)
    rows: Rows = [
        {"arch": arch, "Architecture": arch_label(arch), "level": level}
        | _spread(results.mean(experiment.name, arch, f"accuracy/{level}"))
        for arch in results.archs(experiment.name)
        for level in shown
    ]
    x = log_x("level", shown, TITLES[kind_of(task)][1], form="plain").axis(values=shown)
    y = alt.Y("value:Q", title="Accuracy", scale=alt.Scale(domain=[0, 1.02], nice=False))
    chance = [{"level": level, "value": task.chance(level), "what": "chance"} for level in shown]
    trained = alt.Chart(inline([{"level": task.trained}])).mark_rule(color=var("muted"), opacity=0.5)
    guess = alt.Chart(inline(chance)).mark_line(color=var("muted"), strokeDash=[4, 3])
    return layer(
        trained.encode(x=x), guess.encode(x=x, y=y), *_lines(suite, rows, x, y, "level"), height=HEIGHT
    )


def positions(suite: CapabilitySpec, results: Results, experiment: Experiment) -> Figure | None:
    """Loss against position, and its difference to the Transformer's; None where no run is finished."""
    source = experiment.task
    archs = results.archs(experiment.name)
    if not isinstance(source, TextSource) or not archs:
        return None
    curves = {arch: _curves(results, experiment, arch) for arch in archs}
    panels = [_position_panel(suite, source, "Loss by position", _means(curves, results), neutral=False)]
    if REFERENCE in curves and len(curves) > 1:
        title = f"Difference to the {arch_label(REFERENCE)}"
        panels.append(_position_panel(suite, source, title, _differences(curves, results), neutral=True))
    longest = source.times * source.context_length
    return Figure(
        key=f"positions-{experiment.name}",
        caption=(
            f"Held-out loss by position in windows of {longest:,} bytes, mean over seeds with its interval."
            f" Upright, the trained length of {source.context_length}: a model that extrapolates goes on as"
            " before it, and one that does not rises."
        ),
        panels=tuple(panels),
        legend=legend(suite, archs),
    )


Curves = dict[int, dict[int, float]]
"""Mean loss of the band that ends at a position, by that position and by seed."""


def _curves(results: Results, experiment: Experiment, arch: str) -> Curves:
    found: Curves = {}
    for seed, run in results.chosen(experiment.name, arch).items():
        for _, end, loss in position_curve(run.measures):
            found.setdefault(end, {})[seed] = loss
    return found


def _means(curves: dict[str, Curves], results: Results) -> Rows:
    return [
        {"arch": arch, "Architecture": arch_label(arch), "position": end}
        | _spread(interval(list(by_seed.values()), results.level))
        for arch, found in curves.items()
        for end, by_seed in found.items()
    ]


def _differences(curves: dict[str, Curves], results: Results) -> Rows:
    base = curves[REFERENCE]
    return [
        {"arch": arch, "Architecture": arch_label(arch), "position": end}
        | _spread(paired(by_seed, base[end], results.level))
        for arch, found in curves.items()
        for end, by_seed in found.items()
        if arch != REFERENCE and end in base
    ]


def _position_panel(
    suite: CapabilitySpec, source: TextSource, title: str, rows: Rows, *, neutral: bool
) -> Panel:
    x = log_x("position", [row["position"] for row in rows], "Position (bytes)", form="plain")
    ends = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    y = linear_y("value", ends, "nats per byte")
    trained = alt.Chart(inline([{"position": source.context_length}])).mark_rule(
        color=var("muted"), opacity=0.5
    )
    parts = [trained.encode(x=x), *([neutral_line(0.0)] if neutral else [])]
    return Panel(title=title, chart=layer(*parts, *_lines(suite, rows, x, y, "position"), height=HEIGHT))


def domains(suite: CapabilitySpec, results: Results, experiment: Experiment) -> Figure | None:
    """Losses by domain against the Transformer's; None without it, or where no run is finished."""
    names, archs = domain_names(results, experiment.name), results.archs(experiment.name)
    others = [arch for arch in archs if arch != REFERENCE]
    if not names or REFERENCE not in archs or not others:
        return None
    rows: Rows = []
    for name in names:
        base = results.values(experiment.name, REFERENCE, f"domain_loss/{name}")
        for arch in others:
            own = results.values(experiment.name, arch, f"domain_loss/{name}")
            found = _spread(paired(own, base, results.level))
            rows.append({"arch": arch, "Architecture": arch_label(arch), "domain": name} | found)
    x = alt.X("value:Q", title=f"Loss less the {arch_label(REFERENCE)}'s (nats per byte)")
    y = alt.Y("domain:N", title=None, sort=names, axis=alt.Axis(grid=True))
    spread = alt.YOffset("arch:N", sort=arch_order(others))
    base_chart = alt.Chart(inline(rows)).encode(y=y, yOffset=spread, color=_colors(suite))
    zero = alt.Chart(inline([{"x": 0.0}])).mark_rule(color=var("muted"), strokeDash=[4, 3]).encode(x="x:Q")
    chart = layer(
        zero,
        base_chart.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q"), x2="high:Q"),
        base_chart.mark_point(filled=True, size=45, opacity=1).encode(
            x=x,
            shape=_shapes(suite),
            tooltip=tips(Architecture="", domain="", value=".4f", low=".4f", high=".4f"),
        ),
        height=46 * len(names) + 20,
    )
    return Figure(
        key=f"domains-{experiment.name}",
        caption=(
            f"Held-out loss of each domain less that of the {arch_label(REFERENCE)}, mean over seeds with its"
            " interval: left of the line is better. An interval that holds the line decides nothing."
        ),
        panels=(Panel(title="By domain", chart=chart),),
        legend=legend(suite, others),
    )


def legend(suite: CapabilitySpec, archs: Sequence[str] | None = None) -> tuple[Swatch, ...]:
    """One swatch an architecture, colour and shape."""
    return tuple(
        Swatch(label=arch_label(arch), color=arch_color(i), shape=ARCH_SHAPES[i % len(ARCH_SHAPES)])
        for i, arch in enumerate(arch_order(suite.archs))
        if archs is None or arch in archs
    )


def _lines(suite: CapabilitySpec, rows: Rows, x: alt.X, y: alt.Y, field: str) -> list[alt.Chart]:
    """Bars of the intervals, a line and points for every architecture."""
    base = alt.Chart(inline(rows)).encode(x=x, color=_colors(suite))
    shown = tips(Architecture="", value=".4f", low=".4f", high=".4f")
    return [
        base.mark_rule(strokeWidth=1.2, opacity=0.6).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=1.8).encode(y=y),
        base.mark_point(filled=True, size=38, opacity=1).encode(
            y=y, shape=_shapes(suite), tooltip=[alt.Tooltip(f"{field}:Q"), *shown]
        ),
    ]


def _colors(suite: CapabilitySpec) -> alt.Color:
    return color_scale("arch:N", [(a, arch_color(i)) for i, a in enumerate(arch_order(suite.archs))])


def _shapes(suite: CapabilitySpec) -> alt.Shape:
    archs = arch_order(suite.archs)
    shapes = [ARCH_SHAPES[i % len(ARCH_SHAPES)] for i in range(len(archs))]
    return alt.Shape("arch:N", scale=alt.Scale(domain=archs, range=shapes), legend=None)


def _spread(found: Interval) -> dict[str, float | None]:
    """Value and ends; without an interval both ends are the value, so that nothing is drawn around it."""
    low, high = (found.low, found.high) if found.is_known else (found.value, found.value)
    return {"value": six(found.value), "low": six(low), "high": six(high)}
