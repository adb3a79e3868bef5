"""The report's tables: predictions, fits, comparisons, runs and the checks of the fits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from reports import numbers
from reports.answer import decided
from reports.cells import (
    Cell,
    Column,
    Table,
    as_rows,
    compact,
    estimate,
    generic,
    generic_table,
    integer,
    left,
    number,
    right,
    spoken,
    yes,
)
from reports.palette import arch_label
from reports.view import View
from sweeps.laws.types import ContextLaw, GroupAnalysis, LawFit
from xlstm.arch_names import arch_slug


def group_columns(view: View) -> tuple[Column, ...]:
    """Columns that name a group. The context length has a column only where there are several."""
    return left("Architecture") + (right("Context") if len(view.contexts) > 1 else ())


def group_cells(view: View, arch: str | None, context_length: int | None) -> tuple[Cell, ...]:
    """The cells under `group_columns`; the row goes with its architecture and context length."""
    name = Cell(arch_label(arch or ""), owner=("arch", arch or ""))
    if len(view.contexts) < 2:
        return (name,)
    return name, context_cell(context_length)


def context_cell(context_length: int | None) -> Cell:
    """The context length that a row goes with."""
    return replace(integer(context_length), owner=("context", context_length or 0))


def _of(view: View, group: GroupAnalysis) -> tuple[Cell, ...]:
    return group_cells(view, group.arch, group.context_length)


def predictions(view: View) -> Table:
    """N*, D* and L* at every budget, by every method."""
    rows = [
        (
            number(o.budget, numbers.flops),
            *_of(view, group),
            *estimate(o.N, numbers.count),
            *estimate(o.D, numbers.count),
            number(o.D.value / o.N.value, numbers.ratio),
            *estimate(o.loss, numbers.loss),
            Cell(view.method_label(o)),
            Cell(f"{numbers.ratio(o.extrapolation)} x" if o.is_extrapolated else "no", o.extrapolation),
        )
        for group in view.groups
        for o in sorted(group.optima, key=lambda o: -o.budget)
    ]
    return Table(
        key="predictions",
        caption=(
            "The optimum at every budget of the grid and at every target, by every method that gives one; at"
            " each budget the first is the one to trust."
        ),
        columns=(
            *right("Budget"),
            *group_columns(view),
            *right("N*", "interval", "D*", "interval", "D*/N*", "L*", "interval"),
            *left("Method", "Extrapolated"),
        ),
        rows=tuple(rows),
    )


def parabolas(view: View) -> Table:
    """The optimum of each budget's parabola."""
    rows = [
        (
            *_of(view, group),
            number(p.budget, numbers.flops),
            integer(p.n_points),
            *estimate(p.N, numbers.count),
            *estimate(p.D, numbers.count),
            *estimate(p.loss, numbers.loss),
            number(p.rms_residual, lambda v: numbers.fixed(v, 4)),
            number(p.predicted_bias, _percent),
            yes(p.usable),
        )
        for group in view.groups
        for p in group.parabolas
    ]
    return Table(
        key="parabolas",
        caption=(
            "The optimum of each parabola. Bias is the error of N* that a parabola makes on this very grid"
            " without any noise, as the fitted L(N, D) predicts it. Optima that are not used do not enter the"
            " power laws."
        ),
        columns=(
            *group_columns(view),
            *right("Budget", "Runs", "N*", "interval", "D*", "interval", "L*", "interval", "rms", "Bias"),
            *left("Used"),
        ),
        rows=tuple(rows),
    )


def _percent(log_error: float | None) -> str:
    return f"{numbers.fixed(100 * float(np.expm1(log_error)), 1)}%" if numbers.known(log_error) else ""


