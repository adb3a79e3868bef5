"""Runs and loss curves out of the authors' pickles, `{tag: [WandBRunData, ...]}`.

Addresses, hosts and users that the pickles carry are left behind.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.published import frames
from sweeps.published.pickles import Call, Name, PickleRefused

CLASS = "WandBRunData"
LOGS = {
    "val/.dclm_loss": "loss",
    "train/.loss_mean": "train_loss",
    "train/.loss_max": "train_loss_max",
    "train/.optimizer/lr": "lr",
    "train/.step_time": "step_time_s",
    "train/.param_norm": "param_norm",
    "train/.grad_norm_mean": "grad_norm_mean",
    "train/.grad_norm_max": "grad_norm_max",
}
"""Their logs and our columns."""
_LAST_POINTS = 100
"""Step times averaged for the one of the run; the first ones hold compilation."""
_FFN_FACTOR = 2.667
"""Of the Transformers: written in the authors' loader and not in the runs' configuration."""

Curve = dict[str, np.ndarray]
"""`step` and some of the columns of CURVES_SCHEMA, NaN where nothing was logged."""


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One run as a source has it, before anything is derived."""

    fields: dict[str, Any]
    """Columns of PUBLISHED_SCHEMA, as far as known, and `num_params` and `last_step` as logged."""
    curve: Curve | None = None


def known(name: Name) -> bool:
    """What a pickle of runs may name: the authors' class, in any module, and tables of plain columns."""
    return name.name == CLASS or frames.known(name)


def holds_runs(data: Any) -> bool:
    return bool(_tagged_runs(data))


def read_runs(data: Any, run_set: str) -> list[PublishedRun]:
    """Every listed run once for each tag that lists it.

    In a token/parameter set runs of one name under one tag are pieces of one run that was resumed, and are
    joined. PickleRefused where a run lacks what makes it one.
    """
    found: list[PublishedRun] = []
    for tag, records in _tagged_runs(data).items():
        try:
            groups = _joined(records) if "tokenparam" in run_set else [[record] for record in records]
            found += [_run(pieces, tag, run_set) for pieces in groups]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PickleRefused(f"a run under {tag!r} is not as expected: {error}") from None
    return found


def _tagged_runs(data: Any) -> dict[str, list[dict[str, Any]]]:
    tagged = data if isinstance(data, dict) else {"": data}
    found: dict[str, list[dict[str, Any]]] = {}
    for tag, runs in tagged.items():
        records = [run.state for run in runs if _is_run(run)] if isinstance(runs, list | tuple) else []
        if records:
            found[str(tag)] = records
    return found


def _is_run(value: Any) -> bool:
    return isinstance(value, Call) and value.name.name == CLASS and isinstance(value.state, dict)


def _joined(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["created_at"] or ""):
        groups.setdefault(record["name"], []).append(record)
    return list(groups.values())


