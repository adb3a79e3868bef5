"""What a minimum rests on: conditioning, residuals, and the points that carry it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.laws.engine import RESAMPLE_TOLERANCE, Estimator, refit
from sweeps.laws.forms import Array
from sweeps.laws.objective import Problem, model, residuals

_CANDIDATES = 100
"""Rows whose leave-one-out fit is done exactly: those with the largest first-order influence."""
_GROUP = 5
"""Size of the groups of points that are left out together, in large samples."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """How well the data tell the parameters apart, at the minimum and in centred parameters."""

    condition: float
    """Condition number of J'J."""
    smallest_share: float
    """Smallest over largest singular value of J with columns of length 1; 0 if a direction is invisible."""
    weakest: str
    """The parameters that make up the weakest direction."""
    largest_correlation: float
    most_correlated: str
    vanished: tuple[str, ...]
    """Amplitudes whose term has run to 0."""


def conditioning(problem: Problem, theta: Array, weights: Array) -> Conditioning:
    """From the Jacobian (p, n) at theta (p,)."""
    jacobian = model(problem, theta[None])[1][0] * np.sqrt(weights)
    length = np.linalg.norm(jacobian, axis=1)
    names = np.array(problem.law.params)
    seen = length > 1e-10 * length.max()
    scaled = jacobian[seen] / length[seen, None]
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        directions, spectrum, _ = np.linalg.svd(jacobian[seen], full_matrices=False)
        condition = float((spectrum[0] / spectrum[-1]) ** 2)
        covariance = (left / singular**2) @ left.T
        spread = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(spread, spread)
    largest, pair = _largest_off_diagonal(correlation, names[seen])
    return Conditioning(
        condition=condition,
        smallest_share=float(singular[-1] / singular[0]),
        weakest=", ".join(names[seen][np.abs(directions[:, -1]) > 0.3]),
        largest_correlation=largest,
        most_correlated=pair,
        vanished=tuple(names[~seen]),
    )


def _largest_off_diagonal(correlation: Array, names: Array) -> tuple[float, str]:
    rows, columns = np.triu_indices(len(correlation), k=1)
    if len(rows) == 0:
        return 0.0, ""
    values = correlation[rows, columns]
    worst = int(np.nanargmax(np.abs(values))) if np.isfinite(values).any() else 0
    return float(values[worst]), f"{names[rows[worst]]}, {names[columns[worst]]}"


def residual_summary(problem: Problem, theta: Array, weights: Array) -> dict[str, float]:
    """Location, spread, shape and trend of ln L observed minus predicted; r2 is of ln L."""
    r = log_residuals(problem, theta)
    mean = np.average(r, weights=weights)
    spread = np.sqrt(np.average((r - mean) ** 2, weights=weights))
    total = np.sum(weights * (problem.log_y - np.average(problem.log_y, weights=weights)) ** 2)
    summary = {
        "r2": 1.0 - float(np.sum(weights * r**2) / total),
        "residual_mean": float(mean),
        "residual_rms": float(np.sqrt(np.average(r**2, weights=weights))),
        "residual_mad": float(np.median(np.abs(r - np.median(r)))),
        "residual_largest": float(r[np.argmax(np.abs(r))]),
        "residual_largest_row": int(np.argmax(np.abs(r))),
        "residual_skew": float(np.average((r - mean) ** 3, weights=weights) / spread**3) if spread else 0.0,
    }
    delta = problem.objective.delta
    own = residuals(problem, theta[None])[0]
    summary["quadratic_zone_share"] = float(np.average(np.abs(own) <= delta, weights=weights))
    for name, column in zip(problem.law.inputs, problem.x, strict=True):
        summary[f"residual_trend_{name}"] = _correlation(column, r)
    return summary


def log_residuals(problem: Problem, theta: Array) -> Array:
    """ln L observed minus ln L predicted (n,), whatever the space of the objective."""
    predicted = model(problem, theta[None])[0][0]
    return problem.log_y - (predicted if problem.objective.space == "log" else np.log(predicted))


def _correlation(x: Array, y: Array) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0


def influence(problem: Problem, theta: Array, weights: Array) -> Array:
    """First-order change of theta (n, p) when a row is left out. Good for ranking rows, no more.

    Huber's own curvature rests on the few rows of its quadratic zone; the reweighting one uses all of them.
    """
    predicted, jacobian = model(problem, theta[None])
    r = predicted[0] - (problem.log_y if problem.objective.space == "log" else problem.y)
    J, delta = jacobian[0], problem.objective.delta
    steep = weights * np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
    psi = weights * np.clip(r, -delta, delta)
    return (np.linalg.pinv((J * steep) @ J.T, hermitian=True) @ (J * psi)).T


