"""Columns of published runs, of their loss curves, and of published measurements of inference."""

import polars as pl

from sweeps.run_table import RUN_TABLE_SCHEMA

Schema = dict[str, pl.DataType | type[pl.DataType]]

EXTRA_SCHEMA: Schema = {
    "experiment_set": pl.String,  # isoflop, tokenparam, batch_size, isoflop_chinchilla
    "run_set": pl.String,  # the authors' name of the set of runs
    "published_id": pl.String,  # the run's id at the authors' tracker; null where it was not published
    "excluded": pl.String,  # why the authors' filters leave the run out; null where it is in their data set
    "preset_token_param_ratio": pl.Float64,  # D/N that a run was meant to have, of the token/parameter runs
    "token_param_ratio": pl.Float64,  # D/N as trained
    "loss_exact": pl.Boolean,
    "loss_low": pl.Float64,  # bounds of the loss; equal to it where it is exact
    "loss_high": pl.Float64,
    "loss_source": pl.String,
    "loss_slimpajama": pl.Float64,  # on the second validation set, nats per token
    "flop_convention": pl.String,  # how train_flops counts the sequence mixing
    "train_flops_chinchilla": pl.Float64,  # the Transformer's other convention; null for an mLSTM
    "train_flops_tfla": pl.Float64,  # the mLSTM's other convention; null for a Transformer
    "head_dim_qk": pl.Int64,
    "head_dim_v": pl.Int64,
    "ffn_dim": pl.Int64,
    "vocab_size": pl.Int64,
    "chunk_size": pl.Int64,  # of the mLSTM
    "warmup_steps": pl.Int64,
    "cooldown_steps": pl.Int64,
    "weight_decay": pl.Float64,
    "created_at": pl.String,
    "num_devices": pl.Int64,
    "copies": pl.Int64,  # how often the published sets hold the run
    "source_tags": pl.String,  # the tags under which they hold it
    "source_file": pl.String,
    "source_sha256": pl.String,
}
PUBLISHED_SCHEMA: Schema = RUN_TABLE_SCHEMA | EXTRA_SCHEMA
"""The run table with what else is known of a published run."""

CURVES_SCHEMA: Schema = {
    "run_key": pl.String,
    "step": pl.Int64,
    "tokens": pl.Int64,
    "loss": pl.Float64,  # validation, nats per token
    "loss_slimpajama": pl.Float64,
    "train_loss": pl.Float64,  # mean of the steps since the last point
    "train_loss_max": pl.Float64,
    "lr": pl.Float64,
    "step_time_s": pl.Float64,
    "param_norm": pl.Float64,
    "grad_norm_mean": pl.Float64,
    "grad_norm_max": pl.Float64,
}
"""One row a logged step; nulls where a column was not logged at that step."""

INFERENCE_SCHEMA: Schema = {
    "measurement_set": pl.String,  # paper, raw: the authors measured twice and fit the first
    "arch": pl.String,
    "model": pl.String,  # the authors' tag: xlstm_160m, llama2_7b
    "batch_size": pl.Int64,
    "prefill_length": pl.Int64,  # tokens
    "ttft_s": pl.Float64,  # time to first token
    "step_time_s": pl.Float64,  # mean over 100 generated tokens
    "N": pl.Float64,
    "d_model": pl.Int64,
    "num_blocks": pl.Int64,
    "num_heads": pl.Int64,
    "ffn_dim": pl.Int64,
    "vocab_size": pl.Int64,
    "chunk_size": pl.Int64,
    "memory_allocated_1_bytes": pl.Float64,  # 1 and 101: tokens generated
    "memory_reserved_1_bytes": pl.Float64,
    "memory_allocated_101_bytes": pl.Float64,
    "memory_reserved_101_bytes": pl.Float64,
    "source_file": pl.String,
    "source_sha256": pl.String,
}
"""One row a measurement; times are null where the model ran out of memory."""


def to_schema(rows: list[dict[str, object]], schema: Schema) -> pl.DataFrame:
    """A table of exactly these columns; keys that a row lacks are null, others are left out."""
    return pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in schema}, schema=schema, strict=False
    )
