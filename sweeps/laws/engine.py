"""From data to minima: estimators by name, many starts on the sample, one warm start for each resample."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sweeps.laws import varpro
from sweeps.laws.forms import Array, Law
from sweeps.laws.objective import Evaluation, Objective, Problem, evaluate, residuals
from sweeps.laws.solver import Limits, Minima, minimise
from sweeps.laws.types import FitError

START_TOLERANCE = 1e-9
"""Scaled gradient that every start is polished to."""
RESAMPLE_TOLERANCE = 1e-7
"""Scaled gradient of a resample: its excess is of the order of the square."""
AGREEMENT = 1e-6
"""Starts within this relative excess of the best have found the same minimum."""

_EXACT = 1e-13
"""Root mean square residual, in units of the response, at which a fit is exact and gradients are rounding."""
_BLOCK = 65536
"""Points times rows worked on at once: the arrays of one block stay in a core's cache."""

Delta = float | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """What is minimised and how."""

    name: str
    objective: Objective
    projected: bool = False
    """Amplitudes by variable projection."""

    def __str__(self) -> str:
        how = ", amplitudes by variable projection" if self.projected else ""
        return f"{self.objective}{how}"


ESTIMATORS = ("huber-log", "ls-log", "ls", "vp")
"""Approach 3; least squares of ln L; least squares of L; the same by variable projection."""


def estimator(name: str, delta: float = 1e-3) -> Estimator:
    """An estimator by name; `delta` is Huber's and counts for huber-log alone."""
    if name == "huber-log":
        if not delta > 0:
            raise FitError(f"Huber's delta must be above 0, got {delta}")
        return Estimator(name=name, objective=Objective(space="log", delta=delta))
    if name == "ls-log":
        return Estimator(name=name, objective=Objective(space="log"))
    if name in ("ls", "vp"):
        return Estimator(name=name, objective=Objective(space="loss"), projected=name == "vp")
    raise FitError(f"estimator '{name}' is unknown; there are {', '.join(ESTIMATORS)}")


