"""What is minimised: rho of the residuals in log or loss space, for a batch of parameter rows at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.laws.forms import Array, Law, Term

_DEAD = 1e-20
"""Squared length of a column of J, relative to the longest, at which its parameter no longer matters."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """S = sum_i w_i rho(r_i), a sum and not a mean, with r = prediction - observation."""

    space: Literal["log", "loss"]
    """Residuals of ln L, or of L itself: two different estimators."""
    delta: float = float("inf")
    """Huber's delta: rho = r^2/2 inside, delta (|r| - delta/2) outside; inf is least squares."""

    def __str__(self) -> str:
        variable = "ln L" if self.space == "log" else "L"
        if np.isinf(self.delta):
            return f"half the sum of squared residuals of {variable}"
        return f"sum of Huber({self.delta:.6g}) of the residuals of {variable}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law, its data in centred logarithms, and the objective."""

    law: Law
    x: Array
    """(inputs, n), centred."""
    center: Array
    """(inputs,), what was subtracted."""
    y: Array
    """(n,) the response, positive."""
    log_y: Array
    objective: Objective


@dataclass(frozen=True)
class Evaluation:
    """The objective at rows of parameters, with what a Newton step and a stopping test need."""

    value: Array
    """(rows,)"""
    gradient: Array
    """(rows, p)"""
    curvature: Array
    """(rows, p, p): J' diag(w rho'') J, never indefinite."""
    scale: Array
    """(rows, p): diagonal of J' diag(w rho'/r) J. It bounds the curvature from above, and does not vanish
    where every residual is in Huber's linear zone."""

    scaled_gradient: Array
    """(rows,): the largest cosine between the weighted residuals and a column of J, 0 at a minimum."""

    @classmethod
    def of(cls, value: Array, gradient: Array, curvature: Array, scale: Array) -> "Evaluation":
        """With the scaled gradient.

        By Cauchy-Schwarz |g_j| <= sqrt(2 S scale_j), so it lies in [0, 1] whatever the units and the sample.
        A parameter that has run to where it changes nothing (a term of 0) is left out.
        """
        alive = scale > _DEAD * scale.max(axis=1, keepdims=True)
        bound = np.sqrt(2.0 * value[:, None] * scale)
        cosine = np.abs(gradient) / np.where(alive & (bound > 0), bound, np.inf)
        return cls(value, gradient, curvature, scale, cosine.max(axis=1))

    def take(self, rows: Array) -> "Evaluation":
        """Some rows."""
        return Evaluation(*(part[rows] for part in self.parts()))

    def where(self, mask: Array, other: "Evaluation") -> "Evaluation":
        """These rows where the mask holds, the other's elsewhere."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return Evaluation(*(np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))

    def parts(self) -> tuple[Array, ...]:
        return self.value, self.gradient, self.curvature, self.scale, self.scaled_gradient


Evaluator = Callable[[Array, Array], Evaluation]
"""(theta (rows, p), which rows of the batch they are) -> Evaluation."""


def model(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Prediction (rows, n) and its Jacobian (rows, p, n) in the space of the objective."""
    terms = problem.law.terms(theta, problem.x)
    sizes = [np.exp(term.log_value) for term in terms]
    total = np.broadcast_to(sum(sizes), (len(theta), problem.x.shape[1]))
    if problem.objective.space == "log":
        return np.log(total), _combine([size / total for size in sizes], terms, theta.shape[1])
    return total, _combine(sizes, terms, theta.shape[1])


def _combine(factors: Sequence[Array], terms: Sequence[Term], p: int) -> Array:
    """sum_k factor_k d t_k / d theta_j as (rows, p, n); each plane is written once where one term has j."""
    shape = np.broadcast_shapes(*(factor.shape for factor in factors))
    jacobian = np.empty((shape[0], p, shape[1]))
    written: set[int] = set()
    for factor, term in zip(factors, terms, strict=True):
        for j, slope in term.slopes.items():
            if j in written:
                jacobian[:, j] += factor * slope
            else:
                np.multiply(factor, slope, out=jacobian[:, j])
                written.add(j)
    return jacobian


def residuals(problem: Problem, theta: Array) -> Array:
    """Prediction minus observation (rows, n) in the space of the objective."""
    observed = problem.log_y if problem.objective.space == "log" else problem.y
    return model(problem, theta)[0] - observed


def evaluate(problem: Problem, theta: Array, weights: Array) -> Evaluation:
    """The objective at theta (rows, p) with weights (rows, n) or (n,)."""
    predicted, jacobian = model(problem, theta)
    r = predicted - (problem.log_y if problem.objective.space == "log" else problem.y)
    return assemble(r, jacobian, weights, problem.objective.delta)


def assemble(r: Array, jacobian: Array, weights: Array, delta: float) -> Evaluation:
    """Value, gradient and curvature from residuals (rows, n) and their Jacobian (rows, p, n)."""
    if np.isinf(delta):
        weighted = weights * r
        value, curving, steepness = 0.5 * np.sum(weighted * r, axis=1), weights, weights
    else:
        psi = np.clip(r, -delta, delta)
        weighted = weights * psi
        value = np.sum(weighted * (r - 0.5 * psi), axis=1)
        curving = weights * (psi == r)
        steepness = weights * (delta / np.maximum(np.abs(r), delta))
    gradient = (jacobian @ weighted[:, :, None])[:, :, 0]
    curvature = (jacobian * np.atleast_2d(curving)[:, None, :]) @ jacobian.transpose(0, 2, 1)
    squares = jacobian**2
    scale = (squares @ np.broadcast_to(steepness, r.shape)[:, :, None])[:, :, 0]
    return Evaluation.of(value, gradient, curvature, scale)
