"""Imported runs as MLflow runs: parameters, final numbers, loss curves and where they come from."""

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sweeps.gather import RESULT_METRICS
from sweeps.published import PublishedStudy
from tasks import tracking
from tasks.state import State

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Progress = Callable[[str, int, int], None]
"""Told what happens, how much of it is done and how much there is; 0 of 0 where nobody knows."""

IMPORTER_VERSION = 1
"""Raise it when an imported MLflow run is written differently: all are then written again."""
CONTENT = "isoflop.content"
"""Tag: SHA-256 of all that an imported run holds; the same content is not written again."""
CURVE_POINTS = 100
"""Points of a curve that MLflow gets, its ends among them. The folder's curves.parquet has every point."""
MAX_BATCH = 800
"""Metrics in one request, so that parameters and tags fit beside them into MLflow's limit of 1,000."""
CURVES = ("loss", "train_loss")

PARAMETERS = (
    "arch", "context_length", "budget", "N", "N_non_embedding", "D", "token_param_ratio", "train_flops",
    "flop_convention", "d_model", "num_blocks", "num_heads", "head_dim_qk", "head_dim_v", "ffn_dim",
    "vocab_size", "chunk_size", "batch_size", "steps", "peak_lr", "warmup_steps", "cooldown_steps",
    "weight_decay", "seed",
    "experiment_set", "run_set", "preset_token_param_ratio", "num_devices",
)  # fmt: skip
TAGS = (
    "run_key", "run_name", "arch", "budget", "N", "N_non_embedding", "D", "train_flops", "flop_convention",
    "experiment_set", "run_set", "published_id", "excluded", "device", "error", "copies", "source_tags",
    "source_file", "source_sha256", "loss_source",
)  # fmt: skip
"""Columns that become tags `isoflop.NAME`: what gathering needs, and provenance."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What an import did to MLflow."""

    experiment_id: str
    run_ids: list[tuple[str, str]]
    """Run key and MLflow run of every run of the table."""
    new: int
    replaced: int
    """Runs whose content had changed, or whose import was cut off."""
    unchanged: int


def write_runs(
    study: PublishedStudy, state: State, experiment: str, superseded: Container[str], progress: Progress
) -> Written:
    """Give every run of a study its MLflow run, finished or failed as it was; whatever is right stays.

    MLflow runs of the keys `superseded` are deleted, so that no run counts twice; MLflow can restore them.
    """
    client = tracking.client(state.tracking_uri)
    experiment_id = tracking.ensure_experiment(state, experiment)
    there = _there(client, experiment_id)
    curves = study.curves.partition_by("run_key", as_dict=True)
    run_ids: list[tuple[str, str]] = []
    new = replaced = 0
    rows = study.runs.to_dicts()
    for number, row in enumerate(rows):
        progress("writing to MLflow", number, len(rows))
        entry = _entry(row, curves.get((row["run_key"],)))
        found = there.pop(row["run_key"], [])
        good = [run for run in found if run.content == entry.content and run.complete]
        for run in found:
            if run not in good[:1]:
                client.delete_run(run.run_id)
        if good:
            run_ids.append((row["run_key"], good[0].run_id))
            continue
        run_ids.append((row["run_key"], _write(client, experiment_id, entry)))
        new, replaced = (new, replaced + 1) if found else (new + 1, replaced)
    for key, left in there.items():
        for run in left if key in superseded else []:
            client.delete_run(run.run_id)
    progress("writing to MLflow", len(rows), len(rows))
    return Written(
        experiment_id=experiment_id,
        run_ids=run_ids,
        new=new,
        replaced=replaced,
        unchanged=len(rows) - new - replaced,
    )


