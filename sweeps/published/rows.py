"""What is known of one published run, as a row of the run table: counts and FLOPs by our own accounting."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sweeps.published.merge import MergedRun
from sweeps.published.selection import budget_of, experiment_of, preset_of, why_excluded
from xlstm.accounting import count_parameters, ffn_width, training_flops
from xlstm.config import MLSTMConfig, TransformerConfig

STUDY = "xlstm-scaling-laws"
"""Names the study: in run keys, on the command line, and as MLflow experiment."""
_FLOPS_TOLERANCE = 1e-9
"""Training FLOPs that a table states must be those of our accounting this closely."""


def published_row(run: MergedRun) -> dict[str, Any]:
    """PUBLISHED_SCHEMA of one run: shape, counts and FLOPs by our accounting, the rest as published."""
    given = run.fields
    if given.get("created_at"):
        datetime.fromisoformat(given["created_at"])  # raises where it is no time
    config = model_config(given)
    N, steps, batch = count_parameters(config), _whole(given.get("steps")), _whole(given.get("batch_size"))
    context = int(given["context_length"])
    logged = given.get("num_params")
    if logged is not None and int(logged) != N:
        run.disagreements.append(
            f"num_params of {given['run_name']} is {int(logged)} and its shape has {N} parameters"
        )
    D = steps * batch * context if steps and batch else None
    exact = given.get("loss_exact") is not False
    loss = given.get("loss")
    row = {
        **given,
        "loss": loss,
        "source_tags": given.get("source_tags"),
        "experiment_set": given.get("experiment_set") or experiment_of(given["run_set"]),
        "run_key": _run_key(given, config, context, batch, steps),
        "arch": config.arch,
        "context_length": context,
        "N": float(N),
        "N_non_embedding": float(count_parameters(config, embedding=False)),
        "D": float(D) if D else None,
        "token_param_ratio": D / N if D else None,
        "steps": steps,
        "batch_size": batch,
        "seed": given.get("seed", 0),
        "d_model": config.d_model,
        "num_blocks": config.num_blocks,
        "num_heads": config.num_heads,
        "ffn_dim": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "head_dim_v": config.d_model // config.num_heads,
        "head_dim_qk": getattr(config, "head_dim_qk", config.d_model // config.num_heads),
        "chunk_size": getattr(config, "chunk_size", None),
        "loss_exact": None if loss is None else exact,
        "loss_low": loss if exact else given["loss_low"],
        "loss_high": loss if exact else given["loss_high"],
        **_flops(config, context, D),
        **_status(given, steps),
    }
    stated = given.get("stated_train_flops")
    if stated and row["train_flops"] and abs(stated / row["train_flops"] - 1) > _FLOPS_TOLERANCE:
        run.disagreements.append(
            f"train_flops of {given['run_name']} is stated as {stated!r}, by our count {row['train_flops']!r}"
        )
    if row.get("step_time_s") and batch:
        row["tokens_per_s"] = batch * context / row["step_time_s"]
    return row | _groups(row)


def _groups(row: Mapping[str, Any]) -> dict[str, Any]:
    """Budget, preset ratio and the authors' verdict."""
    flops, tokenparam = row["train_flops"], row["experiment_set"] == "tokenparam"
    counted = row["train_flops_chinchilla"] if row["experiment_set"] == "isoflop_chinchilla" else flops
    budget = budget_of(counted) if counted and not tokenparam else None
    preset = None
    if tokenparam and row["token_param_ratio"]:
        stated = row.get("stated_preset")
        preset = preset_of(row) if stated is None else (None if stated == "extra" else float(stated))
    groups = {"budget": budget, "preset_token_param_ratio": preset}
    return groups | {"excluded": why_excluded({**row, **groups})}


def model_config(fields: Mapping[str, Any]) -> MLSTMConfig | TransformerConfig:
    """The shape of a published run as a configuration; its feed-forward width by the authors' two rules."""
    d_model = int(fields["d_model"])
    common: dict[str, Any] = {
        "vocab_size": int(fields["vocab_size"]),
        "d_model": d_model,
        "num_blocks": int(fields["num_blocks"]),
        "num_heads": int(fields["num_heads"]),
    }
    factor, multiple = float(fields["ffn_factor"]), int(fields.get("ffn_multiple_of") or 64)
    if fields["arch"] == "transformer":
        width = ffn_width(d_model, factor=factor, multiple_of=multiple, fraction="down")
        return TransformerConfig(**common, ffn_dim=width)
    head_dim_qk = fields.get("head_dim_qk") or int(fields["qk_factor"] * d_model / common["num_heads"])
    return MLSTMConfig(
        **common,
        ffn_dim=ffn_width(d_model, factor=factor, multiple_of=multiple, fraction="up"),
        head_dim_qk=int(head_dim_qk),
        chunk_size=int(fields.get("chunk_size") or 64),
    )


def _flops(config: MLSTMConfig | TransformerConfig, context: int, D: int | None) -> dict[str, Any]:
    """Training FLOPs under the default convention, by its name, and under the other one."""
    mlstm = isinstance(config, MLSTMConfig)
    default, other = ("first", "tfla") if mlstm else ("distill_scaling", "chinchilla")
    found: dict[str, Any] = dict.fromkeys(("train_flops", "train_flops_chinchilla", "train_flops_tfla"))
    found["flop_convention"] = default
    if D is not None:
        found["train_flops"] = training_flops(config, context, D)
        found[f"train_flops_{other}"] = training_flops(config, context, D, mode=other)  # type: ignore[arg-type]
    return found


def _status(given: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Finished is what trained to its last step; a table without logs lists finished runs only."""
    last = given.get("last_step")
    if last is None:
        return {"status": "finished", "error": None}
    if last < 0 or given.get("loss") is None:
        return {"status": "failed", "error": "the authors' tracker has no log of it"}
    if steps is not None and last < steps:
        return {"status": "failed", "error": f"stopped at step {int(last)} of {steps}"}
    return {"status": "finished", "error": None}


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _run_key(
    given: Mapping[str, Any],
    config: MLSTMConfig | TransformerConfig,
    context: int,
    batch: int | None,
    steps: int | None,
) -> str:
    """SHA-256 of what names the run at its authors' and of what determines it; the same from every source."""
    content = {
        "study": STUDY,
        "run": given.get("published_id") or given["run_name"],
        "arch": config.arch,
        "shape": [config.d_model, config.num_blocks, config.num_heads, config.ffn_dim, config.vocab_size],
        "context_length": context,
        "batch_size": batch,
        "steps": steps,
        "peak_lr": given.get("peak_lr"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sort_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["run_set"], row["N"], row["D"] or 0.0, row["run_name"], row["run_key"])