def _run(pieces: list[dict[str, Any]], tag: str, run_set: str) -> PublishedRun:
    record = pieces[-1]
    config, summary = record["config"] or {}, record["summary"] or {}
    scheduler = _literal(config.get("optimizer.scheduler"))
    slurm = (record["metadata"] or {}).get("slurm") or {}
    curve = _curve([piece["logs"] or {} for piece in pieces])
    logged = summary.get("dataset/", {})
    fields = {
        "run_set": run_set,
        "run_name": record["name"],
        "published_id": "-".join(piece["id"] for piece in pieces),
        "source_tags": tag,
        "created_at": pieces[0]["created_at"],
        **_shape(config),
        "context_length": config.get("model.model_config.context_length"),
        "batch_size": logged.get("global_batch_size"),
        "steps": logged.get("num_train_steps") or scheduler.get("decay_steps"),
        "peak_lr": scheduler.get("lr"),
        "warmup_steps": scheduler.get("warmup_steps"),
        "cooldown_steps": scheduler.get("cooldown_steps"),
        "weight_decay": config.get("optimizer.weight_decay"),
        "seed": config.get("trainer.seed"),
        "num_params": summary.get("model/", {}).get("num_params"),
        "num_devices": summary.get("parallel/", {}).get("num_devices"),
        "device": _device(record["metadata"] or {}),
        "wall_time_s": _total(piece["summary"].get("_runtime") for piece in pieces if piece["summary"]),
        "loss_exact": True,
        "loss_source": "logged by the authors",
        **_last_values(curve),
    }
    if not fields["num_devices"] and slurm.get("ntasks"):
        fields["num_devices"] = int(slurm["ntasks"])
    return PublishedRun(fields={name: frames.plain(value) for name, value in fields.items()}, curve=curve)


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    model = "model.model_config."
    d_model = int(config[f"{model}embedding_dim"])
    shape = {
        "d_model": d_model,
        "num_blocks": int(config[f"{model}num_blocks"]),
        "vocab_size": int(config[f"{model}vocab_size"]),
    }
    if config["model.model_class"].endswith(".LlamaTransformer"):
        return shape | {
            "arch": "transformer",
            "num_heads": d_model // int(config[f"{model}head_dim"]),
            "ffn_factor": _FFN_FACTOR,
            "ffn_multiple_of": int(config[f"{model}ffn_multiple_of"]),
        }
    layer = f"{model}mlstm_block.mlstm."
    if config.get(f"{layer}layer_type") != "mlstm_v1":
        raise ValueError(f"a model of class {config['model.model_class']}, which is not known")
    return shape | {
        "arch": "mlstm",
        "num_heads": int(config[f"{layer}num_heads"]),
        "ffn_factor": float(config[f"{model}mlstm_block.feedforward.proj_factor"]),
        "ffn_multiple_of": int(config[f"{layer}round_proj_up_to_multiple_of"]),
        "qk_factor": float(config[f"{layer}qk_dim_factor"]),
        "chunk_size": int(_literal(config.get(f"{layer}mlstm_cell.backend.kwargs")).get("chunk_size", 64)),
    }


def _literal(value: Any) -> dict[str, Any]:
    """A dictionary, or one that was written as Python text."""
    if isinstance(value, str) and len(value) < 10_000:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _device(metadata: Mapping[str, Any]) -> str | None:
    cards = metadata.get("gpu_nvidia") or []
    return cards[0].get("name") if cards and isinstance(cards[0], dict) else None


def _total(values: Iterable[Any]) -> float | None:
    known_values = [float(value) for value in values if value is not None]
    return sum(known_values) if known_values else None


def _curve(logs: Sequence[Mapping[str, Any]]) -> Curve | None:
    """All logs of a run on one axis of steps; what a later piece logged at a step stands."""
    columns: dict[str, dict[int, float]] = {}
    for piece in logs:
        for key, frame in piece.items():
            column = _log_column(key)
            if column is not None:
                columns.setdefault(column, {}).update(_points(frame, key))
    steps = np.array(sorted({step for points in columns.values() for step in points}), dtype=np.int64)
    if not len(steps):
        return None
    place = {step: index for index, step in enumerate(steps.tolist())}
    curve: Curve = {"step": steps}
    for column, points in columns.items():
        curve[column] = np.full(len(steps), np.nan)
        curve[column][[place[step] for step in points]] = list(points.values())
    return curve


def _log_column(key: str) -> str | None:
    """Our column of one of their logs. The second validation set carries its size in its name."""
    if re.fullmatch(r"val/\.slimpajama\w*_loss", key):
        return "loss_slimpajama"
    return LOGS.get(key)


def _points(frame: Any, key: str) -> dict[int, float]:
    if not frames.is_frame(frame):
        raise TypeError(f"log {key} is no table")
    columns = frames.columns_of(frame)
    steps = next((values for name, values in columns.items() if name == "_step"), None)
    values = next((values for name, values in columns.items() if name != "_step"), None)
    if steps is None or values is None:
        raise ValueError(f"log {key} has columns {', '.join(columns)}")
    numbers = np.asarray(values, dtype=float)  # wandb writes the text NaN, which float understands
    return dict(zip(np.asarray(steps, dtype=np.int64).tolist(), numbers.tolist(), strict=True))


def _last_values(curve: Curve | None) -> dict[str, Any]:
    if curve is None:
        return {"last_step": -1}
    found: dict[str, Any] = {"last_step": int(curve["step"][-1])}
    for column in ("loss", "train_loss", "loss_slimpajama"):
        values = curve.get(column, np.empty(0))
        known_values = values[~np.isnan(values)]
        found[column] = float(known_values[-1]) if len(known_values) else None
    times = curve.get("step_time_s", np.empty(0))
    times = times[~np.isnan(times)][-_LAST_POINTS:]
    return found | {"step_time_s": float(times.mean()) if len(times) else None}
