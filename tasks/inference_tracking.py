"""Points of an inference benchmark in MLflow: one run each, found again by its key."""

import statistics
import time
from collections.abc import Collection, Mapping
from typing import Any

from sweeps.inference.grid import PlannedPoint, planned_row
from tasks import tracking
from tasks.inference_points import Outcome
from tasks.provenance import git_revision
from tasks.state import State

POINT_KEY = "isoflop.point_key"
LIMITS_OF = "isoflop.limits_of"
KIND = "isoflop.kind"
_RESULTS = (
    "ttft_s",
    "ttft_spread",
    "step_time_s",
    "step_time_spread",
    "memory_bytes",
)


def finished_points(state: State, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """Results of the points that a finished run holds, by key, in the columns of the table."""
    wanted = f"tags.`{KIND}` = 'inference point' AND attributes.status = 'FINISHED'"
    found: dict[str, dict[str, Any]] = {}
    for run in tracking.search(state, wanted):
        key, metrics = run.data.tags.get(POINT_KEY), run.data.metrics
        if key in keys and all(name in metrics for name in _RESULTS):
            found[key] = {
                **{name: metrics[name] for name in _RESULTS},
                "status": "finished",
                "device": run.data.tags.get("isoflop.device"),
                "torch": run.data.tags.get("isoflop.version.torch"),
                "decode": run.data.tags.get("isoflop.decode"),
                "mlflow_run_id": run.info.run_id,
            }
    return found


def log_point(
    state: State, experiment_id: str, parent: str, planned: PlannedPoint, outcome: Outcome
) -> dict[str, Any]:
    """A run of a point, FINISHED or FAILED, and its result in the columns of the table."""
    result = results_of(outcome)
    described = planned_row(planned)
    params = {name: str(value) for name, value in described.items() if value is not None}
    tags = {
        KIND: "inference point",
        POINT_KEY: planned.key,
        tracking.PARENT: parent,
        "mlflow.source.name": "isoflop",
        "mlflow.source.git.commit": (git_revision() or "unknown").removesuffix("-dirty"),
    }
    found = outcome.measurement
    if found is None:
        tags[tracking.ERROR] = outcome.error or "unknown"
    else:
        tags |= {"isoflop.device": found.device, "isoflop.decode": found.decode}
        tags |= {f"isoflop.version.{name}": version for name, version in found.versions.items()}
    metrics = {name: float(result[name]) for name in _RESULTS if result.get(name) is not None}
    if found is not None:
        tokens = planned.point.batch_size
        metrics["prefill_tokens_per_s"] = tokens * planned.point.prefill_length / result["ttft_s"]
        metrics["decode_tokens_per_s"] = tokens / result["step_time_s"]
    metrics["wall_time_s"] = outcome.wall_time_s
    run_id = _log(
        state,
        experiment_id,
        planned.name,
        params=params,
        metrics=metrics,
        tags=tags,
        status="FAILED" if found is None else "FINISHED",
        took_s=outcome.wall_time_s,
    )
    return result | {"mlflow_run_id": run_id}


def results_of(outcome: Outcome) -> dict[str, Any]:
    """An outcome in the columns of the table."""
    found = outcome.measurement
    if found is None:
        return {"status": "failed", "error": outcome.error}
    ttft, step = statistics.median(found.ttft_s), statistics.median(found.step_time_s)
    return {
        "status": "finished",
        "ttft_s": ttft,
        "ttft_spread": (max(found.ttft_s) - min(found.ttft_s)) / ttft,
        "step_time_s": step,
        "step_time_spread": (max(found.step_time_s) - min(found.step_time_s)) / step,
        "memory_bytes": float(found.memory_bytes),
        "decode": found.decode,
        "device": found.device,
        "torch": found.versions.get("torch"),
    }


def known_limits(state: State, asked: str) -> dict[str, float]:
    """What the device does at best, where it was measured; else empty. `asked`: machine and dtype."""
    wanted = f"tags.`{KIND}` = 'device limits' AND attributes.status = 'FINISHED'"
    for run in tracking.search(state, wanted):
        if run.data.tags.get(LIMITS_OF) == asked:
            return dict(run.data.metrics)
    return {}


def log_limits(
    state: State, experiment_id: str, parent: str, asked: str, limits: Mapping[str, float]
) -> None:
    """A run for the device's limits; `asked` as in `known_limits`."""
    tags = {KIND: "device limits", LIMITS_OF: asked, tracking.PARENT: parent}
    _log(state, experiment_id, "device limits", params={}, metrics=limits, tags=tags, status="FINISHED")


def _log(
    state: State,
    experiment_id: str,
    name: str,
    *,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    status: str,
    took_s: float = 0.0,
) -> str:
    """One run in a few calls: it begins when its measurement did, and is never left RUNNING for long."""
    from mlflow.entities import Metric, Param, RunTag

    tracked, now = tracking.client(state.tracking_uri), time.time_ns() // 1_000_000
    made = tracked.create_run(experiment_id, start_time=now - int(1e3 * took_s), run_name=name)
    run_id = str(made.info.run_id)
    tracked.log_batch(
        run_id,
        params=[Param(key, value) for key, value in params.items()],
        metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    tracked.set_terminated(run_id, status)
    return run_id
