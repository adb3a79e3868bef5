"""A batched damped Newton method: thousands of small minimisations side by side in plain numpy."""

from dataclasses import dataclass

import numpy as np

from sweeps.laws.forms import Array
from sweeps.laws.objective import Evaluation, Evaluator

_FIRST_DAMPING = 1e-2
_LARGEST_DAMPING = 1e12
_ROUNDING = 1e-13
"""Relative change of a sum of squares that says nothing; below it the gradient decides."""


@dataclass(frozen=True)
class Minima:
    """Where each row of a batch ended."""

    theta: Array
    """(rows, p)"""
    value: Array
    """(rows,)"""
    scaled_gradient: Array
    """(rows,); see `Evaluation.scaled_gradient`. 0 where the fit is exact and gradients are rounding."""
    iterations: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a row has arrived, and when patience ends."""

    tolerance: float = 1e-9
    """Scaled gradient at which a row is done."""
    floor: float = 0.0
    """Objective at which a row is done: the residuals are rounding."""
    max_steps: int = 1000
    """One Huber resample of a small sample in a thousand creeps along a valley to E = 0 for hundreds."""


def minimise(evaluate: Evaluator, theta: Array, limits: Limits) -> Minima:
    """Minimise every row of theta (rows, p).

    Levenberg's step (H + lambda diag M) s = -g with a lambda of its own for every row; a row that gets worse
    keeps its place and raises lambda, one that has arrived leaves the batch.
    """
    theta = np.array(theta, dtype=float)
    with np.errstate(all="ignore"):
        here = evaluate(theta, np.arange(len(theta)))
        value, reached = here.value.copy(), here.scaled_gradient
        rows = np.flatnonzero(~_arrived(here, limits))
        here, damping = here.take(rows), np.full(len(rows), _FIRST_DAMPING)
        iterations = 0
        while len(rows) and iterations < limits.max_steps:
            iterations += 1
            trial = theta[rows] + _step(here, damping)
            there = evaluate(trial, rows)
            better = _improves(here, there)
            theta[rows[better]] = trial[better]
            here = there.where(better, here)
            damping = np.where(better, damping / 10.0, np.maximum(damping, 1e-8) * 10.0)
            value[rows], reached[rows] = here.value, here.scaled_gradient
            moving = ~_arrived(here, limits) & (damping < _LARGEST_DAMPING)
            rows, here, damping = rows[moving], here.take(moving), damping[moving]
    return Minima(theta, value, np.where(value <= limits.floor, 0.0, reached), iterations)


def _arrived(at: Evaluation, limits: Limits) -> Array:
    return (at.scaled_gradient <= limits.tolerance) | (at.value <= limits.floor)


def _step(at: Evaluation, damping: Array) -> Array:
    p = at.gradient.shape[1]
    scale = np.maximum(at.scale, 1e-14 * at.scale.max(axis=1, keepdims=True))
    matrix = at.curvature + (damping[:, None] * scale)[:, :, None] * np.eye(p)
    unit = 1.0 / np.sqrt(scale)
    scaled = unit[:, :, None] * matrix * unit[:, None, :] + 1e-15 * np.eye(p)
    return -unit * np.linalg.solve(scaled, (unit * at.gradient)[:, :, None])[:, :, 0]


def _improves(here: Evaluation, there: Evaluation) -> Array:
    flat = there.value <= here.value * (1.0 + _ROUNDING)
    return (there.value < here.value * (1.0 - _ROUNDING)) | (
        flat & (there.scaled_gradient < here.scaled_gradient)
    )
