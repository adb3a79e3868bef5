"""The batch-size experiment: the same grid at one budget with two batch sizes (PAPER 1.1, appendix)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl

from sweeps.laws import Estimate, Points, prepare
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.intervals import estimate
from sweeps.laws.isoflop import fit_isoflop
from sweeps.study.data import BATCH_SIZE, ISOFLOP


@dataclass(frozen=True, kw_only=True)
class BatchEffect:
    """What the larger batch does to the optimum of one architecture, context length and budget."""

    arch: str
    context_length: int
    budget: float
    small_batch: int
    large_batch: int
    """Sequences a step."""
    runs: tuple[int, int]
    loss_change: Estimate
    """L* with the large batch minus L* with the small one, nats."""
    N_ratio: Estimate
    """N* with the large batch over N* with the small one."""


def batch_effects(
    runs: pl.DataFrame, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[BatchEffect, ...]:
    """For every pair of batch sizes with four sizes each; empty where no budget was run with two."""
    grids = runs.filter(
        pl.col("experiment_set").is_in((ISOFLOP, BATCH_SIZE))
        & pl.col("budget").is_not_null()
        & pl.col("batch_size").is_not_null()
    )
    effects = []
    for (arch, context, budget), table in sorted(
        grids.partition_by(["arch", "context_length", "budget"], as_dict=True).items()
    ):
        sides = list(_by_batch(table))
        for (small, one), (large, two) in combinations(sides, 2):
            fits = [
                fit_isoflop(
                    points, flops=flops_of_runs(points), resamples=resamples, seed=seed + i, level=level
                )
                for i, points in enumerate((one, two))
            ]
            losses, sizes = ([fit.draws[name][:, 0] for fit in fits] for name in ("loss", "N"))
            optima = [fit.parabolas[0] for fit in fits]
            method = fits[0].method
            effects.append(
                BatchEffect(
                    arch=str(arch),
                    context_length=int(context),
                    budget=float(budget),
                    small_batch=small,
                    large_batch=large,
                    runs=(len(one), len(two)),
                    loss_change=estimate(
                        optima[1].loss.value - optima[0].loss.value, losses[1] - losses[0], level, method
                    ),
                    N_ratio=estimate(
                        float(np.divide(optima[1].N.value, optima[0].N.value)),
                        sizes[1] / sizes[0],
                        level,
                        method,
                    ),
                )
            )
    return tuple(effects)


def _by_batch(table: pl.DataFrame) -> Iterator[tuple[int, Points]]:
    """Batch sizes, ascending, with the runs of each that has four sizes."""
    for (batch,), part in sorted(table.partition_by(["batch_size"], as_dict=True).items()):
        if part["N"].n_unique() >= 4:
            yield int(batch), prepare(part)
