"""Simulated data with known laws, written out by hand so that they owe nothing to the code under test."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray

TRUTH: dict[str, dict[str, float]] = {
    "chinchilla": {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28},
    "tied": {"A": 250.0, "B": 300.0, "E": 1.8, "alpha": 0.31},
    "no-E": {"A": 90.0, "B": 60.0, "alpha": 0.25, "beta": 0.17},
    "gamma": {"A": 2300.0, "B": 9900.0, "E": 1.75, "alpha": 0.42, "beta": 0.43, "gamma": 0.77},
    "kaplan": {"A": 1.5e8, "B": 1.1e10, "E": 1.5, "k": 0.94, "gamma": 0.25},
    "over-training": {"alpha'": 166.2, "beta'": 366.7, "E": 1.84, "b": -0.273},
    "optimal-loss": {"A": 2000.0, "L_inf": 1.7, "alpha": 0.16},
    "context": {"A": 0.3, "k": 0.55, "c": -0.15},
    "context-slice": {"A": 6.1e8, "c": -0.16},
}

FORMULAS: dict[str, Callable[..., Array]] = {
    "chinchilla": lambda A, B, E, alpha, beta, N, D: E + A / N**alpha + B / D**beta,
    "tied": lambda A, B, E, alpha, N, D: E + A / N**alpha + B / D**alpha,
    "no-E": lambda A, B, alpha, beta, N, D: A / N**alpha + B / D**beta,
    "gamma": lambda A, B, E, alpha, beta, gamma, N, D: E + (A / N**alpha + B / D**beta) ** gamma,
    "kaplan": lambda A, B, E, k, gamma, N, D: E + (A / N**k + B / D) ** gamma,
    "over-training": lambda a, b_, E, b, N, D: E + a * N**b + b_ * 6 ** (b / 2) * D**b,
    "optimal-loss": lambda A, L_inf, alpha, C: L_inf + A / C**alpha,
    "context": lambda A, k, c, C, T: A * C**k * T**c,
    "context-slice": lambda A, c, T: A * T**c,
}


def grid() -> dict[str, Array]:
    """56 points: 7 sizes by 8 token counts, with FLOPs and a context length beside them."""
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 2e10, 7), np.geomspace(6e8, 4e11, 8)))
    T = np.tile([1024.0, 2048.0, 8192.0, 16384.0], 14)
    return {"N": N, "D": D, "C": 6 * N * D, "T": T}


def response(law: str, params: dict[str, float], inputs: dict[str, Array], names: tuple[str, ...]) -> Array:
    """The law's response from its formula as printed."""
    return FORMULAS[law](*(params[name] for name in TRUTH[law]), *(inputs[name] for name in names))
