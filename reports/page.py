"""One self-contained HTML page: no network, no files beside it, the same bytes for the same input."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from reports import figures, numbers, tables
from reports.answer import answer
from reports.cells import Table, compact
from reports.figures import CONFIG, Figure
from reports.notices import notices
from reports.palette import arch_color, arch_label, css_variables
from reports.provenance import Provenance
from reports.view import View, finished, make_view
from sweeps.laws.types import Analysis


def render(runs: pl.DataFrame, analysis: Analysis, provenance: Provenance) -> str:
    """The report as HTML.

    Raises `ValueError` where the run table lacks a column that identifies a run.
    """
    view = make_view(runs, analysis, provenance)
    drawn = draw(view)
    return _template().render(
        view=view,
        provenance=provenance,
        made=_date(provenance.created_at),
        answer=answer(view),
        notices=notices(view),
        figures=drawn,
        figure_data=_script_json(_vega(chain.from_iterable(drawn.values()))),
        tables=_tables(view),
        diagnostics=[(view.label(g), tables.diagnostics(g)) for g in view.groups],
        facts=facts(view),
        data_facts=data_facts(provenance),
        light=Markup(css_variables(len(view.budgets), dark=False)),
        dark=Markup(css_variables(len(view.budgets), dark=True)),
        vega=Markup(_vega_bundle()),
    )


def write(path: Path, runs: pl.DataFrame, analysis: Analysis, provenance: Provenance) -> Path:
    """Renders into `path`: written beside it and renamed, so that a reader never meets half a report."""
    page = render(runs, analysis, provenance)
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


def facts(view: View) -> list[tuple[str, str]]:
    """How the numbers came about, as names and values; what is not known is left out."""
    made = view.provenance
    seeds = sorted(set(view.runs["seed"].drop_nulls().to_list()))
    done = view.runs.filter(finished())
    trained = float(done["train_flops"].sum()) if made.train_flops is None else made.train_flops
    devices = sorted(set(view.runs["device"].drop_nulls().to_list()))
    known = {
        "Sweep": made.sweep,
        "Made": made.created_at,
        "Source of the runs": made.source,
        "Runs": f"{done.height} finished of {view.runs.height}",
        "Training compute": f"{numbers.flops(trained)} FLOPs in all finished runs",
        "Wall time": numbers.duration(made.wall_time_s) if made.wall_time_s is not None else "",
        "Device": made.device or ", ".join(devices),
        "Seeds": ", ".join(map(str, seeds)),
        "Git revision": made.git_revision or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
        "Make it again": made.regenerate or "",
    }
    return [(name, value) for name, value in known.items() if value]


def data_facts(provenance: Provenance) -> list[tuple[str, str]]:
    """What the runs read; keys that are not known here are listed as they are."""
    forms = {"bytes": numbers.size, "train_tokens": numbers.count, "val_tokens": numbers.count}
    names = {
        "name": "Corpus",
        "hash": "Content hash",
        "train_tokens": "Training tokens",
        "val_tokens": "Validation tokens",
        "unigram_loss": f"Unigram loss ({_unit(provenance)})",
        "bytes_per_token": "Bytes a token",
        "vocab_size": "Vocabulary",
    }
    return [
        (names.get(key, key.replace("_", " ").capitalize()), _datum(value, forms.get(key)))
        for key, value in provenance.data.items()
        if value is not None
    ]


def _unit(provenance: Provenance) -> str:
    return "nats per byte" if provenance.data.get("tokenizer") == "bytes" else "nats per token"


def _datum(value: object, form: Any) -> str:
    if form is not None and isinstance(value, int | float):
        return f"{form(float(value))} ({value:,})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_datum(entry, None)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_datum(entry, None) for entry in value)
    return numbers.plain(value)


def draw(view: View) -> dict[str, list[Figure]]:
    """Figures by section; a section without figures has an empty list."""
    return {
        "isoflop": [figures.isoflop(view, context) for context in view.contexts],
        "power_laws": _present(figures.power_laws(view, context) for context in view.contexts),
        "contexts": _present([figures.contexts(view)]),
        "comparison": _present([figures.comparison(view)]),
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
        tables.runs,
        tables.failed_runs,
        tables.settings,
    )
    return {make.__name__: compact(table) if (table := make(view)).rows else None for make in makers}


def _vega(drawn: Iterable[Figure]) -> dict[str, Any]:
    """Chart specifications by the id of their element. Altair names data by content, so equal data merge."""
    charts: dict[str, Any] = {}
    datasets: dict[str, Any] = {}
    for figure in drawn:
        for i, panel in enumerate(figure.panels):
            spec = panel.chart.properties(width="container").to_dict()
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
