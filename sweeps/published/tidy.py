"""Runs and loss curves out of tidy tables of the published data: CSV or Parquet, one row a run or a step."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from sweeps.published.wandb_runs import Curve, PublishedRun

CurveKey = tuple[str | None, str]
"""A run's id, if it has one, and its name."""
RUN_COLUMNS = frozenset({"run_set", "run_name", "model_type", "num_train_steps", "final_val_loss_dclm"})
CURVE_COLUMNS = frozenset({"run_name", "step", "train_loss", "val_loss_dclm"})
"""A table that has these is one of runs, or one of curves."""

ARCHS = {"llama": "transformer", "mlstm_v1": "mlstm"}
_COPIED = {
    "run_set": "run_set",
    "run_name": "run_name",
    "run_id": "published_id",
    "run_tag": "source_tags",
    "created_at": "created_at",
    "experiment_set": "experiment_set",
    "context_length": "context_length",
    "embedding_dim": "d_model",
    "num_blocks": "num_blocks",
    "num_heads": "num_heads",
    "ffn_proj_factor": "ffn_factor",
    "ffn_multiple_of": "ffn_multiple_of",
    "vocab_size": "vocab_size",
    "chunk_size": "chunk_size",
    "global_batch_size": "batch_size",
    "peak_lr": "peak_lr",
    "warmup_steps": "warmup_steps",
    "cooldown_steps": "cooldown_steps",
    "weight_decay": "weight_decay",
    "num_params": "num_params",
    "num_train_steps": "steps",
    "last_logged_step": "last_step",
    "final_train_loss": "train_loss",
    "final_val_loss_dclm": "loss",
    "final_val_loss_exact": "loss_exact",
    "final_val_loss_lo": "loss_low",
    "final_val_loss_hi": "loss_high",
    "final_val_loss_slimpajama": "loss_slimpajama",
    "loss_source": "loss_source",
    "step_time_mean_last100_s": "step_time_s",
    "runtime_s": "wall_time_s",
    "train_flops_distill": "stated_train_flops",
}
"""Their columns and ours."""
_CURVE_COPIED = {
    "step": "step",
    "val_loss_dclm": "loss",
    "val_loss_slimpajama": "loss_slimpajama",
    **{
        name: name
        for name in (
            "train_loss",
            "train_loss_max",
            "lr",
            "step_time_s",
            "param_norm",
            "grad_norm_mean",
            "grad_norm_max",
        )
    },
}


def read_runs(table: pl.DataFrame) -> list[PublishedRun]:
    """One run a row. ValueError where a model type is not known."""
    return [PublishedRun(fields=_fields(row)) for row in table.iter_rows(named=True)]


def read_curves(table: pl.DataFrame) -> dict[CurveKey, Curve]:
    """Curves by the run's id, if there is one, and its name."""
    found: dict[CurveKey, Curve] = {}
    columns = [theirs for theirs in _CURVE_COPIED if theirs in table.columns]
    ids = "run_id" if "run_id" in table.columns else None
    for key, part in (
        table.sort("step")
        .partition_by([*([ids] if ids else []), "run_name"], as_dict=True, maintain_order=True)
        .items()
    ):
        numbers = part.select(pl.col(columns).cast(pl.Float64).fill_null(float("nan")))
        curve = {_CURVE_COPIED[name]: numbers[name].to_numpy() for name in columns}
        found[(str(key[0]) if ids and key[0] is not None else None, str(key[-1]))] = {
            name: values.astype(np.int64) if name == "step" else values for name, values in curve.items()
        }
    return found


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {ours: row[theirs] for theirs, ours in _COPIED.items() if _there(row.get(theirs))}
    model_type = row["model_type"]
    if model_type not in ARCHS:
        raise ValueError(
            f"model_type {model_type!r} of run {row['run_name']!r}; known are {', '.join(ARCHS)}"
        )
    fields["arch"] = ARCHS[model_type]
    if fields["arch"] == "transformer":
        fields.pop("chunk_size", None)
    elif _there(row.get("head_dim_qk")):
        fields["head_dim_qk"] = row["head_dim_qk"]
    if _there(row.get("num_nodes")) and _there(row.get("gpus_per_node")):
        fields["num_devices"] = int(row["num_nodes"] * row["gpus_per_node"])
    preset = row.get("preset_token_param_ratio")
    if _there(preset):
        fields["stated_preset"] = str(preset)
    if row.get("status") == "failed" and not _there(row.get("num_train_steps")):
        fields["steps"] = row.get("steps_in_name")
    return fields


def _there(value: Any) -> bool:
    return value is not None and value == value and value != ""
