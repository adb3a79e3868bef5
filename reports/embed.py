"""What a page carries inside itself: chart data, the Vega bundle, our scripts; and its templates."""

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import altair as alt
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from reports import numbers
from reports.figures.charts import CONFIG, Figure
from reports.palette import arch_color, arch_label


def vega(drawn: Iterable[Figure]) -> dict[str, Any]:
    """Chart specifications by the id of their element. Altair names data by content, so equal data merge."""
    charts: dict[str, Any] = {}
    datasets: dict[str, Any] = {}
    for figure in drawn:
        for i, panel in enumerate(figure.panels):
            spec = panel.chart.to_dict(validate=False)
            spec["width"] = "container"
            datasets |= spec.pop("datasets", {})
            for key in ("$schema", "config", "usermeta"):
                spec.pop(key, None)
            charts[f"{figure.key}-{i}"] = spec
    return {"config": CONFIG, "datasets": datasets, "charts": charts}


def script_json(value: object) -> Markup:
    """JSON that cannot end its script element or open another, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Plain text: unpacking it would take a stream, which
    printers and screenshots do not wait for."""
    import vl_convert  # large, and of no use to a machine that only trains

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    if "</script" in bundle.lower():
        raise RuntimeError("the Vega bundle holds a closing script tag and cannot be inlined")
    return bundle


def script(name: str) -> Markup:
    """One of our own scripts, to be written into the page."""
    return Markup(files("reports").joinpath(f"templates/{name}.js").read_text(encoding="utf-8"))


@cache
def template(name: str) -> Any:
    """A page's template; those of the study may use the parts of the report's."""
    loaders = (PackageLoader("reports"), PackageLoader("reports.study"))
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(arch_color=arch_color, arch_label=arch_label, numbers=numbers)
    return environment.get_template(name)
