"""The figures of an inference benchmark: measured points over the fitted curves."""

from collections.abc import Sequence
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
    color_scale,
    inline,
    layer,
    log_x,
    log_y,
    six,
)
from reports.palette import ARCH_SHAPES, arch_color, arch_label, arch_order
from sweeps.inference.analysis import InferenceAnalysis, shapes
from sweeps.inference.runtime import COLUMN, Kind, work
from sweeps.inference.table import bytes_per_element, finished

HEIGHT = 250
CURVE = 40
"""Lengths at which a fitted curve is drawn."""
SHOWN_BATCHES = 3
"""Of the batches, the first, the middle and the last are drawn; the table has all."""
TITLES: dict[Kind, str] = {"ttft": "Time to first token", "step_time": "Time of a decode step"}


def times(analysis: InferenceAnalysis, kind: Kind) -> Figure:
    """Times against the prefill length, a panel a size; several batches in a panel."""
    batches = few(sorted(analysis.table["batch_size"].unique().to_list()))
    panels = [
        Panel(title=f"{size} parameters", chart=_times_of(analysis, kind, size, batches))
        for size in _sizes(analysis)
    ]
    drawn = ", ".join(f"{batch}" for batch in batches)
    return Figure(
        key=kind,
        caption=(
            f"{TITLES[kind]} against the tokens that were there before. Points are measured, lines the"
            f" runtime model fitted to all sizes at once; from the lowest line up, batches of {drawn}."
        ),
        panels=tuple(panels),
        legend=_legend(analysis),
    )


def throughput(analysis: InferenceAnalysis) -> Figure:
    """Tokens decoded a second against the batch, at the longest prefill that both architectures finished."""
    panels = []
    for size in _sizes(analysis):
        own = finished(analysis.table).filter((pl.col("model") == size) & pl.col("step_time_s").is_finite())
        counts = own.group_by("prefill_length").agg(
            pl.col("batch_size").n_unique() * pl.col("arch").n_unique()
        )
        if not counts.height:
            continue
        most = counts.sort("batch_size", "prefill_length")["prefill_length"][-1]
        rows: Rows = [
            {
                "arch": row["arch"],
                "B": row["batch_size"],
                "y": six(row["batch_size"] / row["step_time_s"]),
                "Architecture": arch_label(row["arch"]),
            }
            for row in own.filter(pl.col("prefill_length") == most).iter_rows(named=True)
        ]
        x = log_x("B", [row["B"] for row in rows], "Sequences decoded together", form="plain")
        y = log_y("y", [row["y"] for row in rows], "Tokens a second")
        panels.append(
            Panel(title=f"{size} parameters, after {most:,} tokens", chart=_lines(analysis, rows, x, y, "B"))
        )
    return Figure(
        key="throughput",
        caption="Tokens decoded a second, by the batch: what a device serves when requests share it.",
        panels=tuple(panels),
        legend=_legend(analysis),
    )


def memory(analysis: InferenceAnalysis) -> Figure | None:
    """Peak memory against the prefill length, at the largest batch; None where it is not known."""
    panels = []
    for size in _sizes(analysis):
        own = finished(analysis.table).filter(
            (pl.col("model") == size) & pl.col("memory_bytes").is_finite() & (pl.col("memory_bytes") > 0)
        )
        if not own.height:
            continue
        batch = max(own["batch_size"].to_list())
        rows: Rows = [
            {
                "arch": row["arch"],
                "T": row["prefill_length"],
                "y": six(row["memory_bytes"] / 2**30),
                "Architecture": arch_label(row["arch"]),
            }
            for row in own.filter(pl.col("batch_size") == batch).iter_rows(named=True)
        ]
        x = log_x("T", [row["T"] for row in rows], "Prefill (tokens)", form="plain")
        y = log_y("y", [row["y"] for row in rows], "Peak memory (GiB)", form="plain")
        panels.append(
            Panel(title=f"{size} parameters, batch {batch}", chart=_lines(analysis, rows, x, y, "T"))
        )
    if not panels:
        return None
    return Figure(
        key="memory",
        caption=(
            "Peak memory of a point's process, weights and prefill included. A Transformer keeps keys and"
            " values of every token, an mLSTM a state of constant size."
        ),
        panels=tuple(panels),
        legend=_legend(analysis),
    )


