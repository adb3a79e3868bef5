"""Trainings as jobs of Slurm, through submitit: one job a run, so that Slurm does the scheduling.

submitit and not Dask-jobqueue, whose jobs are workers that hold their nodes between runs and need a scheduler
in the flow's process that outlives them; a run of ours is hours long and needs no such thing.
"""

import math
import re
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sweeps.resources import Resources
from tasks.cluster import Lost, conclude, prepare, train_there, wait
from tasks.errors import UserError
from xlstm.training.failures import Failure
from xlstm.training.job import RunResult, TrainJob

QUEUE_EVERY_S = 5.0
JOB = "slurm_job"
"""In a run's folder: the job that trains it, for a flow that starts again while it does."""
STATES = {
    "OUT_OF_MEMORY": Failure.OUT_OF_MEMORY,
    "TIMEOUT": Failure.TIME_LIMIT,
    "DEADLINE": Failure.TIME_LIMIT,
    "NODE_FAIL": Failure.KILLED,
    "BOOT_FAIL": Failure.KILLED,
    "PREEMPTED": Failure.KILLED,
    "CANCELLED": Failure.KILLED,
}


class SlurmEngine:
    """A context manager; leaving it cancels the jobs that still run.

    Jobs outlive a flow that was killed: the next start of the sweep finds them and waits for them.
    """

    def __init__(
        self, resources: Resources, folder: Path, stopped: threading.Event, cluster: str = "slurm"
    ) -> None:
        """`cluster`: submitit's word; `local` runs the same jobs as processes of this machine, for tests."""
        self.resources = resources
        self.folder = folder
        self.stopped = stopped
        self.cluster = cluster
        self._jobs: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            import submitit
        except ModuleNotFoundError as error:
            message = (
                "resources.cluster.engine = slurm: submitit is not installed: pip install 'isoflop[slurm]'"
            )
            raise UserError(message) from error
        try:
            self._executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.cluster)
        except RuntimeError as error:
            raise UserError(f"resources.cluster.engine = slurm: {error}") from error
        self._submitit = submitit
        self._guard = threading.Lock()
        self._known: frozenset[str] = frozenset()
        self._asked = -math.inf
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._jobs.values():
            if not job.done():
                job.cancel(check=False)

    def run(self, job: TrainJob, *, timeout_s: float, hang_after_s: float, lease: int | None) -> RunResult:
        """Train to the end, when Slurm finds room; an earlier flow's job that trains it is joined."""
        sent = self._earlier(job) or self._submit(job, timeout_s)
        self._jobs[job.spec.run_key] = sent

        def is_over(seconds: float) -> bool:
            if not self._is_over(sent):
                self.stopped.wait(seconds)
            return self._is_over(sent)

        broken = wait(
            job, is_over=is_over, timeout_s=timeout_s, hang_after_s=hang_after_s, stopped=self.stopped
        )
        if broken is not None:
            sent.cancel(check=False)
        (job.run_dir / JOB).unlink(missing_ok=True)
        return conclude(job, lambda: _lost(sent, broken))

    def _submit(self, job: TrainJob, timeout_s: float) -> Any:
        log = prepare(job)
        with self._guard:
            self._executor.update_parameters(**self._parameters(job, timeout_s))
            sent = self._executor.submit(train_there, job.to_json(), str(log))
            self._known, self._asked = self._known | {sent.job_id}, time.monotonic()
        (job.run_dir / JOB).write_text(str(sent.job_id), encoding="utf-8")
        return sent

    def _is_over(self, sent: Any) -> bool:
        """By the result of its function, or by the queue, where it was killed before it wrote one."""
        return bool(sent.done()) or (self.cluster == "slurm" and sent.job_id not in self._queued())

    def _queued(self) -> frozenset[str]:
        """Our jobs that wait or run, asked for all threads at once; sacct would need accounting."""
        with self._guard:
            if time.monotonic() - self._asked > QUEUE_EVERY_S:
                command = ["squeue", "--me", "--noheader", "--format=%i"]
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
                if done.returncode == 0:  # a controller that restarts answers later
                    self._known, self._asked = frozenset(done.stdout.split()), time.monotonic()
            return self._known

    def _earlier(self, job: TrainJob) -> Any | None:
        """The job of an earlier flow where it has not ended."""
        path = job.run_dir / JOB
        if self.cluster != "slurm" or not path.exists():
            return None
        earlier: Any = self._submitit.SlurmJob(
            folder=self.folder / "%j", job_id=path.read_text(encoding="utf-8")
        )
        return None if self._is_over(earlier) else earlier

    def _parameters(self, job: TrainJob, timeout_s: float) -> dict[str, Any]:
        """One node, one task; Slurm's own limit a little after ours, so that ours has the word."""
        there = self.resources.cluster
        assert there is not None
        asked: dict[str, Any] = {
            "name": job.run_name[:60],
            "timeout_min": math.ceil(timeout_s / 60) + 5,
            "cpus_per_task": job.threads * len(job.devices),
        }
        if job.device.startswith("cuda"):
            asked["gpus_per_node"] = len(job.devices)
        if self.resources.memory_gib is not None:
            asked["mem_gb"] = math.ceil(self.resources.memory_gib)
        if self.cluster != "slurm":
            return asked
        wanted = {"partition": there.partition, "account": there.account, "constraint": there.constraint}
        asked |= {f"slurm_{key}": value for key, value in wanted.items() if value is not None}
        if there.options:
            asked["slurm_additional_parameters"] = dict(there.options)
        return asked


def _lost(sent: Any, broken: Failure | None) -> Lost:
    if broken is not None:
        return Lost(failure=broken, reason=f"job {sent.job_id} was cancelled")
    state = _state(sent)
    return Lost(failure=STATES.get(state, Failure.CRASHED), reason=f"job {sent.job_id} ended as {state}")


def _state(sent: Any) -> str:
    """Slurm's last word on a job: its controller's, which remembers for minutes, or its accounting's."""
    command = ["scontrol", "show", "job", "--oneliner", str(sent.job_id)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except FileNotFoundError:  # submitit's local mode
        said = ""
    found = re.search(r"JobState=(\w+)", said)
    return found[1] if found else (str(sent.state).split() or ["UNKNOWN"])[0]