def power_laws(view: View) -> Table:
    """Exponents and prefactors of N*(C), D*(C), L*(C)."""
    symbols = {"N": "N*", "D": "D*", "loss": "L*"}
    rows = [
        (
            *_of(view, group),
            Cell(symbols[law.quantity]),
            *estimate(law.exponent, numbers.exact),
            number(float(np.exp(law.intercept)), numbers.exact),
            number(law.C_ref, numbers.exact),
            number(law.offset, lambda v: numbers.exact(v) if v else "0"),
            integer(law.n_budgets),
            Cell(law.exponent.method, mark="quiet"),
        )
        for group in view.groups
        for law in group.power_laws.values()
    ]
    return Table(
        key="power-laws",
        caption="Power laws of the optima: y = offset + prefactor (C / C_ref)^exponent, C in FLOPs.",
        columns=(
            *group_columns(view),
            *left("y"),
            *right("Exponent", "interval", "Prefactor", "C_ref", "Offset", "Budgets"),
            *left("Interval by"),
        ),
        rows=tuple(rows),
    )


def law_parameters(view: View) -> Table:
    """Coefficients of every fitted L(N, D)."""
    rows = [
        (
            *_of(view, group),
            Cell(fit.law),
            Cell(fit.estimator),
            Cell(name),
            *estimate(value, numbers.exact),
            integer(fit.n_points),
        )
        for group in view.groups
        for fit in group.parametric
        for name, value in fit.params.items()
    ]
    formulas = dict.fromkeys(fit.formula for group in view.groups for fit in group.parametric)
    return Table(
        key="law-parameters",
        caption=f"Coefficients of {'; '.join(formulas)}. Of each architecture the first fit answers.",
        columns=(
            *group_columns(view),
            *left("Law", "Minimised", "Parameter"),
            *right("Value", "interval", "Runs"),
        ),
        rows=tuple(rows),
    )


def fit_diagnostics(view: View) -> Table:
    """What tells a good minimum from a bad one: a row a diagnostic, a column a fit."""
    fits = [(group, fit) for group in view.groups for fit in group.parametric]
    names = list(dict.fromkeys(name for _, fit in fits for name in fit.diagnostics))
    rows: list[tuple[Cell, ...]] = [
        (Cell("Minimised"), *(Cell(fit.estimator) for _, fit in fits)),
        (Cell("Objective at the minimum"), *(number(fit.objective, numbers.exact) for _, fit in fits)),
        (Cell("Runs"), *(integer(fit.n_points) for _, fit in fits)),
        *((Cell(spoken(name)), *(generic(fit.diagnostics.get(name)) for _, fit in fits)) for name in names),
    ]
    return Table(
        key="fit-diagnostics",
        caption="How each law was fitted, and how well its minimum is determined.",
        columns=(*left("Diagnostic"), *left(*(_fit_title(view, group, fit) for group, fit in fits))),
        rows=tuple(rows) if fits else (),
    )


def _fit_title(view: View, group: GroupAnalysis, fit: LawFit) -> str:
    return ", ".join([*(cell.text for cell in _of(view, group)), fit.law])


def comparisons(view: View) -> Table:
    """Architectures against each other at every budget."""
    rows = [
        (
            number(c.budget, numbers.flops),
            *((context_cell(c.context_length),) if len(view.contexts) > 1 else ()),
            Cell(arch_label(c.better)),
            Cell(arch_label(c.other)),
            *estimate(c.loss_difference, lambda v: numbers.fixed(v, 4)),
            *estimate(c.compute_ratio, numbers.ratio),
            yes(decided(c)),
            Cell(c.loss_difference.method, mark="quiet"),
        )
        for c in view.analysis.comparisons
    ]
    return Table(
        key="comparisons",
        caption=(
            "The better estimate's loss minus the other's at their optima, and the compute that the other"
            " needs for the same loss, over the budget. Decided: the interval of the difference leaves 0 out."
        ),
        columns=(
            *right("Budget", *(("Context",) if len(view.contexts) > 1 else ())),
            *left("Better", "Other"),
            *right("Loss difference", "interval", "Compute ratio", "interval"),
            *left("Decided", "By"),
        ),
        rows=tuple(rows),
    )


def context_laws(view: View) -> Table:
    """How the optima move with the context length, at each budget."""
    symbols = {"N": "N*", "D": "D*", "loss": "L*"}
    rows = [
        (
            Cell(arch_label(law.arch), owner=("arch", law.arch)),
            number(law.budget, numbers.flops),
            Cell(symbols[law.quantity]),
            *estimate(law.exponent, lambda v: numbers.fixed(v, 3)),
            *_at_contexts(view, law),
        )
        for law in view.analysis.context_laws
    ]
    return Table(
        key="context-laws",
        caption="The optima against context length T: y is proportional to T^exponent at one budget.",
        columns=(
            *left("Architecture"),
            *right("Budget"),
            *left("y"),
            *right("Exponent", "interval", *(f"T = {context:,}" for context in view.contexts)),
        ),
        rows=tuple(rows),
    )