@dataclass(frozen=True, kw_only=True)
class Leverage:
    """How far one quantity moves when points are left out and the law is fitted again."""

    quantity: str
    value: float
    rows: Array
    """Rows left out one at a time, counted from 0 among the rows used."""
    shifts: Array
    """(rows,): quantity without the row minus quantity."""
    worst_point: str
    """Inputs and response of the row with the largest shift."""
    standard_error: float
    """Of the bootstrap where there is one, else the jackknife's over `rows`."""
    group_size: int
    lowest_shift: float
    """Shift without the `group_size` points of lowest loss."""
    strongest_rows: tuple[int, ...]
    strongest_shift: float
    """Shift without the `group_size` rows that pull the same way hardest."""

    @property
    def worst(self) -> int:
        """Place in `rows` of the single point with the largest shift."""
        return int(np.nanargmax(np.abs(self.shifts)))


def leverage(
    problem: Problem, how: Estimator, theta: Array, weights: Array, *, standard_error: float = float("nan")
) -> Leverage | None:
    """Leave points out, one at a time and in groups; None where too few points are left to fit."""
    n, p = problem.y.size, len(theta)
    if n <= p + 1:
        return None
    value = float(_focus(problem, theta[None])[0])
    pull = influence(problem, theta, weights) @ _slope(problem, theta)
    rows = np.sort(np.argsort(-np.abs(pull), kind="stable")[:_CANDIDATES])
    shifts = _without(problem, how, theta, weights, [np.array([row]) for row in rows]) - value
    if not np.isfinite(standard_error):
        standard_error = float(np.sqrt(np.nansum(shifts**2)))
    if not np.isfinite(shifts).any():
        return None
    size = max(1, min(_GROUP, n // 20))
    lowest, strongest = np.argsort(problem.y, kind="stable")[:size], _same_way(rows, shifts, size)
    together = _without(problem, how, theta, weights, [lowest, strongest]) - value
    return Leverage(
        quantity=problem.law.focus,
        value=value,
        rows=rows,
        shifts=shifts,
        worst_point=_describe(problem, rows[np.nanargmax(np.abs(shifts))]),
        standard_error=standard_error,
        group_size=size,
        lowest_shift=float(together[0]),
        strongest_rows=tuple(int(row) for row in strongest),
        strongest_shift=float(together[1]),
    )


def _describe(problem: Problem, row: int) -> str:
    values = np.exp(problem.center + problem.x[:, row])
    inputs = [f"{name} {value:.4g}" for name, value in zip(problem.law.inputs, values, strict=True)]
    return ", ".join([*inputs, f"response {problem.y[row]:.6g}"])


def _focus(problem: Problem, theta: Array) -> Array:
    """The law's first quantity of interest (rows,) at theta (rows, p)."""
    with np.errstate(all="ignore"):
        params = problem.law.to_public(theta, problem.center)
        return problem.law.quantities(params)[problem.law.focus]


def _slope(problem: Problem, theta: Array, step: float = 1e-5) -> Array:
    """Central differences of the focus (p,): it is smooth, and only ranks rows."""
    shift = step * np.eye(len(theta))
    return (_focus(problem, theta + shift) - _focus(problem, theta - shift)) / (2 * step)


def _without(
    problem: Problem, how: Estimator, theta: Array, weights: Array, groups: Sequence[Array]
) -> Array:
    """The focus (groups,) after leaving out each group of rows; nan where no minimum was found."""
    kept = np.tile(weights, (len(groups), 1))
    for row, group in enumerate(groups):
        kept[row, group] = 0.0
    found = refit(problem, how, theta, kept)
    return np.where(found.scaled_gradient <= RESAMPLE_TOLERANCE, _focus(problem, found.theta), np.nan)


def _same_way(rows: Array, shifts: Array, size: int) -> Array:
    """The rows whose single shifts add up to the largest shift in one direction."""
    shifts = np.nan_to_num(shifts)
    up, down = np.argsort(-shifts, kind="stable")[:size], np.argsort(shifts, kind="stable")[:size]
    return rows[up if shifts[up].sum() >= -shifts[down].sum() else down]
