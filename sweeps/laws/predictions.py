"""N*, D* and L* at the budgets that matter, by every method that has an answer, the one to trust first.

Inside the grid the parabolas come first: they are direct evidence at that budget. Beyond it the law comes
first, because the power laws carry the parabolas' bias along (see `sweeps.laws.bias`), unless the law is not
identified.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sweeps.laws.forms import LAWS, Law
from sweeps.laws.inputs import FlopFunction, Points
from sweeps.laws.intervals import estimate
from sweeps.laws.isoflop import IsoflopFit
from sweeps.laws.optima import optima, tokens_at
from sweeps.laws.power_laws import PowerLawFit
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import LawFit, OptimumPrediction

_QUANTITIES: tuple[Literal["N", "D", "loss"], ...] = ("N", "D", "loss")
_GRID_RUNS = 3
"""Runs that make a budget one of the grid; a table without groups has as many budgets as runs."""
_INSIDE = 1.0 + 1e-6


def grid_budgets(points: Points) -> np.ndarray:
    """Nominal budgets with at least three runs, ascending."""
    budgets, runs = np.unique(points.budget, return_counts=True)
    return budgets[runs >= _GRID_RUNS]


def law_and_params(fit: LawFit) -> tuple[Law, np.ndarray]:
    """The form of a fit and its public parameters (p,)."""
    law = LAWS[fit.law]
    return law, np.array([fit.params[name].value for name in law.params])


def identified(fit: LawFit) -> bool:
    """Nothing in the fit says that its parameters are arbitrary."""
    return not any(flag.severity == "error" for flag in fit.flags)


def predict(
    points: Points,
    flops: FlopFunction,
    isoflop: IsoflopFit | None,
    fits: Sequence[LawFit],
    settings: LawSettings,
) -> tuple[OptimumPrediction, ...]:
    """Predictions at the grid's budgets (the largest compute where there is no grid) and at the targets."""
    grid = grid_budgets(points)
    largest = float(grid.max() if len(grid) else points.C.max())
    budgets = np.unique([*(grid if len(grid) else [largest]), *settings.target_budgets])
    by_law = _by_law(fits[0], budgets, largest, flops, settings) if fits else {}
    by_parabolas = _by_parabolas(isoflop, budgets, largest, flops, settings) if isoflop else {}
    ordered = []
    for budget in budgets:
        methods = [by_parabolas.get(budget), by_law.get(budget)]
        if budget > largest * _INSIDE and fits and identified(fits[0]):
            methods.reverse()
        ordered += [method for method in methods if method is not None]
    return tuple(ordered)


def _by_law(
    fit: LawFit, budgets: np.ndarray, largest: float, flops: FlopFunction, settings: LawSettings
) -> dict[float, OptimumPrediction]:
    law, params = law_and_params(fit)
    best = optima(law, params, budgets, flops=flops)
    drawn = optima(law, fit.draws, budgets, flops=flops) if fit.draws is not None else None
    how = next(iter(fit.params.values())).method
    predictions = {}
    for i, budget in enumerate(budgets):
        if not np.isfinite(best.N[0, i]):
            continue
        values = {
            name: estimate(
                getattr(best, name)[0, i],
                None if drawn is None else getattr(drawn, name)[:, i],
                settings.level,
                how,
            )
            for name in _QUANTITIES
        }
        predictions[budget] = OptimumPrediction(
            budget=float(budget),
            **values,
            method=f"{fit.law} law, {fit.estimator}",
            extrapolation=float(budget / largest),
        )
    return predictions


def _by_parabolas(
    isoflop: IsoflopFit, budgets: np.ndarray, largest: float, flops: FlopFunction, settings: LawSettings
) -> dict[float, OptimumPrediction]:
    """The vertex where the budget has a usable one, else the power laws, D* spending the budget exactly."""
    if not isoflop.laws:
        return {}
    predictions = {}
    for budget in budgets:
        vertex = {name: isoflop.at_vertex(name, budget) for name in _QUANTITIES}
        columns = {name: column for name, column in vertex.items() if column is not None}
        if not columns:
            columns = {name: on_line(isoflop.laws[name], budget) for name in _QUANTITIES}
            columns["D"] = _tokens(flops, columns["N"], budget)
        values = {
            name: estimate(column[0], column[1:], settings.level, isoflop.method)
            for name, column in columns.items()
        }
        predictions[budget] = OptimumPrediction(
            budget=float(budget), **values, method="isoflop parabolas", extrapolation=float(budget / largest)
        )
    return predictions


def on_line(fit: PowerLawFit, budget: float) -> np.ndarray:
    """A power law's value and then its draws (1 + resamples,)."""
    return np.append(fit.law(budget), fit.draws_at(budget))


def _tokens(flops: FlopFunction, N: np.ndarray, C: float) -> np.ndarray:
    D = np.full(len(N), np.nan)
    found = np.isfinite(N)
    D[found] = tokens_at(flops, N[found], C)
    return D
