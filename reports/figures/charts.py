"""The grammar that the figures share: panels, legends, scales, axes and the theme of the charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from altair.utils.schemapi import debug_mode

from reports import numbers
from reports.palette import ARCH_SHAPES, arch_color, arch_label, var
from reports.view import View
from sweeps.laws.types import GroupAnalysis

Rows = list[dict[str, Any]]
Chart = alt.Chart | alt.LayerChart


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart; its width is the page's to choose."""

    title: str
    chart: Chart
    arch: str | None = None
    """The architecture that the panel shows alone: switched off, it takes the panel along."""


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """One entry of a legend."""

    label: str
    color: str
    shape: str = "line"
    """`line`, or the shape of an architecture's points."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels side by side under one legend and over one caption."""

    key: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[Swatch, ...] = ()
    context_length: int | None = None
    """The context length that the figure shows alone."""


CONFIG: dict[str, Any] = {
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "domainColor": var("muted"),
        "domainWidth": 1,
        "gridColor": var("grid"),
        "tickColor": var("muted"),
        "tickSize": 4,
        "labelColor": var("muted"),
        "labelFontSize": 11.5,
        "labelPadding": 4,
        "titleColor": var("muted"),
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "titlePadding": 8,
    },
    "axisY": {"domain": False, "ticks": False},
    "text": {"fontSize": 12},
}
"""Vega-Lite's theme: quiet axes, no frame, colours of the page."""


def inline(rows: Rows) -> alt.InlineData:
    """Rows as chart data; equal rows are stored in the page once.

    Altair would hold every row against its JSON schema, which takes half of a large report's time.
    """
    with debug_mode(False):
        return alt.InlineData(values=rows)


def layer(*charts: alt.Chart, height: int) -> alt.LayerChart:
    """Charts on top of each other."""
    return alt.LayerChart(layer=list(charts), height=height)


def neutral_line(y: float) -> alt.Chart:
    """A dashed horizontal line where nothing differs."""
    return alt.Chart(inline([{"y": y}])).mark_rule(color=var("muted"), strokeDash=[4, 3]).encode(y="y:Q")


def arch_legend(view: View, groups: Sequence[GroupAnalysis]) -> tuple[Swatch, ...]:
    """One swatch an architecture, colour and shape."""
    present = {group.arch for group in groups}
    return tuple(
        Swatch(label=arch_label(arch), color=arch_color(i), shape=ARCH_SHAPES[i % len(ARCH_SHAPES)])
        for i, arch in enumerate(view.archs)
        if arch in present
    )


def arch_scale(view: View) -> alt.Color:
    """Colour by architecture, without a legend of its own."""
    return color_scale("arch:N", [(arch, arch_color(i)) for i, arch in enumerate(view.archs)])


def shape_scale(view: View) -> alt.Shape:
    """Shape by architecture, for those who do not tell the colours apart."""
    shapes = [ARCH_SHAPES[i % len(ARCH_SHAPES)] for i in range(len(view.archs))]
    return alt.Shape("arch:N", scale=alt.Scale(domain=view.archs, range=shapes), legend=None)


def color_scale(field: str, pairs: Sequence[tuple[Any, str]]) -> alt.Color:
    """A named colour for each value."""
    keys, colors = [key for key, _ in pairs], [color for _, color in pairs]
    return alt.Color(field, scale=alt.Scale(domain=keys, range=colors), legend=None)


def dash(field: str) -> alt.StrokeDash:
    """Solid where the field is true, dashed where it is not."""
    scale = alt.Scale(domain=[True, False], range=[[1, 0], [5, 4]])
    return alt.StrokeDash(field, scale=scale, legend=None)


def href() -> alt.Href:
    """A click on a run opens its page in MLflow."""
    return alt.Href("url:N")


def tips(**formats: str) -> list[alt.Tooltip]:
    """Tooltip entries by field; an empty format shows text as it is."""
    return [
        alt.Tooltip(f"{name}:Q", format=form) if form else alt.Tooltip(f"{name}:N")
        for name, form in formats.items()
    ]


def six(value: float | None) -> float | None:
    """Six significant digits: enough for a picture, and half the bytes."""
    return float(f"{value:.6g}") if numbers.known(value) else None


_LABELS = {
    "count": "replace(format(datum.value, '~s'), 'G', 'B')",
    "flops": "replace(format(datum.value, '.0e'), '+', '')",
    "plain": "format(datum.value, '~g')",
}


def log_x(field: str, values: Sequence[float], title: str, *, form: str = "count") -> alt.X:
    """A logarithmic axis that fits the values; `form` is `count`, `flops` or `plain`."""
    scale, axis = _log(values, form)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)


def log_y(field: str, values: Sequence[float], title: str, *, form: str = "count") -> alt.Y:
    """`log_x`, upright."""
    scale, axis = _log(values, form)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)


def linear_y(field: str, values: Sequence[float], title: str) -> alt.Y:
    """A linear axis that fits the values, zero not forced."""
    good = [v for v in values if numbers.known(v)] or [0.0, 1.0]
    margin = 0.06 * (max(good) - min(good)) or 0.01
    scale = alt.Scale(domain=[min(good) - margin, max(good) + margin], nice=False, zero=False)
    return alt.Y(f"{field}:Q", title=title, scale=scale)


def _log(values: Sequence[float], form: str) -> tuple[alt.Scale, alt.Axis]:
    good = [v for v in values if numbers.known(v) and v > 0] or [1.0]
    margin = max(max(good) / min(good), 1.01) ** 0.06
    low, high = min(good) / margin, max(good) * margin
    axis = alt.Axis(values=log_ticks(low, high), labelExpr=_LABELS[form], labelFlush=False)
    return alt.Scale(type="log", domain=[low, high], nice=False), axis


def log_ticks(low: float, high: float) -> list[float]:
    """Round values in [low, high]: evenly spaced over less than a decade, else as few to the decade as give
    four."""
    if high / low < 8:
        step = _round_step((high - low) / 5)
        first = int(np.ceil(low / step))
        return [_clean(i * step) for i in range(first, int(high / step) + 1)]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [_clean(m * 10.0**d) for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: len(ticks) // 9 + 1]


def _round_step(step: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten that is not smaller."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999))


def _clean(value: float) -> float:
    return float(f"{value:.6g}")
