"""Profile likelihood of any quantity of the parameters, traced by refitting under a pull on that quantity.

The profile assumes independent noise of one size. On the Chinchilla points that makes it half as wide as the
pairs bootstrap, so it is offered where asked and never by default.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import chdtri

from sweeps.laws.engine import Fitted
from sweeps.laws.forms import Array
from sweeps.laws.objective import Evaluation, Problem, evaluate, residuals
from sweeps.laws.solver import Limits, minimise
from sweeps.laws.types import Estimate, FitError, Flag

_POINTS = 20
"""On either side of the fit; an extension traces half as many."""
_REACH = 1.5
"""The curve is traced this many times beyond where a parabola would cross the threshold."""
_EXTENSIONS = 8
"""Doublings of the reach of a side whose deviance is still below the threshold at its end."""
_ARRIVED = 1e-6
"""Scaled gradient of the pulled objective at which the end of a trace lies on the profile."""
_PULL = 1e3
"""Stiffness of the pull over the curvature of the objective along the quantity."""
_STEP = 1e-5


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The deviance of a quantity: 0 at the fit, chi-squared with 1 degree of freedom under the model."""

    quantity: str
    values: Array
    """(points,), ascending."""
    deviance: Array
    interval: Estimate
    """A bound is infinite on a side where the deviance never reaches the threshold; a flag says so."""
    flags: tuple[Flag, ...] = ()


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
    best = evaluate(problem, theta[None], weights).value[0]

    def trace(start: Array, targets: Array) -> tuple[Array, Array, Array]:
        ends = _trace(problem, start, weights, quantity, targets, _PULL / spread)
        rise = np.maximum(evaluate(problem, ends, weights).value - best, 0.0)
        least_squares = np.isinf(problem.objective.delta)
        deviance = float(weights.sum()) * np.log1p(rise / best) if least_squares else 2.0 * unit * rise
        return ends, _read(problem, ends, quantity), deviance

    sides = [_side(trace, theta, center, sign * reach, threshold) for sign in (-1.0, 1.0)]
    values = np.concatenate([sides[0][0][::-1], [center], sides[1][0]])
    deviance = np.concatenate([sides[0][1][::-1], [0.0], sides[1][1]])
    low, high = _crossings(values, deviance, center, threshold)
    interval = Estimate(value=center, low=low, high=high, level=level, method=f"profile of {fitted.how}")
    return Profile(
        quantity=quantity,
        values=values,
        deviance=deviance,
        interval=interval,
        flags=_open_sides(quantity, interval, values, level),
    )


def _side(
    trace: Callable[[Array, Array], tuple[Array, Array, Array]],
    theta: Array,
    center: float,
    reach: float,
    threshold: float,
) -> tuple[Array, Array]:
    """Values and deviances from the fit outwards to `center + reach`, and on until the threshold is passed.

    A profile that is steep on one side is flat on the other, so the reach of the parabola may fall short. It
    is doubled from the last point on; a quantity that no longer follows has met its end (E at 0).
    """
    ends, values, deviance = trace(theta, center + reach * np.linspace(0.0, 1.0, _POINTS + 1)[1:])
    for _ in range(_EXTENSIONS):
        if len(values) == 0 or deviance.max() > threshold:
            break
        farther = center + reach * np.linspace(1.0, 2.0, _POINTS // 2 + 1)[1:]
        more = trace(ends[-1], farther)
        if len(more[1]) == 0 or abs(more[1][-1] - values[-1]) < 1e-3 * abs(reach):
            break
        ends, values, deviance = (
            np.concatenate(both) for both in zip((ends, values, deviance), more, strict=True)
        )
        reach *= 2.0
    return values, deviance


def _open_sides(quantity: str, interval: Estimate, values: Array, level: float) -> tuple[Flag, ...]:
    """A flag for each bound that the profile does not give."""
    bounds = (("below", interval.low, values[0]), ("above", interval.high, values[-1]))
    return tuple(
        Flag(
            code="profile-open",
            severity="warning",
            message=f"the data do not bound {quantity} from {side} at {level:.0%}: its deviance stays below"
            f" the threshold as far as {last:.6g}",
        )
        for side, bound, last in bounds
        if np.isinf(bound)
    )


def _read(problem: Problem, theta: Array, quantity: str) -> Array:
    with np.errstate(over="ignore"):
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

    found = minimise(pulled, np.tile(theta, (len(targets), 1)), Limits(tolerance=1e-7))
    return found.theta[found.scaled_gradient <= _ARRIVED]


def _crossings(values: Array, deviance: Array, center: float, threshold: float) -> tuple[float, float]:
    """Where the signed root of the deviance, nearly straight in the quantity, reaches the threshold; infinite
    where it does not."""
    root = np.sign(values - center) * np.sqrt(deviance)
    order = np.argsort(values)
    values, root = values[order], np.maximum.accumulate(root[order])
    keep = np.concatenate([[True], np.diff(root) > 0])
    curve = PchipInterpolator(root[keep], values[keep], extrapolate=False)
    low, high = curve([-np.sqrt(threshold), np.sqrt(threshold)])
    return float(low) if np.isfinite(low) else -np.inf, float(high) if np.isfinite(high) else np.inf
