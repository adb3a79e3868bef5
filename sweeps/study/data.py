"""What the analyses read: a run table with the columns that published runs bring along."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from sweeps.laws import FitError, Points, prepare
from sweeps.run_table import complete

ISOFLOP, TOKENPARAM, BATCH_SIZE = "isoflop", "tokenparam", "batch_size"
"""Experiment sets: grids at fixed compute, runs at fixed tokens a parameter, a grid with another batch."""
PAPER_SETS = (ISOFLOP, TOKENPARAM)

EXTRA_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "experiment_set": pl.String,
    "preset_token_param_ratio": pl.Float64,  # null where a run was planned at none
    "excluded": pl.String,  # why the authors leave the run out; null where it is in their data set
    "copies": pl.Int64,  # how often the published sets hold the run
    "train_flops_chinchilla": pl.Float64,  # the Transformer's other count of attention
    "train_flops_tfla": pl.Float64,  # the mLSTM's other count
    "loss_low": pl.Float64,
    "loss_high": pl.Float64,  # hard bounds of a loss that is not known exactly; equal where it is
}
"""Beside the run table's own."""

_MUST = ("arch", "context_length", "N", "D", "loss", "experiment_set")


def power(value: float) -> str:
    """A compute as people write it: 6e18, 1.1e21."""
    return f"{value:.2g}".replace("e+", "e")


def study_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """The finished runs of the paper's data set, with the run table's columns and `EXTRA_COLUMNS`.

    Runs that the authors leave out stay out, but for the batch-size experiment, which they keep apart.

    Raises `FitError` where a column without which no analysis works is missing or no run is finished.
    """
    if missing := [name for name in _MUST if name not in runs.columns]:
        raise FitError(f"the run table has no column {', '.join(missing)}: import the published runs first")
    absent = [
        pl.lit(None, dtype=dtype).alias(n) for n, dtype in EXTRA_COLUMNS.items() if n not in runs.columns
    ]
    table = runs.with_columns(absent)
    extra = table.select(pl.col(n).cast(dtype, strict=False) for n, dtype in EXTRA_COLUMNS.items())
    whole = complete(table.drop(set(table.columns) & EXTRA_COLUMNS.keys())).hstack(extra)
    done = (pl.col("status").fill_null("finished") == "finished") & pl.col("loss").is_finite()
    wanted = pl.col("excluded").is_null() | (pl.col("experiment_set") == BATCH_SIZE)
    finished = whole.filter(done & wanted)
    if finished.height == 0:
        raise FitError("no run of the table is finished with a loss: there is nothing to analyse")
    return finished


def select(
    runs: pl.DataFrame,
    *,
    arch: str | None = None,
    context_length: int | None = None,
    experiment_set: str | None = None,
    max_ratio: float = float("inf"),
) -> pl.DataFrame:
    """The runs of a part of the study; `max_ratio` bounds D/N from above."""
    keep = (pl.col("D") / pl.col("N") <= max_ratio) & pl.col("experiment_set").is_in(PAPER_SETS)
    wanted = {"arch": arch, "context_length": context_length, "experiment_set": experiment_set}
    for column, value in wanted.items():
        if value is not None:
            keep = keep & (pl.col(column) == value)
    return runs.filter(keep)


def isoflop_groups(runs: pl.DataFrame) -> Iterator[tuple[str, int, Points]]:
    """The IsoFLOP grids by architecture and context length, as checked points."""
    grids = runs.filter((pl.col("experiment_set") == ISOFLOP) & pl.col("budget").is_not_null())
    parts = grids.partition_by(["arch", "context_length"], as_dict=True)
    for (arch, context), table in sorted(parts.items()):
        yield str(arch), int(context), prepare(table)


def duplicates(runs: pl.DataFrame) -> int:
    """Rows that are copies of a run: merged on import (`copies`), or repeating N, D and loss bit by bit.

    Two trainings never end at the same float64; the paper's table held 32 such rows before February 2026.
    """
    what = ["arch", "context_length", "experiment_set", "N", "D", "loss"]
    repeated = runs.filter(~pl.struct(what).is_first_distinct()).height
    return repeated + int((runs["copies"].fill_null(1) - 1).sum())


def bounded(runs: pl.DataFrame) -> pl.DataFrame:
    """Runs whose loss is known to an interval and not exactly."""
    return runs.filter(pl.col("loss_high") > pl.col("loss_low"))


def redrawn_losses(points_table: pl.DataFrame, draws: int, seed: int) -> np.ndarray:
    """(draws, n) losses, each uniform inside its bounds, exact ones as they are."""
    loss = points_table["loss"].to_numpy()
    low, high = (
        points_table[name].fill_null(points_table["loss"]).to_numpy() for name in ("loss_low", "loss_high")
    )
    rng = np.random.default_rng(seed)
    return np.where(high > low, rng.uniform(low, np.maximum(high, low), (draws, len(loss))), loss)
