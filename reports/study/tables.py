"""The numbers behind every figure of the study, as tables."""

from collections.abc import Callable

from reports import numbers
from reports.cells import Cell, Table, estimate, integer, left, number, right
from reports.palette import arch_label
from reports.study.forms import digits, percent, places
from reports.study.runtime_tables import ratios, runtimes
from sweeps.study import Study, printed
from sweeps.study.isoflop import RANGES, our_law, published_law
from sweeps.study.parametric import objective_at


def optima(study: Study) -> Table:
    """Vertices, theirs and ours."""
    known = {(o.arch, o.context_length, o.budget): o for o in printed.OPTIMA}
    rows = []
    for curves in study.curves:
        for ours, theirs in zip(curves.ours.parabolas, curves.published.parabolas, strict=True):
            was = known.get((curves.arch, curves.context_length, ours.budget))
            rows.append(
                (
                    Cell(arch_label(curves.arch)),
                    integer(curves.context_length),
                    number(ours.budget, numbers.flops),
                    integer(ours.n_points),
                    number(was.N if was else None, numbers.count),
                    *estimate(ours.N, numbers.count),
                    number(theirs.D.value, numbers.count),
                    *estimate(ours.D, numbers.count),
                    number(ours.D.value / ours.N.value, numbers.ratio),
                    number(was.loss if was else None, places(4)),
                    *estimate(ours.loss, places(4)),
                )
            )
    error = max((c.flops_error for c in study.curves), default=0.0)
    return Table(
        key="optima",
        caption=(
            "Compute-optimal size, tokens and loss. Ours have one parabola a budget and D* by the FLOPs a"
            " token at N*, read off the runs' exact FLOPs (a smooth curve; single shapes leave it by up to"
            f" {percent(error)}). Their D* is the vertex of a second parabola."
        ),
        columns=(
            *left("Architecture"),
            *right(
                "Context", "Budget", "Runs", "N* printed", "N*", "interval", "D* theirs", "D*", "interval"
            ),
            *right("D*/N*", "L* printed", "L*", "interval"),
        ),
        rows=tuple(rows),
    )


def power_laws(study: Study) -> Table:
    """Exponents: printed, their method, ours."""
    pre = {(p.arch, p.context_length, p.quantity, p.budgets): p for p in printed.POWER_LAWS}
    rows = []
    for curves in study.curves:
        for n in RANGES:
            for quantity in ("N", "D", "loss"):
                theirs = published_law(curves, quantity, n)
                ours = our_law(curves, quantity, n, study.settings.level)
                if theirs is None or ours is None:
                    continue
                was = pre.get((curves.arch, curves.context_length, quantity, n))
                line = ours.law.from_residuals
                rows.append(
                    (
                        Cell({"N": "N*", "D": "D*", "loss": "L*"}[quantity]),
                        Cell(arch_label(curves.arch)),
                        integer(curves.context_length),
                        integer(n),
                        number(was.exponent if was else None, places(4)),
                        number(theirs.exponent, places(4)),
                        number(theirs.exponent_std, digits(2)),
                        *estimate(ours.law.exponent, places(4)),
                        Cell(numbers.span(line, places(4)) if line else "", mark="quiet"),
                        number(ours.law.offset or None, places(3)),
                    )
                )
    return Table(
        key="power-laws",
        caption=(
            "Exponents of N*(C), D*(C), L*(C). The interval is of the vertices' noise; the last but one is"
            " Student's of the line itself, on budgets minus 2 degrees of freedom, which is what the standard"
            " error means. From four budgets on our law of the loss has an offset, so that its exponent is"
            " another number."
        ),
        columns=(
            *left("Law", "Architecture"),
            *right("Context", "Budgets", "Printed", "Their method", "its std. error", "Ours", "Interval"),
            *right("Interval of the line", "Offset"),
        ),
        rows=tuple(rows),
    )


