"""The best N and D at a budget under any law and any FLOP function; what one architecture saves over another.

With C = 6 N D the optimum of the Chinchilla law has a closed form. Attention and mLSTM context terms break
it: FLOPs a token are no longer proportional to N, the exponents of N* and D* need not add up to 1, and
neither equals the closed form. So the optimum is always found on the budget's own curve, for all draws and
all budgets at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.laws.forms import Law
from sweeps.laws.inputs import FlopFunction, six_nd
from sweeps.laws.types import FitError

_STENCIL = 0.01
"""Step in ln N of the five-point derivatives: truncation (1e-10) and rounding (1e-14 over the step) both
vanish."""

_SMALLEST_N, _SMALLEST_D = 10.0, 10.0
_SCAN = 160


@dataclass(frozen=True, kw_only=True)
class Optima:
    """Optima of parameter rows at budgets, all (rows, budgets); nan where a row has no interior optimum."""

    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


def tokens_at(flops: FlopFunction, N: np.ndarray, C: np.ndarray | float) -> np.ndarray:
    """D with flops(N, D) = C, elementwise over N and C broadcast together, to 1e-13 relative.

    `flops` must rise with D; where it is proportional to D two evaluations are enough. Raises `FitError`
    where a secant in ln D does not converge.
    """
    N, target = np.broadcast_arrays(np.asarray(N, float), np.asarray(C, float))
    D = target / (6.0 * N)
    slope = np.ones_like(D)
    previous: tuple[np.ndarray, np.ndarray] | None = None
    for _ in range(60):
        gap = np.log(flops(N, D) / target)
        if np.all(np.abs(gap) < 1e-13):
            return D
        if previous is not None:
            run, rise = np.log(D / previous[0]), gap - previous[1]
            with np.errstate(divide="ignore", invalid="ignore"):
                slope = np.where((np.abs(run) > 1e-9) & (rise / run > 1e-3), rise / run, slope)
        previous = (D, gap)
        with np.errstate(over="ignore"):
            following = D * np.exp(-gap / slope)
        if not np.isfinite(following).all():
            break
        D = following
    if np.all(np.abs(gap) < 1e-9):
        return D
    worst = int(np.argmax(np.where(np.isfinite(gap), np.abs(gap), np.inf)))
    raise FitError(
        f"no D spends {target.flat[worst]:.6g} FLOPs at N = {N.flat[worst]:.6g}:"
        " the FLOP function must rise with D"
    )


def paired_loss(law: Law, params: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The law of each parameter row (rows, p) at its own N and D (rows,): (rows,).

    Each row is centred at its own point, which is what `from_public` is for.
    """
    return _paired_terms(law, params, N, D).sum(axis=0)


