"""One planned run after another: done already, or trained in a process of its own."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from sweeps.plan import PlannedRun
from sweeps.resources import Resources
from tasks import tracking
from tasks.launcher import Launcher, LauncherError
from tasks.leases import Grant, LeasesClosed
from tasks.locks import run_lock, wait_for
from tasks.retries import next_attempt
from tasks.state import State
from tasks.time_limit import TimeLimit
from tasks.trunks import Trunks
from xlstm.data import Corpus
from xlstm.training.execution import Execution
from xlstm.training.failures import Failure
from xlstm.training.job import CHECKPOINT, RunResult, TrainJob


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a planned run."""

    status: Literal["cached", "finished", "failed", "paused"]
    loss: float | None = None
    error: str | None = None
    mlflow_run_id: str | None = None


class Engine(Protocol):
    """What trainings run on: processes of this machine, a Ray cluster, Slurm."""

    def run(self, job: TrainJob, *, timeout_s: float, hang_after_s: float, lease: int | None) -> RunResult:
        """Train to the end; a training that fails is a failed result and does not raise."""
        ...


class Room(Protocol):
    """Who finds room for trainings: the ledger of this machine, or a cluster's scheduler."""

    stopped: threading.Event

    def stop(self) -> None:
        """Let waiting threads give up with `LeasesClosed`."""
        ...

    def take(self, run: PlannedRun) -> AbstractContextManager[Grant]:
        """Room for a run; waits until there is."""
        ...


class Asked(Protocol):
    """Who wants runs trained: a sweep's spec, or whatever names its experiment and its resources like one."""

    @property
    def name(self) -> str:
        """The MLflow experiment."""
        ...

    @property
    def resources(self) -> Resources:
        """What a run gets."""
        ...


class Material(Protocol):
    """What runs read: a corpus, or whatever lies in a folder."""

    @property
    def folder(self) -> Path:
        """Handed to the trainings, which find their data there."""
        ...


class Hearing:
    """Hears how runs go on; this one says nothing. Called from the threads that train."""

    def started(self, run: PlannedRun) -> None:
        """A run has room and is trained now."""

    def retried(self, run: PlannedRun, attempt: int, error: str) -> None:
        """A run is tried again, after `error`."""


