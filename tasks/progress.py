"""How far a sweep is: written by the flow, joined with what each training says, read by its followers."""

import copy
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from sweeps.plan import PlannedRun
from tasks.forecast import Pace, makespan, pace
from tasks.state import State
from xlstm.training.files import write_atomically

Status = Literal["queued", "running", "finished", "cached", "failed", "paused"]
FILE = "progress.json"
CACHED_EVERY_S = 0.5


@dataclass(kw_only=True)
class RunProgress:
    """One run of the plan."""

    run_key: str
    name: str
    arch: str = ""
    budget: float = 0.0
    estimated_s: float
    status: Status = "queued"
    started_at: float | None = None
    wall_time_s: float | None = None
    attempt: int = 1
    loss: float | None = None
    mlflow_run_id: str | None = None
    error: str | None = None
    """Why it failed; of a run that is tried again, why its last attempt did."""


@dataclass(kw_only=True)
class SweepProgress:
    """What the flow knows."""

    sweep: str
    flow_run_id: str
    slots: int = 1
    stage: str = "starting"
    message: str = ""
    report: str | None = None
    report_url: str | None = None
    runs: list[RunProgress] = field(default_factory=list)

    def count(self, *statuses: Status) -> int:
        return sum(run.status in statuses for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a running training says of itself in its run folder."""

    name: str
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None


class ProgressWriter:
    """Keeps `sweeps/<name>/progress.json` true. Threads may share one."""

    def __init__(self, state: State, sweep: str, flow_run_id: str) -> None:
        self._path = state.sweep_dir(sweep) / FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._progress = SweepProgress(sweep=sweep, flow_run_id=flow_run_id)
        self._by_key: dict[str, RunProgress] = {}
        self._write()

    def stage(self, stage: str, message: str = "") -> None:
        """What the flow does now."""
        with self._guard:
            self._progress.stage, self._progress.message = stage, message
            self._write()

    def plan(self, runs: Sequence[PlannedRun], slots: int) -> None:
        """Enter the runs, all queued."""
        with self._guard:
            self._progress.slots = slots
            self._progress.runs = []
            self._enter(runs)

    def add(self, runs: Sequence[PlannedRun]) -> None:
        """Enter runs that follow from those before them."""
        with self._guard:
            self._enter(runs)

    def _enter(self, runs: Sequence[PlannedRun]) -> None:
        self._progress.runs += [
            RunProgress(
                run_key=run.run_key,
                name=run.name,
                arch=run.spec.model.arch,
                budget=run.budget,
                estimated_s=run.estimated_s,
            )
            for run in runs
        ]
        self._by_key = {entry.run_key: entry for entry in self._progress.runs}
        self._write()

    def run(
        self,
        run_key: str,
        status: Status,
        error: str | None = None,
        *,
        loss: float | None = None,
        mlflow_run_id: str | None = None,
    ) -> None:
        """Move one run on."""
        with self._guard:
            entry = self._by_key[run_key]
            entry.status, entry.error = status, error
            entry.loss, entry.mlflow_run_id = loss, mlflow_run_id
            if status == "running":
                entry.started_at = time.time()
            elif entry.started_at is not None:
                entry.wall_time_s = time.time() - entry.started_at
            # A thousand cached runs pass in seconds: the file need not tell of each.
            if status != "cached" or time.monotonic() - self._written > CACHED_EVERY_S:
                self._write()

    def retry(self, run_key: str, attempt: int, error: str) -> None:
        """Note that a run is tried again."""
        with self._guard:
            entry = self._by_key[run_key]
            entry.attempt, entry.error = attempt, error
            self._write()

    def reported(self, path: str, url: str | None) -> None:
        """Where the report is."""
        with self._guard:
            self._progress.report, self._progress.report_url = path, url
            self._write()

    def snapshot(self) -> SweepProgress:
        """What is known at this moment."""
        with self._guard:
            return copy.deepcopy(self._progress)

    def _write(self) -> None:
        self._written = time.monotonic()
        write_atomically(self._path, json.dumps(asdict(self._progress)))


def read_progress(state: State, sweep: str) -> SweepProgress | None:
    """The last word of a sweep's flow; None if it never spoke."""
    try:
        fields = json.loads((state.sweep_dir(sweep) / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return SweepProgress(**{**fields, "runs": [RunProgress(**run) for run in fields["runs"]]})


def read_trainings(state: State, progress: SweepProgress) -> list[Training]:
    """What the running trainings say; one that has not spoken yet is at step 0."""
    return [_training(state, run) for run in progress.runs if run.status == "running"]


def _training(state: State, run: RunProgress) -> Training:
    said = {}
    path = state.run_dir(run.run_key) / "progress.json"
    if path.exists() and path.stat().st_mtime >= (run.started_at or 0.0):
        said = json.loads(path.read_text(encoding="utf-8"))
    return Training(
        name=run.name,
        step=said.get("step", 0),
        steps=said.get("steps", 0),
        loss=said.get("loss"),
        tokens_per_s=said.get("tokens_per_s"),
        eta_s=said.get("eta_s"),
    )


def pace_of(progress: SweepProgress) -> Pace:
    """How the runs that finished in this flow compare with their estimates."""
    return pace(
        (run, run.wall_time_s)
        for run in progress.runs
        if run.status == "finished" and run.wall_time_s is not None
    )


def time_left_s(progress: SweepProgress, trainings: Sequence[Training]) -> float | None:
    """Seconds until the last training ends. None until a run is done or a training has a forecast."""
    here = pace_of(progress)
    said = {training.name: training.eta_s for training in trainings}
    if here.overall is None and all(eta_s is None for eta_s in said.values()):
        return None
    running = [run for run in progress.runs if run.status == "running"]
    busy = [said.get(run.name) for run in running]
    return makespan(
        [here.seconds(run) if eta_s is None else eta_s for run, eta_s in zip(running, busy, strict=True)],
        [here.seconds(run) for run in progress.runs if run.status == "queued"],
        max(1, progress.slots),
    )
