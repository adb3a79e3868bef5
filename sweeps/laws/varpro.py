"""Variable projection: amplitudes solved exactly inside, exponents searched outside (Golub and Pereyra 1973).

Only for least squares in loss space of laws whose terms each have an amplitude. Under Huber's loss the inner
least squares would not give the Huber minimum, so there the direct method is used.
"""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import nnls

from sweeps.laws.forms import Array, Law
from sweeps.laws.objective import Evaluation, Problem, assemble
from sweeps.laws.types import FitError


def exponents_of(law: Law) -> Array:
    """Indices of theta that stay outside. Raises `FitError` where a term has no amplitude of its own."""
    if not law.amplitudes:
        raise FitError(f"variable projection needs a sum of terms with amplitudes; {law.name} is not: use ls")
    return np.setdiff1d(np.arange(len(law.params)), law.amplitudes)


def evaluate_projected(problem: Problem, outer: Array, weights: Array) -> Evaluation:
    """Least squares over the exponents `outer` (rows, q), amplitudes at their non-negative best.

    The Jacobian is Kaufman's: (I - Q Q') [dX c], the part of the slopes that the amplitudes cannot undo.
    """
    basis, slopes = _basis(problem, outer)
    root = np.sqrt(np.broadcast_to(weights, (len(outer), problem.y.size)))
    amplitudes, q = _solve(basis * root[:, None, :], problem.y * root)
    r = (np.einsum("bk,bkn->bn", amplitudes, basis) - problem.y) * root
    jacobian = np.zeros((*outer.shape, problem.y.size))
    for k, slope in enumerate(slopes):
        size = amplitudes[:, k, None] * basis[:, k] * root
        for j, derivative in slope.items():
            jacobian[:, j] += size * derivative
    jacobian -= (jacobian @ q) @ q.transpose(0, 2, 1)
    return assemble(r, jacobian, np.ones(problem.y.size), np.inf)


def complete(problem: Problem, outer: Array, weights: Array) -> Array:
    """theta (rows, p) from the exponents (rows, q): with the amplitudes as logarithms, -inf for 0."""
    root = np.sqrt(np.broadcast_to(weights, (len(outer), problem.y.size)))
    theta = _fill(problem.law, outer)
    with np.errstate(all="ignore"):
        basis, _ = _basis(problem, outer)
        amplitudes, _ = _solve(basis * root[:, None, :], problem.y * root)
        theta[:, list(problem.law.amplitudes)] = np.log(amplitudes)
    return theta


def _fill(law: Law, outer: Array) -> Array:
    theta = np.zeros((len(outer), len(law.params)))
    theta[:, exponents_of(law)] = outer
    return theta


def _basis(problem: Problem, outer: Array) -> tuple[Array, list[Mapping[int, Array | float]]]:
    """The terms at amplitude 1 (rows, terms, n), and their slopes in the exponents, counted from 0."""
    place = {int(j): i for i, j in enumerate(exponents_of(problem.law))}
    terms = problem.law.terms(_fill(problem.law, outer), problem.x)
    shape = (len(outer), problem.y.size)
    basis = np.stack([np.broadcast_to(np.exp(term.log_value), shape) for term in terms], axis=1)
    slopes: list[Mapping[int, Array | float]]
    slopes = [{place[j]: slope for j, slope in term.slopes.items() if j in place} for term in terms]
    return basis, slopes


def _solve(basis: Array, y: Array) -> tuple[Array, Array]:
    """Non-negative amplitudes (rows, terms) and an orthonormal basis (rows, n, terms) of the terms in use."""
    q, r = np.linalg.qr(basis.transpose(0, 2, 1))
    amplitudes = _back_substitute(r, np.einsum("bnk,bn->bk", q, y))
    for row in np.flatnonzero(~(amplitudes > 0).all(axis=1)):
        amplitudes[row], q[row] = _solve_row(basis[row].T, y[row])
    return amplitudes, q


def _back_substitute(r: Array, b: Array) -> Array:
    solution = np.zeros_like(b)
    for k in reversed(range(b.shape[1])):
        known = np.einsum("bk,bk->b", r[:, k, k + 1 :], solution[:, k + 1 :])
        solution[:, k] = (b[:, k] - known) / r[:, k, k]
    return solution


def _solve_row(columns: Array, y: Array) -> tuple[Array, Array]:
    q = np.zeros(columns.shape)
    if not np.isfinite(columns).all():
        return np.full(columns.shape[1], np.nan), q
    size = np.linalg.norm(columns, axis=0)
    amplitudes = nnls(columns / size, y)[0] / size
    used = np.flatnonzero(amplitudes)
    q[:, : len(used)] = np.linalg.qr(columns[:, used])[0]
    return amplitudes, q
