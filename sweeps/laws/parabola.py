"""Least-squares parabolas, many at once, and their vertices."""

import numpy as np


def parabola_coefficients(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares c0, c1, c2 of y on 1, x, x^2: weights (rows, n) -> (rows, 3); nan where x has
    not three distinct values of positive weight."""
    scale = np.max(np.abs(x)) or 1.0
    u = x / scale
    basis = np.stack([np.ones_like(u), u, u**2])
    normal = np.einsum("rn,in,jn->rij", weights, basis, basis, optimize=True)
    right = np.einsum("rn,in,n->ri", weights, basis, y, optimize=True)
    spectrum = np.linalg.eigvalsh(normal)
    regular = spectrum[:, 0] > 1e-12 * spectrum[:, 2]
    normal[~regular] = np.eye(3)
    solved = np.linalg.solve(normal, right[..., None])[..., 0] / scale ** np.arange(3)
    return np.where(regular[:, None], solved, np.nan)


def vertex(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Abscissa and ordinate of the lowest point of (rows, 3) parabolas; nan where one is not convex."""
    c0, c1, c2 = coefficients.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
        return x, c0 + c1 * x / 2


def distinct(values: np.ndarray) -> int:
    """Number of values that differ by more than rounding."""
    logs = np.sort(np.log(values))
    return 1 + int(np.sum(np.diff(logs) > 1e-9))


def distinct_sides(sizes: np.ndarray, at: float) -> tuple[int, int]:
    """How many different sizes lie below and above a size."""
    return len(np.unique(sizes[sizes < at])), len(np.unique(sizes[sizes > at]))