def held_out(analysis: InferenceAnalysis) -> Figure | None:
    """Points that the models did not see: predicted over measured."""
    rows: Rows = []
    for (arch, kind), model in analysis.models.items():
        if model.held_out is None:
            continue
        unseen = model.held_out
        for row, measured, predicted in zip(
            unseen.rows.iter_rows(named=True), unseen.observed, unseen.predicted, strict=True
        ):
            where = f"{row['model']}, prefill {row['prefill_length']:,}, batch {row['batch_size']}"
            rows.append(
                {
                    "arch": arch,
                    "kind": kind,
                    "x": six(1e3 * measured),
                    "y": six(1e3 * predicted),
                    "Point": where,
                    "Error": f"{numbers.signed(100 * (predicted / measured - 1), 1)} %",
                }
            )
    if not rows:
        return None
    panels = [
        Panel(title=title, chart=_diagonal(analysis, [row for row in rows if row["kind"] == kind]))
        for kind, title in TITLES.items()
        if any(row["kind"] == kind for row in rows)
    ]
    return Figure(
        key="held-out",
        caption="Points kept out of the fit, predicted and measured. On the line the prediction is exact.",
        panels=tuple(panels),
        legend=_legend(analysis),
    )


def costs(analysis: InferenceAnalysis) -> Figure | None:
    """Device time of training and of serving against the loss, the cheapest model of each architecture."""
    known = [cost for cost in analysis.costs if numbers.known(cost.total_s.value)]
    if not known:
        return None
    rows: Rows = [
        {
            "arch": cost.arch,
            "x": six(cost.loss),
            "y": six(cost.total_s.value / 3600),
            "low": six(cost.total_s.low / 3600),
            "high": six(cost.total_s.high / 3600),
            "train": six(cost.train_s.value / 3600),
            "Model": f"{numbers.count(cost.N.value)} on {numbers.count(cost.D.value)} tokens",
            "Architecture": arch_label(cost.arch),
        }
        for cost in known
    ]
    names = ("y", "low", "high", "train")
    values = [row[name] for row in rows for name in names if row[name] is not None]
    scale = alt.Scale(zero=False, reverse=True, padding=18)
    x = alt.X("x:Q", title="Loss to reach (nats per token)", scale=scale)
    y = log_y("y", values, "Device time (hours)", form="plain")
    low, train = y.copy(), y.copy()
    low["shorthand"], train["shorthand"] = "low:Q", "train:Q"
    color, base = _color(analysis), alt.Chart(inline(rows))
    tooltip = ["Architecture:N", "Model:N", alt.Tooltip("y:Q", title="Hours", format=".3g")]
    chart = layer(
        base.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color),
        base.mark_line(strokeWidth=1.5, strokeDash=[4, 3], opacity=0.7).encode(x=x, y=train, color=color),
        base.mark_rule(strokeWidth=2).encode(x=x, y=low, y2="high:Q", color=color),
        base.mark_point(size=60, filled=True, opacity=1).encode(
            x=x, y=y, color=color, shape=_shape(analysis), tooltip=tooltip
        ),
        height=HEIGHT + 30,
    )
    load = analysis.load
    assert load is not None
    return Figure(
        key="costs",
        caption=(
            f"Device time to train a model and have it write {numbers.count(load.tokens)} tokens"
            f" ({load.generated_length:,} after each prompt of {load.prompt_length:,}, {load.batch_size} at a"
            " time), at the size where the sum is least. Bars: intervals. Dashed: the training alone."
        ),
        panels=(Panel(title="Training and serving together", chart=chart),),
        legend=_legend(analysis),
    )


def _times_of(analysis: InferenceAnalysis, kind: Kind, size: str, batches: Sequence[int]) -> Chart:
    own = finished(analysis.table).filter(
        (pl.col("model") == size) & pl.col("batch_size").is_in(list(batches))
    )
    own = own.filter(pl.col(COLUMN[kind]).is_finite())
    points: Rows = [
        {
            "arch": row["arch"],
            "T": row["prefill_length"],
            "B": row["batch_size"],
            "y": six(1e3 * row[COLUMN[kind]]),
            "Architecture": arch_label(row["arch"]),
        }
        for row in own.iter_rows(named=True)
    ]
    fitted = _curves(analysis, kind, size, batches)
    x = log_x("T", [row["T"] for row in points], "Prefill (tokens)", form="plain")
    y = log_y("y", [row["y"] for row in points + fitted], "Milliseconds", form="plain")
    color = _color(analysis)
    tooltip = ["Architecture:N", "T:Q", "B:Q", alt.Tooltip("y:Q", title="ms", format=".4g")]
    return layer(
        alt.Chart(inline(fitted)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color, detail="B:N"),
        alt.Chart(inline(points))
        .mark_point(size=42, filled=True, opacity=0.9)
        .encode(x=x, y=y, color=color, shape=_shape(analysis), tooltip=tooltip),
        height=HEIGHT,
    )


