"""All analyses of the study, in one call."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
from threadpoolctl import threadpool_limits

from sweeps.laws.types import ContextLaw
from sweeps.study.batch import BatchEffect, batch_effects
from sweeps.study.contexts import (
    TRANSFORMER,
    XLSTM,
    GapTrend,
    OptimumGap,
    all_context_laws,
    gap_trends,
    optimum_gaps,
)
from sweeps.study.data import bounded, duplicates, study_runs
from sweeps.study.frontier import Dominance, dominance
from sweeps.study.identification import IntervalFit, OffsetSpread, offset_spreads, with_intervals
from sweeps.study.inference import RuntimeFit, TimeRatio, fit_runtimes, time_ratios
from sweeps.study.isoflop import BoundedLosses, Curves, bounded_loss_effect, fit_curves
from sweeps.study.overtraining import Line, Parallel, RatioGap, fit_lines, parallel_test, ratio_gaps
from sweeps.study.parametric import Cell, CellFit, cell_runs, cells, fit_cells


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How the study is made; recorded with the report."""

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    workers: int = 1
    """Processes that share the grid of parametric fits; more than one needs a script that can be imported."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that the report says of the paper's data."""

    settings: StudySettings
    runs: pl.DataFrame
    inference: pl.DataFrame
    copies: int
    """Rows that repeat a run."""
    bounded_runs: int
    curves: tuple[Curves, ...]
    bounded: tuple[BoundedLosses, ...]
    context_laws: tuple[ContextLaw, ...]
    gaps: tuple[OptimumGap, ...]
    trends: tuple[GapTrend, ...]
    fits: Mapping[Cell, CellFit]
    intervals: tuple[IntervalFit, ...]
    """At delta 1e-3 and all ratios, with and without gamma, on every set."""
    offsets: tuple[OffsetSpread, ...]
    lines: Mapping[str, tuple[Line, ...]]
    """Over-training lines by the column that counts compute."""
    parallel: tuple[Parallel, ...]
    ratio_gaps: tuple[RatioGap, ...]
    dominance: Dominance | None
    batch: tuple[BatchEffect, ...]
    runtimes: tuple[RuntimeFit, ...]
    time_ratios: tuple[TimeRatio, ...]

    @property
    def contexts(self) -> tuple[int, ...]:
        return tuple(sorted({c.context_length for c in self.curves}))


MOST_RESAMPLES = 1000
"""Of a parametric fit: each costs a hundred of a parabola's, and 1,000 place an end of E to a tenth."""
COMPUTE_COLUMNS = ("train_flops", "train_flops_chinchilla", "train_flops_tfla")


def fittable(runs: pl.DataFrame) -> tuple[Cell, ...]:
    """The cells of the authors' grid whose runs are given, enough for the law."""
    wanted = []
    for cell in cells():
        table = cell_runs(runs, cell)
        whole = cell.experiment_set != "all" or table["experiment_set"].n_unique() > 1
        if whole and table.height > 6 and table["N"].n_unique() > 3:
            wanted.append(cell)
    return tuple(wanted)


def make_study(
    runs: pl.DataFrame,
    inference: pl.DataFrame,
    settings: StudySettings | None = None,
    *,
    fits: Mapping[Cell, CellFit] | None = None,
) -> Study:
    """Analyse published runs and measurements; `fits` are the grid's, where they are known already.

    Raises `FitError` where the runs lack a column or none is finished.
    """
    with threadpool_limits(1):  # as in the grid: nothing here solves more than a handful of equations
        return _analysed(runs, inference, settings or StudySettings(), fits)


def _analysed(
    runs: pl.DataFrame, inference: pl.DataFrame, s: StudySettings, fits: Mapping[Cell, CellFit] | None
) -> Study:
    drawn = {"resamples": s.resamples, "level": s.level, "seed": s.seed}
    table = study_runs(runs)
    curves = fit_curves(table, **drawn)  # type: ignore[arg-type]
    if fits is None:
        fits = fit_cells(table, fittable(table), workers=s.workers)
    headline = [f for c, f in fits.items() if c.delta == 1e-3 and c.max_ratio > 1000]
    resamples = min(s.resamples, MOST_RESAMPLES)
    intervals = with_intervals(table, headline, resamples=resamples, level=s.level, seed=s.seed)
    lines = {column: fit_lines(table, flops=column) for column in COMPUTE_COLUMNS}
    tests = (parallel_test(lines["train_flops"], arch, s.level) for arch in (TRANSFORMER, XLSTM))
    return Study(
        settings=s,
        runs=table,
        inference=inference,
        copies=duplicates(table),
        bounded_runs=bounded(table).height,
        curves=curves,
        bounded=bounded_loss_effect(table, seed=s.seed),
        context_laws=all_context_laws(curves, s.level),
        gaps=optimum_gaps(curves, s.level),
        trends=gap_trends(curves, s.level),
        fits=fits,
        intervals=intervals,
        offsets=offset_spreads(intervals, fits),
        lines=lines,
        parallel=tuple(test for test in tests if test is not None),
        ratio_gaps=ratio_gaps(lines["train_flops"], s.level),
        dominance=dominance(table, level=s.level, seed=s.seed),
        batch=batch_effects(table, **drawn),  # type: ignore[arg-type]
        runtimes=fit_runtimes(inference, **drawn) if inference.height else (),  # type: ignore[arg-type]
        time_ratios=time_ratios(inference, level=s.level) if inference.height else (),
    )


__all__ = ["Study", "StudySettings", "fittable", "make_study"]
