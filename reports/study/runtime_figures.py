"""The figures of inference: measured times, and how far the models of them miss."""

import altair as alt

from reports import numbers
from reports.figures.charts import (
    Figure,
    Panel,
    Rows,
    Swatch,
    color_scale,
    inline,
    layer,
    log_x,
    log_y,
    neutral_line,
    six,
)
from reports.palette import ARCH_SHAPES, arch_color, var
from reports.study.marks import HEIGHT, bounds, column, ends, interval_layers, spelt
from sweeps.study import Study


def times(study: Study) -> Figure | None:
    """Measured times of the xLSTM over the Transformer's, against the prefill."""
    if not study.time_ratios:
        return None
    panels = []
    titles = {"ttft": "Time to first token", "step_time": "Time of a decode step"}
    for kind, title in titles.items():
        found = [r for r in study.time_ratios if r.kind == kind]
        rows: Rows = [
            {"T": r.prefill, "Prefill": f"{r.prefill:,}", "Mean": spelt(r.mean, 3), **bounds(r.mean)}
            for r in found
        ]
        single: Rows = [
            {"T": r.prefill, "y": six(ratio), "Size": size, "Ratio": numbers.fixed(ratio, 3)}
            for r in found
            for size, ratio in zip(r.sizes, r.ratios, strict=True)
        ]
        x = log_x("T", column(rows, "T"), "Prefill (tokens)", form="plain")
        y = log_y("y", [*ends(rows), *ends(single), 1.0], "xLSTM / Transformer", form="plain")
        sizes = (
            alt.Chart(inline(single))
            .mark_point(size=26, opacity=0.7, filled=True, color=var("muted"))
            .encode(x=x, y=y, tooltip=["Size:N", "Ratio:N"])
        )
        marks = interval_layers(rows, x, y, alt.value(arch_color(1)), ("Prefill", "Mean"))
        panels.append(Panel(title=title, chart=layer(neutral_line(1.0), sizes, *marks, height=HEIGHT)))
    return Figure(
        key="times",
        caption=(
            "Measured time of the xLSTM over that of the Transformer of the same nominal size, one sequence,"
            " on an H100. Grey: single sizes. Colour: their geometric mean with Student's interval."
        ),
        panels=tuple(panels),
    )


def runtime_errors(study: Study) -> Figure | None:
    """Mean relative error of the runtime models, published, repeated on every row, and ours."""
    if not study.runtimes:
        return None
    kinds = {"ttft": "Time to first token", "step_time": "Time of a decode step"}
    series = [("published", var("muted")), ("their form, all rows", arch_color(4)), ("ours", arch_color(2))]
    names = [name for name, _ in series]
    shapes = alt.Shape("series:N", scale=alt.Scale(domain=names, range=list(ARCH_SHAPES[:3])), legend=None)
    panels = []
    for kind, title in kinds.items():
        rows: Rows = [
            {"model": f.model, "series": name, "y": six(100 * value), "Error": f"{100 * value:.1f} %"}
            for f in study.runtimes
            if f.kind == kind
            for (name, _), value in zip(series, (f.resampled.mape, f.all_rows.mape, f.ours_mape), strict=True)
        ]
        order = list(dict.fromkeys(row["model"] for row in rows))
        x = alt.X("model:N", title=None, sort=order, axis=alt.Axis(labelAngle=-40, grid=False))
        y = log_y("y", column(rows, "y"), "Mean relative error (%)", form="plain")
        chart = (
            alt.Chart(inline(rows))
            .mark_point(filled=True, size=70, opacity=0.95)
            .encode(
                x=x,
                y=y,
                color=color_scale("series:N", series),
                shape=shapes,
                tooltip=["model:N", "series:N", "Error:N"],
            )
            .properties(height=HEIGHT)
        )
        panels.append(Panel(title=title, chart=chart))
    return Figure(
        key="runtime-errors",
        caption=(
            "How far the runtime models miss the measurements, on every row that was measured. Published fits"
            " saw one bootstrap resample and weighed milliseconds; ours weigh relative errors."
        ),
        panels=tuple(panels),
        legend=tuple(
            Swatch(label=label, color=color, shape=shape)
            for (label, color), shape in zip(series, ARCH_SHAPES, strict=False)
        ),
    )
