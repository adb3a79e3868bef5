"""One self-contained HTML page: no network, no files beside it, the same bytes for the same input."""

import json
import os
import tempfile
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from reports import figures, numbers, run_tables, tables
from reports.answer import answer
from reports.cells import Table, compact
from reports.facts import conditions, data_facts, facts
from reports.figures import CONFIG, Figure
from reports.notices import notices
from reports.palette import arch_color, arch_label, css_variables
from reports.provenance import Provenance
from reports.view import View, make_view
from reports.whatif import what_if
from sweeps.laws.types import Analysis


def render(
    runs: pl.DataFrame,
    analysis: Analysis,
    provenance: Provenance,
    *,
    curves: pl.DataFrame | None = None,
) -> str:
    """The report as HTML. `curves` holds training histories: run_key, D (tokens seen), loss.

    Raises `ValueError` where the run table lacks a column that identifies a run.
    """
    view = make_view(runs, analysis, provenance, curves)
    drawn = draw(view)
    panel = what_if(view)
    return _template().render(
        view=view,
        provenance=provenance,
        made=_date(provenance.created_at),
        answer=answer(view),
        notices=notices(view),
        figures=drawn,
        figure_data=_script_json(_vega(chain.from_iterable(drawn.values()))),
        tables=_tables(view),
        conditions=conditions(view),
        linked=view.runs["url"].count() > 0,
        what_if=panel,
        level=f"{100 * view.level:.3g}%" if view.analysis.settings.get("resamples") else "",
        what_if_data=_script_json(panel),
        diagnostics=[(view.label(g), tables.diagnostics(g)) for g in view.groups],
        facts=facts(view),
        data_facts=data_facts(provenance),
        light=Markup(css_variables(len(view.budgets), dark=False)),
        dark=Markup(css_variables(len(view.budgets), dark=True)),
        vega=Markup(_vega_bundle()),
        scripts={name: _script(name) for name in _SCRIPTS},
    )


def write(
    path: Path,
    runs: pl.DataFrame,
    analysis: Analysis,
    provenance: Provenance,
    *,
    curves: pl.DataFrame | None = None,
) -> Path:
    """Renders into `path`: written beside it and renamed, so that a reader never meets half a report."""
    page = render(runs, analysis, provenance, curves=curves)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _date(text: str) -> str:
    """`24 Nov 2026, 05:30 UTC`; a text that is no ISO date as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%-d %b %Y, %H:%M} {moment.tzname() or ''}".strip()


def draw(view: View) -> dict[str, list[Figure]]:
    """Figures by section; a section without figures has an empty list."""
    return {
        "isoflop": [figures.isoflop(view, context) for context in view.contexts],
        "frontier": _present(figures.frontier(view, context) for context in view.contexts),
        "power_laws": _present(figures.power_laws(view, context) for context in view.contexts),
        "contexts": _present([figures.contexts(view)]),
        "comparison": _present([figures.comparison(view)]),
        "contours": _present(figures.contours(view, context) for context in view.contexts),
        "decode": _present(figures.decode_costs(view, context) for context in view.contexts[-1:]),
        "curves": _present(figures.curves(view, context) for context in view.contexts),
        "surface": _present(figures.surface(view, context) for context in view.contexts),
        "baseline": _present([figures.baseline(view)]),
    }


def _present(candidates: Iterable[Figure | None]) -> list[Figure]:
    return [figure for figure in candidates if figure is not None]


def _tables(view: View) -> dict[str, Table | None]:
    makers = (
        tables.predictions,
        tables.parabolas,
        tables.power_laws,
        tables.law_parameters,
        tables.fit_diagnostics,
        tables.comparisons,
        tables.context_laws,
        tables.hold_out,
        run_tables.runs,
        run_tables.failed_runs,
        run_tables.training_costs,
        tables.settings,
    )
    return {make.__name__: compact(table) if (table := make(view)).rows else None for make in makers}


def _vega(drawn: Iterable[Figure]) -> dict[str, Any]:
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


def _script_json(value: object) -> Markup:
    """JSON that cannot end its script element or open another, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Plain text: unpacking it would take a stream, which
    printers and screenshots do not wait for."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    if "</script" in bundle.lower():
        raise RuntimeError("the Vega bundle holds a closing script tag and cannot be inlined")
    return bundle


_SCRIPTS = ("controls", "figures", "tables", "format", "laws", "whatif")


def _script(name: str) -> Markup:
    """One of our own scripts, to be written into the page."""
    return Markup(files("reports").joinpath(f"templates/{name}.js").read_text(encoding="utf-8"))


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(arch_color=arch_color, arch_label=arch_label, numbers=numbers)
    return environment.get_template("report.html.j2")
