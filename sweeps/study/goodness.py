"""Goodness of fit of a parametric law, as it should be and as the repository stores it.

The repository subtracts a prediction of shape (n, 1) from a target of shape (n,): an n x n matrix, whose mean
square is the mean square of the fit plus what the losses differ among themselves (PAPER 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from sweeps.study.parametric import SETS, Cell, cell_runs, log_loss


@dataclass(frozen=True, kw_only=True)
class Goodness:
    """Of one fit on one set of runs, in nats of loss."""

    experiment_set: str
    n: int
    rmse: float
    mean_relative_error: float
    r2: float
    broadcast_mse: float
    """Mean over all n x n differences: what the repository stores as the mean squared error."""
    broadcast_r2: float

    @property
    def mse(self) -> float:
        return self.rmse**2


def goodness(observed: np.ndarray, predicted: np.ndarray, experiment_set: str = "") -> Goodness:
    """Both readings of predictions (n,) against observations (n,)."""
    residual = observed - predicted
    total = float(np.sum((observed - observed.mean()) ** 2))
    matrix = (predicted[:, None] - observed[None, :]) ** 2
    return Goodness(
        experiment_set=experiment_set,
        n=len(observed),
        rmse=float(np.sqrt(np.mean(residual**2))),
        mean_relative_error=float(np.mean(np.abs(residual) / observed)),
        r2=1.0 - float(np.sum(residual**2)) / total,
        broadcast_mse=float(matrix.mean()),
        broadcast_r2=1.0 - float(matrix.sum()) / total,
    )


def goodness_on_sets(runs: pl.DataFrame, cell: Cell, params: Mapping[str, float]) -> dict[str, Goodness]:
    """A fit judged on every set of its architecture's runs, whichever it was fitted to."""
    judged = {}
    for name in SETS:
        other = Cell(
            arch=cell.arch, experiment_set=name, max_ratio=float("inf"), gamma=cell.gamma, delta=cell.delta
        )
        table = cell_runs(runs, other)
        if table.height:
            N, D, loss = (table[column].to_numpy().astype(float) for column in ("N", "D", "loss"))
            judged[name] = goodness(loss, np.exp(log_loss(params, N, D)), name)
    return judged
