"""Paper prints, we get: every headline number that the given runs and measurements determine.

A row compares a printed number with the same number by the authors' method on the data given. Where the
paper's runs held 32 copies, the number to meet is the one that PAPER 6.1 recomputes without them, and the
difference to the printed one is stated. Tolerances are those of PAPER.md: the digits printed, and its
sections 5 to 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from sweeps.study import printed
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.data import TOKENPARAM, power
from sweeps.study.frontier import linear_hull
from sweeps.study.goodness import goodness_on_sets
from sweeps.study.inference import RuntimeFit, model_config, paper_measurements, their_step_bytes
from sweeps.study.isoflop import Curves, Quantity, curves_of, published_law
from sweeps.study.parametric import CONTEXT_LENGTH, Cell, objective_at
from sweeps.study.study import Study

Standing = Literal["reproduced", "clean", "lower", "differs", "absent"]
"""As printed; as recomputed without the copies; a lower minimum than the printed one; none of these; the data
that it needs are not given."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number."""

    group: str
    what: str
    printed: float
    got: float
    tolerance: float
    relative: bool = True
    clean: float = float("nan")
    """What the authors' method gives without the copies, where that differs from the printed number."""
    objectives: tuple[float, float] | None = None
    """The objective of the printed parameters on the data given, and ours."""
    note: str = ""

    @property
    def difference(self) -> float:
        """Ours minus the printed number; relative where the tolerance is."""
        gap = self.got - self.printed
        return gap / abs(self.printed) if self.relative and self.printed else gap

    @property
    def standing(self) -> Standing:
        if not np.isfinite(self.got):
            return "absent"
        if self.objectives is not None and self.objectives[1] < self.objectives[0] * (1 - 1e-6):
            return "lower"
        if abs(self.difference) <= self.tolerance:
            return "reproduced"
        if np.isfinite(self.clean) and self._near(self.clean):
            return "clean"
        return "differs"

    def _near(self, target: float) -> bool:
        gap = abs(self.got - target)
        return bool(gap <= self.tolerance * (abs(target) if self.relative else 1.0))


def reproduction(study: Study) -> tuple[Row, ...]:
    """All rows, in the order of the paper."""
    parts = (_counts, _optima, _power_laws, _optimal_table, _contexts, _fits, _goodness, _slopes, _pareto)
    rows = [row for part in parts for row in part(study)]
    return (*rows, *_runtimes(study), *_measured(study), *_absent(study))


def _counts(study: Study) -> Iterator[Row]:
    for o in printed.OPTIMA:
        curves = curves_of(study.curves, o.arch, o.context_length)
        n = _nan if curves is None else float(np.sum(curves.points.budget == o.budget))
        yield Row(group="Runs", what=f"runs, {_where(o)}", printed=o.runs, got=n, tolerance=0.0)
    for arch, total in ((TRANSFORMER, printed.TRANSFORMER_RUNS), (XLSTM, printed.XLSTM_RUNS)):
        whole = 16384 in study.contexts
        n = float(study.runs.filter(study.runs["arch"] == arch).height) if whole else _nan
        yield Row(group="Runs", what=f"runs in all, {_label(arch)}", printed=total, got=n, tolerance=0.0)


def _optima(study: Study) -> Iterator[Row]:
    for o in printed.OPTIMA:
        at = _vertex(curves_of(study.curves, o.arch, o.context_length), o.budget)
        # N* and L* are printed to six digits; the losses of the mLSTM at 2k are known to within 2e-3 and were
        # placed so that the published parabola is met (PAPER 5.3).
        yield Row(
            group="IsoFLOP optima",
            what=f"N*, {_where(o)}",
            printed=o.N,
            got=at[0],
            tolerance=5e-6,
            clean=o.N_clean,
        )
        yield Row(
            group="IsoFLOP optima",
            what=f"L*, {_where(o)}",
            printed=o.loss,
            got=at[1],
            tolerance=6e-6,
            relative=False,
            clean=o.loss_clean,
        )
        yield Row(group="IsoFLOP optima", what=f"D*, {_where(o)}", printed=o.D, got=at[2], tolerance=1e-6)
        yield Row(
            group="IsoFLOP optima",
            what=f"L* in D, {_where(o)}",
            printed=o.loss_D,
            got=at[3],
            tolerance=1e-6,
            relative=False,
        )


