"""The study as one self-contained HTML page: readable without a network, the same bytes for the same
study."""

from itertools import chain

from markupsafe import Markup

from reports import figures as general
from reports.cells import Table, compact
from reports.embed import script, script_json, template, vega, vega_bundle
from reports.figures import Figure
from reports.numbers import has_interval
from reports.palette import css_variables
from reports.provenance import Provenance
from reports.study import figures, runtime_figures, tables, verdict_tables
from reports.study.forms import form_of
from reports.study.verdict_tables import VERDICTS
from reports.study.view import study_view
from sweeps.study import Study
from sweeps.study.conclusions import conclusions
from sweeps.study.errata import errata
from sweeps.study.inference import paper_measurements
from sweeps.study.reproduction import Row, reproduction
from sweeps.study.statements import Statement
from sweeps.study.study import MOST_RESAMPLES

TITLE = "xLSTM Scaling Laws"
BADGES = {
    "supported": "good",
    "partly": "warning",
    "consistent": "warning",
    "undecided": "warning",
    "contradicted": "error",
    "absent": "",
}
"""The colour of a verdict."""


def render(study: Study, provenance: Provenance) -> str:
    """The page."""
    rows, statements, mistakes = reproduction(study), conclusions(study), errata(study)
    drawn = draw(study, provenance)
    n_budgets = max(len({b for c in study.curves for b in c.budgets}), len(figures.ratios_of(study)), 1)
    return str(
        template("study.html.j2").render(
            title=TITLE,
            provenance=provenance,
            headline=headline(rows),
            lead=lead(rows, statements),
            statements=[
                (
                    s,
                    (BADGES[s.verdict], VERDICTS[s.verdict]),
                    spread(s),
                    _filled(verdict_tables.evidence(s)),
                )
                for s in statements
            ],
            mistakes=[(m, _filled(verdict_tables.erratum(m))) for m in mistakes],
            figures=drawn,
            tables=made_tables(study, rows, statements),
            facts=facts(study, provenance),
            level=f"{study.settings.level:.0%}",
            figure_data=script_json(vega(chain.from_iterable(drawn.values()))),
            light=Markup(css_variables(n_budgets, dark=False)),
            dark=Markup(css_variables(n_budgets, dark=True)),
            vega=Markup(vega_bundle()),
            scripts={name: script(name) for name in ("controls", "tables", "figures")},
        )
    )


def draw(study: Study, provenance: Provenance) -> dict[str, list[Figure]]:
    """Figures by section; a section without data has an empty list."""
    view = study_view(study, provenance)
    made: dict[str, list[Figure | None]] = {
        "isoflop": [general.isoflop(view, context) for context in view.contexts],
        "power_laws": [general.power_laws(view, context) for context in view.contexts],
        "gaps": [figures.gaps(study)],
        "contexts": [figures.contexts(study)],
        "frontier": [figures.frontier(study)],
        "overtraining": [figures.overtraining(study)],
        "parametric": [figures.offsets(study), figures.grid(study)],
        "inference": [runtime_figures.times(study), runtime_figures.runtime_errors(study)],
    }
    return {name: [figure for figure in part if figure is not None] for name, part in made.items()}


def made_tables(
    study: Study, rows: tuple[Row, ...], statements: tuple[Statement, ...]
) -> dict[str, Table | None]:
    """Every table of the page by the name of its maker."""
    found = {make.__name__: _filled(make(study)) for make in tables.MAKERS}
    found |= {
        "reproduction": _filled(verdict_tables.reproduction(rows)),
        "tally": verdict_tables.tally(rows),
        "statements": verdict_tables.statements(statements),
    }
    return found


def _filled(table: Table) -> Table | None:
    return compact(table) if table.rows else None


def headline(rows: tuple[Row, ...]) -> str:
    """What came out, in a sentence."""
    count = {kind: sum(row.standing == kind for row in rows) for kind in verdict_tables.STANDINGS}
    known = len(rows) - count["absent"]
    met = known - count["differs"]
    every = "All" if met == known else f"{met} of the"
    return f"{every} {known} printed numbers that these data determine were reproduced."


def lead(rows: tuple[Row, ...], statements: tuple[Statement, ...]) -> str:
    """What "reproduced" means here, and how many conclusions stand how."""
    count = {kind: sum(row.standing == kind for row in rows) for kind in verdict_tables.STANDINGS}
    by = {kind: sum(s.verdict == kind for s in statements) for kind in BADGES}
    parts = [f"{n} {VERDICTS[kind].lower()}" for kind, n in by.items() if n]
    return (
        f"{count['reproduced']} come out as printed, {count['clean']} as the authors' method gives them"
        f" on these runs, which hold none of their 32 copies, {count['lower']} parametric fits at a lower"
        f" minimum than the printed one. {count['absent']} more need runs or curves that are not given."
        f" Of {len(statements)} conclusions: {', '.join(parts)}."
    )


def spread(statement: Statement) -> str:
    """Where the values and the ends of their intervals lie, for statements of one kind of number."""
    if not statement.evidence or not statement.quantity:
        return ""
    form = form_of(statement.evidence[0].form)
    values = [e.value for e in statement.evidence]
    middle = [v.value for v in values]
    ends = [end for v in values if has_interval(v) for end in (v.low, v.high)]
    span = f"{form(min(middle))} to {form(max(middle))}"
    return f"{statement.quantity}: {span}" + (
        f" (intervals {form(min(ends))} to {form(max(ends))})." if ends else "."
    )


def facts(study: Study, provenance: Provenance) -> list[tuple[str, str]]:
    """How the numbers came about."""
    s = study.settings
    parametric = min(s.resamples, MOST_RESAMPLES)
    known = {
        "Paper": "xLSTM Scaling Laws, arXiv:2510.02228; repository NX-AI/xlstm_scaling_laws",
        "Names": "the paper's xLSTM is the mLSTM here, its Llama the Transformer",
        "Source of the runs": provenance.source,
        "Files": str(provenance.data.get("files", "")),
        "Runs": f"{study.runs.height} finished runs of the paper's data set; {study.copies} repeat another",
        "Losses": f"{study.bounded_runs} known to an interval, the others exactly; nats per token on DCLM",
        "Measurements": f"{paper_measurements(study.inference).height} of inference"
        if study.runtimes
        else "",
        "Compute": "forward and backward by the paper's formulas, causal half of the attention, embeddings"
        " in N",
        "Intervals": f"{s.level:.0%}, {s.resamples} resamples, seed {s.seed}",
        "Resamples of L(N, D)": f"{parametric} of each parametric fit" if study.intervals else "",
        "Parametric fits": f"{len(study.fits)} cells of the authors' grid",
        "Made": provenance.created_at,
        "Git revision": provenance.git_revision or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        "Make it again": provenance.regenerate or "",
    }
    return [(name, value) for name, value in known.items() if value]


def summary(study: Study) -> list[str]:
    """A few lines for a terminal: the headline and every conclusion."""
    rows = reproduction(study)
    return [
        headline(rows),
        *(f"{VERDICTS[s.verdict].lower()}: {s.claim}" for s in conclusions(study)),
    ]
