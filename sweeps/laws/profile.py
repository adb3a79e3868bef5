"""Profile likelihood of any quantity of the parameters, traced by refitting under a pull on that quantity.

The profile assumes independent noise of one size. On the Chinchilla points that makes it half as wide as the
pairs bootstrap, so it is offered where asked and never by default.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import chdtri

from sweeps.laws.engine import Fitted
from sweeps.laws.forms import Array
from sweeps.laws.objective import Evaluation, Problem, evaluate, residuals
from sweeps.laws.solver import Limits, minimise
from sweeps.laws.types import Estimate, FitError

_POINTS = 41
_REACH = 1.5
"""The curve is traced this many times beyond where a parabola would cross the threshold."""
_PULL = 1e3
"""Stiffness of the pull over the curvature of the objective along the quantity."""
_STEP = 1e-5


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The deviance of a quantity: 0 at the fit, chi-squared with 1 degree of freedom under the model."""

    quantity: str
    values: Array
    deviance: Array
    interval: Estimate


def profile_likelihood(fitted: Fitted, quantity: str, *, level: float = 0.95) -> Profile:
    """Profile `quantity`, a public parameter or derived quantity of the law, around a minimum.

    Least squares: deviance n ln(S / S_min). Huber: 2 (S - S_min) sum(psi') / sum(psi^2), the scaled robust
    deviance (Hampel et al. 1986, section 7.2).

    A row of the trace minimises S + k (q - target)^2 / 2. Whatever k and the target, its end is the minimum
    of S at the q it reaches, so the traced pairs (q, S) lie on the profile exactly.
    """
    problem, weights, theta = fitted.problem, fitted.weights, fitted.solution.theta
    if not np.isfinite(theta).all():
        raise FitError("a term of the law has run to 0: profile the law without it")
    center = float(_read(problem, theta[None], quantity)[0])
    slope, curvature = _slope(problem, theta[None], quantity)[0], _curvature(problem, theta, weights)
    spread = float(slope @ np.linalg.solve(curvature, slope))
    unit = _deviance_unit(problem, theta, weights)
    threshold = float(chdtri(1, 1 - level))
    reach = _REACH * np.sqrt(threshold * spread / (2.0 * unit))
    targets = center + reach * np.linspace(-1.0, 1.0, _POINTS)
    ends = _trace(problem, theta, weights, quantity, targets, _PULL / spread)
    values = _read(problem, ends, quantity)
    best = evaluate(problem, theta[None], weights).value[0]
    rise = np.maximum(evaluate(problem, ends, weights).value - best, 0.0)
    if np.isinf(problem.objective.delta):
        deviance = float(weights.sum()) * np.log1p(rise / best)
    else:
        deviance = 2.0 * unit * rise
    low, high = _crossings(values, deviance, center, threshold)
    interval = Estimate(value=center, low=low, high=high, level=level, method=f"profile of {fitted.how}")
    return Profile(quantity=quantity, values=values, deviance=deviance, interval=interval)


def _read(problem: Problem, theta: Array, quantity: str) -> Array:
    named = problem.law.quantities(problem.law.to_public(theta, problem.center))
    if quantity not in named:
        raise FitError(f"{problem.law.name} has no quantity '{quantity}'; there are {', '.join(named)}")
    return named[quantity]


def _slope(problem: Problem, theta: Array, quantity: str) -> Array:
    """Central differences of the quantity (rows, p)."""
    p = theta.shape[1]
    steps = _STEP * np.eye(p)
    columns = [
        (_read(problem, theta + step, quantity) - _read(problem, theta - step, quantity)) / (2 * _STEP)
        for step in steps
    ]
    return np.stack(columns, axis=1)


def _curvature(problem: Problem, theta: Array, weights: Array) -> Array:
    at = evaluate(problem, theta[None], weights)
    return at.curvature[0] + 1e-10 * np.diag(at.scale[0])


def _deviance_unit(problem: Problem, theta: Array, weights: Array) -> float:
    """What turns a rise of the objective into half a deviance, to first order."""
    r = residuals(problem, theta[None])[0]
    delta = problem.objective.delta
    psi = np.clip(r, -delta, delta)
    if np.isinf(delta):
        return float(weights.sum() / (weights @ psi**2))
    return float((weights @ (psi == r)) / (weights @ psi**2))


def _trace(
    problem: Problem, theta: Array, weights: Array, quantity: str, targets: Array, stiffness: float
) -> Array:
    def pulled(rows: Array, which: Array) -> Evaluation:
        at = evaluate(problem, rows, weights)
        gap, slope = _read(problem, rows, quantity) - targets[which], _slope(problem, rows, quantity)
        outer = stiffness * slope[:, :, None] * slope[:, None, :]
        return Evaluation.of(
            at.value + 0.5 * stiffness * gap**2,
            at.gradient + stiffness * gap[:, None] * slope,
            at.curvature + outer,
            at.scale + np.einsum("bii->bi", outer),
        )

    starts = np.tile(theta, (len(targets), 1))
    return minimise(pulled, starts, Limits(tolerance=1e-7)).theta


def _crossings(values: Array, deviance: Array, center: float, threshold: float) -> tuple[float, float]:
    """Where the signed root of the deviance, nearly straight in the quantity, reaches the threshold."""
    root = np.sign(values - center) * np.sqrt(deviance)
    order = np.argsort(values)
    values, root = values[order], np.maximum.accumulate(root[order])
    keep = np.concatenate([[True], np.diff(root) > 0])
    curve = PchipInterpolator(root[keep], values[keep], extrapolate=False)
    low, high = curve([-np.sqrt(threshold), np.sqrt(threshold)])
    return float(low), float(high)
