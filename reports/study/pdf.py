"""Any figure of the reports as a PDF for a paper, drawn by matplotlib from the same charts and rows.

The charts use a small part of Vega-Lite: points, lines, rules, areas and bars over quantitative axes, log or
linear, and nominal ones. That part is read here; anything else is refused by name rather than drawn wrong.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("pdf")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from reports.figures import Figure
from reports.palette import colors

Spec = Mapping[str, Any]
Rows = list[dict[str, Any]]

PANEL_INCHES = (3.1, 2.5)
_MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-up": "^",
    "diamond": "D",
    "triangle-down": "v",
    "cross": "P",
    "point": "o",
}
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,  # outlines that an editor can still read as text
    "lines.solid_capstyle": "round",
}


def save_pdf(figure: Figure, path: Path) -> Path:
    """Writes the panels side by side under their legend; equal figures give equal bytes."""
    shades = colors(sum(entry.color.startswith("var(--budget") for entry in figure.legend), dark=False)
    n = len(figure.panels)
    with plt.rc_context(_STYLE | {"grid.color": shades["grid"], "axes.edgecolor": shades["muted"]}):
        size = (PANEL_INCHES[0] * n, PANEL_INCHES[1] + (0.35 if figure.legend else 0.0))
        sheet, places = plt.subplots(1, n, figsize=size, squeeze=False, layout="constrained")
        try:
            for axes, panel in zip(places[0], figure.panels, strict=True):
                axes.set_title(panel.title, fontsize=8.5, loc="left", fontweight="bold")
                _draw(axes, panel.chart.to_dict(validate=False), shades)
            if figure.legend:
                handles = [_handle(entry.label, entry.color, entry.shape, shades) for entry in figure.legend]
                sheet.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=7.5)
            sheet.savefig(
                path, metadata={"CreationDate": None, "Title": figure.key, "Subject": figure.caption}
            )
        finally:
            plt.close(sheet)
    return path


def _handle(label: str, color: str, shape: str, shades: Mapping[str, str]) -> Line2D:
    marker = _MARKERS.get(shape, "")
    return Line2D(
        [], [], color=_shade(color, shades), marker=marker, markersize=4, linewidth=1.5, label=label
    )


def _shade(color: str, shades: Mapping[str, str]) -> str:
    """The value of `var(--name)`; another colour as it is."""
    named = re.fullmatch(r"var\(--([a-z0-9-]+)\)", color)
    return shades.get(named[1], shades["muted"]) if named else color


def _draw(axes: Axes, spec: Spec, shades: Mapping[str, str]) -> None:
    layers = [_Layer(layer, spec, shades) for layer in spec.get("layer", [spec])]
    for side in ("x", "y"):
        _set_axis(axes, side, [layer for layer in layers if side in layer.encoding])
    for layer in layers:
        layer.draw(axes)


class _Layer:
    """One mark over its rows."""

    def __init__(self, layer: Spec, whole: Spec, shades: Mapping[str, str]) -> None:
        mark = layer["mark"]
        self.mark: Spec = mark if isinstance(mark, Mapping) else {"type": mark}
        self.encoding: Spec = {**whole.get("encoding", {}), **layer.get("encoding", {})}
        data = layer.get("data") or whole.get("data") or {}
        rows = data["values"] if "values" in data else whole.get("datasets", {})[data["name"]]
        self.rows: Rows = list(_filtered(rows, layer.get("transform", [])))
        self.shades = shades

    def draw(self, axes: Axes) -> None:
        kind = self.mark["type"]
        if kind == "text":
            return  # a label of a bar; its number stands in the table
        draw = {"point": self._points, "line": self._lines, "rule": self._rules, "area": self._area}.get(kind)
        if draw is None:
            raise ValueError(f"a {kind} mark has no counterpart in the PDF export")
        draw(axes)

    def value(self, row: Spec, channel: str) -> Any:
        """A row's value for a channel, nominal ones by their place; None where there is none."""
        encoded = self.encoding.get(channel)
        if encoded is None:
            return None
        if "field" not in encoded:
            return encoded.get("value")
        found = row.get(encoded["field"])
        if channel == "x" and encoded.get("type") == "nominal":
            return encoded["sort"].index(found)
        return found

    def color(self, row: Spec) -> str:
        encoded = self.encoding.get("color")
        if encoded is None:
            return _shade(self.mark.get("color", self.mark.get("fill", "var(--ink)")), self.shades)
        if "field" not in encoded:
            return _shade(encoded["value"], self.shades)
        return _shade(_mapped(encoded, row), self.shades)

    def _points(self, axes: Axes) -> None:
        hollow = self.encoding.get("fill", {})
        test = re.fullmatch(r"datum\.(\w+)", hollow.get("condition", {}).get("test", ""))
        groups: dict[tuple[str, str, bool], list[tuple[float, float]]] = {}
        for row in self.rows:
            x, y = self.value(row, "x"), self.value(row, "y")
            if x is None or y is None:
                continue
            mapped = "shape" in self.encoding
            shape = _mapped(self.encoding["shape"], row) if mapped else self.mark.get("shape", "circle")
            filled = bool(row[test[1]]) if test else self.mark.get("filled", True)
            groups.setdefault((self.color(row), shape, filled), []).append((x, y))
        for (shade, shape, filled), places in groups.items():
            axes.scatter(
                [x for x, _ in places],
                [y for _, y in places],
                s=self.mark.get("size", 40) * 0.28,
                marker=_MARKERS[shape],
                facecolors=shade if filled else self.shades["paper"],
                edgecolors=shade,
                linewidths=0.7,
                alpha=self.mark.get("opacity", 1.0),
                zorder=3,
            )

    def _lines(self, axes: Axes) -> None:
        groups: dict[tuple[Any, ...], Rows] = {}
        keys = [c for c in ("color", "detail", "strokeDash") if "field" in self.encoding.get(c, {})]
        for row in self.rows:
            groups.setdefault(tuple(row.get(self.encoding[c]["field"]) for c in keys), []).append(row)
        for rows in groups.values():
            rows = sorted(rows, key=lambda row: self.value(row, "x"))
            dashes = (
                _mapped(self.encoding["strokeDash"], rows[0]) if "strokeDash" in self.encoding else [1, 0]
            )
            axes.plot(
                [self.value(row, "x") for row in rows],
                [self.value(row, "y") for row in rows],
                color=self.color(rows[0]),
                linewidth=0.7 * self.mark.get("strokeWidth", 1.5),
                linestyle="-" if dashes[1] == 0 else "--",
                alpha=self.mark.get("opacity", 1.0),
                zorder=2,
            )

    def _rules(self, axes: Axes) -> None:
        for row in self.rows:
            x, y, x2, y2 = (self.value(row, channel) for channel in ("x", "y", "x2", "y2"))
            if x is None and x2 is None and y is not None:
                axes.axhline(y, color=self.color(row), linewidth=0.7, linestyle="--", zorder=1)
                continue
            ends = ([x, x2], [y, y]) if x2 is not None else ([x, x], [y, y2])
            if None not in (*ends[0], *ends[1]):
                axes.plot(*ends, color=self.color(row), linewidth=1.0, zorder=2.5)

    def _area(self, axes: Axes) -> None:
        groups: dict[str, Rows] = {}
        for row in self.rows:
            if self.value(row, "y") is not None and self.value(row, "y2") is not None:
                groups.setdefault(self.color(row), []).append(row)
        for shade, rows in groups.items():
            rows = sorted(rows, key=lambda row: self.value(row, "x"))
            low, high = ([self.value(row, channel) for row in rows] for channel in ("y", "y2"))
            axes.fill_between([self.value(row, "x") for row in rows], low, high, color=shade, alpha=0.15)


