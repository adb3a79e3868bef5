"""The law so far: what the runs that are done say while the others still train."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.inputs import Points, prepare
from sweeps.laws.isoflop import fit_isoflop
from sweeps.laws.predictions import predict
from sweeps.laws.settings import LawSettings
from sweeps.laws.types import Estimate, FitError, OptimumPrediction

_SIZES, _BUDGETS = 3, 2
"""What a first law needs: two parabolas."""
_RESAMPLES = 200
"""Enough to see an interval shrink, and quick."""


@dataclass(frozen=True, kw_only=True)
class Provisional:
    """One architecture and context length, so far."""

    arch: str
    context_length: int
    runs: int
    exponent: Estimate | None = None
    """a of N* ~ C^a by the parabolas."""
    optimum: OptimumPrediction | None = None
    """At the largest target, or the largest budget that is there."""
    note: str = ""
    """Why there is no law yet."""


def provisional(runs: pl.DataFrame, settings: LawSettings) -> tuple[Provisional, ...]:
    """By architecture and context length, from the finished runs of a table that may be far from complete."""
    named = runs.drop_nulls(["arch", "context_length"]).sort("arch", "context_length")
    parts = named.partition_by(["arch", "context_length"], as_dict=True, maintain_order=True)
    return tuple(_group(str(arch), int(context), part, settings) for (arch, context), part in parts.items())


def _group(arch: str, context: int, table: pl.DataFrame, settings: LawSettings) -> Provisional:
    settings = replace(settings, resamples=min(settings.resamples, _RESAMPLES))
    done = table.filter(pl.col("status") == "finished").height
    bare = Provisional(arch=arch, context_length=context, runs=done)
    try:
        points = prepare(table, drop_invalid=True)
        ready = _ready(points)
        if len(ready) < _BUDGETS:
            return replace(
                bare,
                note=f"a first law needs {_SIZES} sizes at {_BUDGETS} budgets, so far {len(ready)} has them",
            )
        points = points.take(np.isin(points.budget, ready))
        flops = flops_of_runs(points)
        fit = fit_isoflop(
            points, flops=flops, resamples=settings.resamples, level=settings.level, seed=settings.seed
        )
        if "N" not in fit.laws:
            return replace(bare, note="; ".join(flag.message for flag in fit.flags))
        predictions = predict(points, flops, fit, (), settings)
    except FitError as error:
        return replace(bare, note=str(error))
    return replace(bare, exponent=fit.laws["N"].law.exponent, optimum=_last(predictions))


def _ready(points: Points) -> list[float]:
    """Budgets with enough distinct sizes."""
    return [
        float(budget)
        for budget in points.budgets
        if len(np.unique(points.N[points.budget == budget])) >= _SIZES
    ]


def _last(predictions: Sequence[OptimumPrediction]) -> OptimumPrediction | None:
    return max(predictions, key=lambda found: found.budget, default=None)
