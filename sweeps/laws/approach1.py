"""Approach 1 (Hoffmann et al. 2022, section 3.1): power laws through the best run at each compute.

The envelope is the lowest loss in each bin of ln C; the hull is the lower convex hull of ln L against ln C.
Both take final runs, or whole training curves where there are any: a point of a curve before the learning
rate has decayed lies above the loss that a run planned for that length would reach, which moves the envelope
(a reason why Approach 1 and Approach 2 disagree, PAPER 4.4). Only points on the envelope count, so a noisy
low loss is chosen because it is low.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sweeps.laws.inputs import Points
from sweeps.laws.intervals import estimate
from sweeps.laws.power_laws import fit_power_law
from sweeps.laws.types import FitError, Flag, PowerLaw

_FEW = 5


@dataclass(frozen=True, kw_only=True)
class Approach1:
    """The frontier's rows and the laws through them."""

    rows: np.ndarray
    """Places in the points, ascending in C."""
    power_laws: dict[str, PowerLaw]
    frontier: str
    """envelope or hull."""
    flags: tuple[Flag, ...] = ()


def envelope(C: np.ndarray, loss: np.ndarray, bins_per_decade: int = 15) -> np.ndarray:
    """Places of the lowest loss in each bin of log10 C, ascending in C."""
    if bins_per_decade < 1:
        raise FitError(f"bins_per_decade = {bins_per_decade}: must be 1 or more")
    bins = np.floor(np.log10(C) * bins_per_decade + 1e-9)
    order = np.lexsort((loss, bins))
    first = np.unique(bins[order], return_index=True)[1]
    return order[first]


def lower_hull(C: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Places of the lower convex hull of ln L against ln C down to the lowest loss, ascending in C."""
    x, y = np.log(C), np.log(loss)
    order = np.lexsort((y, x))
    hull: list[int] = []
    for i in order[: int(np.flatnonzero(order == _lowest(x, y))[0]) + 1]:
        while len(hull) > 1 and _turns_right(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(int(i))
    return np.array(hull)


def _lowest(x: np.ndarray, y: np.ndarray) -> int:
    return int(np.lexsort((x, y))[0])


def _turns_right(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    return bool((x[b] - x[a]) * (y[c] - y[a]) <= (y[b] - y[a]) * (x[c] - x[a]))


def fit_approach1(
    points: Points,
    *,
    frontier: str = "envelope",
    bins_per_decade: int = 15,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Approach1:
    """Power laws of N and D against C through the `envelope` or the `hull` of final runs or training curves.

    Runs (all rows of a `run_key`) are redrawn whole and the frontier is found anew in each resample. Raises
    `FitError` where the frontier has fewer than two points.
    """
    if frontier not in ("envelope", "hull"):
        raise FitError(f"frontier '{frontier}' is unknown; there are envelope, hull")

    def chosen(rows: np.ndarray) -> np.ndarray:
        C, loss = points.C[rows], points.loss[rows]
        return rows[lower_hull(C, loss) if frontier == "hull" else envelope(C, loss, bins_per_decade)]

    rows = chosen(np.arange(len(points)))
    if len(np.unique(points.C[rows])) < 2:
        raise FitError(
            f"the {frontier} of {len(points)} points has {len(rows)} point(s); a power law needs 2"
        )
    exponents = _resampled_exponents(points, chosen, resamples, seed)
    runs = len(np.unique(points.run_key))
    method = f"cluster bootstrap of {runs} runs, {resamples} resamples"
    laws = {}
    for name in ("N", "D"):
        law = _line(points, rows, name)
        interval = estimate(law.exponent.value, exponents[name], level, method)
        laws[name] = replace(law, exponent=interval)
    return Approach1(rows=rows, power_laws=laws, frontier=frontier, flags=_flags(points, rows))


def _line(points: Points, rows: np.ndarray, name: str) -> PowerLaw:
    quantity: Literal["N", "D"] = "N" if name == "N" else "D"
    values = getattr(points, name)[rows]
    return fit_power_law(quantity, points.C[rows], values, np.empty((0, len(rows)))).law


def _resampled_exponents(
    points: Points, chosen: Callable[[np.ndarray], np.ndarray], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Exponents (resamples,) of N and D; nan where the resample's frontier is one point."""
    rng = np.random.default_rng(seed)
    labels = np.unique(points.run_key, return_inverse=True)[1]
    n_runs = int(labels.max()) + 1
    x, logs = np.log(points.C), {name: np.log(getattr(points, name)) for name in ("N", "D")}
    exponents = {name: np.full(resamples, np.nan) for name in logs}
    for i in range(resamples):
        drawn = np.zeros(n_runs, dtype=bool)
        drawn[rng.integers(n_runs, size=n_runs)] = True
        rows = chosen(np.flatnonzero(drawn[labels]))
        c = x[rows] - x[rows].mean()
        if c @ c > 0:
            for name, y in logs.items():
                exponents[name][i] = c @ y[rows] / (c @ c)
    return exponents


def _flags(points: Points, rows: np.ndarray) -> tuple[Flag, ...]:
    if len(rows) >= _FEW:
        return ()
    message = f"the frontier has {len(rows)} of {len(points)} points; Approach 1 wants training curves"
    return (Flag(code="few-points", severity="warning", message=message),)
