"""Published measurements of inference: time to first token and time of a step, in seconds."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from sweeps.published import frames
from sweeps.published.schema import INFERENCE_SCHEMA, to_schema

ARCHS = {"llama2": "transformer", "llama3": "transformer", "xlstm": "mlstm"}
MEASURED = ({"ttft", "tpt"}, {"ttft", "steptime"}, {"ttft_ms", "steptime_ms"})
"""Any of these pairs of columns makes a table of measurements; all three are milliseconds."""
_COPIED = {
    "batchsize": "batch_size",
    "batch_size": "batch_size",
    "prefill": "prefill_length",
    "prefill_len": "prefill_length",
    "num_params": "N",
    "embedding_dim": "d_model",
    "num_blocks": "num_blocks",
    "num_heads": "num_heads",
    "ffn_dim": "ffn_dim",
    "vocab_size": "vocab_size",
    "chunk_size": "chunk_size",
}
_MEMORY = {
    f"memory_{kind}_gl{length}": f"memory_{kind}_{length}_bytes"
    for kind in ("allocated", "reserved")
    for length in (1, 101)
}
_MILLISECONDS = {
    "ttft": "ttft_s",
    "ttft_ms": "ttft_s",
    "tpt": "step_time_s",
    "steptime": "step_time_s",
    "steptime_ms": "step_time_s",
}


def tables_in(data: Any) -> list[Mapping[str, Any]]:
    """The tables of measurements of a pickle: a table, a dictionary of columns, or one of tables."""
    if frames.is_frame(data):
        data = {"": data}
    if not isinstance(data, dict):
        return []
    if _is_measured(set(data)) and all(isinstance(values, list) for values in data.values()):
        return [data]
    tables = [frames.columns_of(value) for value in data.values() if frames.is_frame(value)]
    return [table for table in tables if _is_measured(set(table))]


def is_measurement(table: pl.DataFrame) -> bool:
    return _is_measured(set(table.columns))


def measurements(columns: Mapping[str, Any]) -> pl.DataFrame:
    """INFERENCE_SCHEMA, without the source: one row a measurement, null for what did not fit into memory.

    The authors measured twice: the table with `tpt` is "raw", the ones with a step time are what the "paper"
    fits.

    The authors' missing values are null, NaN or -1. ValueError where a model is of no known family.
    """
    names = list(columns)
    measured = {"measurement_set": "raw" if "tpt" in names else "paper"}
    rows = [
        measured | _row(dict(zip(names, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]
    return to_schema(rows, INFERENCE_SCHEMA)


def _is_measured(names: set[str]) -> bool:
    return any(pair <= names for pair in MEASURED)


def _row(values: Mapping[str, Any]) -> dict[str, object]:
    model = str(frames.plain(values.get("model_tag", values.get("model"))))
    family = model.split("_")[0]
    if family not in ARCHS:
        raise ValueError(f"model {model!r} is of no known family; there are {', '.join(ARCHS)}")
    row: dict[str, object] = {"arch": ARCHS[family], "model": model}
    row |= {ours: _number(values[theirs]) for theirs, ours in _COPIED.items() if theirs in values}
    row |= {ours: _number(values[theirs]) for theirs, ours in _MEMORY.items() if theirs in values}
    return row | {
        ours: _number(values[theirs], 1e-3) for theirs, ours in _MILLISECONDS.items() if theirs in values
    }


def _number(value: Any, factor: float = 1) -> float | int | None:
    """The value times a factor, or None where it is missing."""
    value = frames.plain(value)
    if isinstance(value, str):
        raise TypeError(f"the text {value[:20]!r} where a number was due")
    if value is None or value != value or value < 0:
        return None
    return value * factor
