"""What a sweep asks of MLflow and tells it. The client is imported when first used: it takes two seconds."""

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sweeps.gather import finished_runs
from tasks.locks import is_held
from tasks.state import State
from xlstm.training.failures import Failure
from xlstm.training.job import ATTEMPT, TrainJob, last_words

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_KEY = "isoflop.run_key"
FAILURE = "isoflop.failure"
ERROR = "isoflop.error"
REPORT = "isoflop.report"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
MODEL_TRAINING = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "loss",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "false",
}
"""What MLflow's UI reads off an experiment: that it holds trainings, and the metric to show first."""


@cache
def client(tracking_uri: str) -> "MlflowClient":
    """One client a store: it keeps a pool of connections."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri)


def ensure_experiment(state: State, name: str) -> str:
    """Id of the experiment of that name, made once, with its artifacts in the state folder."""
    with FileLock(state.lock("mlflow-experiment")):
        known = client(state.tracking_uri).get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        location = f"{state.artifact_root}/{name}"
        made = client(state.tracking_uri).create_experiment(name, location, tags=MODEL_TRAINING)
        return str(made)


def finished_run(state: State, run_key: str) -> str | None:
    """Id of a FINISHED MLflow run of this key with a loss: the one truth about whether a run is done."""
    wanted = f"tags.`{RUN_KEY}` = '{run_key}' AND attributes.status = 'FINISHED'"
    for run in search(state, wanted):
        if "loss" in run.data.metrics:
            return str(run.info.run_id)
    return None


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Runs that no training can add to."""

    finished: Mapping[str, str] = field(default_factory=dict)
    """Run keys with a finished run and a loss, with the id of that run."""
    diverged: Mapping[str, str] = field(default_factory=dict)
    """Run keys whose training diverged, with the error. They would again: a key determines its run."""


def settled(state: State) -> Settled:
    """What the store holds now, in two queries however many runs there are."""
    diverged = search(state, f"tags.`{FAILURE}` = '{Failure.DIVERGED}'")
    return Settled(
        finished=finished_runs(state.tracking_uri),
        diverged={
            run.data.tags[RUN_KEY]: run.data.tags[ERROR] for run in diverged if RUN_KEY in run.data.tags
        },
    )


def seem_settled(state: State, run_keys: Collection[str]) -> bool:
    """A guess whether no training can add to any of these runs, made without MLflow, which takes two seconds
    to import: it is good enough to start early by, and `settled` has the word. True where there is no guess.
    """
    if not state.is_tracked_here:
        return True
    try:
        with closing(sqlite3.connect(f"file:{state.tracking_db}?mode=ro", uri=True)) as database:
            found = {
                key for (key,) in database.execute(_SEEMINGLY_SETTLED, (RUN_KEY, FAILURE, Failure.DIVERGED))
            }
    except sqlite3.Error:
        return True
    return found.issuperset(run_keys)


_SEEMINGLY_SETTLED = """
    SELECT keys.value FROM runs
    JOIN tags AS keys ON keys.run_uuid = runs.run_uuid AND keys.key = ?
    LEFT JOIN tags AS failures ON failures.run_uuid = runs.run_uuid AND failures.key = ?
    WHERE runs.lifecycle_stage = 'active' AND (runs.status = 'FINISHED' OR failures.value = ?)
"""


def wall_times(state: State) -> dict[str, float]:
    """Seconds that every finished run took, by run key."""
    found = search(state, "attributes.status = 'FINISHED'")
    return {
        run.data.tags[RUN_KEY]: run.data.metrics["wall_time_s"]
        for run in found
        if RUN_KEY in run.data.tags and "wall_time_s" in run.data.metrics
    }


def orphans(state: State) -> list[Any]:
    """MLflow runs that say RUNNING and that no live process trains.

    A training killed by the kernel or a power cut cannot say so itself.
    """
    return [
        run
        for run in search(state, "attributes.status = 'RUNNING'")
        if RUN_KEY in run.data.tags and _nobody_trains(state, run.data.tags[RUN_KEY])
    ]


def reconcile(state: State) -> list[str]:
    """Mark the orphans KILLED; their run keys."""
    tracked = client(state.tracking_uri)
    left = orphans(state)
    for run in left:
        said = last_words(state.run_dir(run.data.tags[RUN_KEY]), run.info.run_id)
        failure, error = said or (Failure.KILLED, "killed: the training process died without a word")
        tracked.set_tag(run.info.run_id, FAILURE, failure)
        tracked.set_tag(run.info.run_id, ERROR, error)
        tracked.set_terminated(run.info.run_id, "KILLED")
    return [run.data.tags[RUN_KEY] for run in left]


def sweep_run(state: State, experiment_id: str, sweep: str) -> str:
    """Id of the run that stands for a whole sweep, made once: the parent of its trainings.

    It says FINISHED from the start: nothing runs in it, and a sweep that is cut off could not close it.
    """
    tracked = client(state.tracking_uri)
    with FileLock(state.lock("mlflow-experiment")):
        found = next(search(state, f"tags.`{REPORT}` = '{sweep}'", [experiment_id]), None)
        if found is not None:
            return str(found.info.run_id)
        run_id = str(tracked.create_run(experiment_id, tags={REPORT: sweep}, run_name=sweep).info.run_id)
        tracked.set_terminated(run_id, "FINISHED")
        return run_id


def close_attempt(job: TrainJob, failure: Failure, error: str) -> None:
    """Say FAILED for the last attempt of a run whose process is gone and could not say it."""
    attempt = job.run_dir / ATTEMPT
    if not attempt.exists():
        return
    tracked, run_id = client(job.tracking_uri), attempt.read_text(encoding="utf-8")
    if tracked.get_run(run_id).info.status == "RUNNING":
        tracked.set_tag(run_id, FAILURE, failure)
        tracked.set_tag(run_id, ERROR, error)
        tracked.set_terminated(run_id, "FAILED")


def log_report(
    state: State,
    experiment_id: str,
    sweep: str,
    files: list[Path],
    *,
    note: str = "",
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Put a report and its sources on the sweep's run, with a description (Markdown) and what the sweep
    found; the id of that run."""
    from mlflow.entities import Metric, RunTag

    tracked, run_id = client(state.tracking_uri), sweep_run(state, experiment_id, sweep)
    for file in files:
        tracked.log_artifact(run_id, str(file))
    now = time.time_ns() // 1_000_000
    found = [Metric(name, value, now, 0) for name, value in (metrics or {}).items()]
    tags = [RunTag(NOTE, note)] if note else []
    tracked.log_batch(run_id, metrics=found, tags=tags)
    if note:
        tracked.set_experiment_tag(experiment_id, NOTE, note)
    return run_id


def _nobody_trains(state: State, run_key: str) -> bool:
    """The training process holds a lock in the run's folder as long as it lives."""
    folder = state.run_dir(run_key)
    if not folder.exists():
        return True
    return not is_held(FileLock(folder / ".lock"))


def search(state: State, wanted: str, experiments: list[str] | None = None) -> Iterator[Any]:
    """MLflow runs that match a filter, in all experiments or in those of these ids, page by page."""
    tracked = client(state.tracking_uri)
    ids = experiments or [found.experiment_id for found in tracked.search_experiments()]
    token: str | None = None
    while True:
        page = tracked.search_runs(ids, filter_string=wanted, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
