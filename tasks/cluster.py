"""What the engines of clusters share: a training as a function to send, and how its end is understood.

The cluster's own scheduler finds room for a run; nothing is leased on the machine of the flow. The state
folder must be on a file system that all machines share, and the tracker a PostgreSQL where there are several.
"""

import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sweeps.plan import PlannedRun
from sweeps.resources import Resources
from tasks import tracking
from tasks.child import Limits, Watch
from tasks.devices import devices_of, strategy_of
from tasks.leases import Grant, LeasesClosed
from xlstm.training.failures import Failure, describe
from xlstm.training.job import PROGRESS, RESULT, RunResult, TrainJob

LOG = "log.txt"
NO_PLACE = -1
"""Instead of a lease's file."""


class Elsewhere:
    """Room on a cluster: as much as its scheduler finds. `device` is what a training finds there."""

    def __init__(self, device: str, resources: Resources) -> None:
        self.device = device
        self.resources = resources
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()

    @contextmanager
    def take(self, run: PlannedRun) -> Iterator[Grant]:
        if self.stopped.is_set():
            raise LeasesClosed("the sweep is stopping")
        kind = self.device.partition(":")[0]
        count = devices_of(run, self.resources)
        peers = tuple(f"{kind}:{i}" if kind == "cuda" else kind for i in range(1, count))
        strategy = strategy_of(run, self.resources)
        yield Grant(device=self.device, peers=peers, strategy=strategy, descriptor=NO_PLACE)


def train_there(job: str, log: str) -> None:
    """On the cluster: train, with output to the run's log. result.json and the tracker say how it ended."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    from xlstm.training.run import train

    try:
        train(TrainJob.from_json(job))
    except Exception:
        traceback.print_exc()


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A training that the cluster ended, or that ended without a result."""

    failure: Failure
    reason: str


def wait(
    job: TrainJob,
    *,
    is_over: Callable[[float], bool],
    timeout_s: float,
    hang_after_s: float,
    stopped: threading.Event,
) -> Failure | None:
    """Until a training is over; the limit that it broke where it has to be ended.

    `is_over` waits up to so many seconds for the end. The time limit counts from the first sign of life, as
    the cluster may keep a run waiting for days.
    """
    progress = job.run_dir / PROGRESS
    before = progress.stat().st_mtime_ns if progress.exists() else None
    started: float | None = None
    watch: Watch | None = None
    while not is_over(1.0):
        if stopped.is_set():
            return Failure.STOPPED
        if started is None:
            if progress.exists() and progress.stat().st_mtime_ns != before:
                started = time.monotonic()
                watch = Watch(Limits(timeout_s=timeout_s, hang_after_s=hang_after_s, progress=progress))
            continue
        if time.monotonic() - started > timeout_s:
            return Failure.TIME_LIMIT
        if watch is not None and math.isfinite(hang_after_s) and watch.is_stalled():
            return Failure.HUNG
    return None


def conclude(job: TrainJob, lost: Callable[[], Lost]) -> RunResult:
    """The result that the training left, or what the cluster says of its end, told to the tracker too."""
    written = job.run_dir / RESULT
    if written.exists():
        return RunResult.from_json(written.read_text(encoding="utf-8"))
    end = lost()
    error = describe(end.failure, end.reason)
    tracking.close_attempt(job, end.failure, error)
    return RunResult(run_key=job.spec.run_key, status="failed", error=error, failure=end.failure)


def prepare(job: TrainJob) -> Path:
    """Make the run's folder ready for an attempt; its log."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    (job.run_dir / RESULT).unlink(missing_ok=True)
    return job.run_dir / LOG