def _at_contexts(view: View, law: ContextLaw) -> tuple[Cell, ...]:
    form = numbers.loss if law.quantity == "loss" else numbers.count
    values = dict(zip(law.contexts, law.values, strict=True))
    return tuple(number(values.get(context), form) for context in view.contexts)


def hold_out(view: View) -> Table:
    """The largest budget as the law predicts it from the smaller ones."""
    found = [(group, row) for group in view.groups for row in _hold_outs(group)]
    rows = [
        (
            *_of(view, group),
            Cell(str(row["estimator"])),
            number(row["cut"], numbers.flops),
            integer(row["n_train"]),
            integer(row["n_test"]),
            *(number(row[name], _share) for name in ("error", "bias", "baseline_error")),
            number(row["outside_D"], lambda v: f"{numbers.ratio(float(np.exp(v or 0.0)))} x"),
        )
        for group, row in found
    ]
    return Table(
        key="hold-out",
        caption=(
            "The law fitted without the largest budget, and how it predicts the runs of that budget: mean"
            " error and bias of the loss, beside the error of guessing the best loss seen in training. The"
            " last column says how much further out in tokens they lie."
        ),
        columns=(
            *group_columns(view),
            *left("Minimised"),
            *right("Held out from", "Fitted", "Predicted", "Error", "Bias", "Trivial guess", "Beyond in D"),
        ),
        rows=tuple(rows),
    )


def _hold_outs(group: GroupAnalysis) -> list[Mapping[str, Any]]:
    """The rows of a hold-out that could be made; a reason instead of them stands among the diagnostics."""
    rows = as_rows(group.diagnostics.get("hold_out")) or []
    needed = {"estimator", "cut", "n_train", "n_test", "error", "bias", "baseline_error", "outside_D"}
    return [row for row in rows if needed <= row.keys()]


def _share(value: float | None) -> str:
    return f"{numbers.fixed(100 * value, 2)}%" if numbers.known(value) else ""


_CHECKS = {
    "hold_out": "Hold-out: the largest budget as predicted from the others, by each estimator.",
    "model_selection": "Model selection: other forms of the law on the same runs, the lowest AICc first.",
    "sensitivity": "Sensitivity: how the answer moves with the objective, the runs and the definition of N.",
    "parabola_bias": "Bias of the parabolas: what this grid does to exponents, N* and D* without noise.",
    "approach_1": "Approach 1: power laws through the envelope of the lowest losses.",
    "next_runs": "What to train next: the runs that would narrow N* at the target most.",
    "next_budgets": "Where to centre the next budgets: N* by the power laws, and by the fitted law.",
    "serving": "Serving: the model of least training plus inference FLOPs at the loss of the best one.",
    "flops": "How compute was counted.",
    "checklist": "Checklist: what a reader must know to repeat the fits, as the program knows it.",
}


def diagnostics(group: GroupAnalysis) -> list[Table]:
    """`GroupAnalysis.diagnostics` as tables: one for each set of rows, one for all single values together."""
    prefix = f"{arch_slug(group.arch)}-{group.context_length}"
    parts = {name: as_rows(value) for name, value in group.diagnostics.items()}
    single = {name: group.diagnostics[name] for name, rows in parts.items() if rows is None}
    tables = [
        compact(generic_table(f"{prefix}-{name}", _CHECKS.get(name, f"{spoken(name)}."), rows))
        for name, rows in parts.items()
        if rows
    ]
    if single:
        values = [{"": spoken(name), "value": value} for name, value in single.items()]
        tables.append(generic_table(f"{prefix}-values", "Single values.", values))
    return tables


def settings(view: View) -> Table:
    """The settings of the fits, as they are."""
    rows = [{"setting": spoken(name), "value": value} for name, value in view.analysis.settings.items()]
    return generic_table("settings", "Settings of the fits.", rows)
