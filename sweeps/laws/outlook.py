"""What follows from the fits of a group: runs to train next, centres of later budgets, what to serve.

Tables of plain values, as `sweeps.laws.tables` makes them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.laws.design import Surface, propose_runs, recentre
from sweeps.laws.inference_cost import ServingCost, serving_optimum, two_n_per_token
from sweeps.laws.inputs import FlopFunction, Points
from sweeps.laws.intervals import estimate
from sweeps.laws.isoflop import IsoflopFit
from sweeps.laws.optima import optima
from sweeps.laws.predictions import grid_budgets, identified, law_and_params
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import FitError, LawFit

Rows = list[dict[str, Any]]

_LEAST_NOISE = 1e-4
"""Of ln L: no two trainings agree better, whatever simulated points say."""
_STEP = 10.0
"""Ratio of budgets where a grid has only one."""
_DRAWS = 300
"""Draws behind the interval of a serving optimum, each a search of its own."""


def surface_of(fits: Sequence[LawFit]) -> Surface:
    """The law that answers, as the truth behind runs that are still to come; its noise is what it left over.

    Raises `FitError` where no law is identified.
    """
    fit = next((fit for fit in fits if identified(fit)), None)
    if fit is None:
        raise FitError("no law is identified, so nothing can be said of runs to come")
    law, params = law_and_params(fit)
    return Surface(law=law, params=params, noise=max(float(fit.diagnostics["residual_rms"]), _LEAST_NOISE))


def next_runs(
    points: Points, fits: Sequence[LawFit], settings: LawSettings, flops: FlopFunction, count: int = 5
) -> Rows:
    """The runs that narrow N* at the target most for their FLOPs (`sweeps.laws.design`), in that order.

    The target is the largest of the settings, or ten times the largest budget.
    """
    surface, budgets = surface_of(fits), _budgets(points)
    target = max(settings.target_budgets, default=10 * float(budgets[-1]))
    candidates = [*map(float, budgets), _round(budgets[-1] * _ratio(budgets))]
    picks = propose_runs(points, surface, target, count=count, budgets=candidates, flops=flops)
    return [
        {
            "train_flops": pick.train_flops,
            "N": pick.N,
            "D": pick.D,
            "target": target,
            "error_of_ln_N_before": pick.error_before,
            "error_of_ln_N_after": pick.error_after,
        }
        for pick in picks
    ]


def next_budgets(
    points: Points,
    isoflop: IsoflopFit | None,
    fits: Sequence[LawFit],
    flops: FlopFunction,
    count: int = 2,
) -> Rows:
    """Where the vertices put N* at the next budgets, and where the law does: centres for their grids."""
    vertices = {p.train_flops: p.N.value for p in isoflop.usable} if isoflop else {}
    if not vertices:
        raise FitError("no budget has a usable vertex to centre later budgets on")
    budgets = _budgets(points)
    later = [_round(budgets[-1] * _ratio(budgets) ** k) for k in range(1, count + 1)]
    by_law = np.full(count, np.nan)
    if any(identified(fit) for fit in fits):
        surface = surface_of(fits)
        by_law = optima(surface.law, surface.params, later, flops=flops).N[0]
    return [
        {"train_flops": C, "center_N": float(N), "N_by_the_law": float(law_N)}
        for C, N, law_N in zip(later, recentre(vertices, later), by_law, strict=True)
    ]


def _budgets(points: Points) -> np.ndarray:
    """The budgets of the grid; five over the range of FLOPs where the runs have no grid."""
    grid = grid_budgets(points)
    return grid if len(grid) else np.geomspace(points.C.min(), points.C.max(), 5)


def _round(budget: float) -> float:
    """A budget that a spec would name: a sum of logarithms leaves 9.99999e20."""
    return float(f"{budget:.6g}")


def _ratio(budgets: np.ndarray) -> float:
    return float(np.exp(np.median(np.diff(np.log(budgets))))) if len(budgets) > 1 else _STEP


def serving(
    points: Points,
    fits: Sequence[LawFit],
    settings: LawSettings,
    flops: FlopFunction,
    cost: ServingCost | None,
) -> Rows:
    """The model to train for `served_tokens` at the loss of the best model of each budget (Sardana et al.
    2024).

    Without the architecture's own `cost` a served token is counted as 2 N FLOPs, and the row says so.
    """
    fit = next((fit for fit in fits if identified(fit)), None)
    if fit is None:
        raise FitError("no law is identified, so no model can be chosen for serving")
    law, params = law_and_params(fit)
    rows = params[None] if fit.draws is None else np.vstack([params, fit.draws[:_DRAWS]])
    rows = rows[np.isfinite(rows).all(axis=1)]
    spent = cost or two_n_per_token(settings.served_tokens)
    budgets = np.unique([float(_budgets(points)[-1]), *settings.target_budgets])
    table = []
    for budget in budgets:
        found = serving_optimum(law, rows, float(budget), spent, flops=flops)
        N, saving = (
            estimate(column[0], column[1:], settings.level, "") for column in (found.N, found.saving)
        )
        table.append(
            {
                "loss_of_budget": float(budget),
                "served_tokens": settings.served_tokens,
                "N": N.value,
                "N_low": N.low,
                "N_high": N.high,
                "D": float(found.D[0]),
                "train_flops": float(found.train_flops[0]),
                "inference_flops": float(found.inference_flops[0]),
                "saving": saving.value,
                "saving_low": saving.low,
                "saving_high": saving.high,
                "decode_cost": "the architecture's own" if cost else "2 N a token: shapes are not known",
            }
        )
    return table