def _paired_terms(law: Law, params: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The summands of `paired_loss`: (terms, rows)."""
    theta = law.from_public(params, np.log(np.stack([N, D])))
    return np.exp([term.log_value[:, 0] for term in law.terms(theta, np.zeros((2, 1)))])


def optima(
    law: Law, params: np.ndarray, budgets: Sequence[float] | np.ndarray, *, flops: FlopFunction = six_nd
) -> Optima:
    """Minimum of the law along flops(N, D) = C, for public parameters (rows, p) or (p,) and budgets
    (budgets,).

    A scan of ln N brackets the minimum, Newton's method on the total derivative along the budget's curve
    finishes it: N* is exact to about 1e-9.
    """
    if set(law.inputs) != {"N", "D"}:
        raise FitError(f"law '{law.name}' reads {', '.join(law.inputs)}; an optimum needs a law of N and D")
    params = np.atleast_2d(np.asarray(params, dtype=float))
    C = np.asarray(budgets, dtype=float)
    brackets = [_bracket(law, params, budget, flops) for budget in C]
    rows = np.repeat(params, len(C), axis=0)
    low, high = (np.stack([bracket[i] for bracket in brackets], axis=1).ravel() for i in (0, 1))
    target = np.tile(C, len(params))
    x = _newton(law, rows, target, flops, low, high)
    N = np.exp(x)
    D = np.full_like(N, np.nan)
    loss = np.full_like(N, np.nan)
    found = np.isfinite(N)
    if found.any():
        D[found] = tokens_at(flops, N[found], target[found])
        loss[found] = paired_loss(law, rows[found], N[found], D[found])
    shape = (len(params), len(C))
    return Optima(N=N.reshape(shape), D=D.reshape(shape), loss=loss.reshape(shape))


def _bracket(law: Law, params: np.ndarray, C: float, flops: FlopFunction) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (rows,) of ln N around each row's lowest scanned loss; nan where that is the first or the
    last."""
    x = np.linspace(np.log(_SMALLEST_N), np.log(C / (6.0 * _SMALLEST_D)), _SCAN)
    N = np.exp(x)
    theta = law.from_public(params, np.zeros(2))
    with np.errstate(over="ignore", invalid="ignore"):
        terms = law.terms(theta, np.stack([x, np.log(tokens_at(flops, N, C))]))
        loss = sum(_moving(np.exp(term.log_value), axis=1) for term in terms)
    loss = np.where(np.isfinite(loss), loss, np.inf)
    best = loss.argmin(axis=1)
    inside = (best > 0) & (best < _SCAN - 1)
    best = np.clip(best, 1, _SCAN - 2)
    return np.where(inside, x[best - 1], np.nan), np.where(inside, x[best + 1], np.nan)


def _moving(values: np.ndarray, axis: int) -> np.ndarray:
    """Values that change along an axis, 0 for the others: beside E the optimum of a tiny rest drowns in
    rounding."""
    return np.where(np.ptp(values, axis=axis, keepdims=True) == 0.0, 0.0, values)


def _newton(
    law: Law, rows: np.ndarray, target: np.ndarray, flops: FlopFunction, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Zero of d loss / d ln N along the budget, kept inside a shrinking bracket."""
    x = np.full(len(rows), np.nan)
    live = np.flatnonzero(np.isfinite(low))
    lo, hi = low[live], high[live]
    at = (lo + hi) / 2
    for _ in range(60):
        if not len(live):
            break
        slope, curvature = _derivatives(law, rows[live], target[live], flops, at)
        lo, hi = np.where(slope < 0, at, lo), np.where(slope > 0, at, hi)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = at - slope / curvature
        following = np.where((curvature > 0) & (step > lo) & (step < hi), step, (lo + hi) / 2)
        settled = (np.abs(following - at) < 1e-9) | (slope == 0)
        x[live[settled]] = np.where(slope == 0, at, following)[settled]
        live, lo, hi, at = live[~settled], lo[~settled], hi[~settled], following[~settled]
    return x


def _derivatives(
    law: Law, rows: np.ndarray, target: np.ndarray, flops: FlopFunction, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative of the loss along the budget, by five points."""
    terms = []
    for k in (-2, -1, 0, 1, 2):
        N = np.exp(x + k * _STENCIL)
        terms.append(_paired_terms(law, rows, N, tokens_at(flops, N, target)))
    a, b, c, d, e = _moving(np.stack(terms), axis=0).sum(axis=1)
    slope = (a - 8 * b + 8 * d - e) / (12 * _STENCIL)
    curvature = (-a + 16 * b - 30 * c + 16 * d - e) / (12 * _STENCIL**2)
    return slope, curvature


def compute_for_loss(
    law: Law, params: np.ndarray, loss: np.ndarray, near: float, *, flops: FlopFunction = six_nd
) -> np.ndarray:
    """FLOPs at which each row's optimal loss equals `loss` (rows,); nan where no budget within 10^6 of `near`
    does.

    Secants in ln C on the optimal loss, which is convex and falling.
    """
    params = np.atleast_2d(np.asarray(params, dtype=float))
    result = np.full(len(params), np.nan)
    log_C = np.full(len(params), np.log(near))
    live = np.flatnonzero(np.isfinite(loss))
    for _ in range(40):
        if not len(live):
            break
        here, slope = _loss_and_slope(law, params[live], np.exp(log_C[live]), flops)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.clip((loss[live] - here) / slope, -3.0, 3.0)
        log_C[live] = log_C[live] + step
        settled = np.abs(step) < 1e-9
        result[live[settled]] = np.exp(log_C[live[settled]])
        lost = ~np.isfinite(step) | (np.abs(log_C[live] - np.log(near)) > 6 * np.log(10.0))
        live = live[~settled & ~lost]
    return result


def _loss_and_slope(
    law: Law, params: np.ndarray, C: np.ndarray, flops: FlopFunction, h: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """Optimal loss of each row at its own budget and its slope in ln C.

    The envelope theorem: along the optimum the loss changes with C as it does at fixed N.
    """
    N = _paired_optimum(law, params, C, flops)
    found = np.isfinite(N)
    losses = np.full((3, len(params)), np.nan)
    if found.any():
        for row, factor in zip(losses, (np.exp(-h), 1.0, np.exp(h)), strict=True):
            D = tokens_at(flops, N[found], C[found] * factor)
            row[found] = paired_loss(law, params[found], N[found], D)
    return losses[1], (losses[2] - losses[0]) / (2 * h)


def _paired_optimum(law: Law, params: np.ndarray, C: np.ndarray, flops: FlopFunction) -> np.ndarray:
    """N* of each row at its own budget."""
    x = np.linspace(np.log(_SMALLEST_N), np.log(C / (6.0 * _SMALLEST_D)), _SCAN // 2)  # (scan, rows)
    wide = np.tile(params, (len(x), 1))
    N = np.exp(x).ravel()
    terms = _paired_terms(law, wide, N, tokens_at(flops, N, np.tile(C, len(x))))
    best = _moving(terms.reshape(-1, *x.shape), axis=1).sum(axis=0).argmin(axis=0)
    inside = (best > 0) & (best < len(x) - 1)
    best = np.clip(best, 1, len(x) - 2)
    columns = np.arange(len(params))
    low = np.where(inside, x[best - 1, columns], np.nan)
    high = np.where(inside, x[best + 1, columns], np.nan)
    return np.exp(_newton(law, params, C, flops, low, high))
