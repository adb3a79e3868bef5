"""Results as text for a terminal: aligned columns, every number with its interval, flags at the end."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

import numpy as np

from sweeps.laws.planning import GroupQuality, PlanQuality
from sweeps.laws.types import Analysis, Estimate, Flag, GroupAnalysis, LawFit, Parabola
from sweeps.laws.words import fit_sentences, group_sentences

_SYMBOLS = {"N": "N*", "D": "D*", "loss": "L*"}
_MARKS = {"error": "ERROR", "warning": "warning", "info": "note"}


def describe(result: Analysis | LawFit) -> str:
    """A readable account of an analysis or of one fit, without a trailing line break."""
    lines = _analysis(result) if isinstance(result, Analysis) else _law(result)
    return "\n".join(lines)


def describe_plan(quality: PlanQuality) -> str:
    """What a plan can be expected to tell, without a trailing line break."""
    level, target = quality.assumptions["level"], quality.assumptions["target"]
    head = f"N* at {target:.3g} FLOPs"
    titles = ("", "a", "by the law", "bias of a", head, "by the law", "bias")
    rows = [titles, *(_plan_row(group) for group in quality.groups)]
    noise, surface = quality.assumptions["noise of ln L"], quality.assumptions["surface"]
    lines = [
        f"Expected {level:.0%} intervals through the parabolas, if ln L is noisy by {noise:g}",
        *aligned(rows),
    ]
    outlook = [line for group in quality.groups for line in _plan_outlook(group)]
    return "\n".join([*lines, f"assumed surface: {surface}", *outlook, *_flags(quality.flags)])


def _plan_outlook(group: GroupQuality) -> Iterator[str]:
    """The runs worth adding, and where earlier vertices want later budgets."""
    name = f"{group.arch}, context {group.context_length}"
    if group.proposals:
        first, last = group.proposals[0], group.proposals[-1]
        runs = ", ".join(f"N {run.N:.3g} on D {run.D:.3g}" for run in group.proposals)
        flops = sum(run.train_flops for run in group.proposals)
        yield (
            f"{name}: most for their FLOPs beside the plan: {runs} ({flops:.3g} FLOPs together); the law's"
            f" standard error of ln N* falls from {first.error_before:.3f} to {last.error_after:.3f}"
        )
    for centre in group.centres:
        yield (
            f"{name}: the finished budgets put N* at {centre.budget:.3g} FLOPs near {centre.N_expected:.3g};"
            f" its sizes are centred on {centre.N_planned:.3g}"
        )


def _plan_row(group: GroupQuality) -> tuple[str, ...]:
    return (
        f"{group.arch}, context {group.context_length}",
        f"+-{group.exponent_half_width:.2g}",
        f"+-{group.exponent_half_width_law:.2g}",
        f"{group.exponent_bias:+.2g}",
        f"x/ {group.N_target_factor:.3g}",
        f"x/ {group.N_target_factor_law:.3g}",
        f"{group.N_target_bias:+.1%}",
    )


def aligned(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> Iterator[str]:
    """Rows of cells in columns, the first to the left and the others to the right."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield (indent + "  ".join(cells)).rstrip()


def interval(estimate: Estimate, digits: int = 4) -> str:
    """`0.5139 [0.482, 0.558]`; `0.5139 [no interval]` where there is none."""
    value = f"{estimate.value:.{digits}g}"
    if not (np.isfinite(estimate.low) and np.isfinite(estimate.high)):
        return f"{value} [no interval]"
    return f"{value} [{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"


def _analysis(analysis: Analysis) -> Iterator[str]:
    for group in analysis.groups:
        yield from _group(group)
        yield ""
    if analysis.comparisons:
        yield "Comparison"
        yield from aligned(list(_comparison_rows(analysis)))
        yield ""
    if analysis.context_laws:
        yield "Optima against context length, x* ~ T^c"
        rows = [
            (law.arch, f"{law.budget:.3g} FLOPs", _SYMBOLS[law.quantity], interval(law.exponent, 3))
            for law in analysis.context_laws
        ]
        yield from aligned(rows)
        yield ""
    yield f"Intervals hold {analysis.settings.get('level', 0.95):.0%} of the resamples."
    yield from _flags(analysis.flags)


