"""Fits for users: a run table or arrays in, a `LawFit` with intervals, diagnostics and flags out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from sweeps.laws.bootstrap import Bootstrap, Scheme, by_budget, run_bootstrap
from sweeps.laws.diagnostics import (
    Conditioning,
    Leverage,
    conditioning,
    leverage,
    log_residuals,
    residual_summary,
)
from sweeps.laws.engine import Estimator, Solution, minimum
from sweeps.laws.forms import LAWS, Array, Law
from sweeps.laws.identifiability import (
    check_budgets,
    check_draws,
    check_leverage,
    check_solution,
    check_support,
    check_zone,
)
from sweeps.laws.inputs import Points, prepare
from sweeps.laws.intervals import estimate
from sweeps.laws.objective import Problem
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import Estimate, FitError, Flag, LawFit


def fit(run_table: pl.DataFrame | Mapping[str, Any] | Points, settings: LawSettings | None = None) -> LawFit:
    """Fit `settings.law` to the runs of one architecture at one context length.

    Pairs are stratified by budget where there are fewer than 10 budgets. Beside them stands a cluster
    bootstrap: by run where runs repeat (checkpoints), else by budget where a budget has several runs.

    Raises `FitError` for input that no fit can use and for data that do not identify the law.
    """
    settings = settings or LawSettings()
    points = run_table if isinstance(run_table, Points) else prepare(run_table)
    inputs = {"N": points.N, "D": points.D, "C": points.C}
    return fit_arrays(
        find_law(settings.law),
        inputs,
        points.loss,
        settings,
        weights=points.weights,
        pairs=by_budget(points.budget),
        clusters=clusters_of(points),
        flags=points.flags,
    )


def find_law(name: str) -> Law:
    """A law by name. Raises `FitError` naming those that exist."""
    if name not in LAWS:
        raise FitError(f"law '{name}' is unknown; there are {', '.join(LAWS)}")
    return LAWS[name]


def clusters_of(points: Points) -> Scheme | None:
    """Which rows hang together: those of a run, else those of a budget; None where every row stands alone."""
    for label, labels in (("run", points.run_key), ("budget", points.budget)):
        if 2 <= len(np.unique(labels)) <= len(points) * (0.9 if label == "run" else 0.5):
            return Scheme(kind="cluster", labels=labels, label=label)
    return None


def fit_arrays(
    law: Law,
    inputs: Mapping[str, Array],
    response: Array,
    settings: LawSettings | None = None,
    *,
    weights: Array | None = None,
    pairs: Scheme | None = None,
    clusters: Scheme | None = None,
    flags: tuple[Flag, ...] = (),
) -> LawFit:
    """Fit any law to inputs (n,) by name and a positive response (n,); the law of `settings` is not read.

    `pairs` and `clusters` say how the two bootstraps draw; without `clusters` there is only the first.
    """
    settings = settings or LawSettings()
    columns, y, w = _checked(law, inputs, response, weights)
    found = [*flags, *check_support(law, columns, y)]
    found += check_budgets(law, columns["N"] * columns["D"]) if "N" in columns and "D" in columns else []
    best = minimum(law, columns, y, w, name=settings.estimator, delta=settings.huber_delta)
    problem, how, solution, public = best.problem, best.how, best.solution, best.params[None]
    at = conditioning(problem, solution.theta, w)
    found += check_solution(law, public[0], solution, at)
    share = residual_summary(problem, solution.theta, w)["quadratic_zone_share"]
    found += check_zone(len(law.params), share, len(y))
    runs = _resample(problem, how, solution.theta, w, [pairs or Scheme(), clusters], settings)
    found += [flag for run in runs if run is not None for flag in check_draws(law, run)]
    held = leverage(problem, how, solution.theta, w, standard_error=_spread(law, runs[0]))
    found += check_leverage(held) if held is not None else []
    estimates = _estimates(law, public, runs[0], settings)
    return LawFit(
        law=law.name,
        formula=law.formula,
        estimator=str(how),
        params={name: estimates[name] for name in law.params},
        objective=solution.value,
        n_points=len(y),
        diagnostics=_diagnostics(problem, solution, at, held, w, runs),
        residuals=log_residuals(problem, solution.theta),
        flags=tuple(found),
        derived={name: value for name, value in estimates.items() if name not in law.params},
        clustered=_estimates(law, public, runs[1], settings) if runs[1] is not None else {},
        draws=None if runs[0] is None else runs[0].params,
        cluster_draws=None if runs[1] is None else runs[1].params,
    )


def with_interval(fitted: LawFit, quantity: Callable[[Mapping[str, Array]], Array], level: float) -> Estimate:
    """A quantity of the parameters with the interval of its values inside the resamples.

    `quantity` maps parameter columns by name, each (rows,), to (rows,): never combine marginal intervals.
    """
    names = list(fitted.params)
    value = quantity({name: np.array([fitted.params[name].value]) for name in names})[0]
    if fitted.draws is None:
        return estimate(value, None, level, "")
    with np.errstate(all="ignore"):
        draws = quantity(dict(zip(names, fitted.draws.T, strict=True)))
    return estimate(value, draws, level, fitted.params[names[0]].method)


def _checked(
    law: Law, inputs: Mapping[str, Array], response: Array, weights: Array | None
) -> tuple[dict[str, Array], Array, Array]:
    missing = [name for name in law.inputs if name not in inputs]
    if missing:
        raise FitError(f"{law.name} needs {', '.join(law.inputs)}; {', '.join(missing)} is missing")
    given = {"response": response} | {name: inputs[name] for name in law.inputs}
    given |= {} if weights is None else {"weights": weights}
    columns = {}
    for name, column in given.items():
        try:
            columns[name] = np.array(column, dtype=float)
        except (TypeError, ValueError):
            raise FitError(f"{name} holds text or mixed values, not numbers") from None
        bad = ~(np.isfinite(columns[name]) & (columns[name] > 0))
        if columns[name].shape != np.shape(response) or columns[name].ndim != 1:
            raise FitError(f"{name} must be a vector as long as the response, got {columns[name].shape}")
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise FitError(f"{name} must be finite and above 0, but row {first} is {columns[name][first]:g}")
    y = columns.pop("response")
    return columns, y, columns.pop("weights", np.ones(len(y)))


def _resample(
    problem: Problem,
    how: Estimator,
    theta: Array,
    weights: Array,
    schemes: list[Scheme | None],
    settings: LawSettings,
) -> list[Bootstrap | None]:
    return [
        run_bootstrap(problem, how, theta, weights, scheme, resamples=settings.resamples, seed=settings.seed)
        if scheme is not None and settings.resamples
        else None
        for scheme in schemes
    ]


def _spread(law: Law, run: Bootstrap | None) -> float:
    if run is None:
        return float("nan")
    draws = law.quantities(run.params)[law.focus]
    draws = draws[np.isfinite(draws)]
    return float(np.std(draws)) if len(draws) > 1 else float("nan")


def _estimates(law: Law, public: Array, run: Bootstrap | None, settings: LawSettings) -> dict[str, Estimate]:
    draws = {} if run is None else law.quantities(run.params)
    method = "" if run is None else run.method
    return {
        name: estimate(float(value[0]), draws.get(name), settings.level, method)
        for name, value in law.quantities(public).items()
    }


def _diagnostics(
    problem: Problem,
    solution: Solution,
    at: Conditioning,
    held: Leverage | None,
    weights: Array,
    runs: list[Bootstrap | None],
) -> dict[str, float | int | str]:
    table: dict[str, float | int | str] = {
        "gradient_norm": solution.scaled_gradient,
        "n_starts": solution.n_starts,
        "agreeing_starts": solution.agreeing_starts,
        "runner_up_excess": solution.runner_up_excess,
        "other_minimum_excess": solution.other_minimum_excess,
        "condition": at.condition,
        "largest_correlation": at.largest_correlation,
        "most_correlated": at.most_correlated,
    }
    if np.isfinite(problem.objective.delta):
        table["huber_delta"] = problem.objective.delta
    table |= residual_summary(problem, solution.theta, weights)
    for name, center, column in zip(problem.law.inputs, problem.center, problem.x, strict=True):
        table[f"{name}_low"] = float(np.exp(center + column.min()))
        table[f"{name}_high"] = float(np.exp(center + column.max()))
    for kind, run in zip(("resamples", "cluster_resamples"), runs, strict=True):
        if run is not None:
            table[f"{kind}_converged"] = run.converged
    if held is not None:
        table |= {
            "leverage_quantity": held.quantity,
            "leverage_row": int(held.rows[held.worst]),
            "leverage_shift": float(held.shifts[held.worst]),
            "lowest_loss_shift": held.lowest_shift,
            "strongest_group": ", ".join(map(str, held.strongest_rows)),
            "strongest_group_shift": held.strongest_shift,
            "standard_error": held.standard_error,
        }
    return table
