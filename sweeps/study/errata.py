"""Where the authors erred: what they print, what their method gives on the data as they are, and what we
give.

One `Erratum` a mistake, one row a number; the last column carries an interval wherever there is one.
"""

from scipy.special import stdtrit

from sweeps.study import printed
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.data import power
from sweeps.study.erratum import NAN, Erratum, ErratumRow, plain
from sweeps.study.goodness import Goodness, goodness_on_sets
from sweeps.study.isoflop import Quantity, curves_of, our_law, published_law
from sweeps.study.parametric import CONTEXT_LENGTH, Cell
from sweeps.study.runtime_errata import collinear, resampled, step_bytes
from sweeps.study.study import Study


def errata(study: Study) -> tuple[Erratum, ...]:
    """Every mistake that the given data show."""
    return (
        _copies(study),
        _broadcast(study),
        resampled(study),
        _variances(study),
        _contradiction(study),
        step_bytes(study),
        collinear(study),
        _offset(study),
    )


def _copies(study: Study) -> Erratum:
    rows = []
    symbols: tuple[tuple[Quantity, str], ...] = (("N", "N*"), ("D", "D*"))
    pre = {(p.arch, p.context_length, p.quantity, p.budgets): p.exponent for p in printed.POWER_LAWS}
    curves = curves_of(study.curves, XLSTM, CONTEXT_LENGTH)
    if curves is not None:
        for quantity, symbol in symbols:
            for n in (3, 4):
                law, ours = (
                    published_law(curves, quantity, n),
                    our_law(curves, quantity, n, study.settings.level),
                )
                if law is not None and ours is not None:
                    rows.append(
                        ErratumRow(
                            what=f"exponent of {symbol}(C), xLSTM 8192, {n} budgets",
                            form="exponent",
                            published=pre[XLSTM, CONTEXT_LENGTH, quantity, n],
                            repeated=law.exponent,
                            ours=ours.law.exponent,
                        )
                    )
        for o in printed.OPTIMA:
            if (o.arch, o.context_length) == (XLSTM, CONTEXT_LENGTH) and o.N_clean != o.N:
                p = next((p for p in curves.published.parabolas if p.budget == o.budget), None)
                q = next((p for p in curves.ours.parabolas if p.budget == o.budget), None)
                if p is not None and q is not None and abs(o.N / p.N.value - 1) > 1e-5:
                    rows.append(
                        ErratumRow(
                            what=f"N* of the xLSTM at {power(o.budget)} FLOPs",
                            form="count",
                            published=o.N,
                            repeated=p.N.value,
                            ours=q.N,
                        )
                    )
    return Erratum(
        key="copies",
        title=f"{printed.RUNS_WITH_COPIES - printed.RUNS} runs counted twice",
        what_happened=(
            "The xLSTM's table at context 8192 listed 32 runs under two tags, each as two rows with the same"
            " loss. The authors dropped them in February 2026 and refitted neither the power laws nor the"
            f" parametric fits. In the data given {study.copies} rows repeat a run."
        ),
        what_it_does="Exponents move by a thousandth, objectives by 7 to 17 %; no conclusion turns on it.",
        rows=tuple(rows),
    )


def _broadcast(study: Study) -> Erratum:
    cell = Cell(arch=TRANSFORMER, experiment_set="tokenparam", max_ratio=5000.0, gamma=True, delta=1e-3)
    fit = study.fits.get(cell)
    found: dict[str, Goodness] = {} if fit is None else goodness_on_sets(study.runs, cell, fit.params)
    at = found.get("tokenparam")
    rows = []
    if at is not None:
        numbers = (("mean squared error", at.broadcast_mse, at.mse), ("R2", at.broadcast_r2, at.r2))
        for (name, stored, right), was in zip(numbers, printed.STORED_GOODNESS, strict=True):
            rows.append(
                ErratumRow(
                    what=f"{name} of the Transformer's token/parameter fit",
                    form="error",
                    published=was,
                    repeated=stored,
                    ours=plain(right),
                )
            )
    return Erratum(
        key="broadcast",
        title="Goodness of fit over an n x n matrix",
        what_happened=(
            "Predictions of shape (n, 1) minus losses of shape (n,) make an n x n matrix. Its mean square is"
            " stored with every parametric fit, and the fit of the paper's table was chosen by it."
        ),
        what_it_does=(
            "A fit that explains 99.9 % of the variance is stored with R2 = \N{MINUS SIGN}61. The choice"
            " hardly matters, because the stored fits of a cell lie in one basin."
        ),
        rows=tuple(rows),
    )


