"""One self-contained HTML page: no network, no files beside it, the same bytes for the same input."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path

import polars as pl
from markupsafe import Markup

from reports import figures, run_tables, tables
from reports.answer import answer
from reports.cells import Table, compact
from reports.embed import script, script_json, template, vega, vega_bundle
from reports.facts import conditions, data_facts, facts
from reports.figures import Figure
from reports.notices import notices
from reports.palette import css_variables
from reports.predicted import predicted_runs, verdicts
from reports.provenance import Provenance
from reports.view import View, make_view
from reports.whatif import what_if
from sweeps.laws.types import Analysis
from sweeps.predicted import Outcome


def render(
    runs: pl.DataFrame,
    analysis: Analysis,
    provenance: Provenance,
    *,
    curves: pl.DataFrame | None = None,
    predicted: Sequence[Outcome] = (),
) -> str:
    """The report as HTML. `curves` holds training histories: run_key, D (tokens seen), loss.

    Raises `ValueError` where the run table lacks a column that identifies a run.
    """
    view = make_view(runs, analysis, provenance, curves, predicted)
    drawn = draw(view)
    panel = what_if(view)
    return template("report.html.j2").render(
        view=view,
        provenance=provenance,
        made=_date(provenance.created_at),
        answer=answer(view),
        verdicts=verdicts(view),
        notices=notices(view),
        figures=drawn,
        figure_data=script_json(vega(chain.from_iterable(drawn.values()))),
        tables=_tables(view),
        conditions=conditions(view),
        linked=view.runs["url"].count() > 0,
        what_if=panel,
        level=f"{100 * view.level:.3g}%" if view.analysis.settings.get("resamples") else "",
        what_if_data=script_json(panel),
        diagnostics=[(view.label(g), tables.diagnostics(g)) for g in view.groups],
        facts=facts(view),
        data_facts=data_facts(provenance),
        light=Markup(css_variables(len(view.budgets), dark=False)),
        dark=Markup(css_variables(len(view.budgets), dark=True)),
        vega=Markup(vega_bundle()),
        scripts={name: script(name) for name in _SCRIPTS},
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
        predicted_runs,
        tables.hold_out,
        run_tables.runs,
        run_tables.failed_runs,
        run_tables.training_costs,
        tables.settings,
    )
    return {make.__name__: compact(table) if (table := make(view)).rows else None for make in makers}


_SCRIPTS = ("controls", "figures", "tables", "format", "laws", "whatif")
