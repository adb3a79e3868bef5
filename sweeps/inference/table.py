"""The table of measurements: one row a point of the grid, measured here or published, finished or not."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sweeps.laws import FitError
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

REQUIRED = (
    "arch",
    "model",
    "N",
    "d_model",
    "num_blocks",
    "num_heads",
    "ffn_dim",
    "vocab_size",
    "prefill_length",
    "batch_size",
    "ttft_s",
    "step_time_s",
)
"""Without one of these columns nothing can be fitted."""

OURS = "ours"
"""The engine of `benchmarks/inference.py` that is this project's; the others are peers."""

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


def read_measurements(path: Path) -> pl.DataFrame:
    """A table of measurements from Parquet, CSV, or the JSON of `benchmarks/inference.py`.

    Of that, the rows of this project's own engine: a runtime model is of one implementation. FitError names
    the file and what it lacks.
    """
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
        ".json": _read_json,
    }
    if path.suffix not in readers:
        raise FitError(f"{path}: is neither .parquet nor .csv nor .json")
    try:
        table = readers[path.suffix](path)
    except (OSError, pl.exceptions.PolarsError, ValueError, KeyError) as error:
        raise FitError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    if missing := [name for name in REQUIRED if name not in table.columns]:
        raise FitError(f"{path}: has no column {missing[0]}; a measurement needs {', '.join(REQUIRED)}")
    if "status" not in table.columns:
        table = table.with_columns(status=pl.lit("finished"))
    return complete(table)


def _read_json(path: Path) -> pl.DataFrame:
    rows = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    return pl.DataFrame([row for row in rows if row.get("engine", OURS) == OURS], infer_schema_length=None)