def pose(
    law: Law, inputs: Mapping[str, Array], response: Array, objective: Objective, weights: Array
) -> Problem:
    """The problem in centred logarithms."""
    x = np.log(np.stack([np.asarray(inputs[name], dtype=float) for name in law.inputs]))
    center = np.average(x, axis=1, weights=weights)
    y = np.array(response, dtype=float)
    return Problem(law=law, x=x - center[:, None], center=center, y=y, log_y=np.log(y), objective=objective)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The minimum of the full sample and how sure one can be that it is the minimum."""

    theta: Array
    """(p,), centred."""
    value: float
    scaled_gradient: float
    n_starts: int
    agreeing_starts: int
    """Starts that ended within 1e-6 (relative) of the best."""
    runner_up_excess: float
    """Relative excess of the second-best start."""
    other_minimum_excess: float
    """Relative excess of the best start that does not agree; nan where all agree."""


def solve(problem: Problem, how: Estimator, weights: Array) -> Solution:
    """The best of all starts of the law, each minimised to a scaled gradient of 1e-9."""
    level = float(np.average(problem.log_y, weights=weights))
    starts = problem.law.starts(level)
    found = descend(problem, how, starts, weights, tolerance=START_TOLERANCE)
    if not np.isfinite(found.value).any():
        raise FitError(f"{problem.law.name}: no start reached a finite {how.objective}")
    order = np.argsort(np.where(np.isfinite(found.value), found.value, np.inf), kind="stable")
    best = order[0]
    floor = _exact_value(problem, weights)
    value = np.maximum(found.value, floor)
    excess = value / value[best] - 1.0
    agrees = excess <= AGREEMENT
    others = excess[~agrees & np.isfinite(excess)]
    return Solution(
        theta=found.theta[best],
        value=float(found.value[best]),
        scaled_gradient=float(found.scaled_gradient[best]),
        n_starts=len(starts),
        agreeing_starts=int(agrees.sum()),
        runner_up_excess=float(excess[order[1]]) if len(starts) > 1 else float("nan"),
        other_minimum_excess=float(others.min()) if len(others) else float("nan"),
    )


def refit(problem: Problem, how: Estimator, theta: Array, weights: Array) -> Minima:
    """One warm-started minimum for each row of weights (rows, n); theta is (p,) or (rows, p)."""
    starts = np.broadcast_to(theta, (len(weights), len(problem.law.params)))
    return descend(problem, how, starts, weights, tolerance=RESAMPLE_TOLERANCE)


def descend(problem: Problem, how: Estimator, starts: Array, weights: Array, *, tolerance: float) -> Minima:
    """Minimise from every start (rows, p), a block of rows at a time; weights are (n,) or (rows, n)."""
    weights = np.broadcast_to(weights, (len(starts), problem.y.size))
    size = max(1, _BLOCK // problem.y.size)
    blocks = [slice(i, i + size) for i in range(0, len(starts), size)]
    limits = Limits(tolerance=tolerance, floor=_exact_value(problem, weights[0]))
    parts = [_descend_block(problem, how, starts[block], weights[block], limits) for block in blocks]
    return Minima(
        theta=np.concatenate([part.theta for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        scaled_gradient=np.concatenate([part.scaled_gradient for part in parts]),
        iterations=max(part.iterations for part in parts),
    )


def _descend_block(problem: Problem, how: Estimator, starts: Array, weights: Array, limits: Limits) -> Minima:
    if not how.projected:
        return minimise(lambda theta, rows: evaluate(problem, theta, weights[rows]), starts, limits)

    def projected(theta: Array, rows: Array) -> Evaluation:
        return varpro.evaluate_projected(problem, theta, weights[rows])

    found = minimise(projected, starts[:, varpro.exponents_of(problem.law)], limits)
    return replace(found, theta=varpro.complete(problem, found.theta, weights))


def _exact_value(problem: Problem, weights: Array) -> float:
    """The objective of residuals that are rounding errors."""
    unit = 1.0 if problem.objective.space == "log" else float(np.mean(problem.y))
    return 0.5 * float(np.sum(weights)) * (_EXACT * unit) ** 2


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law at its minimum on one sample."""

    problem: Problem
    how: Estimator
    weights: Array
    solution: Solution

    @property
    def params(self) -> Array:
        """Public parameters (p,); a degenerate fit may overflow, and is refused for its conditioning."""
        with np.errstate(over="ignore"):
            return self.problem.law.to_public(self.solution.theta[None], self.problem.center)[0]


def minimum(
    law: Law, inputs: Mapping[str, Array], response: Array, weights: Array, *, name: str, delta: Delta
) -> Fitted:
    """The law fitted by the estimator `name`, from all starts; the data are taken as checked."""
    how = _choose(law, inputs, response, weights, name, delta)
    problem = pose(law, inputs, response, how.objective, weights)
    return Fitted(problem=problem, how=how, weights=weights, solution=solve(problem, how, weights))


def _choose(
    law: Law, inputs: Mapping[str, Array], response: Array, weights: Array, name: str, delta: Delta
) -> Estimator:
    if name == "huber-log" and delta == "auto":
        return estimator(name, automatic_delta(law, inputs, response, weights))
    if isinstance(delta, str):
        if delta != "auto":
            raise FitError(f"huber_delta is a number or auto, got '{delta}'")
        return estimator(name)
    return estimator(name, delta)


def automatic_delta(
    law: Law, inputs: Mapping[str, Array], response: Array, weights: Array, floor: float = 1e-6
) -> float:
    """1.345 times 1.4826 MAD of the residuals of a Huber(1e-3) fit: 95 % efficient if they were Gaussian."""
    how = estimator("huber-log", 1e-3)
    problem = pose(law, inputs, response, how.objective, weights)
    solution = solve(problem, how, weights)
    deviation = np.abs(residuals(problem, solution.theta[None])[0])
    return max(1.345 * 1.4826 * _weighted_median(deviation, weights), floor)


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    total = cumulative[-1]
    low = values[order][np.searchsorted(cumulative, total / 2)]
    high = values[order][min(np.searchsorted(cumulative, total / 2, side="right"), len(values) - 1)]
    return float(0.5 * (low + high))
