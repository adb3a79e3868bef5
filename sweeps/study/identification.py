"""Parametric fits with intervals, and whether the data know E.

E is the loss that neither size nor data can lower. The sets of runs put it at different places, and an
interval of one set leaves out that of another: then E is a parameter of the form and the set, not of the
data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from sweeps.laws import LAWS, Estimate, Scheme, run_bootstrap
from sweeps.laws.engine import estimator, pose
from sweeps.laws.intervals import estimate
from sweeps.study.parametric import Cell, CellFit, cell_runs


@dataclass(frozen=True, kw_only=True)
class IntervalFit:
    """A cell at its minimum with the intervals of its parameters."""

    fit: CellFit
    estimates: Mapping[str, Estimate]
    """The parameters, and `a` = beta / (alpha + beta)."""
    converged: float
    """Share of resamples that reached a minimum."""

    @property
    def cell(self) -> Cell:
        return self.fit.cell


def with_intervals(
    runs: pl.DataFrame, fits: Sequence[CellFit], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[IntervalFit, ...]:
    """The pairs bootstrap of each fit, every resample started at its minimum."""
    return tuple(_one(runs, fit, resamples, level, seed) for fit in fits)


def _one(runs: pl.DataFrame, fit: CellFit, resamples: int, level: float, seed: int) -> IntervalFit:
    table, law = cell_runs(runs, fit.cell), LAWS[fit.cell.law]
    weights, how = np.ones(table.height), estimator("huber-log", fit.cell.delta)
    inputs = {name: table[name].to_numpy() for name in ("N", "D")}
    problem = pose(law, inputs, table["loss"].to_numpy(), how.objective, weights)
    public = np.array([[fit.params[name] for name in law.params]])
    with np.errstate(divide="ignore"):
        theta = law.from_public(public, problem.center)[0]
    run = run_bootstrap(problem, how, theta, weights, Scheme(), resamples=resamples, seed=seed)
    draws = law.quantities(run.params)
    values = {name: float(column[0]) for name, column in law.quantities(public).items()}
    wanted = [*law.params, "a"]
    estimates = {name: estimate(values[name], draws[name], level, run.method) for name in wanted}
    return IntervalFit(fit=fit, estimates=estimates, converged=run.converged)


@dataclass(frozen=True, kw_only=True)
class OffsetSpread:
    """E of one architecture and form over the sets of runs."""

    arch: str
    gamma: bool
    by_set: Mapping[str, Estimate]
    deltas: tuple[float, float]
    """Lowest and highest E over all sets, ranges and deltas of the grid that fit this form."""
    agree: bool
    """The intervals of all sets share a value."""


def offset_spreads(
    intervals: Sequence[IntervalFit], fits: Mapping[Cell, CellFit]
) -> tuple[OffsetSpread, ...]:
    """E by architecture and form; the `intervals` are those of one delta and the whole range of ratios."""
    found = []
    for arch, gamma in sorted({(i.cell.arch, i.cell.gamma) for i in intervals}):
        by_set = {
            i.cell.experiment_set: i.estimates["E"]
            for i in intervals
            if (i.cell.arch, i.cell.gamma) == (arch, gamma)
        }
        everywhere = [f.params["E"] for c, f in fits.items() if (c.arch, c.gamma) == (arch, gamma)]
        lows, highs = [e.low for e in by_set.values()], [e.high for e in by_set.values()]
        found.append(
            OffsetSpread(
                arch=arch,
                gamma=gamma,
                by_set=by_set,
                deltas=(min(everywhere), max(everywhere)),
                agree=bool(max(lows) <= min(highs)),
            )
        )
    return tuple(found)