def _vertex(curves: Curves | None, budget: float) -> tuple[float, float, float, float]:
    if curves is None or budget not in curves.budgets:
        return (_nan,) * 4
    p = next(p for p in curves.published.parabolas if p.budget == budget)
    return p.N.value, p.loss.value, p.D.value, curves.published_loss_D[budget]


def _power_laws(study: Study) -> Iterator[Row]:
    clean = {(c.arch, c.context_length, c.quantity, c.budgets): c for c in printed.CLEAN_LAWS}
    pre = {(p.arch, p.context_length, p.quantity, p.budgets): p for p in printed.POWER_LAWS}
    symbol = {"N": "N*", "D": "D*", "loss": "L*"}
    for key, recomputed in clean.items():
        arch, context, quantity, budgets = key
        curves = curves_of(study.curves, arch, context)
        law = None if curves is None else published_law(curves, cast(Quantity, quantity), budgets)
        print_ = pre.get(key, recomputed)
        where = f"{symbol[quantity]}(C), {_label(arch)} {context}, {budgets} budgets"
        note = "" if key in pre else "not printed by the authors; their method, PAPER 6.1"
        parts = (
            ("exponent", print_.exponent, recomputed.exponent, 1e-5, False),
            ("prefactor", print_.A, recomputed.A, 3e-4, True),
            ("standard error", print_.exponent_std, recomputed.exponent_std, 1e-3, True),
        )
        values = (_nan,) * 3 if law is None else (law.exponent, law.A, law.exponent_std)
        for (name, value, without, tolerance, relative), got in zip(parts, values, strict=True):
            yield Row(
                group="Power laws",
                what=f"{name} of {where}",
                printed=value,
                got=got,
                tolerance=tolerance,
                relative=relative,
                clean=without,
                note=note,
            )


def _optimal_table(study: Study) -> Iterator[Row]:
    for arch in (TRANSFORMER, XLSTM):
        curves = curves_of(study.curves, arch, CONTEXT_LENGTH)
        laws = [None if curves is None else published_law(curves, q, 4) for q in ("N", "D")]
        clean = {
            c.quantity: c
            for c in printed.CLEAN_LAWS
            if (c.arch, c.context_length, c.budgets) == (arch, 8192, 4)
        }
        for row in printed.OPTIMAL_TABLE:
            if row.arch != arch:
                continue
            size_law, token_law = laws
            C = _nan if size_law is None else size_law.inverse(row.N)
            D = _nan if token_law is None else token_law(C)
            C_clean = (row.N / clean["N"].A) ** (1 / clean["N"].exponent)
            D_clean = clean["D"].A * C_clean ** clean["D"].exponent
            what = f"{_label(arch)} of {row.N:.3g} parameters"
            yield Row(
                group="Optimal table", what=f"C, {what}", printed=row.C, got=C, tolerance=1e-4, clean=C_clean
            )
            yield Row(
                group="Optimal table", what=f"D, {what}", printed=row.D, got=D, tolerance=1e-4, clean=D_clean
            )


def _contexts(study: Study) -> Iterator[Row]:
    whole = len(study.contexts) >= 3
    for arch, quantity, budget, exponent in printed.CONTEXT_EXPONENTS:
        got = _nan
        if whole:
            sides = [c for c in study.curves if c.arch == arch and budget in c.budgets]
            values = [_vertex(c, budget)[0 if quantity == "N" else 2] for c in sides]
            got = float(np.polyfit(np.log([c.context_length for c in sides]), np.log(values), 1)[0])
        yield Row(
            group="Context length",
            what=f"exponent of {quantity}*(T), {_label(arch)} at {power(budget)}",
            printed=exponent,
            got=got,
            tolerance=6e-4,
            relative=False,
            note="" if whole else "needs the runs at 16,384",
        )