def _comparison_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    yield "context", "FLOPs", "better", "than", "by (nats)", "worth (x FLOPs)", ""
    for found in analysis.comparisons:
        yield (
            str(found.context_length),
            f"{found.budget:.3g}",
            found.better,
            found.other,
            interval(found.loss_difference, 3),
            interval(found.compute_ratio, 3),
            "" if found.decided else "undecided",
        )


def _group(group: GroupAnalysis) -> Iterator[str]:
    yield f"{group.arch}, context {group.context_length}, {group.n_runs} runs"
    if group.parabolas:
        yield "  IsoFLOP parabolas"
        yield from aligned(list(_parabola_rows(group.parabolas)), indent="    ")
        warnings = (flag for p in group.parabolas for flag in p.flags if flag.severity != "error")
        yield from (f"    {line}" for line in _flags(warnings))
    if group.power_laws:
        yield "  Power laws"
        yield from aligned(list(_power_law_rows(group)), indent="    ")
        flags = (flag for law in group.power_laws.values() for flag in law.flags)
        yield from (f"    {line}" for line in _flags(flags))
    for fit in group.parametric:
        yield from (f"  {line}" for line in _law(fit))
    if group.optima:
        yield "  Optima"
        yield from aligned(list(_optimum_rows(group)), indent="    ")
    if sentences := list(group_sentences(group)):
        yield "  Checks and outlook"
        yield from (line for sentence in sentences for line in _wrapped(sentence, "    "))
    yield from (f"  {line}" for line in _flags(group.flags))


def _wrapped(sentence: str, indent: str) -> list[str]:
    """A sentence on lines of 110 characters, the later ones indented further."""
    return wrap(sentence, 110, initial_indent=indent, subsequent_indent=indent + "  ")


def _power_law_rows(group: GroupAnalysis) -> Iterator[tuple[str, ...]]:
    for name, law in group.power_laws.items():
        offset = f" - {law.offset:.4g}" if law.offset else ""
        other = law.from_residuals
        line = f"line alone [{other.low:.4g}, {other.high:.4g}]" if other else ""
        yield f"{_SYMBOLS[name]}{offset}", f"~ C^{interval(law.exponent)}", line


def _parabola_rows(parabolas: Iterable[Parabola]) -> Iterator[tuple[str, ...]]:
    yield "FLOPs", "runs", "N*", "D*", "L*", "bias of ln N*", ""
    for parabola in parabolas:
        yield (
            f"{parabola.budget:.3g}",
            str(parabola.n_points),
            interval(parabola.N),
            interval(parabola.D),
            interval(parabola.loss),
            f"{parabola.predicted_bias:+.3f}" if np.isfinite(parabola.predicted_bias) else "-",
            "" if parabola.usable else "not used",
        )


def _optimum_rows(group: GroupAnalysis) -> Iterator[tuple[str, ...]]:
    yield "FLOPs", "N*", "D*", "L*", "by"
    for found in group.optima:
        by = found.method.split(",")[0]
        cells = (interval(found.N), interval(found.D), interval(found.loss))
        yield f"{found.budget:.3g}", *cells, by


def _law(fit: LawFit) -> Iterator[str]:
    yield f"{fit.formula}  ({fit.law}, {fit.n_points} points)"
    yield f"  minimised: {fit.estimator}; reached {fit.objective:.10g}"
    values = {**fit.params, **fit.derived}
    rows = [(name, interval(value, 6), _clustered(fit, name)) for name, value in values.items()]
    yield from aligned(rows, indent="  ")
    yield from (f"  {line}" for line in fit_sentences(fit))
    yield from (f"  {line}" for line in _flags(fit.flags))


def _clustered(fit: LawFit, name: str) -> str:
    if name not in fit.clustered:
        return ""
    other = fit.clustered[name]
    return f"clustered [{other.low:.6g}, {other.high:.6g}]"


def _flags(flags: Iterable[Flag]) -> Iterator[str]:
    for flag in flags:
        yield f"{_MARKS[flag.severity]}: {flag.message} ({flag.code})"
