"""IsoFLOP grids on a known surface, for tests of everything that reads budgets."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from sweeps.laws import Points, points_from_arrays

BUDGETS = (1e17, 1e18, 1e19, 1e20, 1e21)
HOFFMANN = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}


def chinchilla_loss(N: np.ndarray, D: np.ndarray, surface: dict[str, float]) -> np.ndarray:
    """The formula as printed."""
    s = surface
    return s["E"] + s["A"] / N ** s["alpha"] + s["B"] / D ** s["beta"]


def closed_form_N(C: np.ndarray, surface: dict[str, float]) -> np.ndarray:
    """N* under C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
    s = surface
    total = s["alpha"] + s["beta"]
    G = (s["alpha"] * s["A"] / (s["beta"] * s["B"])) ** (1 / total)
    return G * (np.asarray(C) / 6) ** (s["beta"] / total)


def grid(
    surface: dict[str, float] = HOFFMANN,
    *,
    budgets: Sequence[float] = BUDGETS,
    half_width: float = 4.0,
    sizes: int = 7,
    offsets: Sequence[float] | float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Sizes a budget, evenly over +-ln(half_width) around ln N* - offset; C = 6 N D; noise in ln L."""
    C = np.repeat(np.asarray(budgets, float), sizes)
    shift = np.repeat(np.broadcast_to(offsets, len(budgets)), sizes)
    spread = np.tile(np.linspace(-np.log(half_width), np.log(half_width), sizes), len(budgets))
    N = closed_form_N(C, surface) * np.exp(spread - shift)
    D = C / 6 / N
    errors = np.random.default_rng(seed).normal(0, noise, len(N)) if noise else 0.0
    loss = chinchilla_loss(N, D, surface) * np.exp(errors)
    return points_from_arrays(N, D, loss, C=C, budget=C)


def run_table(points: Points, arch: str = "transformer", context_length: int = 512) -> pl.DataFrame:
    """The points as a run table."""
    return pl.DataFrame(
        {
            "run_key": [f"{arch}-{context_length}-{i}" for i in range(len(points))],
            "arch": arch,
            "context_length": context_length,
            "budget": points.budget,
            "N": points.N,
            "D": points.D,
            "train_flops": points.C,
            "loss": points.loss,
            "status": "finished",
        }
    )
