"""From the tracker to the run table. MLflow's client reads any store: SQLite, PostgreSQL or a server."""

import json
from typing import Any

import polars as pl

from sweeps.run_table import RUN_TABLE_SCHEMA, complete

RESULT_METRICS = (
    "loss",
    "train_loss",
    "bpb",
    "epochs",
    "spent_flops",
    "wall_time_s",
    "step_time_s",
    "tokens_per_s",
    "memory_bytes",
)
"""Final metrics of a run, named as the run table's columns."""


def gather(plan: pl.DataFrame, tracking_uri: str) -> pl.DataFrame:
    """Run table of a plan: one row a planned run, finished, failed or missing.

    `plan` needs run_key and the columns of `Plan.table`. The budget is the plan's, since runs are shared.
    """
    latest: dict[str, dict[str, Any]] = {}
    for row in _tracked_rows(tracking_uri):
        if _better(row, latest.get(row["run_key"])):
            latest[row["run_key"]] = row
    results = [latest.get(key, {**_NEVER_TRAINED, "run_key": key}) for key in plan["run_key"].unique()]
    columns = {name: [row.get(name) for row in results] for name in _RESULT_SCHEMA}
    return complete(plan.join(pl.DataFrame(columns, schema=_RESULT_SCHEMA), on="run_key", how="left"))


def gather_experiment(name: str, tracking_uri: str) -> pl.DataFrame:
    """Run table of all finished runs of one MLflow experiment, without a plan.

    Raises ValueError where the experiment does not exist or holds no run of ours.
    """
    rows = [row for row in _tracked_rows(tracking_uri, name) if row["status"] == "finished"]
    if not rows:
        raise ValueError(f"MLflow experiment {name!r}: holds no finished run with the tag isoflop.run_key")
    by_key = {row["run_key"]: row | _planned_columns(row["tags"]) for row in rows}
    table = [{k: v for k, v in row.items() if k != "tags"} for row in by_key.values()]
    return complete(pl.DataFrame(table, infer_schema_length=None))


def finished_runs(tracking_uri: str) -> dict[str, str]:
    """Run keys that need no training again, and the MLflow run that holds each."""
    return {
        row["run_key"]: row["mlflow_run_id"]
        for row in _tracked_rows(tracking_uri)
        if row["status"] == "finished"
    }


_RESULT_SCHEMA = {
    name: RUN_TABLE_SCHEMA[name]
    for name in (
        "run_key",
        "status",
        "error",
        "device",
        "mlflow_run_id",
        "mlflow_experiment_id",
        *RESULT_METRICS,
    )
}
_NEVER_TRAINED = {"status": "missing", "error": "never trained"}


def _better(row: dict[str, Any], than: dict[str, Any] | None) -> bool:
    """A finished run beats any other; of the others the newest counts. Rows come newest first."""
    return than is None or (row["status"] == "finished" and than["status"] != "finished")


def _tracked_rows(tracking_uri: str, experiment: str | None = None) -> list[dict[str, Any]]:
    """Every tracked run with a run key, newest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    if experiment is None:
        ids = [found.experiment_id for found in client.search_experiments()]
    else:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = ", ".join(sorted(e.name for e in client.search_experiments()))
            raise ValueError(f"MLflow experiment {experiment!r}: not there; known are {known}")
        ids = [found.experiment_id]
    rows: list[dict[str, Any]] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            ids, order_by=["attributes.start_time DESC"], max_results=1000, page_token=token
        )
        rows += [_row(run) for run in page if "isoflop.run_key" in run.data.tags]
        token = page.token
        if not token:
            return rows


def _row(run: Any) -> dict[str, Any]:
    tags = run.data.tags
    status = "finished" if run.info.status == "FINISHED" and "loss" in run.data.metrics else "failed"
    return {
        "run_key": tags["isoflop.run_key"],
        "status": status,
        "error": None if status == "finished" else tags.get("isoflop.error", f"run is {run.info.status}"),
        "device": tags.get("isoflop.device"),
        "mlflow_run_id": run.info.run_id,
        "mlflow_experiment_id": run.info.experiment_id,
        **{name: run.data.metrics.get(name) for name in RESULT_METRICS},
        "tags": tags,
    }


def _planned_columns(tags: dict[str, str]) -> dict[str, Any]:
    spec = json.loads(tags["isoflop.spec"])
    return {
        "run_name": tags["isoflop.run_name"],
        "arch": tags["isoflop.arch"],
        "context_length": spec["context_length"],
        **{
            name: float(tags[f"isoflop.{name}"]) if f"isoflop.{name}" in tags else None
            for name in ("budget", "N", "N_non_embedding", "D", "train_flops")
        },
        **{name: spec[name] for name in ("seed", "batch_size", "steps")},
        **{name: spec["model"][name] for name in ("d_model", "num_blocks", "num_heads")},
        "peak_lr": spec["optimizer"]["peak_lr"],
    }
