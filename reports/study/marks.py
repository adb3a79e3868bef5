"""What the figures of the study share: scales by architecture, intervals as fields of a row and as marks."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from reports import numbers
from reports.figures.charts import Rows, Swatch, color_scale, inline, six
from reports.palette import ARCH_SHAPES, arch_color, arch_label
from sweeps.laws import Estimate
from sweeps.study.contexts import TRANSFORMER, XLSTM

ARCHS = (TRANSFORMER, XLSTM)
HEIGHT = 270
COMPUTE = "Training compute (FLOPs)"


def arch_color_scale() -> alt.Color:
    """Colour by architecture."""
    return color_scale("arch:N", [(arch, arch_color(i)) for i, arch in enumerate(ARCHS)])


def arch_swatches() -> tuple[Swatch, ...]:
    """One swatch an architecture."""
    return tuple(
        Swatch(label=arch_label(arch), color=arch_color(i), shape=ARCH_SHAPES[i])
        for i, arch in enumerate(ARCHS)
    )


def arch_shape_scale() -> alt.Shape:
    """Shape by architecture."""
    return alt.Shape("arch:N", scale=alt.Scale(domain=list(ARCHS), range=list(ARCH_SHAPES[:2])), legend=None)


def bounds(value: Estimate, name: str = "y") -> dict[str, float | None]:
    """An estimate as fields of a row: the value, and its ends where there are any."""
    known = numbers.has_interval(value)
    return {
        name: six(value.value),
        f"{name}_low": six(value.low) if known else None,
        f"{name}_high": six(value.high) if known else None,
    }


def spelt(value: Estimate, digits: int = 3) -> str:
    """`1.51 (1.46 to 1.56)`"""
    return f"{numbers.fixed(value.value, digits)} ({numbers.span(value, lambda v: numbers.fixed(v, digits))})"


def column(rows: Rows, name: str) -> list[float]:
    """The numbers of a field."""
    return [float(row[name]) for row in rows if row[name] is not None]


def ends(rows: Rows, name: str = "y") -> list[float]:
    """Every value and end of an interval that the rows hold."""
    found = [row.get(field) for row in rows for field in (name, f"{name}_low", f"{name}_high")]
    return [value for value in found if value is not None]


def interval_layers(
    rows: Rows, x: Any, y: Any, color: Any, tips: Sequence[str], name: str = "y"
) -> list[alt.Chart]:
    """Bars over the intervals, and points; those of an architecture have its shape."""
    low = y.copy()
    low["shorthand"] = f"{name}_low:Q"
    base = alt.Chart(inline(rows))
    shape = {"shape": arch_shape_scale()} if rows and "arch" in rows[0] else {}
    return [
        base.mark_rule(strokeWidth=2).encode(x=x, y=low, y2=f"{name}_high:Q", color=color),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, color=color, tooltip=[f"{tip}:N" for tip in tips], **shape
        ),
    ]