def _variances(study: Study) -> Erratum:
    by_key = {(x.arch, round(x.ratio)): x for x in study.lines["train_flops"]}
    rows = []
    for s in printed.SLOPES:
        line = by_key.get((s.arch, s.ratio))
        if s.flops != "train_flops" or line is None or line.n < 3:
            continue
        label = "xLSTM" if s.arch == XLSTM else "Transformer"
        rows.append(
            ErratumRow(
                what=f"standard error of the slope, {label}, D/N = {s.ratio}",
                form="slope",
                published=s.stderr,
                repeated=line.variance,
                ours=plain(line.standard_error),
            )
        )
        rows.append(
            ErratumRow(
                what=f"slope, {label}, D/N = {s.ratio}",
                form="slope",
                published=s.slope,
                repeated=line.slope,
                ours=line.interval(study.settings.level),
            )
        )
    factor = float(stdtrit(2, 0.975))
    return Erratum(
        key="variances",
        title="Variances printed as standard errors",
        what_happened=(
            "The tables of over-training slopes print the diagonal of the covariance matrix under `stderr`,"
            " without the square root."
        ),
        what_it_does=(
            "Errors look a thousand times smaller than they are. With four to seven runs a line the 95 %"
            f" interval is wider still: with four runs {factor:.1f} standard errors to each side."
        ),
        rows=tuple(rows),
    )


def _contradiction(study: Study) -> Erratum:
    rows = []
    for curves in study.curves:
        for p, q in zip(curves.published.parabolas, curves.ours.parabolas, strict=True):
            label = "xLSTM" if curves.arch == XLSTM else "Transformer"
            where = f"{label} {curves.context_length} at {power(p.budget)}"
            rows.append(
                ErratumRow(
                    what=f"D*, {where}",
                    form="count",
                    published=_printed_D(curves.arch, curves.context_length, p.budget),
                    repeated=p.D.value,
                    ours=q.D,
                )
            )
            rows.append(
                ErratumRow(
                    what=f"FLOPs of (N*, D*) over the budget's, {where}",
                    form="ratio",
                    published=NAN,
                    repeated=curves.contradiction(p.budget),
                    ours=plain(1.0),
                )
            )
            rows.append(
                ErratumRow(
                    what=f"L* in D minus L* in N, {where}",
                    form="nats",
                    published=NAN,
                    repeated=curves.published_loss_D[p.budget] - p.loss.value,
                    ours=plain(0.0),
                )
            )
    spent = [abs(c.contradiction(b) - 1) for c in study.curves for b in c.budgets]
    worst = f"{100 * max(spent):.1f} %" if spent else "some"
    return Erratum(
        key="contradiction",
        title="Two parabolas that contradict each other",
        what_happened=(
            "N* and D* come from independent parabolas in log N and in log D. Together they spend up to"
            f" {worst} more or less than the budget that they are optimal for, and have two losses."
        ),
        what_it_does=(
            "Ours have one parabola; D* is what the budget buys at N*, by the runs' own exact FLOPs a token."
            " The exponents of N* and D* are then those of one optimum."
        ),
        rows=tuple(rows),
    )


def _printed_D(arch: str, context_length: int, budget: float) -> float:
    at = (arch, context_length, budget)
    return next((o.D for o in printed.OPTIMA if (o.arch, o.context_length, o.budget) == at), NAN)


def _offset(study: Study) -> Erratum:
    printed_E = {
        (p.arch, p.gamma_free, p.experiment_set): p.E
        for p in printed.FITS
        if p.delta == 1e-3 and p.max_ratio > 1000
    }
    rows = []
    for i in study.intervals:
        label = "xLSTM" if i.cell.arch == XLSTM else "Transformer"
        form = "with gamma" if i.cell.gamma else "without gamma"
        key = (i.cell.arch, i.cell.gamma, i.cell.experiment_set)
        rows.append(
            ErratumRow(
                what=f"E, {label}, {form}, {i.cell.experiment_set} runs",
                form="loss",
                published=printed_E.get(key, NAN),
                repeated=i.fit.params["E"],
                ours=i.estimates["E"],
            )
        )
    return Erratum(
        key="offset",
        title="E is printed without an interval, and the data do not identify it",
        what_happened=(
            "The parametric fits are printed as point values. E, the loss that neither size nor data can"
            " lower, comes out between 0 and 2.5 depending on the runs, the range of D/N, delta and gamma."
        ),
        what_it_does=(
            "The intervals of the isoflop and of the token/parameter runs leave each other out, with and"
            " without gamma. A forecast far beyond the runs rests on E and is not supported by them."
        ),
        rows=tuple(rows),
    )
