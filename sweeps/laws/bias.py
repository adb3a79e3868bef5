"""The error that Approach 2 makes on noise-free losses, because a parabola is not the law's curve.

Along a budget, with u = ln(N / N*), the Chinchilla law is proportional to exp(-alpha u)/alpha + exp(beta
u)/beta. A least-squares parabola over a grid [m - H, m + H] of u puts its vertex elsewhere. A constant offset
of the grids moves only the intercepts of the power laws; an offset that drifts with the budget moves the
exponents (arXiv:2603.22339 measures what that costs).
"""

from dataclasses import dataclass

import numpy as np

from sweeps.laws.forms import Law
from sweeps.laws.inputs import FlopFunction, Points, six_nd
from sweeps.laws.optima import optima, paired_loss, tokens_at
from sweeps.laws.parabola import parabola_coefficients, vertex
from sweeps.laws.power_laws import fit_power_law


@dataclass(frozen=True, kw_only=True)
class ApproachTwoBias:
    """What the parabolas of one grid get wrong if the surface is the truth."""

    budgets: np.ndarray
    log_N: np.ndarray
    """Error of ln N* at each budget; nan where the noise-free parabola has no minimum."""
    exponent_N: float
    """Error of a in N* ~ C^a."""
    exponent_D: float
    target: float
    """FLOPs of the extrapolation below."""
    relative_N: float
    """N* of the power law at `target` over the true N*, minus 1."""
    relative_D: float


def uniform_grid_bias(alpha: float, beta: float, half_width: float, middle: float = 0.0) -> float:
    """Error of ln N* for sizes dense and uniform in ln N, +-`half_width` around ln N* + `middle`, under C = 6
    N D.

    The least-squares parabola in closed form: moments of exp(+-g v) against the first two Legendre
    polynomials on [-H, H]. Leading order, centred: (alpha - beta) H^2 / 10. That of ln D* is the opposite.
    """
    H, m = half_width, middle
    p, q = np.exp(-alpha * m) / alpha, np.exp(beta * m) / beta
    c1 = 3.0 / H**3 * (q * _first_moment(beta, H) - p * _first_moment(alpha, H))
    c2 = 45.0 / (4.0 * H**5) * (p * _second_moment(alpha, H) + q * _second_moment(beta, H))
    return float(m - c1 / (2.0 * c2))


def _first_moment(g: float, H: float) -> float:
    """Half the integral of v exp(g v) over [-H, H]."""
    return float(H * np.cosh(g * H) / g - np.sinh(g * H) / g**2)


def _second_moment(g: float, H: float) -> float:
    """Half the integral of (v^2 - H^2/3) exp(g v) over [-H, H]."""
    sinh, cosh = np.sinh(g * H), np.cosh(g * H)
    return float(2.0 * H**2 / 3.0 * sinh / g - 2.0 * H * cosh / g**2 + 2.0 * sinh / g**3)


def predicted_bias(
    law: Law,
    params: np.ndarray,
    points: Points,
    *,
    flops: FlopFunction = six_nd,
    budgets: np.ndarray | None = None,
    target: float | None = None,
) -> ApproachTwoBias:
    """Fit the parabolas to the noise-free losses of `law` at the very N and D of `points`.

    `budgets` names the nominal budgets whose vertices enter the power laws, all by default; `target` is the
    budget of the extrapolation, the largest by default. With fewer than two vertices the errors of the laws
    are nan.
    """
    groups = [points.take(points.budget == budget) for budget in points.budgets]
    params = np.asarray(params, dtype=float)
    C = np.array([group.C.mean() for group in groups])
    truth = optima(law, params, C, flops=flops)
    fitted = np.array([_noise_free_vertex(law, params, group) for group in groups])
    entering = np.isfinite(fitted) & np.isfinite(truth.N[0])
    if budgets is not None:
        entering &= np.isin(points.budgets, budgets)
    target = float(C.max() if target is None else target)
    errors = _law_errors(
        law, params, C[entering], np.exp(fitted[entering]), truth.N[0][entering], target, flops
    )
    return ApproachTwoBias(budgets=points.budgets, log_N=fitted - np.log(truth.N[0]), target=target, **errors)


def _noise_free_vertex(law: Law, params: np.ndarray, group: Points) -> float:
    """ln N at the vertex of the parabola through the law's own losses."""
    rows = np.repeat(params[None], len(group), axis=0)
    x = np.log(group.N)
    center = x.mean()
    coefficients = parabola_coefficients(
        x - center, paired_loss(law, rows, group.N, group.D), group.weights[None]
    )
    return float(center + vertex(coefficients)[0][0])


def _law_errors(
    law: Law,
    params: np.ndarray,
    C: np.ndarray,
    fitted_N: np.ndarray,
    true_N: np.ndarray,
    target: float,
    flops: FlopFunction,
) -> dict[str, float]:
    if len(np.unique(C)) < 2:
        return dict.fromkeys(("exponent_N", "exponent_D", "relative_N", "relative_D"), float("nan"))
    none = np.empty((0, len(C)))
    fit_N, true_law_N = (fit_power_law("N", C, N, none).law for N in (fitted_N, true_N))
    fit_D, true_law_D = (fit_power_law("D", C, tokens_at(flops, N, C), none).law for N in (fitted_N, true_N))
    at_target = optima(law, params, [target], flops=flops)
    return {
        "exponent_N": fit_N.exponent.value - true_law_N.exponent.value,
        "exponent_D": fit_D.exponent.value - true_law_D.exponent.value,
        "relative_N": float(fit_N(target) / at_target.N[0, 0] - 1.0),
        "relative_D": float(fit_D(target) / at_target.D[0, 0] - 1.0),
    }
