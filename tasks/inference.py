"""The Prefect tasks of an inference benchmark: plan, measure, gather, fit, report.

Nothing is measured twice: a finished MLflow run holds each point, under a key of the point, the device and
the version of torch.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from filelock import FileLock, Timeout
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.states import State as PrefectState

from reports.inference import render, sentences
from reports.provenance import Provenance
from sweeps.inference.analysis import InferenceAnalysis, analyse, reached_losses
from sweeps.inference.grid import PlannedPoint, plan_points, planned_row, too_large
from sweeps.inference.spec import BenchmarkSpec
from sweeps.inference.table import complete, from_published, read_measurements
from tasks import deployments, inference_tracking, tracking
from tasks.devices import gpus, machine
from tasks.errors import UserError
from tasks.importing import load_study
from tasks.inference_laws import Laws, load_of, read_laws
from tasks.inference_points import Outcome, measure_limits, measure_point
from tasks.inference_progress import PointProgress
from tasks.inference_spec import benchmark_name, read_benchmark
from tasks.locks import sweep_lock
from tasks.pipeline import artifact_key, report_link
from tasks.provenance import git_revision, versions
from tasks.state import State, open_state
from tasks.tracking_db import ensure_tracking_db
from xlstm.timing.machine import processor_name
from xlstm.training.files import write_atomically

LIMITS_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark under way."""

    spec: BenchmarkSpec
    state: State
    progress: PointProgress
    profile: str
    table: str | None
    device: Literal["cpu", "cuda"]
    machine: str
    """Device and version of torch: another one would give other times."""
    memory_bytes: float
    started_at: float

    @property
    def name(self) -> str:
        return benchmark_name(self.spec, self.table)

    @property
    def folder(self) -> Path:
        return self.state.sweep_dir(self.name)

    @property
    def regenerate(self) -> str:
        command = f"isoflop inference {self.profile}"
        return command if self.table is None else f"{command} --table {self.table}"


@contextmanager
def open_benchmark(
    profile: str, overrides: Mapping[str, Any] | None = None, *, table: str | None = None
) -> Iterator[Benchmark]:
    """The benchmark of a profile in the state folder, locked: one flow at a time works on it."""
    started_at = time.time()
    spec = read_benchmark(profile, overrides)
    state = open_state()
    ensure_tracking_db(state)
    deployments.bury_the_dead(state)
    name = benchmark_name(spec, table)
    lock = sweep_lock(state, name)
    try:
        lock.acquire(timeout=5)
    except Timeout as error:
        raise UserError(f"{name}: another flow run is at work on it; wait for it, or cancel it") from error
    with lock:
        here = table is None and spec.measurements == "here"
        device, described, memory = _device(spec, here)
        yield Benchmark(
            spec=spec,
            state=state,
            progress=PointProgress(state, name, str(flow_run.id)),
            profile=profile,
            table=table,
            device=device,
            machine=described,
            memory_bytes=memory,
            started_at=started_at,
        )


def _device(spec: BenchmarkSpec, here: bool) -> tuple[Literal["cpu", "cuda"], str, float]:
    """Where the points are measured, that in words, and its memory; UserError where they are to be measured
    `here` and it is not."""
    there = gpus()
    if here and spec.device == "cuda" and not there:
        raise UserError("device = cuda: no NVIDIA GPU is visible here; use auto or cpu")
    torch_version = versions().get("torch", "unknown")
    if there and spec.device != "cpu":
        memory = spec.memory_gib * 2**30 if spec.memory_gib else there[0].memory_bytes
        return "cuda", f"{there[0].name}, torch {torch_version}", memory
    memory = spec.memory_gib * 2**30 if spec.memory_gib else machine().memory_bytes
    return "cpu", f"{processor_name()}, {spec.threads} threads, torch {torch_version}", memory


def measures(benchmark: Benchmark) -> bool:
    """Whether points are measured here; else they come from a table."""
    return benchmark.table is None and benchmark.spec.measurements == "here"


@task(name="plan points", cache_policy=NO_CACHE)
def plan(benchmark: Benchmark) -> tuple[PlannedPoint, ...]:
    """The points in the order of their measurement."""
    points = plan_points(benchmark.spec, benchmark.device, benchmark.machine)
    benchmark.progress.enter(points)
    create_table_artifact(
        table=[{"point": p.name, "bytes": p.point.memory_bytes} for p in points],
        key=artifact_key("points", benchmark.name),
        description="Planned points",
    )
    return points


