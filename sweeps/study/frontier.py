"""The loss-compute frontier of the token/parameter runs, and which architecture owns it (PAPER 3.3).

The authors take the lower-left convex hull of final (C, L) in linear C and draw it in logarithms, where it is
not convex. Ours are the runs that no other of the architecture beats at its compute or less, and the hull in
ln L against ln C, whose gap carries a bootstrap interval over runs.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from sweeps.laws import Estimate
from sweeps.laws.approach1 import lower_hull
from sweeps.laws.intervals import estimate
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.data import TOKENPARAM


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Of one architecture; places are rows of its token/parameter runs, ascending in C."""

    arch: str
    C: np.ndarray
    loss: np.ndarray
    published: np.ndarray
    """Places of the authors' hull."""
    hull: np.ndarray
    """Places of the hull in logarithms."""
    pareto: np.ndarray
    """Places of the runs that no run of less or equal compute beats."""


@dataclass(frozen=True, kw_only=True)
class FrontierGap:
    """At one compute."""

    C: float
    log_loss_gap: Estimate
    """ln L of the xLSTM's hull minus the Transformer's; below 0 the xLSTM is better."""


@dataclass(frozen=True, kw_only=True)
class Dominance:
    """The frontiers against each other."""

    frontiers: tuple[Frontier, ...]
    gaps: tuple[FrontierGap, ...]
    """Along the computes that both hulls cover."""
    transformer_runs: int
    beaten: int
    """Transformer runs for which an xLSTM run has lower loss at no more compute."""
    xlstm_runs: int
    beaten_xlstm: int


def linear_hull(C: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Places of the lower-left convex hull in C and L themselves, ascending in C, down to the lowest loss."""
    order = np.lexsort((loss, C))
    last = int(np.flatnonzero(order == np.lexsort((C, loss))[0])[0])
    hull: list[int] = []
    for i in order[: last + 1]:
        while len(hull) > 1 and _not_left_turn(C, loss, hull[-2], hull[-1], int(i)):
            hull.pop()
        hull.append(int(i))
    return np.array(hull)


def _not_left_turn(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    return bool((x[b] - x[a]) * (y[c] - y[a]) <= (y[b] - y[a]) * (x[c] - x[a]))


def pareto(C: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Places of the runs that lower the loss below every run of less or equal compute, ascending in C."""
    order = np.lexsort((loss, C))
    best = np.minimum.accumulate(loss[order])
    return order[np.concatenate([[True], best[1:] < best[:-1]])]


def dominance(
    runs: pl.DataFrame, *, points: int = 9, resamples: int = 4000, level: float = 0.95, seed: int = 0
) -> Dominance | None:
    """The frontiers of both architectures; None where one has fewer than three token/parameter runs.

    A handful of runs carries the hull at large compute, so that an interval's end needs many resamples.
    """
    table = runs.filter(pl.col("experiment_set") == TOKENPARAM)
    sides = {arch: table.filter(pl.col("arch") == arch).sort("train_flops") for arch in (XLSTM, TRANSFORMER)}
    if any(side.height < 3 for side in sides.values()):
        return None
    data = {arch: (side["train_flops"].to_numpy(), side["loss"].to_numpy()) for arch, side in sides.items()}
    low = max(C.min() for C, _ in data.values())
    high = min(C[loss.argmin()] for C, loss in data.values())
    # At the very ends one hull is a single run, whatever is redrawn.
    grid = np.geomspace(low, high, points + 2)[1:-1]
    value = _on_hull(*data[XLSTM], grid) - _on_hull(*data[TRANSFORMER], grid)
    rng = np.random.default_rng(seed)
    draws = np.stack([_drawn_gap(data, grid, rng) for _ in range(resamples)])
    method = f"bootstrap of runs, {resamples} resamples"
    gaps = [
        FrontierGap(C=float(C), log_loss_gap=estimate(float(value[i]), draws[:, i], level, method))
        for i, C in enumerate(grid)
    ]
    return Dominance(
        frontiers=tuple(_frontier(arch, *data[arch]) for arch in (TRANSFORMER, XLSTM)),
        gaps=tuple(gaps),
        transformer_runs=len(data[TRANSFORMER][0]),
        beaten=_beaten(data[TRANSFORMER], data[XLSTM]),
        xlstm_runs=len(data[XLSTM][0]),
        beaten_xlstm=_beaten(data[XLSTM], data[TRANSFORMER]),
    )


def _frontier(arch: str, C: np.ndarray, loss: np.ndarray) -> Frontier:
    return Frontier(
        arch=arch,
        C=C,
        loss=loss,
        published=linear_hull(C, loss),
        hull=lower_hull(C, loss),
        pareto=pareto(C, loss),
    )


def _on_hull(C: np.ndarray, loss: np.ndarray, at: np.ndarray) -> np.ndarray:
    """ln L of the hull at computes `at`; nan outside it."""
    hull = lower_hull(C, loss)
    return np.interp(np.log(at), np.log(C[hull]), np.log(loss[hull]), left=np.nan, right=np.nan)


def _drawn_gap(
    data: dict[str, tuple[np.ndarray, np.ndarray]], grid: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    drawn = []
    for arch in (XLSTM, TRANSFORMER):
        C, loss = data[arch]
        rows = np.unique(rng.integers(len(C), size=len(C)))
        # The ends stay: a hull that does not reach a compute says nothing there.
        rows = np.union1d(rows, [0, int(loss.argmin())])
        drawn.append(_on_hull(C[rows], loss[rows], grid))
    return drawn[0] - drawn[1]


def _beaten(these: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> int:
    (C, loss), (other_C, other_loss) = these, others
    return int(((other_C[None] <= C[:, None]) & (other_loss[None] < loss[:, None])).any(axis=1).sum())
