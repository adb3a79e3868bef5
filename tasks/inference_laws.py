"""The laws of a sweep as the total cost wants them: what a loss takes to train, by architecture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from sweeps.inference.spec import Serving
from sweeps.inference.total_cost import Load, Trained
from sweeps.laws import FitError, find_law, fit, prepare
from sweeps.laws.flop_curves import flops_of_runs
from sweeps.laws.settings import LawSettings
from sweeps.run_models import config_of
from tasks.importing import PAPER
from tasks.preparation import read_spec
from tasks.state import State
from xlstm.accounting import count_parameters
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig

RESAMPLES = 200
"""Of the law behind an interval of a total cost: each is an optimisation of its own."""
SHAPES = 12
"""Sizes of the runs, evenly spread in their order, along which serving costs are computed."""


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Trained architectures at one context, or why there are none."""

    trained: tuple[Trained, ...] = ()
    budgets: tuple[float, ...] = ()
    note: str = ""


def load_of(serving: Serving) -> Load:
    """What the spec asks for."""
    return Load(
        tokens=serving.tokens,
        prompt_length=serving.prompt_length,
        generated_length=serving.generated_length,
        batch_size=serving.batch_size,
    )


def read_laws(state: State, serving: Serving, archs: Sequence[str]) -> Laws:
    """Laws of the sweep's gathered runs, at its context nearest to what is served.

    A note and no laws where the sweep has no gathered runs here, or they do not support one.
    """
    table = _table(state, serving.sweep)
    if table is None:
        cure = "isoflop import xlstm-scaling-laws" if serving.sweep == PAPER else "isoflop sweep"
        return Laws(
            note=f"No total cost: sweep {serving.sweep} has no gathered runs here. `{cure}"
            f"{'' if serving.sweep == PAPER else ' ' + serving.sweep}`, then this benchmark again, adds it;"
            " nothing is measured twice."
        )
    runs = _fittable(pl.read_parquet(table)).filter(pl.col("arch").is_in(list(archs)))
    served = serving.prompt_length + serving.generated_length
    contexts = runs["context_length"].drop_nulls().unique().to_list()
    if not contexts:
        return Laws(note=f"No total cost: sweep {serving.sweep} has no finished run of {' or '.join(archs)}.")
    context = int(min(contexts, key=lambda c: abs(np.log(c / served))))
    settings = replace(read_spec(serving.sweep).laws.settings(), resamples=RESAMPLES, profile=())
    trained = []
    for arch in archs:
        own = runs.filter((pl.col("arch") == arch) & (pl.col("context_length") == context))
        try:
            trained.append(trained_of(own, arch, context, settings, serving.train_flops_per_s))
        except FitError as error:
            return Laws(note=f"No total cost: {arch} at context {context:,}: {error}")
    budgets = runs.filter(pl.col("context_length") == context)["budget"].drop_nulls().unique().sort()
    speed = "the speed of its largest runs"
    if serving.train_flops_per_s:
        speed = f"{serving.train_flops_per_s:.3g} FLOP/s"
    note = f"Training costs: laws of sweep {serving.sweep} at context {context:,}, at {speed}."
    return Laws(trained=tuple(trained), budgets=tuple(float(b) for b in budgets), note=note)


def trained_of(
    runs: pl.DataFrame, arch: str, context: int, settings: LawSettings, train_flops_per_s: float | None
) -> Trained:
    """What the runs of one architecture at one context say. FitError where they do not say enough."""
    speed = train_flops_per_s or training_speed(runs)
    if speed is None:
        raise FitError("its runs do not say how long they took: set serving.train_flops_per_s")
    configs = _shapes(runs)
    if not configs:
        raise FitError("the shapes of its runs are not known, so that serving them cannot be predicted")
    points = prepare(runs, drop_invalid=True)
    found = fit(points, settings)
    draws = found.draws if found.draws is not None else np.empty((0, len(found.params)))
    return Trained(
        arch=arch,
        context_length=context,
        law=find_law(found.law),
        params=np.array([estimate.value for estimate in found.params.values()]),
        draws=draws[np.all(np.isfinite(draws), axis=1)],
        flops=flops_of_runs(points),
        largest_ratio=float((points.D / points.N).max()),
        flops_per_s=speed,
        configs=configs,
    )


def training_speed(runs: pl.DataFrame) -> float | None:
    """Median FLOP/s of the runs at the largest budget; None where their times are not known."""
    timed = runs.filter(pl.col("wall_time_s").is_finite() & (pl.col("wall_time_s") > 0))
    if not timed.height:
        return None
    largest = timed.filter(pl.col("budget") == pl.col("budget").max())
    return float(np.median(largest["train_flops"].to_numpy() / largest["wall_time_s"].to_numpy()))


def _table(state: State, sweep: str) -> Path | None:
    folder = state.sweep_dir(sweep)
    places = [folder / "runs.parquet"]
    if sweep == PAPER:
        places.insert(0, folder / "published" / "runs.parquet")
    return next((place for place in places if place.exists()), None)


def _fittable(runs: pl.DataFrame) -> pl.DataFrame:
    """Finished runs; of a published study, those of its IsoFLOP grid that its authors count."""
    kept = runs.filter(pl.col("status") == "finished")
    if "experiment_set" in kept.columns:
        kept = kept.filter((pl.col("experiment_set") == "isoflop") & pl.col("excluded").is_null())
    return kept


def _shapes(runs: pl.DataFrame) -> tuple[ModelConfig, ...]:
    found = {config_of(row) for row in runs.iter_rows(named=True)}
    decoding = [config for config in found if isinstance(config, MLSTMConfig | TransformerConfig)]
    ordered = sorted(decoding, key=count_parameters)
    places = {round(place) for place in np.linspace(0, len(ordered) - 1, SHAPES)} if ordered else ()
    return tuple(ordered[place] for place in sorted(places))
