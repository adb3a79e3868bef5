"""The run table: one row a run, the one hand-over between tracking and fits.

It comes from MLflow, from Parquet or CSV, or from published runs; fits and reports cannot tell which.
"""

import polars as pl

RUN_TABLE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "run_key": pl.String,
    "run_name": pl.String,
    "arch": pl.String,
    "context_length": pl.Int64,
    "budget": pl.Float64,  # nominal training FLOPs of the IsoFLOP group
    "N": pl.Float64,  # parameters, embeddings and head included
    "N_non_embedding": pl.Float64,
    "D": pl.Float64,  # training tokens
    "train_flops": pl.Float64,  # of the whole path, forward and backward: what N and D cost a run by itself
    "spent_flops": pl.Float64,  # really spent: less where it branched off a trunk that others share
    "loss": pl.Float64,  # final validation loss, nats per token
    "status": pl.String,  # finished, failed
    "error": pl.String,  # why a run failed, one line
    "seed": pl.Int64,
    "d_model": pl.Int64,
    "num_blocks": pl.Int64,
    "num_heads": pl.Int64,
    "batch_size": pl.Int64,
    "steps": pl.Int64,
    "peak_lr": pl.Float64,
    "epochs": pl.Float64,  # training tokens over unique tokens
    "train_loss": pl.Float64,  # mean of the last steps, nats per token
    "bpb": pl.Float64,  # validation bits per byte
    "wall_time_s": pl.Float64,
    "step_time_s": pl.Float64,
    "tokens_per_s": pl.Float64,
    "memory_bytes": pl.Float64,
    "device": pl.String,
    "mlflow_run_id": pl.String,
    "mlflow_experiment_id": pl.String,
}
"""Columns and types of a complete table. A fit needs arch, context_length, N, D, loss, and a budget."""


def complete(table: pl.DataFrame) -> pl.DataFrame:
    """The table with every column of the schema, nulls where a source has none, and the schema's types."""
    missing = [pl.lit(None).alias(name) for name in RUN_TABLE_SCHEMA if name not in table.columns]
    return table.with_columns(missing).select(
        pl.col(name).cast(dtype) for name, dtype in RUN_TABLE_SCHEMA.items()
    )