class Trainer:
    """Trains the runs of a sweep. Threads may share one; leaving it ends every training that still runs."""

    def __init__(
        self,
        spec: Asked,
        state: State,
        corpus: Material,
        room: Room,
        *,
        hearing: Hearing | None = None,
        launch: Callable[[], AbstractContextManager[Engine]] = Launcher,
        limit: TimeLimit | None = None,
        runs: Iterable[PlannedRun] = (),
    ) -> None:
        """`runs`: those that may share trunks with each other."""
        self.spec = spec
        self.state = state
        self.corpus = corpus
        self.room = room
        self.hearing = hearing or Hearing()
        self.limit = limit
        self.trunks = Trunks(state, runs)
        self._launch = launch
        self._exit = ExitStack()
        self._guard = threading.Lock()
        self._engine: Engine | None = None
        self._settled = tracking.Settled()
        self._parent = ""
        self.broken: str | None = None
        """Why no training can be started at all; the first that finds out stops the others."""

    def __enter__(self) -> Self:
        """Close what died without a word, and see what is done already."""
        experiment = tracking.ensure_experiment(self.state, self.spec.name)
        self._parent = tracking.sweep_run(self.state, experiment, self.spec.name)
        tracking.reconcile(self.state)
        self._settled = tracking.settled(self.state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.room.stop()
        self._exit.__exit__(kind, error, trace)

    def complete(self, run: PlannedRun) -> Outcome:
        """Have a run finished: it is already, or it is trained in a process of its own, or it fails."""
        if run.run_key in self._settled.finished:
            return Outcome(status="cached", mlflow_run_id=self._settled.finished[run.run_key])
        if run.run_key in self._settled.diverged:
            error = (
                f"{self._settled.diverged[run.run_key]} (earlier, and would again: lower its learning rate)"
            )
            return Outcome(status="failed", error=error)
        with self.take(run) as grant:
            if tracking.finished_run(self.state, run.run_key) is not None:
                return Outcome(status="cached")  # another flow trained it meanwhile
            if refusal := self._refusal(run):
                return Outcome(status="paused", error=refusal)
            self.hearing.started(run)
            result = self.train(run, grant)
            if result.status == "finished":
                self.trunks.finished(run, self._settled.finished.keys())
        return Outcome(
            status="paused" if result.failure is Failure.PAUSED else result.status,
            loss=result.loss,
            error=result.error,
            mlflow_run_id=result.mlflow_run_id,
        )

    def _refusal(self, run: PlannedRun) -> str | None:
        """Why a run is left to the next flow; None where it is not."""
        if self.limit is None:
            return None
        return self.limit.refusal(run, begun=(self.state.run_dir(run.run_key) / CHECKPOINT).exists())

    @contextmanager
    def take(self, run: PlannedRun) -> Iterator[Grant]:
        """This run and its trunk for this flow alone, then room on the machine; waits for all of them.

        In this order, since a flow that waits for another's run shall keep no room from others meanwhile.
        """
        with ExitStack() as held:
            for lock in (run_lock(self.state, run.run_key), self.trunks.lock(run)):
                if lock is None:
                    continue
                if not wait_for(lock, self.room.stopped):
                    raise LeasesClosed("the sweep is stopping")
                held.callback(lock.release)
            yield held.enter_context(self.room.take(run))

    def train(self, run: PlannedRun, grant: Grant) -> RunResult:
        """Train to the end, again by the rules of `retries`; a failure that stays is a failed result."""
        resources = self.spec.resources
        failures: list[Failure] = []
        micro_batch: int | None = None
        while True:
            if self.broken is not None:
                raise LeasesClosed("the sweep is stopping")
            job = self._job(run, grant, attempt=len(failures) + 1, micro_batch=micro_batch)
            try:
                result = self._started().run(
                    job,
                    timeout_s=resources.timeout_s,
                    hang_after_s=resources.hang_after_s,
                    lease=grant.descriptor,
                )
            except LauncherError as error:
                self.broken = str(error)
                self.room.stop()
                raise
            if result.failure is None:
                return result
            failures.append(result.failure)
            retry = next_attempt(failures, -(-run.spec.batch_size // len(job.devices)), micro_batch)
            if retry is None or self.room.stopped.wait(retry.pause_s):
                return result
            micro_batch = retry.micro_batch
            self.hearing.retried(run, len(failures) + 1, result.error or retry.reason)

    def _started(self) -> Engine:
        """What trainings run on, started by the first that needs it: imports of torch take seconds."""
        with self._guard:
            if self._engine is None:
                self._engine = self._exit.enter_context(self._launch())
            return self._engine

    def _job(self, run: PlannedRun, grant: Grant, *, attempt: int, micro_batch: int | None) -> TrainJob:
        resources = self.spec.resources
        return TrainJob(
            spec=run.spec,
            data_folder=self.corpus.folder,
            data_label=self.corpus.meta.name if isinstance(self.corpus, Corpus) else None,
            run_dir=self.state.run_dir(run.run_key),
            tracking_uri=self.state.tracking_uri,
            experiment=self.spec.name,
            run_name=run.name,
            tags={**run.tags, tracking.PARENT: self._parent},
            device=grant.device,
            peers=grant.peers,
            strategy=grant.strategy,
            threads=resources.threads,
            micro_batch=micro_batch,
            execution=Execution(**resources.execution.model_dump()),
            gpu_share=min(1.0, resources.gpus_of(run.N)),
            cache_folder=self.state.cache,
            attempt=attempt,
            checkpoint_every_s=resources.checkpoint_every_s,
            keep_final_checkpoint=resources.keep_final_checkpoint,
            pause_at=None if self.limit is None else self.limit.until,
            trunk=self.trunks.job(run),
        )
