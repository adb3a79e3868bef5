"""FLOPs as a function of N and D, read off the runs themselves, for tables that come without a formula."""

from collections.abc import Callable

import numpy as np

from sweeps.laws.inputs import FlopFunction, Points

_STEEPEST, _FLATTEST = 1.5, 0.5
"""Bounds of the slope of ln(FLOPs a token) in ln N beyond the runs; attention keeps it below 1, a large
embedding, counted in N and free of FLOPs, above."""


def per_token_curve(N: np.ndarray, cost: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Cost a token against N through sizes (n,): a parabola in the logarithms (a line for two sizes, cost
    proportional to N for one), continued by its end slopes."""
    log_N = np.log(N)
    center, y = log_N.mean(), np.log(cost)
    x = log_N - center
    sizes = len(np.unique(x))
    coefficients = np.array([y.mean(), 1.0])
    if sizes > 1:
        coefficients = np.polynomial.polynomial.polyfit(x, y, min(sizes - 1, 2))
    slopes = np.polynomial.polynomial.polyder(coefficients)

    def curve(N: np.ndarray) -> np.ndarray:
        at = np.log(np.asarray(N, dtype=float)) - center
        inside = np.clip(at, x.min(), x.max())
        slope = np.clip(np.polynomial.polynomial.polyval(inside, slopes), _FLATTEST, _STEEPEST)
        within = np.polynomial.polynomial.polyval(inside, coefficients)
        return np.exp(within + slope * (at - inside))

    return curve


def flops_of_runs(points: Points) -> FlopFunction:
    """The runs' FLOPs a token by `per_token_curve`, times D.

    Where C = 6 N D holds in the table the function is 6 N D. Training FLOPs are taken as proportional to D,
    which holds at one context length.
    """
    curve = per_token_curve(points.N, points.C / points.D)
    return lambda N, D: curve(N) * np.asarray(D, dtype=float)


def curve_error(points: Points, flops: FlopFunction) -> float:
    """Largest relative difference between a FLOP function and what the runs spent."""
    return float(np.max(np.abs(flops(points.N, points.D) / points.C - 1.0)))
