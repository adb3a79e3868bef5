"""All that a benchmark's table says: runtime models, crossovers, total costs; one value for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from sweeps.inference.crossover import Crossover, find_crossover
from sweeps.inference.runtime import KINDS, Kind, RuntimeModel, fit_all, measured
from sweeps.inference.table import bytes_per_element, config_of, finished
from sweeps.inference.total_cost import (
    Cheaper,
    Load,
    TotalCost,
    Trained,
    compare_costs,
    total_cost,
)
from sweeps.laws import Estimate
from xlstm.accounting import BytesPerElement
from xlstm.config import ModelConfig

CHALLENGER = "mlstm"
"""Whose lead over the others is looked for."""


@dataclass(frozen=True, kw_only=True)
class InferenceAnalysis:
    """What was found; tuples are empty and mappings lack keys where the points do not support a finding."""

    table: pl.DataFrame = field(repr=False)
    models: Mapping[tuple[str, Kind], RuntimeModel]
    crossovers: tuple[Crossover, ...]
    load: Load | None = None
    costs: tuple[TotalCost, ...] = ()
    cheaper: tuple[Cheaper, ...] = ()
    trained: tuple[Trained, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    """Of the device, measured: `copy_bytes_per_s`, `matmul_flops_per_s`."""
    notes: tuple[str, ...] = ()
    """Why something is missing, or what to bear in mind."""

    @property
    def archs(self) -> list[str]:
        return self.table["arch"].unique(maintain_order=True).to_list()

    @property
    def held_out_error(self) -> float:
        """Median of the relative errors of every held-out point; nan where none was held out."""
        errors = [
            np.abs(model.held_out.predicted / model.held_out.observed - 1)
            for model in self.models.values()
            if model.held_out is not None
        ]
        return float(np.median(np.concatenate(errors))) if errors else float("nan")


def analyse(
    table: pl.DataFrame,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    holdout: float = 0.2,
    seed: int = 0,
    load: Load | None = None,
    trained: Sequence[Trained] = (),
    losses: Sequence[float] = (),
    limits: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> InferenceAnalysis:
    """Fit the table and join it with the laws of training; a pure function of its arguments."""
    archs = table["arch"].unique(maintain_order=True).to_list()
    models, refused = fit_all(table, archs, resamples=resamples, level=level, holdout=holdout, seed=seed)
    costs: tuple[TotalCost, ...] = ()
    if load is not None:
        stored = _stored(table)
        costs = tuple(
            total_cost(one, models, load, stored, loss, level=level)
            for loss in losses
            for one in trained
            if all((one.arch, kind) in models for kind in KINDS)
        )
    return InferenceAnalysis(
        table=table,
        models=models,
        crossovers=tuple(_crossovers(table, models)),
        load=load,
        costs=costs,
        cheaper=compare_costs(costs, level),
        trained=tuple(trained),
        limits=limits or {},
        notes=(*notes, *dict.fromkeys(refused), *_confounded(models)),
    )


def _confounded(models: Mapping[tuple[str, Kind], RuntimeModel]) -> list[str]:
    """One note for all models that have terms which their points cannot tell apart."""
    terms = [name for model in models.values() for name in model.confounded]
    if not terms:
        return []
    named = ", ".join(dict.fromkeys(terms))
    return [f"These points cannot tell apart {named}: trust their sum and not their rates; more sizes would."]


def shapes(table: pl.DataFrame) -> dict[tuple[str, str], ModelConfig]:
    """The models measured, by (arch, size), in the order of N."""
    rows = table.unique(["arch", "model"], keep="first").sort("N")
    return {(row["arch"], row["model"]): config_of(row) for row in rows.iter_rows(named=True)}


def _stored(table: pl.DataFrame) -> BytesPerElement:
    return bytes_per_element(table.row(0, named=True))


def _crossovers(table: pl.DataFrame, models: Mapping[tuple[str, Kind], RuntimeModel]) -> list[Crossover]:
    """Of every pair of models of one size, at every batch that was measured."""
    configs, stored, there = shapes(table), _stored(table), finished(table)
    found = []
    for kind in KINDS:
        for (arch, size), config in configs.items():
            pair = configs.get((CHALLENGER, size))
            if arch == CHALLENGER or pair is None:
                continue
            if (arch, kind) not in models or (CHALLENGER, kind) not in models:
                continue
            of_both = [
                measured(there, one, kind).filter(pl.col("model") == size) for one in (CHALLENGER, arch)
            ]
            batches = there.filter(pl.col("model") == size)["batch_size"].unique().sort().to_list()
            found += [
                find_crossover(
                    models,
                    kind,
                    (pair, config),
                    stored,
                    size=size,
                    batch_size=batch,
                    measured=_shared_lengths(of_both, batch),
                )
                for batch in batches
            ]
    return found


def _shared_lengths(tables: Sequence[pl.DataFrame], batch_size: int) -> tuple[float, float]:
    """The shortest and longest prefill that all have at a batch; of none, two that nothing lies between."""
    lengths = [set(table.filter(pl.col("batch_size") == batch_size)["prefill_length"]) for table in tables]
    shared = set.intersection(*lengths)
    return (min(shared), max(shared)) if shared else (np.inf, -np.inf)


def reached_losses(trained: Sequence[Trained], budgets: Sequence[float]) -> list[float]:
    """Losses that every architecture reaches, at these training budgets: the worst of their optima, rounded
    up to two decimals."""
    from sweeps.laws.optima import optima

    worst = np.max([optima(t.law, t.params, list(budgets), flops=t.flops).loss[0] for t in trained], axis=0)
    return list(dict.fromkeys(float(np.ceil(loss * 100) / 100) for loss in worst if np.isfinite(loss)))


__all__ = ["Estimate", "InferenceAnalysis", "analyse", "reached_losses", "shapes"]