def measure_all(benchmark: Benchmark, points: Sequence[PlannedPoint]) -> list[dict[str, Any]]:
    """Measure what no finished run holds yet, one point at a time: a second one would share the device.

    The rows of the table, one a point. A point that fails is a failed task and a row, and no more.
    """
    benchmark.progress.stage("measuring")
    state = benchmark.state
    experiment = tracking.ensure_experiment(state, benchmark.name)
    parent = tracking.sweep_run(state, experiment, benchmark.name)
    known = inference_tracking.finished_points(state, {point.key for point in points})
    rows = []
    with FileLock(state.lock("inference-device")):
        for planned in points:
            if planned.key in known:
                result = known[planned.key]
                benchmark.progress.run(planned.key, "cached", mlflow_run_id=result["mlflow_run_id"])
            else:
                result = {}
                measure(benchmark, planned, experiment, parent, result, return_state=True)
            rows.append({**planned_row(planned), **result})
    return rows


@task(name="measure", task_run_name="measure {planned.name}", cache_policy=NO_CACHE)
def measure(
    benchmark: Benchmark, planned: PlannedPoint, experiment: str, parent: str, result: dict[str, Any]
) -> PrefectState:
    """One point in a process of its own, into `result`; Failed where there is no measurement."""
    benchmark.progress.run(planned.key, "running")
    refused = too_large(planned.point, benchmark.memory_bytes)
    if refused is not None:
        outcome = Outcome(error=refused)
    else:
        folder = benchmark.folder / "points" / planned.key[:16]
        outcome = measure_point(planned.point, folder, timeout_s=benchmark.spec.timeout_s)
    result |= inference_tracking.log_point(benchmark.state, experiment, parent, planned, outcome)
    error = result.get("error")
    status: Literal["failed", "finished"] = "failed" if error else "finished"
    benchmark.progress.run(planned.key, status, error, mlflow_run_id=result["mlflow_run_id"])
    if error:
        return Failed(message=f"{planned.name}: {error}")
    said = f"first token {result['ttft_s']:.4g} s, step {1e3 * result['step_time_s']:.4g} ms"
    return Completed(message=said)


@task(name="device limits", cache_policy=NO_CACHE)
def limits_of(benchmark: Benchmark) -> dict[str, float]:
    """What the device does at best; measured once in each dtype."""
    state, spec = benchmark.state, benchmark.spec
    asked = f"{benchmark.machine}, {spec.dtype}"
    found = inference_tracking.known_limits(state, asked)
    if not found:
        folder = benchmark.folder / "points" / "limits"
        found = measure_limits(benchmark.device, spec.dtype, spec.threads, folder, timeout_s=LIMITS_TIMEOUT_S)
        experiment = tracking.ensure_experiment(state, benchmark.name)
        parent = tracking.sweep_run(state, experiment, benchmark.name)
        if found:
            inference_tracking.log_limits(state, experiment, parent, asked, found)
    return found