@dataclass(frozen=True, kw_only=True)
class _Tracked:
    run_id: str
    content: str | None
    complete: bool


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One MLflow run to be."""

    name: str
    status: str
    start_ms: int
    end_ms: int
    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: list[tuple[str, float, int, int]]
    """Name, value, milliseconds, step."""
    content: str


def _there(client: "MlflowClient", experiment_id: str) -> dict[str, list[_Tracked]]:
    """The MLflow runs of each run key."""
    found: dict[str, list[_Tracked]] = {}
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`{tracking.RUN_KEY}` LIKE '%'", max_results=1000, page_token=token
        )
        for run in page:
            tracked = _Tracked(
                run_id=run.info.run_id,
                content=run.data.tags.get(CONTENT),
                complete=run.info.status in ("FINISHED", "FAILED"),
            )
            found.setdefault(run.data.tags[tracking.RUN_KEY], []).append(tracked)
        token = page.token
        if not token:
            return found


def _write(client: "MlflowClient", experiment_id: str, entry: _Entry) -> str:
    """A run is FINISHED or FAILED only when all of it is written: a crash leaves one that says RUNNING."""
    from mlflow.entities import Metric, Param

    run = client.create_run(experiment_id, start_time=entry.start_ms, tags=entry.tags, run_name=entry.name)
    run_id = str(run.info.run_id)
    parameters = [Param(name, value) for name, value in entry.parameters.items()]
    metrics: list[Metric] = [Metric(*point) for point in entry.metrics]
    for start in range(0, max(1, len(metrics)), MAX_BATCH):
        batch = metrics[start : start + MAX_BATCH]
        client.log_batch(run_id, metrics=batch, params=parameters if start == 0 else [])
    client.set_terminated(run_id, entry.status, end_time=entry.end_ms)
    return run_id


def _entry(row: Mapping[str, Any], curve: pl.DataFrame | None) -> _Entry:
    start = _milliseconds(row["created_at"])
    length = round(1000 * (row["wall_time_s"] or 0))
    steps = row["steps"] or 0
    points = [
        (name, value, start + (length * step // steps if steps else 0), step)
        for name, value, step in _points(row, curve)
    ]
    tags = {f"isoflop.{name}": _text(row[name]) for name in TAGS if row[name] is not None}
    tags |= {"isoflop.spec": json.dumps(_spec(row)), "isoflop.importer": str(IMPORTER_VERSION)}
    if row["loss"] is not None and row["loss_exact"] is not None:
        bounds = f"bounded: {row['loss_low']!r} to {row['loss_high']!r}"
        tags["isoflop.loss"] = "exact" if row["loss_exact"] else bounds
    parameters = {name: _text(row[name]) for name in PARAMETERS if row[name] is not None}
    content = json.dumps([row["run_name"], row["status"], start, length, tags, parameters, points])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return _Entry(
        name=row["run_name"],
        status="FAILED" if row["status"] == "failed" else "FINISHED",
        start_ms=start,
        end_ms=start + length,
        tags=tags | {CONTENT: digest},
        parameters=parameters,
        metrics=points,
        content=digest,
    )


def _points(row: Mapping[str, Any], curve: pl.DataFrame | None) -> Iterator[tuple[str, float, int]]:
    """Metric, value and step: the curves, each ending in the run's final number, and the other results."""
    last = row["steps"] or 0
    for name in CURVES:
        steps, values = _thinned(curve, name)
        yield from ((name, value, step) for value, step in zip(values, steps, strict=True))
        if row[name] is not None and not (values and values[-1] == row[name]):
            yield name, row[name], max(last, steps[-1] if steps else 0)
    for name in (*RESULT_METRICS, "loss_low", "loss_high", "loss_slimpajama"):
        if name not in CURVES and row.get(name) is not None:
            yield name, row[name], last


def _thinned(curve: pl.DataFrame | None, name: str) -> tuple[list[int], list[float]]:
    """At most CURVE_POINTS of a curve, evenly, its ends among them."""
    if curve is None:
        return [], []
    logged = curve.filter(pl.col(name).is_not_null())
    count = logged.height
    kept = np.unique(np.linspace(0, count - 1, min(count, CURVE_POINTS)).round().astype(int))
    part = logged[kept.tolist()] if count else logged
    return part["step"].to_list(), part[name].to_list()


def _spec(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a RunSpec that gathering reads, as far as they are known."""
    return {
        **{name: row[name] for name in ("context_length", "batch_size", "steps", "seed")},
        "model": {name: row[name] for name in ("arch", "d_model", "num_blocks", "num_heads")},
        "optimizer": {"peak_lr": row["peak_lr"]},
    }


def _milliseconds(created_at: str | None) -> int:
    if not created_at:
        return 0
    return round(1000 * datetime.fromisoformat(created_at).timestamp())


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