def _fits(study: Study) -> Iterator[Row]:
    refits = {(r.experiment_set, r.delta, r.gamma_free): r.objective for r in printed.REFITS}
    for p in printed.FITS:
        cell = Cell(
            arch=p.arch,
            experiment_set=p.experiment_set,
            max_ratio=p.max_ratio,
            gamma=p.gamma_free,
            delta=p.delta,
        )
        fit = study.fits.get(cell)
        form = "with gamma" if p.gamma_free else "without"
        where = f"{_label(p.arch)} {p.experiment_set}, D/N to {p.max_ratio:g}, delta {p.delta:g}"
        what = f"objective, {where}, {form}"
        if fit is None:
            yield Row(group="Parametric fits", what=what, printed=p.objective, got=_nan, tolerance=1e-6)
            continue
        theirs = {"A": p.A, "B": p.B, "E": p.E, "alpha": p.alpha, "beta": p.beta, "gamma": p.gamma}
        here = objective_at(study.runs, cell, theirs)
        copied = p.arch == XLSTM and p.experiment_set != "tokenparam"
        clean = refits.get((p.experiment_set, p.delta, p.gamma_free), _nan) if p.max_ratio > 1000 else _nan
        yield Row(
            group="Parametric fits",
            what=what,
            printed=p.objective,
            got=fit.objective,
            tolerance=1e-6,
            clean=clean if copied else _nan,
            objectives=(here, fit.objective),
            note="the printed fit is of runs with copies" if copied else "",
        )


def _goodness(study: Study) -> Iterator[Row]:
    cell = Cell(arch=TRANSFORMER, experiment_set="tokenparam", max_ratio=5000.0, gamma=True, delta=1e-3)
    fit = study.fits.get(cell)
    found = {} if fit is None else goodness_on_sets(study.runs, cell, fit.params)
    at = found.get("tokenparam")
    values = (_nan,) * 4 if at is None else (at.broadcast_mse, at.broadcast_r2, at.mse, at.r2)
    names = ("stored mse (n x n)", "stored R2 (n x n)", "mse", "R2")
    tolerances = (5e-5, 5e-3, 2e-4, 1e-5)
    targets = (*printed.STORED_GOODNESS, *printed.TRUE_GOODNESS)
    for name, target, value, tolerance in zip(names, targets, values, tolerances, strict=True):
        what = f"{name}, Transformer tokenparam, delta 0.001, with gamma"
        yield Row(group="Goodness of fit", what=what, printed=target, got=value, tolerance=tolerance)


def _slopes(study: Study) -> Iterator[Row]:
    for s in printed.SLOPES:
        lines = study.lines.get(s.flops, ())
        line = next((x for x in lines if (x.arch, round(x.ratio)) == (s.arch, s.ratio)), None)
        where = f"{_label(s.arch)}, D/N = {s.ratio}, {s.flops}"
        slope, intercept, variance = (_nan,) * 3
        if line is not None:
            slope, intercept, variance = line.slope, line.intercept, line.variance
        for name, value, got, tolerance in (
            ("slope", s.slope, slope, 1e-6),
            ("intercept", s.intercept, intercept, 1e-6),
            ("printed stderr (variance)", s.stderr, variance, 1e-5),
        ):
            if np.isfinite(value):
                yield Row(
                    group="Over-training",
                    what=f"{name}, {where}",
                    printed=value,
                    got=got,
                    tolerance=tolerance,
                    relative=name != "slope" and name != "intercept",
                )


def _pareto(study: Study) -> Iterator[Row]:
    """The notebook counts the xLSTM's compute by the "tfla" formulas."""
    table = study.runs.filter(study.runs["experiment_set"] == TOKENPARAM)
    for arch, points, *ends in printed.PARETO:
        column = "train_flops_tfla" if arch == XLSTM else "train_flops"
        side = table.filter(table["arch"] == arch).drop_nulls(column).sort(column)
        values = (_nan,) * 5
        if side.height > 1:
            C, loss = side[column].to_numpy(), side["loss"].to_numpy()
            hull = linear_hull(C, loss)
            values = (float(len(hull)), C[hull[0]], loss[hull[0]], C[hull[-1]], loss[hull[-1]])
        names = ("points", "first C", "first L", "last C", "last L")
        for name, target, got in zip(names, (points, *ends), values, strict=True):
            yield Row(
                group="Pareto frontier",
                what=f"{name} of the hull, {_label(arch)}",
                printed=float(target),
                got=float(got),
                tolerance=0.0 if name == "points" else 3e-6,
            )