@task(name="gather measurements", cache_policy=NO_CACHE)
def gather(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The table of measurements, kept as `measurements.parquet`. UserError where nothing was measured."""
    return _kept(benchmark, complete(pl.DataFrame(list(rows), infer_schema_length=None)))


@task(name="read measurements", cache_policy=NO_CACHE)
def read(benchmark: Benchmark) -> pl.DataFrame:
    """Measurements from a file, or those that are published with the paper."""
    if benchmark.table is not None:
        return _kept(benchmark, read_measurements(Path(benchmark.table)))
    return _kept(benchmark, from_published(load_study(benchmark.state).inference))


def _kept(benchmark: Benchmark, table: pl.DataFrame) -> pl.DataFrame:
    temporary = benchmark.folder / ".measurements.parquet"
    table.write_parquet(temporary)
    temporary.replace(benchmark.folder / "measurements.parquet")
    if not (table["status"] == "finished").any():
        reason = next(iter(table["error"].drop_nulls()), "the table is empty")
        raise UserError(f"{benchmark.name}: none of {table.height} points was measured: {reason}")
    return table


@task(name="fit runtime", cache_policy=NO_CACHE)
def fit(benchmark: Benchmark, table: pl.DataFrame, limits: Mapping[str, float]) -> InferenceAnalysis:
    """Runtime models, crossovers, and what training and serving cost together."""
    benchmark.progress.stage("fitting")
    spec, archs = benchmark.spec, table["arch"].unique(maintain_order=True).to_list()
    laws = Laws() if spec.serving is None else read_laws(benchmark.state, spec.serving, archs)
    losses: Sequence[float] = ()
    if laws.trained and spec.serving is not None:
        losses = spec.serving.losses or reached_losses(laws.trained, laws.budgets)
    if laws.note:
        get_run_logger().info(laws.note)
    return analyse(
        table,
        resamples=spec.resamples,
        level=spec.level,
        holdout=spec.holdout,
        seed=spec.seed,
        load=None if spec.serving is None else load_of(spec.serving),
        trained=laws.trained,
        losses=losses,
        limits=limits,
        notes=[laws.note] if laws.note else [],
    )


@task(name="report inference", cache_policy=NO_CACHE)
def write_report(benchmark: Benchmark, analysis: InferenceAnalysis) -> Path:
    """The page in the benchmark's folder and in MLflow, with links as artifacts."""
    benchmark.progress.stage("reporting")
    table, path = analysis.table, benchmark.folder / "inference.html"
    source = "measured here" if benchmark.table is None else f"table {benchmark.table}"
    if benchmark.spec.measurements == "published":
        source = "published with xLSTM Scaling Laws (arXiv:2510.02228)"
    origin = Provenance(
        sweep=benchmark.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        spec_yaml=benchmark.spec.yaml,
        versions=versions(),
        git_revision=git_revision(),
        wall_time_s=time.time() - benchmark.started_at,
        device=", ".join(table["device"].drop_nulls().unique().sort().to_list()) or None,
        mlflow_url=os.environ.get("ISOFLOP_MLFLOW_URL"),
        regenerate=benchmark.regenerate,
    )
    write_atomically(path, render(analysis, origin))
    write_atomically(benchmark.folder / "runtime.json", json.dumps(coefficients(analysis), indent=2) + "\n")
    experiment = tracking.ensure_experiment(benchmark.state, benchmark.name)
    said = sentences(analysis)
    files = [path, benchmark.folder / "measurements.parquet", benchmark.folder / "runtime.json"]
    note = "\n".join([f"**{benchmark.name}**: {benchmark.spec.description}", "", *(f"- {s}" for s in said)])
    run_id = tracking.log_report(
        benchmark.state, experiment, benchmark.name, files, note=note, metrics=found(analysis)
    )
    link = report_link(path, experiment, run_id, origin.mlflow_url)
    benchmark.progress.reported(str(path), link)
    create_link_artifact(link=link, link_text="the report", key=artifact_key("report", benchmark.name))
    create_markdown_artifact(
        "\n".join(f"- {line}" for line in said),
        key=artifact_key("result", benchmark.name),
        description=f"Benchmark {benchmark.name}",
    )
    return path


def coefficients(analysis: InferenceAnalysis) -> dict[str, Any]:
    """The runtime models as JSON: rates and overheads with intervals, errors, held-out errors."""
    return {
        f"{arch} {kind}": {
            "device": model.device,
            "terms": {name: asdict(rate) for name, rate in model.rates().items()},
            "points": model.n_points,
            "median_error": model.median_error,
            "held_out_median_error": model.held_out.median_error if model.held_out else None,
        }
        for (arch, kind), model in analysis.models.items()
    }


def found(analysis: InferenceAnalysis) -> dict[str, float]:
    """What a benchmark found, as metrics of its run."""
    finished = analysis.table.filter(pl.col("status") == "finished").height
    metrics = {
        "points/finished": float(finished),
        "points/failed": float(analysis.table.height - finished),
    }
    for (arch, kind), model in analysis.models.items():
        metrics[f"{arch}/{kind}_median_error"] = model.median_error
        if model.held_out is not None:
            metrics[f"{arch}/{kind}_held_out_error"] = model.held_out.median_error
    return metrics


def conclude(benchmark: Benchmark, analysis: InferenceAnalysis, report: Path) -> PrefectState:
    """The flow's last word."""
    said = sentences(analysis)
    finished = analysis.table.filter(pl.col("status") == "finished").height
    tally = f"{finished} of {analysis.table.height} points measured"
    benchmark.progress.stage("done", "\n".join([tally, *said]))
    return Completed(message=f"{tally}; report: {report}")