def context_laws(study: Study) -> Table:
    """Exponents of the optimum in the context length."""
    pre = {(arch, quantity, budget): value for arch, quantity, budget, value in printed.CONTEXT_EXPONENTS}
    return Table(
        key="context-laws",
        caption=(
            f"Exponents of x*(T) over the contexts {', '.join(map(str, study.contexts))}. The printed ones"
            " are over 2048, 8192 and 16384."
        ),
        columns=(*left("x*", "Architecture"), *right("Budget", "Printed", "Ours", "Interval")),
        rows=tuple(
            (
                Cell({"N": "N*", "D": "D*", "loss": "L*"}[law.quantity]),
                Cell(arch_label(law.arch)),
                number(law.budget, numbers.flops),
                number(pre.get((law.arch, law.quantity, law.budget)), places(3)),
                *estimate(law.exponent, places(4)),
            )
            for law in study.context_laws
        ),
    )


def intervals(study: Study) -> Table:
    """Parameters of the headline fits, with intervals."""
    rows = [
        (
            Cell(arch_label(i.cell.arch)),
            Cell(i.cell.experiment_set),
            Cell("yes" if i.cell.gamma else "no"),
            integer(i.fit.n),
            Cell(name),
            *estimate(value, digits(6)),
            Cell(percent(i.converged), i.converged),
        )
        for i in study.intervals
        for name, value in i.estimates.items()
    ]
    return Table(
        key="interval-fits",
        caption=(
            "L = E + (A N^-alpha + B D^-beta)^gamma at delta 0.001 and all ratios of D/N, with intervals of a"
            " pairs bootstrap; a = beta / (alpha + beta). A and B are almost free: compare fits by a and by"
            " the loss."
        ),
        columns=(
            *left("Architecture", "Runs", "Gamma"),
            *right("n"),
            *left("Parameter"),
            *right("Value", "Interval", "Resamples at a minimum"),
        ),
        rows=tuple(rows),
    )


def grid(study: Study) -> Table:
    """Every cell of the authors' grid of fits."""
    known = {(p.arch, p.experiment_set, p.max_ratio, p.gamma_free, p.delta): p for p in printed.FITS}
    rows = []
    for cell, fit in study.fits.items():
        was = known.get((cell.arch, cell.experiment_set, cell.max_ratio, cell.gamma, cell.delta))
        theirs = None
        if was is not None:
            params = {
                "A": was.A,
                "B": was.B,
                "E": was.E,
                "alpha": was.alpha,
                "beta": was.beta,
                "gamma": was.gamma,
            }
            theirs = objective_at(study.runs, cell, params)
        rows.append(
            (
                Cell(arch_label(cell.arch)),
                Cell(cell.experiment_set),
                number(cell.max_ratio, lambda v: f"{v:g}"),
                Cell("yes" if cell.gamma else "no"),
                number(cell.delta, lambda v: f"{v:g}"),
                integer(fit.n),
                number(was.objective if was else None, digits(6)),
                number(theirs, digits(8)),
                number(fit.objective, digits(8)),
                *(number(fit.params[name], digits(6)) for name in ("A", "B", "E", "alpha", "beta")),
                number(fit.params.get("gamma"), digits(6)),
                number(fit.N_exponent, places(4)),
            )
        )
    return Table(
        key="grid-of-fits",
        caption=(
            f"The authors' grid of fits, {len(rows)} cells, each at its minimum. Printed: their stored"
            " objective; here: what their parameters are worth on the runs given, the fair comparison where"
            " theirs held copies."
        ),
        columns=(
            *left("Architecture", "Runs"),
            *right("D/N up to"),
            *left("Gamma"),
            *right(
                "Delta", "n", "Printed", "Theirs here", "Ours", "A", "B", "E", "alpha", "beta", "gamma", "a"
            ),
        ),
        rows=tuple(rows),
    )