def _runtimes(study: Study) -> Iterator[Row]:
    found: dict[tuple[str, str], RuntimeFit] = {(f.kind, f.model): f for f in study.runtimes}
    for p in printed.RUNTIMES:
        fit = found.get((p.kind, p.model))
        sides = (("seed 0", p.rate, p.overhead, p.mape), ("all rows", p.rate_all, p.overhead_all, p.mape_all))
        ours = (None, None) if fit is None else (fit.resampled, fit.all_rows)
        free = p.kind == "step_time" and p.model.startswith("xlstm")
        for (rows, rate, overhead, mape), got in zip(sides, ours, strict=True):
            what = f"{p.kind.replace('_', ' ')} {p.model}, {rows}"
            if not free:
                # TTFT to seven digits; the flat optimum of the step times to 0.3 % (PAPER 4.7).
                tolerance = 1e-6 if p.kind == "ttft" else 3e-3
                yield Row(
                    group="Inference fits",
                    what=f"rate, {what}",
                    printed=rate,
                    got=_nan if got is None else got.rate,
                    tolerance=tolerance,
                )
                yield Row(
                    group="Inference fits",
                    what=f"overhead, {what}",
                    printed=overhead,
                    got=_nan if got is None else got.overhead,
                    tolerance=1e-7 if p.kind == "ttft" else 3e-3 * abs(overhead),
                    relative=False,
                )
            yield Row(
                group="Inference fits",
                what=f"mean relative error, {what}",
                printed=mape,
                got=_nan if got is None else got.mape,
                tolerance=3e-4,
                relative=False,
                note="rate and overhead are not identified: any rate gives this error" if free else "",
            )
    yield _step_bytes(study)


def _step_bytes(study: Study) -> Row:
    got = _nan
    if study.inference.height:
        table = paper_measurements(study.inference)
        rows = table.filter(table["model"] == "llama2_1.4b")
        if rows.height:
            config = model_config(rows.row(0, named=True))
            got = float(their_step_bytes(config, np.array([2048.0]), np.array([1.0]))[0])
    what = "bytes of a step of the llama2 1.4B after 2,048 tokens"
    return Row(group="Inference fits", what=what, printed=printed.STEP_BYTES, got=got, tolerance=2e-3)


def _measured(study: Study) -> Iterator[Row]:
    for kind, prefill, xlstm, llama in printed.MEASURED:
        for model, value in (("xlstm_7b", xlstm), ("llama2_7b", llama)):
            got = _nan
            if study.inference.height:
                table = paper_measurements(study.inference)
                at = (
                    (table["model"] == model)
                    & (table["batch_size"] == 1)
                    & (table["prefill_length"] == prefill)
                )
                column = table.filter(at)["ttft_s" if kind == "ttft" else "step_time_s"].drop_nulls()
                got = 1e3 * float(column[0]) if len(column) else _nan
            yield Row(
                group="Measured times",
                what=f"{kind.replace('_', ' ')} of {model} after {prefill:,} tokens (ms)",
                printed=value,
                got=got,
                tolerance=0.5 if value > 100 else 0.05,
                relative=False,
            )


def _absent(study: Study) -> Iterator[Row]:
    for arch, frontier, tokens, params in printed.HULLS:
        for name, value in (("D", tokens), ("N", params)):
            yield Row(
                group="Approach 1",
                what=f"exponent of {name} along the {frontier}, {_label(arch)}",
                printed=value,
                got=_nan,
                tolerance=1e-3,
                relative=False,
                note="needs the loss curves of the token/parameter runs, which are not published",
            )


_nan = float("nan")


def _label(arch: str) -> str:
    return "xLSTM" if arch == XLSTM else "Transformer"


def _where(o: printed.PrintedOptimum) -> str:
    return f"{_label(o.arch)} {o.context_length} at {power(o.budget)}"
