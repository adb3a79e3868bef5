"""A figure as a file, for papers and pages that run no script."""

import json
import re
from pathlib import Path

import altair as alt

from reports.figures.charts import CONFIG, Figure
from reports.palette import colors

_WIDTH = 380
_FONT = "Inter, Helvetica Neue, Arial, sans-serif"


def save(figure: Figure, path: Path, *, dark: bool = False) -> Path:
    """Writes the panels side by side as SVG or PNG, by the suffix of `path`.

    Raises `ValueError` for another suffix.
    """
    import vl_convert  # large, and of no use to a machine that only trains

    text = _static(figure, dark=dark)
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(text), encoding="utf-8")
    elif path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(text, scale=2))
    else:
        raise ValueError(f"{path}: a figure is written as .svg or .png")
    return path


def _static(figure: Figure, *, dark: bool) -> str:
    """The specification with the page's colours put in by value: outside a page there are no variables."""
    panels = [p.chart.properties(width=_WIDTH, title=p.title) for p in figure.panels]
    spec = alt.hconcat(*panels).to_dict()
    n_budgets = sum(entry.color.startswith("var(--budget") for entry in figure.legend)
    values = colors(n_budgets, dark=dark)
    spec["config"] = CONFIG | {"background": values["paper"], "font": _FONT, "padding": 16}
    spec["config"]["title"] = {"color": values["ink"], "anchor": "start", "fontSize": 14}
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda m: values.get(m[1], values["muted"]), json.dumps(spec))