def _filtered(rows: Rows, transforms: list[Spec]) -> Iterator[dict[str, Any]]:
    """The only transform of our charts: `datum.g === 3`."""
    tests = [re.fullmatch(r"datum\.(\w+) === (-?\d+)", step["filter"]) for step in transforms]
    for row in rows:
        if all(test is not None and row[test[1]] == int(test[2]) for test in tests):
            yield row


def _mapped(encoded: Spec, row: Spec) -> Any:
    scale = encoded["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))[row[encoded["field"]]]


def _set_axis(axes: Axes, side: str, layers: list[_Layer]) -> None:
    """Scale, limits, ticks and title of one axis, from the first layer that sets them."""
    found = [layer.encoding[side] for layer in layers]
    encoded: Spec = next((e for e in found if "field" in e and "scale" in e), found[0] if found else {})
    along = axes.xaxis if side == "x" else axes.yaxis
    along.set_label_text(encoded.get("title") or "")
    if encoded.get("type") == "nominal":
        along.set_major_locator(FixedLocator(list(range(len(encoded["sort"])))))
        along.set_major_formatter(FixedFormatter(encoded["sort"]))
        plt.setp(along.get_ticklabels(), rotation=40, ha="right", rotation_mode="anchor")
        return
    scale, axis = encoded.get("scale", {}), encoded.get("axis", {})
    if scale.get("type") == "log":
        (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    if "domain" in scale:
        (axes.set_xlim if side == "x" else axes.set_ylim)(*scale["domain"])
    if "values" in axis:
        along.set_major_locator(FixedLocator(axis["values"]))
        along.set_major_formatter(
            FixedFormatter([_tick(v, axis.get("labelExpr", "")) for v in axis["values"]])
        )
        along.set_minor_locator(NullLocator())


def _tick(value: float, expression: str) -> str:
    """A tick as the page writes it, from the expression that the page is given."""
    names: dict[str, str] = dict(re.findall(r"datum\.value == (\d+) \? '([^']*)'", expression))
    if names:
        return names.get(str(int(value)), "")
    if "~s" in expression:
        for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
            if value >= unit:
                return f"{value / unit:g}{letter}"
    if ".0e" in expression:
        return f"{value:.0e}".replace("e+", "e")
    return f"{value:g}"
