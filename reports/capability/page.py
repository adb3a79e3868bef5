"""The page of a capability suite: one self-contained HTML file, the same bytes for the same input."""

from dataclasses import dataclass

from markupsafe import Markup

from reports import numbers
from reports.capability import figures, tables
from reports.cells import Table, compact
from reports.embed import script, script_json, template, vega, vega_bundle
from reports.figures import Figure
from reports.palette import arch_label, arch_order, css_variables
from reports.provenance import Provenance
from sweeps.capability.claims import Claim, Verdict, claims
from sweeps.capability.results import Results
from sweeps.capability.spec import CapabilitySpec, Experiment
from xlstm.capability.task import Task

BADGES: dict[Verdict, str] = {
    "holds": "good",
    "partly": "warning",
    "not resolved": "warning",
    "does not hold": "error",
    "absent": "",
}
"""The colour of a verdict."""
WORDS: dict[Verdict, str] = {
    "holds": "holds here",
    "partly": "holds in part",
    "not resolved": "not resolved",
    "does not hold": "does not hold here",
    "absent": "not measured",
}
COUNTED: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds here", "hold here"),
    "partly": ("holds in part", "hold in part"),
    "not resolved": ("is not resolved", "are not resolved"),
    "does not hold": ("does not hold", "do not hold"),
}
"""Of one claim, and of several."""


def render(suite: CapabilitySpec, results: Results, provenance: Provenance) -> str:
    """The page as HTML."""
    judged = claims(suite, results)
    sections = [_section(suite, results, experiment) for experiment in suite.experiments]
    overview = figures.levels(suite, results)
    drawn = [overview] if overview else []
    drawn += [figure for section in sections for figure in section.figures]
    return str(
        template("capability.html.j2").render(
            provenance=provenance,
            headline=headline(judged),
            sentences=sentences(judged),
            conditions=conditions(suite, results),
            claims=[(c, BADGES[c.verdict], _filled(tables.evidence(c))) for c in judged],
            overview=overview,
            sections=sections,
            models=_filled(tables.models(suite, results)),
            failed=_filled(tables.failed(results)),
            archs=arch_order(suite.archs),
            level=f"{100 * suite.level:.3g}%",
            facts=_facts(results, provenance),
            spec=provenance.spec_yaml,
            figure_data=script_json(vega(drawn)),
            light=Markup(css_variables(1, dark=False)),
            dark=Markup(css_variables(1, dark=True)),
            vega=Markup(vega_bundle()),
            scripts={name: script(name) for name in ("controls", "tables", "figures")},
        )
    )


def headline(judged: tuple[Claim, ...]) -> str:
    """How the claims stand, in a sentence."""
    known = [claim for claim in judged if claim.verdict != "absent"]
    if not known:
        return "Nothing was measured that a claim could be held against."
    counts = {verdict: sum(c.verdict == verdict for c in known) for verdict in COUNTED}
    told = [f"{n} {COUNTED[verdict][n > 1]}" for verdict, n in counts.items() if n]
    return f"Of {len(known)} claims about the xLSTM, {_listed(told)}."


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentences(judged: tuple[Claim, ...]) -> list[str]:
    """A line a claim: for the page's head, the flow's last word and MLflow."""
    return [f"{claim.text}: {WORDS[claim.verdict]}." for claim in judged]


def conditions(suite: CapabilitySpec, results: Results) -> str:
    """What the answer holds for."""
    sizes = sorted({o.N for o in results.outcomes if o.is_finished})
    if not sizes:
        return ""
    seeds = sorted({len(e.seeds) for e in suite.experiments})
    span = f"{numbers.count(sizes[0])} to {numbers.count(sizes[-1])}"
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"Holds for what was trained here: models of {span} parameters, {count} seeds, short trainings."
        f" Verdicts rest on {100 * suite.level:.3g}% intervals of mean differences over seeds; an interval"
        " that holds no difference decides nothing."
    )


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, on one experiment."""

    key: str
    title: str = ""
    asks: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def _section(suite: CapabilitySpec, results: Results, experiment: Experiment) -> Section:
    """What was asked, figures, tables; empty where no run is finished."""
    name, task = experiment.name, experiment.task
    if not results.archs(name):
        return Section(key=name)
    if isinstance(task, Task):
        kind = figures.kind_of(task)
        return Section(
            key=name,
            title=figures.TITLES[kind][0],
            asks=ASKS[kind],
            tables=(compact(tables.accuracies(experiment, results)),),
        )
    drawn = (figures.positions(suite, results, experiment), figures.domains(suite, results, experiment))
    return Section(
        key=name,
        title="Real text: beyond the trained length, and by domain",
        asks=ASKS["text"],
        figures=tuple(figure for figure in drawn if figure is not None),
        tables=(compact(tables.rises(experiment, results)), compact(tables.winners(experiment, results))),
    )


ASKS = {
    "parity": (
        "After every bit: has the string so far an odd number of ones? A regular language; a state has to be"
        " kept exactly, however long the string. After arXiv:2207.02098 and 2405.04517."
    ),
    "modular": (
        "After every number: what is the expression so far, modulo m? A regular language with more states, *"
        " before + and -. After arXiv:2207.02098 and 2405.04517."
    ),
    "search": (
        "A query comes first, then items of a key and a value; asked is the value of the nearest key so far."
        " Measured where a stored value had to be revised and then kept. After arXiv:2405.04517."
    ),
    "recall": (
        "Pairs of a key and a value, then keys again, each asked for its value: how many pairs fit the"
        " memory? After arXiv:2312.04927 and 2405.04517."
    ),
    "text": (
        "Bytes of several kinds of installed text, in equal parts. Held-out windows of every kind at the"
        " trained length, and of all kinds far beyond it. After arXiv:2405.04517."
    ),
}


def _filled(table: Table) -> Table | None:
    return compact(table) if table.rows else None


def _facts(results: Results, provenance: Provenance) -> list[tuple[str, str]]:
    """How the numbers came about."""
    finished = [o for o in results.outcomes if o.is_finished]
    took = sum(o.wall_time_s or 0.0 for o in finished)
    known = {
        "Suite": provenance.sweep,
        "Made": provenance.created_at,
        "Source of the runs": provenance.source,
        "Runs": f"{len(finished)} finished of {len(results.outcomes)}",
        "Architectures": ", ".join(arch_label(a) for a in dict.fromkeys(o.arch for o in finished)),
        "Training time": f"{numbers.duration(took)}, summed over all finished runs" if took else "",
        "Wall time": (
            ""
            if provenance.wall_time_s is None
            else f"{numbers.duration(provenance.wall_time_s)} from the start to this report"
        ),
        "Device": provenance.device or "",
        **{f"Text: {name}": str(value) for name, value in provenance.data.items()},
        "Git revision": provenance.git_revision or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        "Make it again": provenance.regenerate or "",
    }
    return [(name, value) for name, value in known.items() if value]
