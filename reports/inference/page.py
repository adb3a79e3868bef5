"""The page of an inference benchmark: one self-contained HTML file, the same bytes for the same input."""

from collections.abc import Mapping
from itertools import chain

import numpy as np
import polars as pl
from markupsafe import Markup

from reports import numbers
from reports.cells import compact
from reports.embed import script, script_json, template, vega, vega_bundle
from reports.figures import Figure
from reports.inference import figures, tables
from reports.palette import arch_label, arch_order, css_variables
from reports.provenance import Provenance
from sweeps.inference.analysis import InferenceAnalysis
from sweeps.inference.crossover import Crossover
from sweeps.inference.runtime import Kind


def render(analysis: InferenceAnalysis, provenance: Provenance) -> str:
    """The page as HTML."""
    head, *rest = sentences(analysis)
    drawn = _draw(analysis)
    makers = (tables.errors, tables.rates, tables.crossovers, tables.costs, tables.measurements)
    made = {make.__name__: compact(table) if (table := make(analysis)).rows else None for make in makers}
    return str(
        template("inference.html.j2").render(
            name=provenance.sweep,
            created=provenance.created_at,
            headline=head,
            sentences=rest,
            notes=analysis.notes,
            figures=drawn,
            tables=made,
            archs=arch_order(analysis.archs),
            facts=_facts(analysis, provenance),
            spec=provenance.spec_yaml,
            figure_data=script_json(vega(chain.from_iterable(drawn.values()))),
            light=Markup(css_variables(1, dark=False)),
            dark=Markup(css_variables(1, dark=True)),
            vega=Markup(vega_bundle()),
            scripts={name: script(name) for name in ("controls", "tables", "figures")},
        )
    )


def sentences(analysis: InferenceAnalysis) -> list[str]:
    """The answer: what it costs together where that is known, what is faster, and how far to trust it."""
    said = [*_cost_sentences(analysis)]
    for kind in ("step_time", "ttft"):
        said += _faster(analysis, kind)
    if np.isfinite(analysis.held_out_error):
        said.append(
            f"The runtime models predict points that they did not see within"
            f" {100 * analysis.held_out_error:.1f} % (median)."
        )
    return said or ["The points do not support a runtime model."]


def _cost_sentences(analysis: InferenceAnalysis) -> list[str]:
    """At the lowest loss that both reach."""
    load = analysis.load
    if not analysis.cheaper or load is None:
        return []
    last = min(analysis.cheaper, key=lambda found: found.loss)
    ratio, better, other = numbers.times(last.ratio.value), arch_label(last.better), arch_label(last.other)
    interval = f"{numbers.level(last.ratio)} interval {numbers.span(last.ratio, numbers.ratio)}"
    work = (
        f"To reach a loss of {numbers.loss(last.loss)} and write {numbers.count(load.tokens)} tokens,"
        f" {load.generated_length:,} after each prompt of {load.prompt_length:,}, the {other} takes {ratio}"
        f" times the device time ({interval})"
    )
    if not last.decided:
        return [f"Trained and served, {better} and {other} cost about the same.", f"{work}: undecided."]
    return [f"Trained and served, the {better} costs less than the {other}.", f"{work}."]


def _faster(analysis: InferenceAnalysis, kind: Kind) -> list[str]:
    """Of the largest size, one sequence."""
    found = [c for c in analysis.crossovers if c.kind == kind]
    if not found:
        return []
    size = found[-1].size
    one = min((c for c in found if c.size == size), key=lambda c: c.batch_size)
    what = "reaches its first token" if kind == "ttft" else "decodes a token"
    span = tables.length_span(one)
    interval = f" ({numbers.level(one.length)} interval {span})" if span else ""
    many = f"{one.batch_size} sequences" if one.batch_size > 1 else "one sequence"
    lead = f"With {size} parameters and {many}, the {arch_label(one.challenger)} {what} sooner than the"
    return [f"{lead} {arch_label(one.other)} {tables.verdict(one)}{interval}{_outside(one)}."]


def _outside(found: Crossover) -> str:
    return "" if found.verdict != "crosses" or found.within_data else ", beyond what was measured"


def _draw(analysis: InferenceAnalysis) -> dict[str, list[Figure]]:
    groups: dict[str, list[Figure | None]] = {
        "costs": [figures.costs(analysis)],
        "times": [figures.times(analysis, "ttft"), figures.times(analysis, "step_time")],
        "serving": [figures.throughput(analysis), figures.memory(analysis)],
        "models": [figures.held_out(analysis)],
    }
    return {name: [f for f in found if f is not None] for name, found in groups.items()}


def _facts(analysis: InferenceAnalysis, provenance: Provenance) -> Mapping[str, str]:
    table, limits = analysis.table, analysis.limits
    finished = table.filter(pl.col("status") == "finished")
    decodes = [str(name) for name in finished["decode"].drop_nulls().unique().sort()]
    measured_with = [f"torch {version}" for version in finished["torch"].drop_nulls().unique().sort()]
    facts = {
        "Source": provenance.source,
        "Device": provenance.device or "not known",
        "Points": f"{finished.height} of {table.height} measured",
        "Storage": _storage(table),
        "Decoding": ", ".join(decodes),
        "Measured with": ", ".join(measured_with),
        "Fitted with": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        "Revision": provenance.git_revision or "",
        "Make it again": provenance.regenerate or "",
    }
    if limits:
        facts["Device at its best"] = (
            f"copies {numbers.rate(limits.get('copy_bytes_per_s'), 'B/s')}, multiplies matrices at"
            f" {numbers.rate(limits.get('matmul_flops_per_s'), 'FLOP/s')} (measured)"
        )
    return {name: text for name, text in facts.items() if text}


def _storage(table: pl.DataFrame) -> str:
    kinds = table.select("dtype", "state_dtype").unique().sort("dtype", "state_dtype")
    return ", ".join(f"{dtype} weights, {state} state" for dtype, state in kinds.iter_rows())