def _curves(analysis: InferenceAnalysis, kind: Kind, size: str, batches: Sequence[int]) -> Rows:
    """The fitted times over the range that was measured, of the batches that were."""
    rows: Rows = []
    own = finished(analysis.table).filter(pl.col("model") == size)
    for (arch, name), config in shapes(analysis.table).items():
        model = analysis.models.get((arch, kind))
        if name != size or model is None:
            continue
        for batch in batches:
            there = own.filter((pl.col("arch") == arch) & (pl.col("batch_size") == batch))
            if not there.height:
                continue
            first = there.row(0, named=True)
            lengths = there["prefill_length"]
            grid = np.unique(np.round(np.geomspace(lengths.min(), lengths.max(), CURVE)).astype(int))  # type: ignore[type-var,arg-type]
            stored = bytes_per_element(first)
            middle = 0 if kind == "ttft" else int(first["generated"] or 0) // 2
            X = np.array([work(kind, config, int(T) + middle, batch, stored) for T in grid])
            rows += [
                {"arch": arch, "T": int(T), "B": batch, "y": six(1e3 * t)}
                for T, t in zip(grid, model.predict(X), strict=True)
            ]
    return rows


def _lines(analysis: InferenceAnalysis, rows: Rows, x: alt.X, y: alt.Y, order: str) -> Chart:
    color, base = _color(analysis), alt.Chart(inline(rows))
    tooltip: list[Any] = ["Architecture:N", f"{order}:Q", alt.Tooltip("y:Q", format=".4g")]
    return layer(
        base.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color),
        base.mark_point(size=42, filled=True, opacity=0.9).encode(
            x=x, y=y, color=color, shape=_shape(analysis), tooltip=tooltip
        ),
        height=HEIGHT,
    )


def _diagonal(analysis: InferenceAnalysis, rows: Rows) -> Chart:
    values = [row[name] for row in rows for name in ("x", "y")]
    ends = [{"x": min(values), "y": min(values)}, {"x": max(values), "y": max(values)}]
    x = log_x("x", values, "Measured (ms)", form="plain")
    y = log_y("y", values, "Predicted (ms)", form="plain")
    return layer(
        alt.Chart(inline(ends)).mark_line(strokeWidth=1, opacity=0.5, color="var(--muted)").encode(x=x, y=y),
        alt.Chart(inline(rows))
        .mark_point(size=42, filled=True, opacity=0.85)
        .encode(x=x, y=y, color=_color(analysis), shape=_shape(analysis), tooltip=["Point:N", "Error:N"]),
        height=HEIGHT,
    )


def _sizes(analysis: InferenceAnalysis) -> list[str]:
    return list(dict.fromkeys(size for _, size in shapes(analysis.table)))


def few(batches: list[int]) -> list[int]:
    """The first, some between and the last."""
    if len(batches) <= SHOWN_BATCHES:
        return batches
    places = np.linspace(0, len(batches) - 1, SHOWN_BATCHES).round().astype(int)
    return [batches[place] for place in places]


def _archs(analysis: InferenceAnalysis) -> list[str]:
    return arch_order(analysis.archs)


def _color(analysis: InferenceAnalysis) -> alt.Color:
    return color_scale("arch:N", [(arch, arch_color(i)) for i, arch in enumerate(_archs(analysis))])


def _shape(analysis: InferenceAnalysis) -> alt.Shape:
    archs = _archs(analysis)
    marks = [ARCH_SHAPES[i % len(ARCH_SHAPES)] for i in range(len(archs))]
    return alt.Shape("arch:N", scale=alt.Scale(domain=archs, range=marks), legend=None)


def _legend(analysis: InferenceAnalysis) -> tuple[Swatch, ...]:
    return tuple(
        Swatch(label=arch_label(arch), color=arch_color(i), shape=ARCH_SHAPES[i % len(ARCH_SHAPES)])
        for i, arch in enumerate(_archs(analysis))
    )