def slopes(study: Study) -> Table:
    """Over-training slopes with true standard errors."""
    pre = {(s.arch, s.flops, s.ratio): s for s in printed.SLOPES}
    rows = []
    for column, lines in study.lines.items():
        for line in lines:
            was = pre.get((line.arch, column, round(line.ratio)))
            rows.append(
                (
                    Cell(arch_label(line.arch)),
                    Cell(_COUNTS[column]),
                    number(line.ratio, lambda v: f"{v:g}"),
                    integer(line.n),
                    number(was.slope if was else None, places(6)),
                    *estimate(line.interval(study.settings.level), places(6)),
                    number(was.stderr if was else None, digits(3)),
                    number(line.standard_error, digits(3)),
                    number(line.intercept, places(5)),
                )
            )
    return Table(
        key="slopes",
        caption="ln L = slope ln C + intercept at a constant D/N, by how compute is counted.",
        columns=(
            *left("Architecture", "FLOPs"),
            *right("D/N", "Runs", "Slope printed", "Slope", "Interval", "Printed stderr", "Standard error"),
            *right("Intercept"),
        ),
        rows=tuple(rows),
    )


_COUNTS = {
    "train_flops": "as the paper (causal half)",
    "train_flops_chinchilla": "attention without causality",
    "train_flops_tfla": "mLSTM by the tfla count",
}


def bounded(study: Study) -> Table:
    """What losses known to an interval do to the optima."""
    return Table(
        key="bounded",
        caption=(
            f"{study.bounded_runs} losses were recovered from figures and are known to an interval. Drawn"
            " uniformly inside it, they move the optimum by this standard deviation: a tenth of its interval"
            " or less."
        ),
        columns=(
            *left("Architecture"),
            *right("Context", "Budget", "Runs", "of which bounded", "N* moves", "L* moves (nats)"),
        ),
        rows=tuple(
            (
                Cell(arch_label(b.arch)),
                integer(b.context_length),
                number(b.budget, numbers.flops),
                integer(b.runs),
                integer(b.bounded_runs),
                number(b.N_spread, lambda v: f"{numbers.fixed(100 * (v or 0), 2)} %"),
                number(b.loss_spread, places(5)),
            )
            for b in study.bounded
        ),
    )


def runs(study: Study) -> Table:
    """Every run analysed."""
    columns = ("arch", "context_length", "experiment_set", "budget", "preset_token_param_ratio")
    table = study.runs.sort(*columns, "N", nulls_last=True)
    return Table(
        key="runs",
        caption=f"All {table.height} runs that the study reads. A loss with bounds is known within them.",
        columns=(
            *left("Run", "Architecture", "Set"),
            *right("Context", "Budget", "D/N", "N", "D", "C", "Loss", "Bounds", "Batch", "Steps", "Peak lr"),
        ),
        rows=tuple(
            (
                Cell(row["run_name"] or ""),
                Cell(arch_label(row["arch"])),
                Cell(row["experiment_set"]),
                integer(row["context_length"]),
                number(row["budget"], numbers.flops),
                number(row["D"] / row["N"], numbers.ratio),
                number(row["N"], numbers.count),
                number(row["D"], numbers.count),
                number(row["train_flops"], numbers.flops),
                number(row["loss"], places(4)),
                Cell(_bounds(row["loss_low"], row["loss_high"]), mark="quiet"),
                integer(row["batch_size"]),
                integer(row["steps"]),
                number(row["peak_lr"], lambda v: f"{v:.2g}"),
            )
            for row in table.iter_rows(named=True)
        ),
    )


def _bounds(low: float | None, high: float | None) -> str:
    if low is None or high is None or not high > low:
        return ""
    return f"{numbers.fixed(low, 4)} to {numbers.fixed(high, 4)}"


MAKERS: tuple[Callable[[Study], Table], ...] = (
    optima,
    power_laws,
    context_laws,
    intervals,
    grid,
    slopes,
    runtimes,
    ratios,
    bounded,
    runs,
)
