"""The table of measurements: one row a point of the grid, measured here or published, finished or not."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from sweeps.study.inference import model_config, paper_measurements
from xlstm.accounting import BytesPerElement
from xlstm.config import ModelConfig

MEASUREMENT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "point_key": pl.String,
    "arch": pl.String,
    "model": pl.String,  # the size's name, shared by the architectures that it pairs
    "N": pl.Float64,
    "d_model": pl.Int64,
    "num_blocks": pl.Int64,
    "num_heads": pl.Int64,
    "ffn_dim": pl.Int64,
    "vocab_size": pl.Int64,
    "chunk_size": pl.Int64,  # of the mLSTM
    "prefill_length": pl.Int64,  # tokens
    "batch_size": pl.Int64,
    "generated": pl.Int64,  # tokens over which the step time is a mean
    "dtype": pl.String,  # of the weights and activations: fp32, bf16
    "state_dtype": pl.String,  # of the mLSTM's state; the cache is in `dtype`
    "status": pl.String,  # finished, failed
    "error": pl.String,
    "ttft_s": pl.Float64,  # time to first token: median over the repetitions
    "ttft_spread": pl.Float64,  # (largest - least) / median
    "step_time_s": pl.Float64,
    "step_time_spread": pl.Float64,
    "memory_bytes": pl.Float64,  # peak of the device, or of the process on a CPU
    "decode": pl.String,  # how steps are launched: graph, eager
    "device": pl.String,
    "torch": pl.String,
    "mlflow_run_id": pl.String,
}
"""Columns and types. A fit needs the shape, the point and a time."""

_ELEMENT = {"fp32": 4, "bf16": 2}


def complete(table: pl.DataFrame) -> pl.DataFrame:
    """The table with every column of the schema, nulls where a source has none."""
    missing = [pl.lit(None).alias(name) for name in MEASUREMENT_SCHEMA if name not in table.columns]
    return table.with_columns(missing).select(
        pl.col(name).cast(dtype) for name, dtype in MEASUREMENT_SCHEMA.items()
    )


def from_published(inference: pl.DataFrame) -> pl.DataFrame:
    """Measurements of *xLSTM Scaling Laws*, as the importer reads them, in our columns.

    Their models are bf16 with a float32 state on one H100; a row without a step time ran out of memory.
    """
    rows = paper_measurements(inference).filter(pl.col("prefill_length") > 0)
    measured = pl.col("ttft_s").is_finite() | pl.col("step_time_s").is_finite()
    return complete(
        rows.with_columns(
            model=pl.col("model").str.split("_").list.last().str.to_uppercase(),
            generated=pl.lit(100),
            dtype=pl.lit("bf16"),
            state_dtype=pl.lit("fp32"),
            status=pl.when(measured.fill_null(False)).then(pl.lit("finished")).otherwise(pl.lit("failed")),
            error=pl.when(measured.fill_null(False)).then(None).otherwise(pl.lit("out of GPU memory")),
            memory_bytes=pl.col("memory_allocated_101_bytes"),
            decode=pl.lit("published"),
            device=pl.lit("NVIDIA H100 (published)"),
        )
    )


def config_of(row: Mapping[str, Any]) -> ModelConfig:
    """The shape of a measured model."""
    return model_config(row)


def bytes_per_element(row: Mapping[str, Any]) -> BytesPerElement:
    """Storage of a row's weights, activations and state; bf16 with a float32 state where it is not said."""
    size = _ELEMENT[row.get("dtype") or "bf16"]
    return BytesPerElement(activations=size, weights=size, state=_ELEMENT[row.get("state_dtype") or "fp32"])


def finished(table: pl.DataFrame) -> pl.DataFrame:
    """The rows with a time."""
    return table.filter(pl.col("status") == "finished")
